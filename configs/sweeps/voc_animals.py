r"""Random batches and Balance-batch on animals of VOC 2012, with two losses.

python -m experiments.run --config=configs/sweeps/voc_animals.py \
    --config.data.root=DIR --workdir=runs/voc_animals

DIR holds images of long side 256 in the `folder` format, as configs/folder.py has it.
Results: experiments/voc_animals/README.md.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import demo, folder

QUESTION = (
    "Does Balance-batch help cross-entropy and soft Dice where an image holds two or "
    "three of 21 classes, and the rarest are in one of three thousand images?"
)
LOSSES = {
    "ce": dict(name="softmax_cross_entropy"),
    "dice": dict(name="soft_dice"),
}
SEEDS = (0, 1, 2)
TOTAL_STEPS = 500
BATCH_MAX = 9
# Half a percent of an image of 256x192: a class counts where it can be seen.
MIN_PIXELS = 250
# Images of a batch in the mean, by batch_cl: `segloss.data.estimate_acceptance`.
MEAN_BATCH_SIZES = {6: 5.64, 8: 7.25}

COMPARISONS = tuple(
    (f"{loss}-cl{batch_cl}{suffix}", f"{loss}-random")
    for suffix in ("", "-images")
    for loss in LOSSES
    for batch_cl in MEAN_BATCH_SIZES
)


def get_config(size: str = "full") -> ConfigDict:
    if size == "smoke":
        config = demo.get_config(size).unlock()
        # Large enough for objects of so many pixels.
        config.data.image_hw = (96, 96)
        return config.lock()
    config = folder.get_config(size).unlock()
    config.total_steps = TOTAL_STEPS
    # At the end alone.
    config.checkpoint_every_steps = config.evaluate_every_steps = 10_000
    config.data.root = "../shared/data/voc_animals_256"
    config.data.num_threads = 1
    # Half size: the network sees images of long side 128. Scores are those of 256.
    config.data.crop_hw = (96, 96)
    config.augment.scale_range = (0.375, 0.625)
    config.evaluate.update(scales=(0.5,), batch_size=8)
    config.model.update(depth=4, width=12, input_stride=2)
    config.sampler = dict(name="random", batch_max=BATCH_MAX)
    del config.loss
    config.loss = LOSSES["ce"]
    config.schedule.update(learning_rate=4e-3, warmup_steps=50)
    return config.lock()


def sweep() -> Iterator[dict]:
    random = dict(name="random", batch_max=BATCH_MAX)
    for seed in SEEDS:
        for name, loss in LOSSES.items():
            common = {"seed": seed, "loss": loss}
            yield {"arm": f"{name}-random", **common, "sampler": random}
            for batch_cl, mean_batch_size in MEAN_BATCH_SIZES.items():
                sampler = dict(
                    name="balance_batch",
                    batch_max=BATCH_MAX,
                    batch_cl=batch_cl,
                    min_pixels=MIN_PIXELS,
                )
                arm = {"arm": f"{name}-cl{batch_cl}", **common, "sampler": sampler}
                yield arm
                # As many images as the random arm sees, in more steps.
                more = round(TOTAL_STEPS * BATCH_MAX / mean_batch_size)
                yield arm | {"arm": f"{arm['arm']}-images", "total_steps": more}
