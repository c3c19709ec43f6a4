"""What the studies on real images ask for, and whether their numbers fit the data."""

import importlib

import numpy as np
import pytest
from PIL import Image

from segloss.data import ClassSets, estimate_acceptance

BALANCE_BATCH = {"camvid_balance_batch": "camvid", "voc_animals": "voc_animals_256"}


def load(study):
    return importlib.import_module(f"configs.sweeps.{study}")


@pytest.mark.parametrize(
    ("study", "arms"),
    [("camvid_balance_batch", 15), ("voc_animals", 10), ("cracks", 7)],
)
def test_every_arm_has_the_same_three_seeds(study, arms):
    module = load(study)
    seeds = {}
    for override in module.sweep():
        seeds.setdefault(override["arm"], []).append(override["seed"])
    assert len(seeds) == arms
    assert set(map(tuple, seeds.values())) == {(0, 1, 2)}
    compared = [arm for arm, _ in module.COMPARISONS]
    baselines = {baseline for _, baseline in module.COMPARISONS}
    assert sorted([*compared, *baselines]) == sorted(seeds)


@pytest.mark.parametrize("study", BALANCE_BATCH)
def test_equal_images_are_as_many_as_the_random_arm_sees(study):
    module = load(study)
    total_steps = module.get_config().total_steps
    runs = {run["arm"]: run for run in module.sweep()}
    of_images = [arm for arm in runs if arm.endswith("-images")]
    assert of_images
    for arm in of_images:
        same_steps = runs[arm.removesuffix("-images")]
        assert "total_steps" not in same_steps
        assert same_steps["sampler"] == runs[arm]["sampler"]
        mean_batch_size = module.MEAN_BATCH_SIZES[runs[arm]["sampler"]["batch_cl"]]
        images = runs[arm]["total_steps"] * mean_batch_size
        assert images == pytest.approx(total_steps * module.BATCH_MAX, rel=0.01)


@pytest.mark.parametrize(("study", "data"), BALANCE_BATCH.items())
def test_mean_batch_sizes_are_those_of_the_data(study, data, research_data):
    module = load(study)
    root = research_data(data)
    num_classes = len((root / "classes.txt").read_text().splitlines())
    labels = [Image.open(p) for p in sorted(root.glob("train/labels/*.png"))]
    counts = np.array(
        [np.bincount(np.ravel(x), minlength=256)[:num_classes] for x in labels]
    )
    sets = ClassSets.from_counts(counts, min_pixels=module.MIN_PIXELS)
    for batch_cl, mean_batch_size in module.MEAN_BATCH_SIZES.items():
        tried = estimate_acceptance(
            sets, batch_cl=batch_cl, batch_max=module.BATCH_MAX, trials=3_000
        )
        assert tried.mean_batch_size == pytest.approx(mean_batch_size, abs=0.05)
        assert 0.2 < tried.acceptance < 0.9
