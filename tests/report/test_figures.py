import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segloss.report import (
    curve_figure,
    example_figure,
    read_metrics,
    save_figure,
    voc_palette,
)

NAMES = ["ground", "_hidden_", "bar", "never seen"]
BOX, BAR = voc_palette()[1:3]


def make_example(title, hw, predicted=1):
    labels = np.zeros(hw, np.uint8)
    labels[2:6, 3:9] = 1
    labels[0] = 255
    guess = np.where(labels == 1, predicted, 0).astype(np.uint8)
    image = np.full((*hw, 3), 77, np.uint8)
    return dict(title=title, image=image, labels=labels, predicted=guess)


EXAMPLES = [
    make_example("best (mean IoU 1.00) a", (12, 16)),
    make_example("worst (mean IoU 0.50) b", (24, 12), predicted=2),
]


def drawn(axes):
    (image,) = axes.get_images()
    return image.get_array()


def test_example_figure_draws_image_truth_and_prediction():
    figure = example_figure(EXAMPLES, NAMES)
    assert len(figure.axes) == 6
    for row, example in zip(np.reshape(figure.axes, (2, 3)), EXAMPLES, strict=True):
        image, truth, prediction = row
        assert image.get_title(loc="left") == example["title"]
        assert [axes.get_title() for axes in row[1:]] == ["truth", "prediction"]
        np.testing.assert_array_equal(drawn(image), example["image"])
        np.testing.assert_array_equal(
            drawn(truth)[0], np.full_like(drawn(truth)[0], 224)
        )
        np.testing.assert_array_equal(drawn(truth)[2, 3], BOX)
        np.testing.assert_array_equal(drawn(truth)[2, 2], (0, 0, 0))
        expected = BOX if example is EXAMPLES[0] else BAR
        np.testing.assert_array_equal(drawn(prediction)[2, 3], expected)


def test_example_figure_lists_the_classes_that_occur():
    (legend,) = example_figure(EXAMPLES, NAMES).legends
    colors = {
        text.get_text(): tuple(np.round(np.array(patch.get_facecolor()[:3]) * 255))
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    assert colors == {
        "ground": (0, 0, 0),
        "_hidden_": (128, 0, 0),
        "bar": (0, 128, 0),
        "void": (224, 224, 224),
    }
    no_void = make_example("", (12, 16))
    no_void["labels"][0] = 0
    (legend,) = example_figure([no_void], NAMES).legends
    assert [text.get_text() for text in legend.get_texts()] == NAMES[:2]


def test_example_figure_is_equally_wide_for_images_of_any_size(tmp_path):
    for hw in [(12, 16), (240, 320), (48, 12)]:
        figure = example_figure([make_example("t", hw)] * 3, NAMES)
        save_figure(figure, tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as image:
            assert image.size[0] == 990
            assert image.size[1] == int(figure.get_figheight() * figure.dpi)
            assert 800 < image.size[1] < 1700


def test_long_titles_are_wrapped():
    figure = example_figure([make_example("x" * 100, (12, 16))], NAMES)
    assert [len(line) for line in figure.axes[0].get_title(loc="left").split()] == [
        44,
        44,
        12,
    ]


def test_save_figure_writes_equal_files_and_makes_the_folder(tmp_path):
    for name in ("a", "b"):
        save_figure(example_figure(EXAMPLES, NAMES), tmp_path / name / "figure.png")
    first, second = ((tmp_path / name / "figure.png").read_bytes() for name in "ab")
    assert first == second
    assert b"atplotlib" not in first


def write_metrics(path, evaluations=(), tail=""):
    lines = [{"step": s, "loss": float(s % 2), "grad_norm": 1.0} for s in range(1, 101)]
    for step, score in evaluations:
        lines.insert(step + len(lines) - 100, {"step": step, "val_mean_iou": score})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def test_curve_figure_draws_loss_and_mean_iou(tmp_path):
    evaluations = [(50, 0.25), (80, 0.5), (100, 0.375)]
    path = write_metrics(
        tmp_path / "metrics.jsonl", evaluations, tail='{"step": 101, "lo'
    )
    loss, score = curve_figure(path).axes
    raw, smooth = loss.get_lines()
    np.testing.assert_array_equal(raw.get_xdata(), np.arange(1, 101))
    np.testing.assert_array_equal(raw.get_ydata(), np.arange(1, 101) % 2)
    # The loss swings between 0 and 1, so two neighbours have a mean of 1/2.
    np.testing.assert_array_equal(smooth.get_ydata()[1:], 0.5)
    assert loss.get_title() == "loss, and its mean over 2 steps"
    (line,) = score.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), evaluations)
    (text,) = score.get_legend().get_texts()
    assert text.get_text() == "val: best 0.500 at step 80"


def test_curve_figure_averages_fewer_points_at_the_ends(tmp_path):
    path = write_metrics(tmp_path / "metrics.jsonl")
    (loss,) = curve_figure(path, smoothed_steps=3).axes
    smooth = loss.get_lines()[1].get_ydata()
    # Losses are 1, 0, 1, ..., 1, 0.
    np.testing.assert_allclose(smooth[[0, 1, 2, -1]], [1 / 2, 2 / 3, 1 / 3, 1 / 2])


def test_curve_figure_of_a_run_without_steps_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "val_mean_iou": 0.1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl must hold a loss"):
        curve_figure(path)


def test_a_damaged_line_is_named_unless_it_is_the_last(tmp_path):
    path = write_metrics(tmp_path / "metrics.jsonl", tail='{"step": 101, "lo')
    assert [line["step"] for line in read_metrics(path)] == list(range(1, 101))
    path.write_bytes(path.read_bytes() + b'\xff\n{"step": 102}\n')
    with pytest.raises(ValueError, match=r"\.jsonl: line 101 is damaged; delete"):
        read_metrics(path)


def test_report_needs_neither_jax_nor_pyplot():
    code = (
        "import sys, segloss.report; "
        "assert not {'jax', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
