"""What all studies together say of Balance-batch."""

import dataclasses
import math

import numpy as np
import pytest
from studies import make_run, make_study

from experiments.analysis.bars import bars_of, reached_bars
from experiments.analysis.compare import compare
from experiments.analysis.evidence import (
    CSV_NAME,
    Evidence,
    gini,
    read_evidence,
    select_evidence,
    to_csv,
)
from experiments.analysis.pooling import pool, random_effects
from experiments.analysis.store import load, save
from experiments.report.evidence import make_groups, write_evidence
from experiments.report.readme import write_study

BALANCED = {"name": "balance_batch", "batch_max": 4, "batch_cl": 3}
PLACE = "# Helps?\n\n<!-- results -->\n<!-- end of results -->\n"


def make_evidence(study="poles", difference=1.0, half=0.5, **fields):
    values = dict(
        study=study,
        data=f"images of {study}",
        arm="cl3",
        baseline="random4",
        loss="cross-entropy",
        kind="equal steps",
        seeds=5,
        gini=0.5,
        rarest_images=0.1,
        baseline_mean_iou=82.0,
        reached=True,
        difference=difference,
        low=difference - half,
        high=difference + half,
    )
    return Evidence(**values | fields)


def test_gini_of_equal_shares_is_0_and_of_one_class_nearly_1():
    assert gini([0.25] * 4) == pytest.approx(0)
    # Mean absolute difference 1/2 of two classes, over twice their mean of 1/2.
    assert gini([0.75, 0.25]) == pytest.approx(0.25)
    assert gini([1 - 9e-9, *[1e-9] * 9]) == pytest.approx(0.9)
    # A class without pixels does not count.
    assert gini([0.75, 0.0, 0.25]) == pytest.approx(0.25)


def test_random_effects_are_those_of_statsmodels():
    """combine_effects(..., method_re="dl", use_t=True), "random effect wls"."""
    found = random_effects([0.5, 1.2, -0.3, 2.0], [0.3, 0.25, 0.4, 0.6])
    expected = [0.788686, -0.682321, 2.259693]
    np.testing.assert_allclose(dataclasses.astuple(found)[:3], expected, atol=1e-6)


def test_intervals_of_few_studies_are_wide_and_never_nothing():
    assert math.isnan(pool([]).low)
    alone = random_effects([0.5], [0.1])
    assert (alone.low, alone.high) == pytest.approx((0.304, 0.696), abs=1e-3)
    # By chance both effects agree: Student's t with one degree of freedom is 12.7.
    agreed = random_effects([0.5, 0.5], [0.1, 0.1])
    assert agreed.high - 0.5 == pytest.approx(12.706 * 0.1 / math.sqrt(2), rel=1e-3)


def test_a_data_set_counts_once_however_many_studies_it_has():
    one = [make_evidence("a", 1.0), make_evidence("b", 3.0)]
    many = [make_evidence(x, x, data=one[0].data) for x in (0.5, 1.0, 1.5)] + one[1:]
    assert pool(many) == pool(one)
    assert pool(one).estimate == pytest.approx(0.02)


def test_only_balance_batch_against_random_batches_of_the_same_loss_counts():
    dice = {"name": "soft_dice"}
    runs = [
        *make_study().runs,
        # The baseline lacks these seeds.
        *(make_run("cl3", s, sampler=BALANCED, images_seen=300) for s in (3, 4)),
        *(make_run("dice", s, loss=dice, sampler=BALANCED) for s in range(3)),
        *(make_run("cover", s, sampler={"name": "greedy_cover"}) for s in range(3)),
        *(
            make_run("same", s, sampler={"name": "matched_random"}, images_seen=300)
            for s in range(3)
        ),
    ]
    pairs = (
        ("cl3", "random4"),
        ("cl3-images", "random4"),
        ("cl3", "same"),
        ("dice", "random4"),
        ("cover", "random4"),
        ("cl3", "cover"),
        ("random4", "same"),
    )
    study = make_study(runs=tuple(runs), comparisons=pairs, bars={"random4": 0.1})
    comparisons = compare(study, resamples=20)
    found = select_evidence(study, comparisons)
    assert [(e.arm, e.baseline, e.kind) for e in found] == [
        ("cl3", "random4", "equal steps"),
        ("cl3-images", "random4", "equal images"),
        ("cl3", "same", "equal steps and images"),
    ]
    first = found[0]
    assert first.gini == pytest.approx(gini([0.7, 0.25, 0.05]))
    assert (first.rarest_images, first.seeds) == (1.0, 3)
    # Not of each baseline alone.
    assert {e.reached for e in found} == {reached_bars(study)} == {True}
    assert first.difference == pytest.approx(
        100 * comparisons[0].scores["mean_iou"].estimate
    )


def test_what_is_stored_of_a_study_is_read_again(tmp_path):
    found = [make_evidence("a", reached=x) for x in (True, False, None)]
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / CSV_NAME
    path.write_text(to_csv(found))
    assert read_evidence(tmp_path) == found
    assert [e.bars for e in found] == ["reached", "below", "none"]
    for damaged in (
        path.read_text().replace(",gini,", ",Gini,"),
        path.read_text().replace("equal steps,5", "equal steps,five"),
        path.read_text().replace(",False,", ",80.0,"),
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"csv: .*; python -m .*collect a writes"):
            read_evidence(tmp_path)


def test_only_groups_of_studies_that_reached_their_bars_are_pooled():
    found = [
        make_evidence("a"),
        make_evidence("b", 1.1),
        make_evidence("c", -1.0, reached=None),
        make_evidence("a", loss="soft dice", kind="equal images"),
    ]
    groups = {(g.reached, g.kind, g.loss): g for g in make_groups(found)}
    assert set(groups) == {
        (True, "equal steps", "all losses"),
        (True, "equal steps", "cross-entropy"),
        (True, "equal images", "all losses"),
        (True, "equal images", "soft Dice"),
        (False, "equal steps", "all losses"),
        (False, "equal steps", "cross-entropy"),
    }
    assert groups[True, "equal steps", "all losses"].data_sets == 2
    # Three seeds are not pooled, and a data set alone is not either.
    found.append(make_evidence("d", 9.0, seeds=3))
    more, *_ = make_groups(found)
    assert (more.data_sets, more.pooled_data_sets) == (3, 2)
    assert more.pooled == groups[True, "equal steps", "all losses"].pooled
    assert groups[True, "equal images", "soft Dice"].pooled is None
    below = groups[False, "equal steps", "all losses"]
    assert below.pooled is None
    assert below.counts == "0 better, 1 worse, 0 no difference shown"


def test_the_page_says_where_it_helped_and_where_it_cannot_know(tmp_path):
    page = tmp_path / "helps.md"
    page.write_text(PLACE)
    found = [make_evidence(study, half=0.1) for study in ("a", "b")]
    write_evidence([*found, make_evidence("c", -1.0, reached=False)], page)
    text = page.read_text()
    assert "\nBetter on average: all losses at equal steps +1.00 (" in text
    assert "2 better, 0 worse, 0 no difference shown, of 2; mean over 2 data" in text
    assert "stayed below their bars" in text
    assert (tmp_path / "helps" / "forest.png").exists()
    write_evidence([make_evidence(loss="focal", reached=None)], page)
    text = page.read_text()
    assert "No study has reached a bar" in text
    assert "| other losses |" in text
    with pytest.raises(ValueError, match="no study has compared Balance-batch"):
        write_evidence([], page)


def test_a_readme_says_whether_the_bars_were_reached(tmp_path):
    study, folder = make_study(bars={"random4": 0.95}), tmp_path / "poles"
    save(study, folder / "results")
    assert load(folder / "results").bars == {"random4": 0.95}
    save(make_study(), tmp_path / "none")
    assert '"bars"' not in (tmp_path / "none" / "study.json").read_text()
    assert (bars_of(make_study()), reached_bars(make_study())) == ("", None)
    text = bars_of(study)
    assert "first run: random4 must reach a mean IoU of 95 %, and has " in text
    assert "the study stayed below its bars" in text
    (folder / "README.md").write_text(PLACE)
    write_study(study, folder, resamples=20)
    assert f"\n{text}\n" in (folder / "README.md").read_text()
    assert [e.reached for e in read_evidence(tmp_path)] == [False, False]
    write_study(make_study(comparisons=()), folder, resamples=20)
    assert read_evidence(tmp_path) == []


def test_all_bars_must_be_reached_and_be_of_arms():
    low = {"random4": 0.1}
    assert reached_bars(make_study(bars=low)) is True
    assert "all its differences count" in bars_of(make_study(bars=low))
    assert reached_bars(make_study(bars=low | {"cl3": 0.99})) is False
    with pytest.raises(ValueError, match="names the arm 'x'; the runs have random4, "):
        reached_bars(make_study(bars={"x": 0.1}))
