"""What is said of a study in its README, and by which rules."""

import csv
import dataclasses
import hashlib
import io

import numpy as np
import pytest
from studies import make_run, make_study

from experiments.analysis import tables
from experiments.analysis.compare import compare, conclusion, points, verdict
from experiments.analysis.figures import batch_panels, make_plots
from experiments.analysis.paper import arm_like, read_reported
from experiments.analysis.statistics import Interval
from experiments.analysis.store import load, save
from experiments.report.readme import check_place, replace_results, write_study

PAPER = """figure,page,loss,sampler,batch_max,batch_cl,metric,value
1,5,ce,random,4,,mean_iou,76.353
1,,ce,balance_batch,4,3,mean_iou,76.658
,,ce,balance_batch,9,12,pixel_accuracy,94.635
3,6,soft_iou,random,4,,mean_iou,61.945
"""


@pytest.fixture(scope="module")
def comparisons():
    return compare(make_study(), resamples=200)


@pytest.fixture
def paper_csv(tmp_path):
    path = tmp_path / "paper.csv"
    path.write_text(PAPER)
    return path


def interval(low, high, defined=1.0):
    return Interval((low + high) / 2, low, high, defined)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.01, 0.03, "no difference shown"),
        (0.0, 0.03, "no difference shown"),
        # Printed as 0.
        (0.00002, 0.03, "no difference shown"),
        (0.001, 0.03, "better"),
        (-0.03, -0.001, "worse"),
        (np.nan, np.nan, "not defined"),
    ],
)
def test_only_an_interval_without_0_is_a_gain_or_a_loss(low, high, word):
    assert verdict(interval(low, high)) == word


def test_points_always_come_with_their_interval():
    assert points(interval(-0.01, 0.0325)) == "+1.12 (-1.00 to +3.25)"
    assert points(interval(-0.01, 0.01)) == "+0.00 (-1.00 to +1.00)"
    assert points(interval(-0.03, 0.01, 0.914)) == "-1.00 (-3.00 to +1.00, of 91.4 %)"
    assert points(interval(np.nan, np.nan)) == "\N{EN DASH}"


def test_what_is_equal_is_told(comparisons):
    assert [c.at for c in comparisons] == ["equal steps", "equal images"]
    # 392 of 400 images are 2 % off, 391 are more.
    runs = {
        name: [make_run(name, s, total_steps=steps, images_seen=n) for s in range(2)]
        for name, steps, n in (("a", 9, 400), ("b", 9, 392), ("c", 8, 391))
    }
    study = make_study(
        runs=tuple(r for of_arm in runs.values() for r in of_arm),
        comparisons=(("b", "a"), ("c", "a")),
    )
    assert [c.at for c in compare(study, resamples=10)] == [
        "equal steps and images",
        "neither equal steps nor images",
    ]


def test_a_class_that_is_not_drawn_counts_in_neither_arm():
    """One image of 40 holds class 2, which one arm predicts in 12 others as well."""
    before = np.zeros((1, 40, 3, 3), np.int32)
    before[..., 0, 0], before[..., 1, 1] = 70, 30
    before[:, 0, 2, 2] = 30
    after = before.copy()
    after[:, 1:13, 0, 0] -= 1
    after[:, 1:13, 0, 2] += 1
    runs = [make_run(arm, per_image=x[0]) for arm, x in (("a", after), ("b", before))]
    study = make_study(comparisons=(("a", "b"),), runs=tuple(runs))
    (found,) = compare(study, resamples=1000)
    # 12 pixels more in a union of 30, a third of it in the mean.
    pole = found.per_class["pole"]
    assert found.scores["mean_iou"].estimate == pytest.approx(
        sum(x.estimate for x in found.per_class.values()) / 3
    )
    assert pole.estimate == pytest.approx(30 / 42 - 1)
    assert 0.6 < pole.defined < 0.7  # 1 - (39 / 40)^40
    # Were a class that is only predicted to count, a third of the mean would be lost.
    assert found.scores["mean_iou"].low > -0.2


def test_conclusion_names_the_classes_that_gain(comparisons):
    """Of 100 pixels of poles 20 instead of 60 are taken for road, which gains too."""
    first = comparisons[0]
    assert verdict(first.per_class["pole"]) == "better"
    text = conclusion(first)
    assert text.startswith("cl3 against random4, equal steps: mean IoU +")
    gains = text.split("Better: ")[1]
    assert f"pole {points(first.per_class['pole'])}" in gains
    assert f"road {points(first.per_class['road'])}" in gains
    assert text.endswith("No difference shown: 1 of 3 classes.")
    assert points(first.scores["mean_iou"]) in text


def test_differences_are_those_of_the_scores(comparisons):
    study = make_study()
    arms = {
        row[0]: float(row[1].split()[0])
        for row in tables.table_rows(tables.arms_table(study))
    }
    estimate = 100 * comparisons[0].scores["mean_iou"].estimate
    assert estimate == pytest.approx(arms["cl3"] - arms["random4"], abs=0.011)


def make_study_of_rare_poles(num_images):
    """Only the first so many of twelve test images hold poles."""

    def without_poles(run):
        per_image = run.per_image.copy()
        per_image[num_images:, 2] = 0
        return dataclasses.replace(run, per_image=per_image)

    return make_study(runs=tuple(map(without_poles, make_study().runs)))


@pytest.mark.parametrize(
    ("num_images", "word"),
    [(5, "better"), (4, "too few images"), (1, "too few images"), (0, "not defined")],
)
def test_a_class_needs_five_images_for_a_verdict(num_images, word):
    study = make_study_of_rare_poles(num_images)
    first, _ = compare(study, resamples=200)
    assert first.images == {"road": 12, "car": 12, "pole": num_images}
    assert first.class_verdict("pole") == word
    text, few = conclusion(first), 0 < num_images < 5
    assert ("Better: pole" in text) == (num_images == 5)
    assert ("Too few images: 1 of 3 classes." in text) == few
    assert ("images hold pole: too few to tell" in tables.caveat(study)) == few


def test_classes_of_the_mean_are_those_that_images_hold():
    study = make_study_of_rare_poles(1)
    assert "1 of the 3 classes in the mean IoU are such." in tables.caveat(study)
    for run in study.runs:
        run.per_image[:, 1] = 0
    assert "1 of the 2 classes in the mean IoU are such." in tables.caveat(study)


def test_a_share_of_the_resamples_is_explained():
    comparisons = compare(make_study_of_rare_poles(1), resamples=200)
    table = tables.class_differences_table(comparisons, make_study())
    (pole,) = (row for row in tables.table_rows(table) if row[0] == "pole")
    assert ", of 6" in pole[3]
    assert table.caption.endswith("of the resamples in which there is such a score")
    whole = tables.class_differences_table(compare(make_study()), make_study())
    assert "resamples" not in whole.caption


def test_arms_table_says_range_images_and_steps():
    row = tables.table_rows(tables.arms_table(make_study()))[2]
    assert row[0] == "cl3-images"
    assert row[5:] == ["399", "133", "3"]
    mean, low, _, high = row[1].replace("(", "").replace(")", "").split()
    assert float(low) <= float(mean) <= float(high)


def test_classes_stand_by_their_share_of_the_pixels(comparisons):
    table = tables.class_differences_table(comparisons, make_study())
    rows = tables.table_rows(table)
    assert [row[:3] for row in rows] == [
        ["road", "70.00%", "12"],
        ["car", "25.00%", "12"],
        ["pole", "5.00%", "12"],
        ["mean", "", ""],
    ]
    assert rows[2][3] == points(comparisons[0].per_class["pole"])


def test_two_classes_have_f1_precision_and_recall_of_the_second():
    """Of 200 pixels 60 are crack: 45 found, 15 missed, 5 others taken for crack."""
    per_image = np.tile(np.array([[70, 2], [8, 20]], np.int32), (2, 1, 1))
    per_image[1] = [[65, 3], [7, 25]]
    fields = dict(class_names=("wall", "crack"), pixel_share=[0.7, 0.3])
    runs = [
        make_run(arm, seed, per_image=per_image, **fields)
        for arm in ("bce", "dice")
        for seed in range(2)
    ]
    study = make_study(runs=tuple(runs), comparisons=(("dice", "bce"),))
    row = tables.table_rows(tables.binary_arms_table(study))[0]
    assert row == ["bce", "69.23", "81.82", "90.00", "75.00"]
    (comparison,) = compare(study, resamples=20)
    table = tables.binary_comparisons_table([comparison], study)
    nothing = "+0.00 (+0.00 to +0.00)"
    assert f"F1 of crack {nothing} points: no difference shown." in conclusion(
        comparison
    )
    assert tables.table_rows(table) == [
        ["dice", "bce", *[nothing] * 4, "no difference shown"]
    ]


def test_paper_stands_beside_the_arm_with_its_batches(paper_csv):
    study, reported = make_study(), read_reported("ce", paper_csv)
    assert [r.value for r in reported] == [76.353, 76.658, 94.635]
    assert read_reported(None, paper_csv) == []
    # Of cl3 and cl3-images, the one of as many steps as the others.
    assert {run.arm for run in arm_like(study, reported[1])} == {"cl3"}
    rows = tables.table_rows(tables.paper_table(study, reported))
    assert rows[0][0] == "random, batch_max 4"
    assert rows[0][2] == "76.353"
    assert rows[0][4] == "figure 1, page 5"
    assert rows[1][0] == "balance_batch, batch_max 4, batch_cl 3"
    assert rows[2][3:] == ["\N{EN DASH}", ""]


def test_paper_of_unknown_words_is_refused(paper_csv):
    paper_csv.write_text(PAPER.replace("pixel_accuracy", "accuracy"))
    with pytest.raises(ValueError, match=r"csv, line 4: metric must be one of mean"):
        read_reported("ce", paper_csv)


def test_sizes_of_batches_are_drawn_where_they_vary(paper_csv):
    assert not list(batch_panels(make_study(), []))
    sizes = [
        make_run(f"random{n}", s, sampler={"name": "random", "batch_max": n})
        for n in (4, 8)
        for s in range(2)
    ]
    study = make_study(runs=tuple(sizes), comparisons=())
    (panel,) = batch_panels(study, read_reported("ce", paper_csv))
    assert panel.title == "mean IoU by size of random batches"
    assert " at 4, " in panel.words
    assert list(make_plots(study, [], [])) == [
        "batches",
        "curves",
        "losses",
        "gradient_shares",
    ]


def test_csv_holds_the_cells_of_the_table(comparisons):
    table = tables.comparisons_table(comparisons, make_study())
    header, *rows = csv.reader(io.StringIO(tables.csv_table(table)))
    assert header[:4] == ["arm", "against", "at", "mean IoU"]
    assert rows == tables.table_rows(table)


def test_readme_is_the_same_bytes_from_what_is_stored(tmp_path, paper_csv):
    study = dataclasses.replace(make_study(), paper="ce")
    save(study, tmp_path / "results")
    (tmp_path / "README.md").write_text(
        "# Poles\n\n<!-- results -->\n<!-- end of results -->\n\nAfter.\n"
    )
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots/old.png").touch()
    written = []
    for source in (study, load(tmp_path / "results")):
        write_study(source, tmp_path, paper_csv=paper_csv, resamples=50)
        files = sorted(p for p in tmp_path.rglob("*") if p.suffix in (".md", ".png"))
        digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]
        written.append(dict(zip([p.name for p in files], digests, strict=True)))
    assert written[0] == written[1]
    assert set(written[0]) == {
        "README.md",
        "classes.png",
        "curves.png",
        "differences.png",
        "gradient_shares.png",
    }
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Poles\n\n<!-- results -->\n\n- cl3 against random4, ")
    assert text.endswith("\n<!-- end of results -->\n\nAfter.\n")
    assert "| random, batch_max 4 | mean IoU | 76.353 |" in text
    assert "9 runs, 0.1 hours of training in total on 1 x cpu; commit `01234" in text
    for name in ("differences", "curves", "classes", "gradient_shares"):
        assert f"(plots/{name}.png)" in text


def test_a_full_disk_leaves_the_readme(tmp_path, full_disk):
    readme, text = tmp_path / "README.md", "<!-- results -->\n<!-- end of results -->\n"
    readme.write_text(text)
    with full_disk(45), pytest.raises(OSError, match="File too large"):
        replace_results(readme, "many words")
    assert readme.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        None,
        "# Poles\n",
        "<!-- results -->\n",
        "<!-- end of results -->\n<!-- results -->\n",
        "<!-- results -->\n<!-- end of results -->\n" * 2,
        "<!-- results --> <!-- end of results -->\n",
    ],
)
def test_a_readme_without_a_place_is_refused_before_anything_is_written(tmp_path, text):
    readme = tmp_path / "README.md"
    if text is not None:
        readme.write_text(text)
    with pytest.raises(ValueError, match=r"README\.md must hold the lines <!-- res"):
        check_place(readme)
    readme.write_text("# Poles\n<!-- results -->\nold\n<!-- end of results -->\n")
    check_place(readme)


def test_runs_that_were_evaluated_once_show_their_loss():
    curve = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "val_mean_iou": 0.5}]
    study = make_study(runs=(make_run(curve=curve),), comparisons=())
    plots = make_plots(study, [], [])
    assert list(plots) == ["losses", "gradient_shares"]
    (panel,) = plots["losses"][1]
    assert panel.words.endswith("by step; at the end: random4 1.")


def test_many_arms_share_panels_with_their_baseline():
    """Nine arms are two panels of five and four, each beside the baseline."""
    arms = ["base", *(f"arm{i}" for i in range(9))]
    study = make_study(
        runs=tuple(make_run(arm) for arm in arms),
        comparisons=tuple((arm, "base") for arm in arms[1:]),
    )
    panels = make_plots(study, compare(study, resamples=5), [])
    assert len(panels["classes"][1]) == 9
    words = [panel.words for panel in panels["gradient_shares"][1]]
    assert [text.count("road 70%") for text in words] == [6, 5]
    assert tables.caveat(study).startswith("One seed: the intervals say nothing")
    assert tables.caveat(make_study()).startswith("3 seeds say little")
    table = tables.comparisons_table([], study)
    assert table.caption.endswith("over test images, of one seed")
