import json

import numpy as np
import pytest
from PIL import Image

from configs import folder
from segloss.inspection import inspect_dataset

# Rows of 4 pixels of each class, an image a line: [ground, box, bar], the rest void.
ROWS = {"a": (2, 2, 0), "b": (4, 0, 0), "c": (2, 0, 1), "d": (1, 1, 1)}


@pytest.fixture
def config(small_folder, tmp_path):
    for stem, rows in ROWS.items():
        labels = np.repeat([0, 1, 2, 255], [*rows, 9 - sum(rows)]).astype(np.uint8)
        labels = np.repeat(labels[:, None], 4, axis=1)
        for kind, pixels in (("labels", labels), ("images", np.zeros((9, 4, 3)))):
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(small_folder / "train" / kind / f"{stem}.png")
    config = folder.get_config("smoke").unlock()
    config.data.root = str(small_folder)
    config.data.data_dir = str(tmp_path / "datasets")
    config.sampler = dict(name="balance_batch", batch_max=2, batch_cl=3)
    return config


def test_what_a_dataset_holds_and_what_samplers_make_of_it(config, tmp_path, capsys):
    found = inspect_dataset(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "inspect.json").read_text()) == found
    assert (tmp_path / "run" / "figures" / "inspect.png").stat().st_size > 1000
    classes = found["classes"]
    assert [row["name"] for row in classes] == ["ground", "box", "bar"]
    # Of 14 labelled rows, 9, 3 and 2.
    shares = [row["pixel_share"] for row in classes]
    assert shares == pytest.approx([9 / 14, 3 / 14, 2 / 14])
    assert [row["image_share"] for row in classes] == [1.0, 0.5, 0.5]
    # freq: ground 9/14, box 3/7, bar 2/6, their median 3/7.
    weights = [row["median_frequency"] for row in classes]
    assert weights == pytest.approx([2 / 3, 1.0, 9 / 7])
    assert found["co_occurrence"] == [[1.0, 0.5, 0.5], [1.0, 1.0, 0.5], [1.0, 0.5, 1.0]]
    # Of the six pairs of images, only {a, b} and {b, c} lack a class.
    pairs = {(p["batch_max"], p["batch_cl"]): p for p in found["acceptance"]}
    assert pairs[2, 3]["acceptance"] == pytest.approx(4 / 6, abs=0.05)
    assert pairs[4, 3]["acceptance"] == 1.0
    drawn = found["exposures"]["random"]
    assert (drawn["min"], drawn["max"]) == (20, 20)
    assert drawn["class_share"] == pytest.approx([1.0, 0.5, 0.5])
    out = capsys.readouterr().out
    assert "class_weights=(0.6667, 1.0000, 1.2857)" in out
    assert "box    │ ground 100%, bar 50%" in out
    rows = [line for line in out.splitlines() if line.startswith("│ground│")]
    # Shares of the images that are drawn, and of the pixels of their crops.
    assert [row.count("%") for row in rows] == [len(found["exposures"])] * 2


def test_classes_in_crops_are_told_for_each_sampler(config, tmp_path, capsys):
    config.data.crop_hw = (2, 4)
    config.augment.scale_range = (1.0, 1.0)
    found = {}
    for keep in (False, True):
        config.augment.keep_classes = keep
        crops = inspect_dataset(config, tmp_path / "run")["crops"]
        found[keep] = crops["random"], crops["balance_batch"]
    random, balance = found[False]
    assert balance["classes_in_images"] == 3
    # Two of at most nine rows show at most two classes.
    assert balance["classes_in_crops"] < 3
    assert balance["share_with_batch_cl"] < 1
    assert random["share_with_batch_cl"] is None
    assert sum(balance["pixel_share"]) == pytest.approx(1)
    # Two crops hold three classes only if they are chosen to.
    assert found[True][1]["classes_in_crops"] == 3
    assert found[True][1]["share_with_batch_cl"] == 1
    assert found[True][0] == random
    assert "crops of 2x4 at scales 1 to 1" in capsys.readouterr().out


def test_what_cannot_be_met_is_left_out_and_the_rest_is_shown(config, tmp_path, capsys):
    config.sampler = dict(
        name="balance_batch", batch_max=2, batch_cl=3, count_background=False
    )
    config.sampler.min_pixels = 5
    config.augment.keep_classes = False
    found = inspect_dataset(config, tmp_path / "run")
    # From 5 pixels on, box is in image a alone, and bar, which has 4, in none.
    assert {p["batch_cl"] for p in found["acceptance"]} == {1}
    assert "left out: BalanceBatch: no 2 samples hold at least 3" in (
        capsys.readouterr().out
    )
    assert {"random", "repeat_factor"} <= found["exposures"].keys()
