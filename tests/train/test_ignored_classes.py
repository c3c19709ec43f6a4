"""`config.evaluate.ignore_classes_in_mean`: a second mean IoU without some classes."""

import json

import numpy as np
import pytest
from runs import curve

from segloss.config import parse_config
from segloss.train import make_setup, train

pytestmark = pytest.mark.shared_out(by="module")


def test_results_have_the_mean_iou_with_and_without_them(tiny_config, tmp_path, capsys):
    tiny_config.evaluate.ignore_classes_in_mean = ("background", 2)
    train(tiny_config, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    iou = np.array([row["iou"] for row in results["per_class"]], float)
    summary = results["summary"]
    assert summary["mean_iou"] == pytest.approx(np.nanmean(iou))
    rest = np.nanmean(np.delete(iou, [0, 2]))
    assert summary["mean_iou_without_ignored"] == pytest.approx(rest)
    assert rest != pytest.approx(summary["mean_iou"])
    (*_, last) = (x for x in curve(tmp_path) if "val_mean_iou" in x)
    assert last["val_mean_iou_without_ignored"] == summary["mean_iou_without_ignored"]
    assert f"without ignored {rest:.4f}, pixel acc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ignored", "message"),
    [
        (("backgrund",), "there is no class 'backgrund'; known are background, "),
        ((21,), "there is no class 21; known are background, "),
        ((-1,), "there is no class -1; known are background, "),
        (tuple(range(21)), "must leave a class, but names all: background, "),
        ((0.5,), r"must be a tuple of .* such as \('background',\), got \(0.5,\)"),
    ],
)
def test_classes_that_are_not_there_are_refused_before_training(
    tiny_config, ignored, message
):
    tiny_config.evaluate.ignore_classes_in_mean = ignored
    with pytest.raises(
        ValueError, match=f"^config.evaluate.ignore_classes_in_mean:? {message}"
    ):
        make_setup(tiny_config)


def test_a_name_without_parentheses_is_refused(tiny_config):
    tiny_config.evaluate.ignore_classes_in_mean = "background"
    with pytest.raises(ValueError, match="must be a tuple of class names or ids"):
        parse_config(tiny_config)
