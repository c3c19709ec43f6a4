r"""Losses of a single sigmoid on cracks in asphalt; 1 pixel of 62 is a crack.

python -m experiments.run --config=configs/sweeps/cracks.py --config.data.root=DIR \
    --workdir=runs/cracks

DIR is CrackForest (Shi et al. 2016; 118 images of 320x480) in the `folder` format with
the splits `train` and `test`. Results: experiments/cracks/README.md.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import demo, folder
from configs.sweeps.common.arms import with_seeds

QUESTION = (
    "Which loss of one sigmoid finds thin cracks, with 61 pixels of asphalt to each of "
    "crack: cross-entropy, one of its weightings, or a loss of the overlap?"
)
LOSSES = {
    "bce": dict(name="sigmoid_cross_entropy"),
    # The ratio of negatives to positives.
    "pos_weight": dict(name="sigmoid_cross_entropy", pos_weight=60.0),
    "normalized": dict(name="normalized_sigmoid_cross_entropy"),
    "gated": dict(name="gated_sigmoid_cross_entropy"),
    "focal": dict(name="sigmoid_focal_loss"),
    "dice": dict(name="soft_dice", multi_label=True),
    "lovasz_hinge": dict(name="lovasz_hinge"),
}

COMPARISONS = tuple((loss, "bce") for loss in LOSSES if loss != "bce")


def get_config(size: str = "full") -> ConfigDict:
    if size == "smoke":
        # The demo's classes, each against all others.
        config = demo.get_config(size).unlock()
        config.sampler = dict(name="random", batch_max=4)
        config.loss = LOSSES["bce"]
        return config.lock()
    config = folder.get_config(size).unlock()
    config.total_steps = 500
    config.checkpoint_every_steps = 100
    # Evaluates only at the end.
    config.evaluate_every_steps = 10_000
    config.data.num_threads = 1
    config.data.crop_hw = (128, 192)
    config.augment.scale_range = (0.75, 1.25)
    config.augment.keep_classes = False  # as in the Balance-batch paper
    # Random batches, since every image has both classes.
    config.sampler.batch_max = 4
    config.model.update(depth=3, width=8)
    with config.ignore_type():
        config.model.input_stride = 2
    config.loss = LOSSES["bce"]
    config.schedule.update(learning_rate=1e-2, warmup_steps=50)
    # There is no third split; nothing is selected by the scores on this one.
    config.evaluate.update(split="test", final_split="test")
    return config.lock()


def sweep() -> Iterator[dict]:
    yield from with_seeds({name: {"loss": loss} for name, loss in LOSSES.items()})
