import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from configs import folder
from segloss import metrics
from segloss.config import Inference, change_fields, read_config
from segloss.data import open_dataset
from segloss.devices import map_over_devices, replicate
from segloss.models import UNet
from segloss.train import train
from segloss.trained import evaluate_run, predict
from segloss.trained.evaluation import (
    describe_large_images,
    evaluate,
    evaluation_step,
)
from segloss.trained.model import TrainedModel
from segloss.trained.tiles import GRID_PX, MARGIN_PX, TILE_PX, plan_tiles

pytestmark = pytest.mark.shared_out(by="module")

RNG = np.random.default_rng(0)
SIZES = st.integers(1, 7_000)


def trained(model, variables, **fields):
    return TrainedModel(
        model=model,
        variables=variables,
        class_names=("a", "b", "c"),
        ignore_label=255,
        inference=Inference(**fields),
        step=0,
        images_seen=0,
        seconds=0.0,
        commit=None,
        pretrained=None,
    )


@functools.cache
def unet(depth=2):
    """Its convolutions reach 20 pixels at depth 2, and its pools a few more."""
    model = UNet(num_classes=3, depth=depth, width=4, norm="none")
    init = jax.jit(functools.partial(model.init, train=False))
    return model, init(jax.random.key(1), jnp.zeros((1, 16, 16, 3)))


class Neighbours(nn.Module):
    """Logits from each pixel and the one right of it."""

    def __call__(self, images, *, train):
        return 3 * images + jnp.roll(images, -1, axis=2)


@given(h=SIZES, w=SIZES, multiple=st.sampled_from([1, 8, 24, 32, 64, 513]))
def test_each_pixel_is_kept_in_one_tile_away_from_its_border(h, w, multiple):
    tiling = plan_tiles((h, w), size_multiple=multiple, max_pixels=2**21)
    kept = [np.zeros(h, int), np.zeros(w, int)]
    corners = {tile.corner for tile in tiling.tiles}
    for axis, (size, canvas, side) in enumerate(
        zip((h, w), tiling.canvas_hw, tiling.tile_hw, strict=True)
    ):
        assert canvas % multiple == 0
        assert size <= canvas
        for tile in {tile.corner[axis]: tile for tile in tiling.tiles}.values():
            start, part = tile.corner[axis], tile.kept[axis]
            kept[axis][part] += 1
            assert start + side <= canvas
            assert part.start < part.stop
            if not tiling.is_whole:
                assert start % multiple == 0
                assert start % GRID_PX == 0 or GRID_PX % multiple
                assert part.start == 0 or part.start - start >= MARGIN_PX
                assert part.stop == size or start + side - part.stop >= MARGIN_PX
        assert (kept[axis] == 1).all()
    # The tiles are all pairs of rows and columns.
    assert len(corners) == np.prod([len({c[axis] for c in corners}) for axis in (0, 1)])
    if not tiling.is_whole:
        assert max(tiling.tile_hw) <= max(TILE_PX, 2 * multiple)


def test_large_images_share_one_size_of_tile():
    plan = functools.partial(plan_tiles, size_multiple=32, max_pixels=2**21)
    sizes = [(1500, 1500), (4000, 6016), (6000, 6000), (1025, 90_000)]
    assert {plan(hw).tile_hw for hw in sizes} == {(1024, 1024)}
    assert plan((300, 90_000)).tile_hw == (320, 1024)
    # Cityscapes and Full HD are seen whole.
    assert plan((1024, 2048)).is_whole
    assert plan((1080, 1920)).is_whole
    assert not plan((1025, 2048)).is_whole


@pytest.mark.parametrize("hw", [(224, 288), (201, 300), (60, 400)], ids=str)
def test_tiles_predict_what_the_whole_image_does(hw):
    image = RNG.integers(0, 256, (*hw, 3), np.uint8)
    whole = trained(*unet(), size_multiple=32)
    # Tiles of 128, which keep what is 32 away from their borders.
    tiled = trained(*unet(), size_multiple=32, max_pixels=128**2)
    assert tiled.tiling(hw).tile_hw == (min(128, -(-hw[0] // 32) * 32), 128)
    expected = whole.predict(image)
    assert 0.1 < np.mean(expected == expected[0, 0]) < 0.9
    np.testing.assert_array_equal(tiled.predict(image), expected)


def test_a_network_that_sees_more_than_the_margin_differs_near_cuts_alone():
    image = RNG.integers(0, 256, (256, 256, 3), np.uint8)
    expected = trained(*unet(), size_multiple=32).predict(image)
    # Tiles of 64, which keep what is 16 away: less than 20.
    tiled = trained(*unet(), size_multiple=32, max_pixels=64**2)
    differs = tiled.predict(image) != expected
    cuts = [tile.columns.start for tile in tiled.tiling((256, 256)).tiles]
    place = np.arange(256)
    near = np.abs(place[:, None] - [c for c in cuts if c]).min(axis=1) < 12
    assert differs.any()
    assert not differs[~near][:, ~near].any()


@pytest.mark.parametrize(
    "fields",
    [dict(scales=(0.5, 1.0)), dict(flip=True), dict(window_hw=(48, 48))],
    ids=str,
)
def test_scales_flip_and_windows_apply_inside_each_tile(fields):
    image = RNG.integers(0, 256, (224, 288, 3), np.uint8)
    whole = trained(Neighbours(), {}, size_multiple=32, **fields)
    tiled = trained(Neighbours(), {}, size_multiple=32, max_pixels=128**2, **fields)
    same = tiled.predict(image) == whole.predict(image)
    # `Neighbours` takes the other border of the tile for what lies beyond the border.
    assert same[:, 4:-4].all()


@pytest.fixture
def mixed_folder(tmp_path):
    """Images of 40x40 to train on; in `val` two of 100x200, and one of 40x40."""
    root = tmp_path / "mixed"
    sizes = {"train": [(40, 40)] * 4, "val": [(100, 200), (40, 40), (100, 200)]}
    for split, hws in sizes.items():
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i, hw in enumerate(hws):
            labels = RNG.integers(0, 3, hw, np.uint8)
            labels[:3] = 255
            image = RNG.integers(0, 256, (*hw, 3), np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{i}.png")
            Image.fromarray(labels).save(root / split / "labels" / f"{i}.png")
    (root / "classes.txt").write_text("0 a\n1 b\n2 c\n")
    return root


@pytest.mark.parametrize("batch_size", [1, 8])
def test_evaluation_counts_what_tiles_predict(mixed_folder, tmp_path, batch_size):
    dataset = open_dataset("folder", root=mixed_folder, data_dir=tmp_path / "datasets")
    model, variables = unet()
    tiled = trained(model, variables, size_multiple=32, max_pixels=64**2)
    step = map_over_devices(
        evaluation_step, model=model, inference=tiled.inference, num_classes=3
    )
    confusions, batches = {}, []
    evaluation = evaluate(
        step,
        replicate(variables),
        dataset,
        "val",
        batch_size=batch_size,
        size_multiple=32,
        max_pixels=64**2,
        on_batch=batches.append,
        on_confusions=lambda ids, counts: confusions.update(
            zip(ids.tolist(), counts, strict=True)
        ),
    )
    source = dataset.source("val")
    for i in range(3):
        sample = source[i]
        labels = sample["labels"]
        expected = metrics.confusion_matrix(
            tiled.predict(sample["image"]), labels, labels != 255, num_classes=3
        )
        np.testing.assert_array_equal(confusions[i], expected[:, :-1])
        assert evaluation.image_scores[i] == metrics.mean_iou(np.asarray(expected))
    np.testing.assert_array_equal(evaluation.confusion, sum(confusions.values()))
    assert evaluation.confusion.sum() == 2 * 97 * 200 + 37 * 40
    assert sum(batches) == 3
    # 3x6 tiles of each large image, one on each device.
    assert batches.count(0) == 2 * -(-18 // jax.local_device_count())


def test_large_image_and_its_labels_are_decoded_once(mixed_folder, tmp_path, decoded):
    dataset = open_dataset("folder", root=mixed_folder, data_dir=tmp_path / "datasets")
    model = Neighbours()
    decoded.clear()  # of what was read while the dataset was prepared
    step = map_over_devices(
        evaluation_step, model=model, inference=Inference(), num_classes=3
    )
    evaluate(
        step,
        replicate({"params": {"unused": np.zeros(1)}}),
        dataset,
        "val",
        batch_size=4,
        size_multiple=32,
        max_pixels=64**2,
    )
    assert sorted(decoded) == 3 * ["L"] + 3 * ["RGB"]


def test_a_run_evaluates_and_predicts_in_the_same_tiles(mixed_folder, tmp_path, capfd):
    config = folder.get_config("smoke").unlock()
    config.data.root = str(mixed_folder)
    config.data.data_dir = str(tmp_path / "datasets")
    config.evaluate.max_pixels = 64**2
    results = train(config, tmp_path / "run")
    line = "2 of 3 images have more than 4,096 pixels: predicted in overlapping tiles"
    assert capfd.readouterr().out.count(f"val: {line} of 64x64") == 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    scores = [x["val_mean_iou"] for x in map(json.loads, lines) if "val_mean_iou" in x]
    assert scores[-1] == results["summary"]["mean_iou"]
    assert results["inference"]["max_pixels"] == 64**2
    config = read_config(tmp_path / "run")
    (predicted,) = predict(config, tmp_path / "run", mixed_folder / "val")
    assert predicted.scores["summary"] == results["summary"]
    assert line in capfd.readouterr().out
    whole = change_fields(config, [f"evaluate.max_pixels={2**21}"])
    # The network of a smoke test sees less far than the margin of its tiles.
    assert evaluate_run(whole, tmp_path / "run")["summary"] == results["summary"]
    assert "pixels: predicted" not in capfd.readouterr().out
    evaluate_run(config, tmp_path / "run")
    assert line in capfd.readouterr().out
    names = {path.name for path in (tmp_path / "run" / "evaluations").iterdir()}
    assert names == {"val_4", "val_4_max_pixels_4096"}


def test_nothing_is_said_of_images_that_are_whole(mixed_folder, tmp_path):
    dataset = open_dataset("folder", root=mixed_folder, data_dir=tmp_path / "datasets")
    assert describe_large_images(dataset, "val", Inference()) == ""
    # The largest image is in the other split.
    assert describe_large_images(dataset, "train", Inference(max_pixels=2_000)) == ""
