import hashlib
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from configs.sweeps.common import embedded
from segloss.data import ClassSets, GreedyCover, estimate_acceptance, exposures
from segloss.data.datasets.dataset import open_dataset
from segloss.data.datasets.longtail_scenes import (
    CLASS_NAMES,
    LOOKS,
    VOC_IMAGES,
    VOC_IMAGES_WITH_CLASS,
    VOC_PIXEL_PERCENT,
    draw_split,
    longtail_scenes,
    plan_split,
)
from segloss.data.datasets.scenes import TEXTURES, VOID, Part, draw_scene


def draw(split="train", **sizes):
    config = longtail_scenes(**{"image_hw": (48, 48), **sizes}).builder_config
    return list(draw_split(config, split))


def pixels(sample):
    return [
        np.asarray(Image.open(io.BytesIO(data)))
        for data in (sample.image, sample.labels)
    ]


@pytest.fixture(scope="module")
def full(datasets_dir):
    return open_dataset("longtail_scenes", image_hw=(64, 64), data_dir=datasets_dir)


# 15 images of the rarest class in train, 2 in val.
@pytest.mark.parametrize(("split", "num_images"), [("train", 600), ("val", 100)])
def test_image_shares_are_those_of_voc(full, split, num_images):
    found = full.class_index(split).presence()[:, 1:]
    share = np.array(VOC_IMAGES_WITH_CLASS) / VOC_IMAGES
    np.testing.assert_array_equal(found.sum(axis=0), np.round(share * num_images))
    assert found.any(axis=1).all()


@pytest.mark.parametrize("split", ["train", "val"])
def test_background_share_is_that_of_voc(full, split):
    counts = full.class_index(split).pixel_counts.sum(axis=0)
    assert 0.68 < counts[0] / counts.sum() < 0.72  # VOC: 0.694


# The plan holds the areas exactly; occlusion and the border move them by up to 10 %.
def test_pixel_shares_are_those_of_voc(full):
    counts = full.class_index("train").pixel_counts.sum(axis=0)
    percent = 100 * counts[1:] / counts.sum()
    np.testing.assert_allclose(percent, VOC_PIXEL_PERCENT, rtol=0.15)


def test_mean_batch_sizes_of_the_studies_are_those_of_the_labels(full):
    sets = ClassSets.of(full.class_index("train").presence())
    pair = dict(batch_cl=embedded.BATCH_CL, batch_max=embedded.BATCH_MAX)
    expected = embedded.MEAN_BATCH_SIZES
    got = estimate_acceptance(sets, **pair, trials=100_000).mean_batch_size
    assert got == pytest.approx(expected["balance_batch"], abs=0.02)
    for (batch_max, batch_cl), size in embedded.FIGURES_MEAN_BATCH_SIZES.items():
        got = estimate_acceptance(sets, batch_cl=batch_cl, batch_max=batch_max)
        assert got.mean_batch_size == pytest.approx(size, abs=0.05)
    greedy = GreedyCover(sets, **pair)
    batches = 20 * greedy.batches_per_epoch
    size = exposures(greedy, batches).sum() / batches
    assert size == pytest.approx(expected["greedy_cover"], abs=0.03)


def test_statistics_of_voc_add_up():
    # 30.607 % of train_aug's labelled pixels are no background.
    assert sum(VOC_PIXEL_PERCENT) == pytest.approx(100 - 69.393, abs=0.01)
    assert CLASS_NAMES[15] == LOOKS[14].name == "glowing pillar"  # VOC's person
    assert round(VOC_IMAGES_WITH_CLASS[14] / VOC_IMAGES, 2) == 0.37


def test_classes_differ_in_colours_and_in_shape_or_texture():
    assert len(set(CLASS_NAMES)) == 21
    assert {look.texture for look in LOOKS} == TEXTURES.keys()
    for a, b in itertools.combinations(LOOKS, 2):
        assert a.colors != b.colors
        assert (a.shape, a.aspect, a.texture) != (b.shape, b.aspect, b.texture)


# The digest was taken on Python 3.11 with numpy 2.4 and agrees on 3.12 with numpy 2.5.
def test_pixels_never_change():
    digest = hashlib.sha256()
    for scene in draw(train=6) + draw("val", val=3, seed=5, image_hw=(40, 64)):
        image, labels = pixels(scene)
        digest.update(image.tobytes() + labels.tobytes())
    assert digest.hexdigest()[:16] == "25f6dbae65fdf5f8"


def test_seed_and_split_draw_other_scenes():
    first, again = draw(train=2), draw(train=2)
    assert first == again
    assert {s.image for s in first}.isdisjoint(s.image for s in draw(train=2, seed=1))
    assert {s.image for s in first}.isdisjoint(s.image for s in draw("val", val=2))


@pytest.mark.parametrize("num_images", [1, 2, 7, 30])
def test_every_planned_class_is_visible_in_small_sets(num_images):
    plan = plan_split(np.random.default_rng((0, 1, 0)), num_images, min_images=2)
    held = [{part.class_id for part in parts} for parts in plan]
    assert all(
        len(ids) == len(parts) > 0 for ids, parts in zip(held, plan, strict=True)
    )
    for sample, ids in zip(
        draw("val", val=num_images, image_hw=(32, 32)), held, strict=True
    ):
        assert set(np.unique(pixels(sample)[1])) - {0, VOID} == ids
    times = np.sum([np.isin(range(1, 21), list(ids)) for ids in held], axis=0)
    assert times.min() >= min(2, num_images)


def test_void_line_separates_objects():
    parts = [Part(class_id, 0.2) for class_id in (1, 2, 3)]
    _, labels = draw_scene(np.random.default_rng(3), parts, LOOKS, (96, 96))
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        assert not ((a != b) & (a != VOID) & (b != VOID)).any()
    # 1 px wide: no 3x3 block is all void.
    blocks = np.lib.stride_tricks.sliding_window_view(labels == VOID, (3, 3))
    assert 0 < (labels == VOID).mean() < 0.1
    assert not blocks.all(axis=(2, 3)).any()


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.name)
def test_object_has_the_area_asked_for(look):
    for seed in range(3):
        _, labels = draw_scene(
            np.random.default_rng(seed), [Part(1, 0.15)], [look], (96, 96)
        )
        # The void line takes a part of it.
        assert 0.09 < (labels == 1).mean() < 0.16


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"train": 0}, "train must be >= 1, got 0"),
        ({"val": 0}, "val must be >= 1, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"image_hw": (96, 31)}, "image_hw must be >= 32, got 31"),
        ({"image_hw": (96,)}, r"image_hw must be \(height, width\), got \(96,\)"),
    ],
)
def test_sizes_out_of_range_are_refused(hyperparameters, message):
    with pytest.raises(ValueError, match=f"longtail_scenes: {message}"):
        longtail_scenes(**hyperparameters)


def test_sizes_are_in_the_name(tmp_path):
    names = {
        longtail_scenes(data_dir=tmp_path, **sizes).builder_config.name
        for sizes in (
            {},
            {"train": 5},
            {"val": 5},
            {"image_hw": [96, 64]},
            {"image_hw": (64, 96)},
            {"seed": 1},
        )
    }
    assert len(names) == 6
    assert "600_100_96x96_seed0" in names
