"""What the studies on real images ask for, and whether their numbers fit the data."""

import functools
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.running.sweep import load_study
from segloss.data import ClassSets, estimate_acceptance

ROOT = Path(__file__).parents[1]
BALANCE_BATCH = {"camvid_balance_batch": "camvid"}
PRETRAINED = {
    "camvid_pretrained": "camvid",
    "voc_animals_pretrained": "voc_animals_256",
}


def load(study):
    return importlib.import_module(f"configs.sweeps.{study}")


@functools.cache
def count_pixels(root):
    """Names of the classes, and the pixels of each in every training image."""
    lines = (root / "classes.txt").read_text().splitlines()
    names = [line.split(maxsplit=1)[1] for line in lines]
    labels = [Image.open(p) for p in sorted(root.glob("train/labels/*.png"))]
    counts = [np.bincount(np.ravel(x), minlength=256)[: len(names)] for x in labels]
    return names, np.array(counts)


@pytest.mark.parametrize(
    ("study", "arms"),
    [("camvid_balance_batch", 15), ("cracks", 7)],
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
    _, counts = count_pixels(research_data(data))
    sets = ClassSets.from_counts(counts, min_pixels=module.MIN_PIXELS)
    for batch_cl, mean_batch_size in module.MEAN_BATCH_SIZES.items():
        tried = estimate_acceptance(
            sets, batch_cl=batch_cl, batch_max=module.BATCH_MAX, trials=3_000
        )
        assert tried.mean_batch_size == pytest.approx(mean_batch_size, abs=0.05)
        assert 0.2 < tried.acceptance < 0.9


def overrides_of(module):
    """The overrides of each arm, and its seeds."""
    runs, seeds = {}, {}
    for override in module.sweep():
        arm = override.pop("arm")
        seeds.setdefault(arm, []).append(override.pop("seed"))
        assert runs.setdefault(arm, override) == override
    return runs, seeds


def batches_of(study):
    """The `batch_max`, `batch_cl` and mean batch sizes."""
    module = load(study)
    if study == "camvid_pretrained":
        return [(module.BATCH_MAX, module.BATCH_CL, module.MEAN_BATCH_SIZE)]
    return [(batch_max, *x) for batch_max, x in module.BATCHES.items()]


@pytest.mark.parametrize("study", PRETRAINED)
def test_headlines_of_pretrained_studies_have_five_seeds_and_controls(study):
    module = load(study)
    runs, seeds = overrides_of(module)
    headline = [arm for arm, of_arm in seeds.items() if of_arm == [*range(5)]]
    assert len(headline) == 3 * 4
    assert [*seeds.values()].count([*range(3)]) == len(runs) - 12 == 15
    for arm, fields in runs.items():
        if fields["sampler"]["name"] == "balance_batch" and "-images" not in arm:
            control = {**fields["sampler"], "name": "matched_random"}
            assert runs[f"{arm}-matched"]["sampler"] == control
            assert (f"{arm}-matched" in headline) == (arm in headline)
    compared = {arm for pair in module.COMPARISONS for arm in pair}
    assert compared == runs.keys()


def test_bars_are_those_of_the_rules_in_the_readmes():
    rules = {}
    for readme in ROOT.glob("experiments/*/README.md"):
        text = " ".join(readme.read_text().split())
        for arm, score in re.findall(
            r"- `([^`]+)`[^.]* must reach .*? of (0\.\d+)", text
        ):
            rules[readme.parent.name] = {arm: float(score)}
    assert len(rules) == 6
    for path in ROOT.glob("configs/sweeps/*.py"):
        study = load_study(path)
        assert study.bars == rules.get(path.stem, {})
        assert study.bars.keys() <= {run["arm"] for run in study.sweep()}


@pytest.mark.parametrize("study", PRETRAINED)
def test_pretrained_arms_show_as_many_images_as_random_batches(study):
    module = load(study)
    runs, _ = overrides_of(module)
    for arm, fields in runs.items():
        if "-images" not in arm:
            assert "total_steps" not in fields
            continue
        sampler = fields["sampler"]
        (size,) = (x[2] for x in batches_of(study) if x[0] == sampler["batch_max"])
        images = fields["total_steps"] * size
        random = module.TOTAL_STEPS * sampler["batch_max"]
        assert images == pytest.approx(random, rel=0.01)


@pytest.mark.parametrize(("study", "data"), PRETRAINED.items())
def test_mean_batch_sizes_are_those_of_the_chosen_classes(study, data, research_data):
    module = load(study)
    names, counts = count_pixels(research_data(data))
    if study == "voc_animals_pretrained":
        counts = counts[:, [names.index(name) for name in module.CLASSES]]
    sets = ClassSets.from_counts(counts, min_pixels=module.MIN_PIXELS)
    for batch_max, batch_cl, size in batches_of(study):
        tried = estimate_acceptance(
            sets, batch_cl=batch_cl, batch_max=batch_max, trials=20_000
        )
        assert tried.mean_batch_size == pytest.approx(size, abs=0.05)
        assert 0.2 < tried.acceptance < 0.9
