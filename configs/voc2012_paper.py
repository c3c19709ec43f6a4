r"""The Balance-batch paper's protocol: DeepLab v2 from COCO weights on VOC 2012.

python run.py --config=configs/voc2012_paper.py:loss=ce,batch_max=9,batch_cl=8 \
    --config.data.root=DIR --config.model.pretrained=FILE --workdir=runs/voc2012_paper

What follows the colon, each item at will: `loss=ce|soft_iou|soft_dice`; `batch_max=N`,
the most images of a batch; `batch_cl=N`, the classes that Balance-batch promises, and
without it batches are random; `smoke`, a tiny network on embedded data, for seconds.

DIR is that of `configs/voc2012.py`, FILE `deeplabv1_resnet101-coco.pth` of
kazuto1011/deeplab-pytorch: without it, frozen norms have nothing to normalise by. What
the paper leaves open is as in that repository, except that:

- The learning rate falls with every step instead of every tenth.
- The loss is that of the whole batch, instead of the mean of two halves, and images
  that are too few for a batch at the end of an epoch are left out.
- Scaled sizes are not rounded down, and a crop can begin within a pixel: colours are
  interpolated at scale 1 as well.
- An image smaller than the crop lies at a random place in it, not at the top left.
- The mean colour, which also lies beside images, is ImageNet's, up to 1.3 of 255 levels
  away. Colours are in units of ImageNet's deviation, and the first kernel, multiplied
  by it, has a rate of its own so that it learns as fast: to 3 %, as there is one rate
  for three deviations.
- The pyramid begins with a deviation of 0.0104 (He) instead of 0.01.
- Evaluation pads sides to multiples of 32: 52 sizes to compile for val instead of 258.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict, config_dict

from configs import demo, voc2012

LOSSES = {
    # Eq. 1 sums over the pixels of a sample; the rate below is the reference's, which
    # takes the mean over those that are not void.
    "ce": dict(name="softmax_cross_entropy", normalize_by="pixels"),
    # Over the whole batch, and over its samples as Eq. 5 says; a class that the batch
    # lacks costs, but sends no gradient.
    "soft_iou": dict(name="soft_iou", classes="all", normalize_by="samples"),
    "soft_dice": dict(
        name="soft_dice",
        denominator="squared",
        classes="all",
        normalize_by="samples",
    ),
}
# Levels of 255 in a unit of an image's colours: the mean of the three deviations.
LEVELS = 255 * 0.226
KNOWN = f"smoke, loss={'|'.join(LOSSES)}, batch_max=N, batch_cl=N"


def get_config(argument: str = "") -> ConfigDict:
    items = _read(argument)
    smoke = "smoke" in items
    config = (
        (demo if smoke else voc2012).get_config("smoke" if smoke else "full").unlock()
    )
    if not smoke:
        config.total_steps = 20_000
        config.checkpoint_every_steps = 5_000
        config.evaluate_every_steps = 5_000
    config.augment = dict(
        scales=(0.5, 0.75, 1.0, 1.25, 1.5),  # the reference's; the paper has no numbers
        antialias=False,  # as OpenCV shrinks images there
        flip_probability=0.5,  # from the reference, which leaves colours as they are
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
            norm="frozen",  # statistics of few images are poor, those of the file good
            remat=False,  # True takes longer, and less memory
        ),
        # deeplabv1_resnet101-coco.pth, as above, or made from it by
        # `python -m segloss.models.pretrained`; the pyramid begins afresh.
        pretrained=config_dict.placeholder(str),
    )
    # Summed over the logits of each scale and the fused ones, as in the reference.
    del config.loss  # a list, which no assignment makes into one
    config.loss = LOSSES[items["loss"]]
    config.optimizer = dict(
        name="sgd",
        momentum=0.9,
        weight_decay=5e-4,
        decay="l2",
        # The reference makes its batch of 10 from 2 of 5, for want of memory. The
        # paper's batches are whole: `batch_cl` classes are those of one update.
        accumulate_steps=1,
        groups=(
            # The pyramid is new; what is below it was trained before.
            dict(match="aspp/.*/kernel", learning_rate_factor=10.0),
            dict(match="aspp/.*/bias", learning_rate_factor=20.0, weight_decay=0.0),
            # Images are the reference's over LEVELS, so this kernel is LEVELS times its
            # kernel, with gradients as much smaller: for the same step in proportion
            # the rate is LEVELS**2 times, and the decay in it stays what it was.
            dict(
                match="backbone/conv1/kernel",
                learning_rate_factor=LEVELS**2,
                weight_decay=5e-4 / LEVELS**2,
            ),
            # Scales and offsets stay with the statistics that they were trained on.
            dict(match="norm", frozen=True),
        ),
    )
    config.schedule = dict(
        name="polynomial", learning_rate=2.5e-4, power=0.9, warmup_steps=0
    )
    # The last one is reported, not the best on the images that it is judged by.
    config.evaluate.checkpoint = "newest"
    if smoke:
        config.model.network = dict(name="unet", depth=1, width=4)
        config.optimizer.groups = (
            dict(match="head", learning_rate_factor=10.0),
            dict(match="norm", frozen=True),
        )
    return config.lock()


def sampler(batch_max: int, batch_cl: int | None = None) -> dict:
    """Balance-batch, or random batches where there is no `batch_cl`."""
    if batch_cl is None:
        return dict(name="random", batch_max=batch_max)
    return dict(name="balance_batch", batch_max=batch_max, batch_cl=batch_cl)


def _read(argument: str) -> Mapping:
    given = {}
    for item in filter(None, argument.split(",")):
        name, _, value = item.partition("=")
        if name in given:
            raise ValueError(f"voc2012_paper: {name} is given twice in {argument!r}.")
        if item == "smoke" or (name == "loss" and value in LOSSES):
            given[name] = value
        elif name in ("batch_max", "batch_cl") and value.isdecimal():
            given[name] = int(value)
        else:
            raise ValueError(f"voc2012_paper: no item is {item!r}; known are {KNOWN}.")
    return {"loss": "ce", "batch_max": 9, "batch_cl": None} | given
