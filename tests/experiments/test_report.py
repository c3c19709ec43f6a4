"""The page, as text; `test_report_in_browser.py` has it drawn."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from studies import make_run, make_study

from experiments.analysis.collecting import collect
from experiments.analysis.figures import make_plots
from experiments.analysis.panels import svg, variables
from experiments.report.page import make_page
from experiments.report.pictures import choose_images, make_pictures

pytestmark = pytest.mark.shared_out(by="module")

ROOT = Path(__file__).parents[2]


def test_page_is_the_same_for_the_same_study():
    pages = [make_page(make_study(), resamples=20) for _ in range(2)]
    assert pages[0] == pages[1]


def test_words_of_a_study_are_no_markup():
    study = make_study(question="Is a<b & 'c'?", setting={"model.name": "<script>"})
    page = make_page(study, resamples=20)
    assert "Is a&lt;b &amp; &#39;c&#39;?" in page
    assert page.count("<script>") == 1


def test_words_of_a_study_are_no_formula():
    names = ("road", r"$\frac$", "pole")
    runs = [make_run(arm, class_names=names) for arm in ("once", "again")]
    study = make_study(runs=tuple(runs), comparisons=(("again", "once"),))
    assert r"$\frac$" in make_page(study, resamples=20)


def test_study_without_comparisons_has_a_page():
    page = make_page(make_study(comparisons=()), resamples=20)
    assert 'id="answer"' not in page
    assert 'id="scores"' in page


def test_drawings_take_all_their_colours_from_the_page():
    (panel,) = make_plots(make_study(comparisons=()), [], [])["curves"][1]
    drawn = svg(panel)
    assert "#fe0" not in drawn
    assert "DejaVu" not in drawn
    assert "var(--series-0)" in drawn
    assert panel.title == "all arms"
    assert set(variables()) >= {"ink", "grid", "better", "worse", "series-7"}


def test_images_are_chosen_by_the_change_of_their_own_score():
    """Each of five images has 10 pixels of class 0; so many are right."""

    def run(arm, right):
        per_image = np.zeros((5, 2, 2), np.int32)
        per_image[:, 0, 0] = right
        per_image[:, 0, 1] = 10 - np.array(right)
        return make_run(arm, per_image=per_image)

    before, after = run("a", [4, 4, 4, 4, 4]), run("b", [5, 2, 9, 4, 6])
    chosen = choose_images(after, before)
    # Class 1 is predicted and nowhere labelled: mean IoU is half of that of class 0.
    assert chosen == {
        "largest gain": (2, pytest.approx(0.2), pytest.approx(0.45)),
        "median change": (0, pytest.approx(0.2), pytest.approx(0.25)),
        "largest loss": (1, pytest.approx(0.2), pytest.approx(0.1)),
    }


@pytest.fixture(scope="module")
def real_study(finished_run, tmp_path_factory):
    """A run of four steps, there twice: as an arm and as its baseline."""
    directory = tmp_path_factory.mktemp("study")
    (directory / "twice.py").write_text(
        'QUESTION = "Is a run like itself?"\n'
        'COMPARISONS = (("again", "once"),)\n'
        "def get_config(size): ...\n"
        "def sweep():\n"
        '    yield {"arm": "once", "seed": 0}\n'
        '    yield {"arm": "again", "seed": 0}\n'
    )
    for arm in ("once", "again"):
        folder = directory / "runs" / arm / "seed=0"
        shutil.copytree(finished_run, folder)
        about = f'{{"arm": "{arm}", "seed": 0, "code": "c0de"}}'
        (folder / "run.json").write_text(about)
    return directory


def test_real_runs_are_collected_and_predict_again(real_study):
    study = collect(real_study / "twice.py", real_study / "runs")
    (run, _) = study.runs
    assert run.per_image.shape == (8, 21, 21)
    assert run.images_seen > 4
    assert set(run.gradient_shares) == set(run.class_names)
    assert [p["step"] for p in run.curve if "val_mean_iou" in p] == [2, 4]
    (pictures,) = make_pictures(study, real_study / "runs")
    assert (pictures.arm, pictures.baseline, pictures.seed) == ("again", "once", 0)
    for picture in pictures.pictures:
        assert picture.before == picture.after
        assert picture.image.startswith("data:image/jpeg;base64,")
        assert picture.truth != picture.before
    page = make_page(study, pictures=[pictures], resamples=20)
    assert page.count('type="range"') == len(pictures.pictures)
    assert str(real_study) not in page


def test_pictures_of_a_changed_data_set_are_refused(real_study):
    study = collect(real_study / "twice.py", real_study / "runs")
    for run in study.runs:
        run.per_image[:] = np.roll(run.per_image, 1, axis=0)
    with pytest.raises(ValueError, match="has other labels than it was scored on"):
        make_pictures(study, real_study / "runs")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["collect"], "error: STUDY is missing; --help shows the usage."),
        (["collect", "crackz"], "crackz.py is missing; known studies are camvid_"),
        (["report", "none"], "none/results/study.json is missing; python -m"),
    ],
)
def test_commands_say_in_a_line_what_is_wrong(command, error):
    name, *arguments = command
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert error in done.stderr.strip().splitlines()[-1]
