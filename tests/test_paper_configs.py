"""The paper's protocol and the studies, against numbers that are written down here."""

import collections
import csv
import functools
import gzip
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paper_protocol import DATA, LOSS_SECTIONS, PROTOCOL

from configs import voc2012_paper
from configs.sweeps.common import embedded
from configs.sweeps.common.voc2012_figures import MEAN_BATCH_SIZES
from experiments.voc2012.balance_batch_statistics import read_counts
from segloss.config import parse_config
from segloss.data import ClassSets, estimate_acceptance
from segloss.losses import LOSSES
from segloss.models import make_model
from segloss.train import make_setup
from segloss.train.optimizers import sgd
from segloss.train.setup import make_configured_optimizer, make_configured_schedule

ROOT = Path(__file__).parents[1]
FIGURES = {"voc2012_fig1": 9, "voc2012_fig3": 4, "voc2012_fig5": 6}
EMBEDDED = ("samplers", "losses", "class_weights")
STUDIES = (*FIGURES, "voc2012_qualitative", *EMBEDDED, "scenes_figures", "instability")
# By `batch_cl`, the steps that show 20,000 * batch_max images: 180,000 / 6.42 = 28,037.
STEPS_AT_EQUAL_IMAGES = {
    "voc2012_fig1": {
        2: 180_000,
        3: 107_784,
        4: 73_171,
        5: 53_412,
        6: 41_190,
        7: 33_149,
        8: 28_037,
        9: 24_965,
        10: 23_136,
        11: 22_032,
        12: 21_378,
    },
    "voc2012_fig3": {2: 80_000, 3: 47_904, 4: 32_787, 5: 25_641, 6: 22_792},
    "voc2012_fig5": {
        2: 120_000,
        3: 71_856,
        4: 48_583,
        5: 35_821,
        6: 28_571,
        7: 24_641,
        8: 22_727,
    },
}


def study(name):
    return importlib.import_module(f"configs.sweeps.{name}")


def arms(name):
    """Overrides by arm, once it is clear that all seeds have the same."""
    by_arm = collections.defaultdict(list)
    for overrides in study(name).sweep():
        by_arm[overrides.pop("arm")].append(overrides)
    for runs in by_arm.values():
        assert [run.pop("seed") for run in runs] in ([0, 1, 2], [0, 1, 2, 3, 4])
        assert all(run == runs[0] for run in runs)
    return {arm: runs[0] for arm, runs in by_arm.items()}


def random(batch_max):
    return {"name": "random", "batch_max": batch_max}


def balance_batch(batch_max, batch_cl):
    return {"name": "balance_batch", "batch_max": batch_max, "batch_cl": batch_cl}


def assert_protocol(config, *, loss, sampler):
    """Whole sections, so that a field too many is seen as well."""
    got = config.to_dict()
    data = got.pop("data")
    assert {name: data[name] for name in DATA} == DATA
    assert got == {**PROTOCOL, "loss": LOSS_SECTIONS[loss], "sampler": sampler}


@pytest.mark.parametrize(
    ("argument", "loss", "sampler"),
    [
        ("", "ce", random(9)),
        ("batch_max=9,batch_cl=8", "ce", balance_batch(9, 8)),
        ("batch_cl=4,loss=soft_iou,batch_max=4", "soft_iou", balance_batch(4, 4)),
        ("loss=soft_dice,batch_max=6", "soft_dice", random(6)),
    ],
)
def test_protocol_is_that_of_the_paper(argument, loss, sampler):
    config = voc2012_paper.get_config(argument)
    assert_protocol(config, loss=loss, sampler=sampler)
    # Half-way down, (1/2)^0.9 of the rate.
    rates = [
        float(make_configured_schedule(parse_config(config))(n))
        for n in (0, 10_000, 20_000)
    ]
    np.testing.assert_allclose(rates, [2.5e-4, 1.33972e-4, 0.0], rtol=1e-5)


def test_argument_that_is_none_is_refused_in_one_line():
    for item in ("loss=focal", "batch_cl=eight", "batch_max", "huge"):
        with pytest.raises(
            ValueError, match=f"unknown item '{item}'; known are smoke, l"
        ):
            voc2012_paper.get_config(f"smoke,{item}")
    with pytest.raises(ValueError, match="batch_cl is given twice"):
        voc2012_paper.get_config("batch_cl=2,batch_cl=3")


CONTROLLED = {"voc2012_fig1": (8, 12), "voc2012_fig3": (3, 4), "voc2012_fig5": (7, 8)}


@pytest.mark.parametrize(("name", "batch_max"), FIGURES.items())
def test_figures_have_the_batches_of_the_paper(name, batch_max):
    expected = {f"random{n}": {"sampler": random(n)} for n in range(1, 13)}
    for batch_cl, steps in STEPS_AT_EQUAL_IMAGES[name].items():
        sampler = balance_batch(batch_max, batch_cl)
        expected[f"cl{batch_cl}"] = {"sampler": sampler}
        expected[f"cl{batch_cl}-images"] = {"sampler": sampler, "total_steps": steps}
    controls = {}
    for arm in (f"cl{n}{i}" for n in CONTROLLED[name] for i in ("", "-images")):
        sampler = expected[arm]["sampler"] | {"name": "matched_random"}
        controls[f"{arm}-matched"] = expected[arm] | {"sampler": sampler}
    pairs = [(arm, f"random{batch_max}") for arm in expected if arm.startswith("cl")]
    pairs += [(arm.removesuffix("-matched"), arm) for arm in controls]
    expected |= controls
    assert arms(name) == expected
    paper = study(name).PAPER
    assert paper == {9: "ce", 4: "soft_iou", 6: "soft_dice"}[batch_max]
    config = study(name).get_config()
    assert_protocol(config, loss=paper, sampler=random(batch_max))
    # Every arm of Balance-batch with random batches as large as its own may be, and
    # some with those that are as large.
    assert sorted(study(name).COMPARISONS) == sorted(pairs)


def test_figures_of_images_have_the_best_arms_of_the_paper():
    got = arms("voc2012_qualitative")
    table = [(o["loss"], o["sampler"], o.get("total_steps")) for o in got.values()]
    ce, iou, dice = LOSS_SECTIONS.values()
    assert table == [
        (ce, random(9), None),
        (ce, balance_batch(9, 12), None),
        (ce, balance_batch(9, 12), 21_378),
        (iou, random(4), None),
        (iou, balance_batch(4, 4), None),
        (iou, balance_batch(4, 4), 32_787),
        (dice, random(6), None),
        (dice, balance_batch(6, 8), None),
        (dice, balance_batch(6, 8), 22_727),
    ]
    config = study("voc2012_qualitative").get_config()
    assert_protocol(config, loss="ce", sampler=random(9))


def test_embedded_studies_cross_all_samplers_losses_and_weights():
    got = arms("samplers")
    assert len(got) == 3 * (7 + 2 + 2)
    assert {o["loss"]["name"] for o in got.values()} == {
        "softmax_cross_entropy",
        "soft_dice",
        "soft_iou",
    }
    assert len({o["sampler"]["name"] for o in got.values()}) == 8
    # 1,000 steps of 9 images are 1,411 of 6.38 and 1,679 of 5.36.
    steps = {arm: o["total_steps"] for arm, o in got.items() if "total_steps" in o}
    assert steps == {
        f"{loss}-{sampler}-images": n
        for loss in ("ce", "dice", "iou")
        for sampler, n in (("balance_batch", 1_411), ("greedy_cover", 1_679))
    } | {
        f"{loss}-balance_batch-images-matched": 1_411 for loss in ("ce", "dice", "iou")
    }
    weights = {
        arm: (
            o["loss"].get("class_weights", {}).get("name"),
            o["sampler"]["name"],
            o.get("total_steps"),
        )
        for arm, o in arms("class_weights").items()
    }
    assert weights == {
        "none": (None, "random", None),
        "median_frequency": ("median_frequency", "random", None),
        "inverse_frequency": ("inverse_frequency", "random", None),
        "effective_number": ("effective_number", "random", None),
        "balance_batch": (None, "balance_batch", None),
        "balance_batch-matched": (None, "matched_random", None),
        "balance_batch-images": (None, "balance_batch", 1_411),
        "balance_batch-images-matched": (None, "matched_random", 1_411),
    }
    for name in EMBEDDED:
        for overrides in arms(name).values():
            assert overrides["sampler"]["batch_max"] == 9


def test_figures_on_scenes_have_the_batches_of_the_paper():
    got, module = arms("scenes_figures"), study("scenes_figures")
    for loss, largest, batch_max, classes in (
        ("ce", 12, 9, 12),
        ("iou", 6, 4, 6),
        ("dice", 8, 6, 8),
    ):
        for n in range(1, largest + 1):
            assert got[f"{loss}-random{n}"]["sampler"] == random(n)
        for n in range(3, classes + 1):
            sampler = balance_batch(batch_max, n)
            assert got[f"{loss}-cl{n}"]["sampler"] == sampler
    sizes = {n for n, o in got.items() if "total_steps" in o and "-crops" not in n}
    for arm in sizes:
        sampler = got[arm]["sampler"]
        batch_max = sampler["batch_max"]
        pair = batch_max, sampler["batch_cl"]
        images = got[arm]["total_steps"] * embedded.FIGURES_MEAN_BATCH_SIZES[pair]
        assert images == pytest.approx(1_000 * batch_max, rel=0.002)
    of_crops = [arm for arm, o in got.items() if o.get("augment.keep_classes")]
    assert of_crops == list(module.CROPS)


def test_every_loss_meets_both_kinds_of_batches():
    module, got = study("losses"), arms("losses")
    assert module.LOSSES.keys() == LOSSES.keys()
    assert list(got) == [
        f"{loss}-{batches}"
        for loss in module.LOSSES
        for batches in (
            "random",
            "balance_batch",
            "balance_batch-matched",
            "balance_batch-images",
        )
    ]
    for arm, overrides in got.items():
        name = "matched_random" if "matched" in arm else arm.split("-")[1]
        assert overrides["sampler"]["name"] == name
        assert overrides.get("total_steps") == (1_411 if "images" in arm else None)


def test_groups_are_those_of_the_whole_network():
    config = voc2012_paper.get_config()
    network = dict(config.model.network)
    model = make_model(network.pop("name"), num_classes=21, **network)
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
    # It refuses a group that is that of no parameter.
    jax.eval_shape(
        make_configured_optimizer(parse_config(config)).init, variables["params"]
    )


@pytest.mark.parametrize("name", STUDIES)
def test_comparisons_are_of_arms_that_differ_and_exist(name):
    module, got = study(name), arms(name)
    assert module.QUESTION.endswith("?")
    assert len(set(module.COMPARISONS)) == len(module.COMPARISONS)
    for arm, baseline in module.COMPARISONS:
        assert arm != baseline
        assert {arm, baseline} <= got.keys()
        # What is compared differs in one thing: the batches, or the loss.
        kinds = [k for k in ("sampler", "loss") if k in got[arm]]
        differ = [k for k in kinds if got[arm][k] != got[baseline][k]]
        assert len(differ) == 1 or name == "class_weights"
        if arm == f"{baseline}-matched" or baseline == f"{arm}-matched":
            assert got[arm].get("total_steps") == got[baseline].get("total_steps")
    with pytest.raises(ValueError, match="must be 'full' or 'smoke', got 'huge'"):
        module.get_config("huge")


@pytest.mark.parametrize("name", STUDIES)
def test_every_sampler_and_loss_of_a_study_is_set_up(name, datasets_dir):
    module = study(name)
    few = name not in EMBEDDED
    compared = module.COMPARISONS[0] if few else arms(name)
    seen = []
    for arm in compared:
        config = module.get_config("smoke").unlock()
        config.data.data_dir = str(datasets_dir)
        chosen = {k: v for k, v in arms(name)[arm].items() if k in ("sampler", "loss")}
        if all(any(v == s.get(k) for s in seen) for k, v in chosen.items()):
            continue
        seen.append(chosen)
        for section, fields in chosen.items():
            del config[section]
            config[section] = fields
        setup = make_setup(config.lock())
        assert 1 <= len(setup.sampler[0]) <= config.sampler.batch_max


def test_mean_batch_sizes_are_those_of_the_labels(research_data):
    _, counts = read_counts(research_data("voc_lists") / "class_pixel_counts.csv.gz")
    sets = ClassSets.from_counts(counts)
    for batch_max, sizes in MEAN_BATCH_SIZES.items():
        for batch_cl, size in sizes.items():
            got = estimate_acceptance(
                sets, batch_cl=batch_cl, batch_max=batch_max, trials=100_000
            )
            assert got.mean_batch_size == pytest.approx(size, abs=0.006)


def test_first_kernel_learns_as_the_reference_does_from_levels():
    """A linear layer of levels, and ours of levels over their deviation."""
    groups = voc2012_paper.get_config().optimizer.groups
    (own,) = (g for g in groups if g["match"] == "backbone/conv1/kernel")
    rng = np.random.default_rng(0)
    levels, target = rng.normal(0, 58, (64, 3)), rng.normal(size=64)
    weights = []
    for scale, group in ((1.0, ()), (57.63, (own,))):
        optimizer = sgd(lambda step: 1e-4, weight_decay=5e-4, groups=group)
        params = {"backbone": {"conv1": {"kernel": jnp.full((3, 1), 0.01 * scale)}}}
        state, x = optimizer.init(params), levels / scale

        def loss(params, x=x):
            kernel = params["backbone"]["conv1"]["kernel"]
            return jnp.mean((x @ kernel - target[:, None]) ** 2)

        for _ in range(5):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        weights.append(params["backbone"]["conv1"]["kernel"] / scale)
    assert np.abs(weights[0] - 0.01).max() > 0.005
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-4, atol=1e-7)


def test_sizes_to_compile_for_evaluation_are_those_of_the_labels(research_data):
    path = research_data("voc_lists") / "class_pixel_counts.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    hw = np.array([(row["height"], row["width"]) for row in rows], int)
    assert len(hw) == 1_449
    assert [len(np.unique(-(-hw // n), axis=0)) for n in (32, 1)] == [52, 258]
    said = "multiples of 32: 52 sizes to compile for val instead of 258."
    assert said in voc2012_paper.__doc__


def test_numbers_of_the_paper_stand_as_printed():
    with (ROOT / "experiments" / "paper.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    got = collections.defaultdict(dict)
    for row in rows:
        assert row["sampler"] == ("balance_batch" if row["batch_cl"] else "random")
        key = row["loss"], row["batch_max"], row["batch_cl"]
        got[key][row["metric"]] = row["value"]
    metrics = "mean_iou", "frequency_weighted_iou", "mean_accuracy", "pixel_accuracy"
    printed = {
        ("ce", "9", ""): "76.353 90.419 86.087 94.635",
        ("ce", "9", "2"): "73.232",
        ("ce", "9", "8"): "76.658",
        ("ce", "9", "12"): "76.788",
        ("soft_iou", "4", ""): "61.945 87.287 75.418 92.365",
        ("soft_iou", "4", "3"): "65.389",
        ("soft_iou", "4", "4"): "65.700 87.443 81.407 92.318",
        ("soft_dice", "6", ""): "73.062 88.775 87.959 93.351",
        ("soft_dice", "6", "7"): "73.211",
        ("soft_dice", "6", "8"): "73.964",
    }
    expected = {
        k: dict(zip(metrics, v.split(), strict=False)) for k, v in printed.items()
    }
    assert got == expected
    assert len(rows) == sum(map(len, expected.values()))
