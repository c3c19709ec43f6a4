"""From a study's file to its runs."""

import pytest
from ml_collections import ConfigDict

from configs.sweeps.common.arms import headline_first, with_seeds
from experiments.running.sweep import (
    check_comparisons,
    expand,
    load_study,
    smoke_overrides,
)


def base():
    return ConfigDict(
        {
            "seed": 0,
            "total_steps": 9,
            "sampler": {"name": "balance_batch", "batch_cl": 8},
            "loss": {"name": "soft_dice"},
        }
    ).lock()


def test_overrides_replace_whole_sections_and_leave_the_base_alone():
    random = {"name": "random", "batch_max": 4}
    runs = expand(
        base(),
        [
            {"arm": "random4", "seed": 1, "sampler": random},
            {"arm": "cl=3", "seed": 7, "sampler.batch_cl": 3},
        ],
    )
    assert [run.key for run in runs] == ["random4/seed=1", "cl=3/seed=7"]
    assert runs[0].config.sampler.to_dict() == random
    assert runs[0].config.seed == 1
    assert runs[0].overrides == {"sampler": random}
    second = runs[1].config
    assert (second.sampler.batch_cl, second.sampler.name) == (3, "balance_batch")
    assert base().sampler.batch_cl == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([{"arm": "a", "seed": 0, "seeed": 1}], "has no field 'seeed'"),
        ([{"arm": "a", "seed": 0, "seed.x": 1}], r"has no field 'seed\.x'"),
        ([{"arm": "a", "seed": 0, "data.root": 1}], r"has no field 'data\.root'"),
        ([{"arm": "a", "seed": 0}] * 2, "arm 'a' has seed 0 twice"),
        ([{"arm": "a/b", "seed": 0}], "must begin with a letter .* got 'a/b'"),
        # Such a name would be in no legend.
        ([{"arm": "_a", "seed": 0}], "got '_a'"),
        ([{"arm": "..", "seed": 0}], r"got '\.\.'"),
        ([{"arm": 3, "seed": 0}], "got 3"),
        ([{"seed": 0}], "has no 'arm'"),
        ([{"arm": "a"}], "has no 'seed'"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        expand(base(), overrides)


@pytest.mark.parametrize("comparison", [("a", "c"), ("a",), ("a", "b", "a")])
def test_comparisons_are_of_two_arms(comparison):
    runs = expand(base(), [{"arm": arm, "seed": 0} for arm in "ab"])
    check_comparisons([("a", "b")], runs, {"a": 0.5})
    with pytest.raises(ValueError, match=r"pairs of arms, got .* the arms are a, b"):
        check_comparisons([comparison], runs)
    with pytest.raises(ValueError, match=r"BARS must name arms, got 'c'; .* are a, b"):
        check_comparisons([], runs, {"c": 0.5})


STUDY = """
QUESTION = "Which?"
COMPARISONS = (("c", "b"),)
PAPER = "ce"

def get_config(size="full"):
    return size

def sweep():
    for arm in "abc":
        for seed in (5, 6, 7):
            yield {
                "arm": arm,
                "seed": seed,
                "sampler.batch_cl": 2,
                "loss": dict(name="soft_iou"),
                "total_steps": 20_000,
                "lossy.field": 1,
            }
"""


def test_study_is_read_and_smoke_takes_one_seed_of_the_first_comparison(tmp_path):
    path = tmp_path / "which.py"
    path.write_text(STUDY)
    study = load_study(path)
    assert (study.name, study.question, study.paper) == ("which", "Which?", "ce")
    assert study.get_config("smoke") == "smoke"
    assert study.bars == {}
    kept = {"sampler.batch_cl": 2, "loss": {"name": "soft_iou"}}
    assert smoke_overrides(study) == [{"arm": arm, "seed": 5, **kept} for arm in "bc"]
    path.write_text(STUDY.replace('(("c", "b"),)', "()"))
    assert [o["arm"] for o in smoke_overrides(load_study(path))] == list("ab")
    path.write_text(f"BARS = {{'b': 0.8}}\n{STUDY}")
    assert load_study(path).bars == {"b": 0.8}
    for wrong in ("{'b': 80}", "0.8"):
        path.write_text(f"BARS = {wrong}\n{STUDY}")
        with pytest.raises(ValueError, match=f"maps arms to .* 0 and 1, got {wrong}"):
            load_study(path)


def test_a_file_that_is_no_study_is_refused(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text("def get_config():\n    return 1\n")
    with pytest.raises(
        ValueError, match=r"has no 'sweep'; run\.py takes single configs"
    ):
        load_study(path)
    path.write_text("def get_config():\n    return 1\n\ndef sweep():\n    yield\n")
    with pytest.raises(ValueError, match="has no 'QUESTION'"):
        load_study(path)


def test_all_runs_of_headlines_come_before_the_others():
    arms = {"random": {}, "other": {"seen": 1}, "cl8": {}}
    runs = list(headline_first(arms, ["random", "cl8"]))
    first = [(run["arm"], run["seed"]) for run in runs[:10]]
    assert first == [(arm, seed) for seed in range(5) for arm in ("random", "cl8")]
    assert runs[10:] == [{"arm": "other", "seed": seed, "seen": 1} for seed in range(3)]
    assert len(runs) == len(list(with_seeds(arms, headline=["random", "cl8"])))
