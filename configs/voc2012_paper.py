r"""The Balance-batch paper's protocol: DeepLab v2 from COCO weights on VOC 2012.

python run.py --config=configs/voc2012_paper.py:loss=ce,batch_max=9,batch_cl=8 \
    --config.data.root=DIR --config.model.pretrained=FILE --workdir=runs/voc2012_paper

Any of these items may follow the colon: `loss=ce|soft_iou|soft_dice`; `batch_max=N`,
the largest number of images in a batch; `batch_cl=N`, the number of distinct classes
for Balance-batch (batches are random without it); `smoke`, a tiny network on embedded
data that runs in seconds.

DIR is as in `configs/voc2012.py`. FILE is `deeplabv1_resnet101-coco.pth` of
kazuto1011/deeplab-pytorch; it is required, because the frozen norms use its statistics.
Where the paper gives no details, the protocol follows that repository, except that:

- The learning rate decays at every step instead of every tenth.
- The loss is computed over the whole batch, instead of as the mean of two halves, and
  the images of an incomplete batch at the end of an epoch are dropped.
- Scaled sizes are not rounded down, and crops may start between pixels, so colours are
  interpolated at scale 1 as well.
- An image smaller than the crop is placed at random in it, not at the top left.
- The mean colour, also used for padding, is ImageNet's; it differs by at most 1.3 of
  255 levels. Colours are divided by ImageNet's deviation. The first kernel is
  multiplied by it, and has its own learning rate so that it learns at the same speed
  (within 3 %, since one rate serves three deviations).
- The pyramid is initialised with a deviation of 0.0104 (He) instead of 0.01.
- Evaluation pads images to multiples of 32: 52 sizes to compile for val instead of 258.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict, config_dict

from configs import demo, voc2012
from segloss.errors import SeglossError

LOSSES = {
    # Eq. 1 sums over the pixels of a sample. The reference, from which the learning
    # rate is taken, averages over the pixels that are not void.
    "ce": dict(name="softmax_cross_entropy", normalize_by="pixels"),
    # Computed over the whole batch and divided by its samples, as in Eq. 5. A class
    # that is absent from the batch adds to the loss but has no gradient.
    "soft_iou": dict(name="soft_iou", classes="all", normalize_by="samples"),
    "soft_dice": dict(
        name="soft_dice",
        denominator="squared",
        classes="all",
        normalize_by="samples",
    ),
}
# Grey levels per unit of a normalised image: the mean of ImageNet's three deviations.
LEVELS = 255 * 0.226
KNOWN = f"smoke, loss={'|'.join(LOSSES)}, batch_max=N, batch_cl=N"


def get_config(argument: str = "") -> ConfigDict:
    items = _read(argument)
    smoke = "smoke" in items
    # The losses of all scales and of the fused logits are summed, as in the reference.
    loss = LOSSES[items["loss"]]
    if smoke:
        config = demo.get_config("smoke", loss).unlock()
    else:
        config = voc2012.get_config("full", loss).unlock()
        config.total_steps = 20_000
        config.checkpoint_every_steps = 5_000
        config.evaluate_every_steps = 5_000
    config.augment = dict(
        scales=(0.5, 0.75, 1.0, 1.25, 1.5),  # from the reference; not in the paper
        antialias=False,  # like OpenCV in the reference
        # In the paper, batch_cl classes are promised in the images, not in the crops.
        keep_classes=False,
        flip_probability=0.5,  # from the reference, which does not change colours
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
    )
    config.sampler = sampler(items["batch_max"], items["batch_cl"])
    config.model = dict(
        name="multi_scale",  # fused by the maximum
        scales=(0.5, 0.75, 1.0),
        network=dict(
            name="deeplab_v2",
            stage_sizes=(3, 4, 23, 3),  # ResNet-101
            norm="frozen",  # the file's statistics are better than those of few images
            remat=False,  # True takes more time and less memory
        ),
        # deeplabv1_resnet101-coco.pth, as above, or its conversion by
        # `python -m segloss.models.pretrained`; it does not contain the pyramid.
        pretrained=config_dict.placeholder(str),
    )
    config.optimizer = dict(
        name="sgd",
        momentum=0.9,
        weight_decay=5e-4,
        decay="l2",
        # The reference accumulates 2 batches of 5 to save memory. Here each update uses
        # one batch, so that the update has `batch_cl` classes, as in the paper.
        accumulate_steps=1,
        groups=(
            # The pyramid is trained from scratch; the backbone is pretrained.
            dict(match="aspp/.*/kernel", learning_rate_factor=10.0),
            dict(match="aspp/.*/bias", learning_rate_factor=20.0, weight_decay=0.0),
            # Images are divided by LEVELS, so this kernel is LEVELS times that of the
            # reference and its gradients are LEVELS times smaller. The same relative
            # step needs LEVELS**2 times the rate; dividing the decay keeps its product
            # with the rate.
            dict(
                match="backbone/conv1/kernel",
                learning_rate_factor=LEVELS**2,
                weight_decay=5e-4 / LEVELS**2,
            ),
            # Scales and offsets stay frozen, as their statistics do.
            dict(match="norm", frozen=True),
        ),
    )
    config.schedule = dict(
        name="polynomial", learning_rate=2.5e-4, power=0.9, warmup_steps=0
    )
    # Reports the last checkpoint, since choosing the best one on val would be biased.
    config.evaluate.checkpoint = "newest"
    if smoke:
        config.model.network = dict(name="unet", depth=1, width=4)
        config.optimizer.groups = (
            dict(match="head", learning_rate_factor=10.0),
            dict(match="norm", frozen=True),
        )
    return config.lock()


def sampler(batch_max: int, batch_cl: int | None = None) -> dict:
    """Returns the sampler's fields: Balance-batch, or random if `batch_cl` is None."""
    if batch_cl is None:
        return dict(name="random", batch_max=batch_max)
    return dict(name="balance_batch", batch_max=batch_max, batch_cl=batch_cl)


def _read(argument: str) -> Mapping:
    given = {}
    for item in filter(None, argument.split(",")):
        name, _, value = item.partition("=")
        if name in given:
            raise SeglossError(
                f"voc2012_paper: {name} is given twice in {argument!r}; give it once."
            )
        if item == "smoke" or (name == "loss" and value in LOSSES):
            given[name] = value
        elif name in ("batch_max", "batch_cl") and value.isdecimal():
            given[name] = int(value)
        else:
            raise SeglossError(
                f"voc2012_paper: unknown item {item!r}; known are {KNOWN}."
            )
    return {"loss": "ce", "batch_max": 9, "batch_cl": None} | given
