"""Networks, weights and images that two libraries can make alike, without torch.

`make_network_values.py` runs torch on them, `tests/models/test_network_values.py` us.
"""

import numpy as np

ODD_SIZES = ((129, 161), (321, 321), (513, 513))
TINY = dict(stage_sizes=(1, 1, 2, 2), width=8)
LITE = dict(
    stage_sizes=(1, 2, 1, 1, 1, 1, 1), stage_widths=(4, 6, 5, 8, 7, 9, 8), stem_width=5
)
RESNET50, RESNET101 = dict(backbone="resnet50"), dict(backbone="resnet101")

# By name: a network of ours, its hyperparameters, and the heights and widths of images.
# The stem of DeepLab v2 pools one even and one odd side, where rounding up matters.
CASES = {
    "tiny deeplab_v2": ("deeplab_v2", TINY, ((67, 97),)),
    "tiny deeplab_v3": ("deeplab_v3", TINY, ((129, 161),)),
    "tiny efficientnet_lite": ("efficientnet_lite", LITE, ((77, 58),)),
    "tiny resnet": ("resnet", dict(TINY, output_stride=16), ((77, 58),)),
    "tiny vgg16": ("vgg16", dict(width=4, fc_width=16), ((77, 58),)),
    "resnet50": ("resnet", dict(stage_sizes=(3, 4, 6, 3)), ODD_SIZES),
    "resnet101": ("resnet", dict(stage_sizes=(3, 4, 23, 3)), ODD_SIZES),
    "vgg16": ("vgg16", dict(fc_width=4096), ODD_SIZES),
    "deeplab_v3 resnet50": ("deeplab_v3", RESNET50, ODD_SIZES),
    "deeplab_v3 resnet101": ("deeplab_v3", RESNET101, ODD_SIZES),
    "multi_scale deeplab_v2": ("multi_scale", RESNET101, ODD_SIZES),
}
NUM_CLASSES = 21
# How many numbers are stored of an array.
SAMPLES = 512


def random_weights(shapes):
    """A state dict in the layout of torch, from the names and shapes of its entries.

    Scales keep what residual blocks add up from growing with their number.
    """

    def draw(name, shape):
        rng = np.random.default_rng(list(name.encode()))
        if name.endswith("num_batches_tracked"):
            return np.zeros(shape, np.int64)
        if name.endswith("running_var"):
            values = rng.uniform(2, 4, shape)
        elif len(shape) in (2, 4):
            values = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name.endswith("weight"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.2, shape)
        return values.astype(np.float32)

    return {name: draw(name, tuple(shape)) for name, shape in shapes.items()}


def random_image(hw):
    """One image, channels last, of normal colours."""
    rng = np.random.default_rng(hw)
    return rng.normal(size=(1, *hw, 3)).astype(np.float32)


def random_labels(shape):
    """A class id for each pixel of logits of a shape, channels last."""
    return np.random.default_rng(shape).integers(0, shape[-1], shape[:-1])


def sample(array):
    """The numbers of an array, channels last, that are stored."""
    chosen = np.random.default_rng(array.shape).choice(array.size, SAMPLES)
    return np.asarray(array, np.float32).ravel()[chosen]
