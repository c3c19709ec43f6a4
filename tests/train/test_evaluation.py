import dataclasses
import shutil
import tempfile
import tracemalloc
from functools import partial

import jax
import numpy as np
import pytest

from segloss import metrics
from segloss.config import read_config
from segloss.data import open_dataset
from segloss.trained import evaluate_run
from segloss.trained.confusions import ConfusionStore
from segloss.trained.evaluation import evaluate
from segloss.trained.results import rank_images


@pytest.fixture
def store_file():
    with tempfile.TemporaryFile() as file:
        yield file


@pytest.fixture
def shapes(small_folder, tmp_path):
    """Two images of two sizes in `val`, four in `train`, of which each size has two."""
    return open_dataset("folder", root=small_folder, data_dir=tmp_path / "datasets")


def make_step(num_classes):
    """An evaluation step whose network says the class of the pixel to the left."""

    def count(variables, batch):
        predicted = jax.numpy.roll(batch["labels"], 1, axis=-1)
        confusion = partial(metrics.confusion_matrix, num_classes=num_classes)
        return jax.vmap(confusion)(predicted, batch["labels"], batch["valid"])

    return jax.pmap(count)


def test_each_image_and_label_is_decoded_once(shapes, decoded):
    shapes.class_index("train")
    decoded.clear()
    evaluation = evaluate(
        make_step(3), jax.numpy.zeros(8), shapes, "train", batch_size=8, size_multiple=1
    )
    assert sorted(decoded) == ["L"] * 4 + ["RGB"] * 4
    assert len(evaluation.image_scores) == 4


def test_confusions_are_handed_out_by_position_and_add_up(shapes, tmp_path, store_file):
    confusions = ConfusionStore(store_file, 4, 3)
    evaluation = evaluate(
        make_step(3),
        jax.numpy.zeros(8),
        shapes,
        "train",
        batch_size=8,
        size_multiple=1,
        on_confusions=confusions.add,
    )
    confusions.save(tmp_path / "confusions.npz")
    with np.load(tmp_path / "confusions.npz") as arrays:
        per_image = arrays["per_image"]
    assert (per_image.dtype, per_image.shape) == (np.int32, (4, 3, 3))
    # The two sizes of images are counted one after the other, which mixes positions.
    labelled = shapes.class_index("train").pixel_counts
    assert len(np.unique(labelled, axis=0)) == 4
    np.testing.assert_array_equal(per_image.sum(axis=2), labelled)
    np.testing.assert_array_equal(per_image.sum(axis=0), evaluation.confusion)
    assert evaluation.confusion.dtype == np.int64
    scores = [metrics.mean_iou(c) for c in per_image]
    assert evaluation.image_scores.tolist() == scores
    ranks = {rank: (i, score) for rank, i, score in rank_images(evaluation)}
    assert ranks["best"] == (int(np.argmax(scores)), max(scores))
    assert ranks["worst"] == (int(np.argmin(scores)), min(scores))


def test_memory_does_not_grow_with_images_times_squared_classes(tmp_path, store_file):
    dataset = open_dataset(
        "longtail_scenes", train=1, val=480, image_hw=(32, 32), data_dir=tmp_path
    )
    dataset = dataclasses.replace(dataset, class_names=tuple(map(str, range(150))))
    all_counts = 480 * 150 * 150 * np.dtype(np.int32).itemsize  # 43 MB
    run = partial(
        evaluate, make_step(150), jax.numpy.zeros(8), dataset, "val", batch_size=8
    )
    run(size_multiple=1)  # compiled before memory is looked at
    tracemalloc.start()
    try:
        confusions = ConfusionStore(store_file, 480, 150)
        evaluation = run(size_multiple=1, on_confusions=confusions.add)
        kept = tracemalloc.get_traced_memory()[0]
        assert len(list(rank_images(evaluation))) == 3
        confusions.save(tmp_path / "confusions.npz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert kept < all_counts / 40
    assert peak < all_counts / 5
    with np.load(tmp_path / "confusions.npz") as arrays:
        np.testing.assert_array_equal(
            arrays["per_image"].sum(axis=0), evaluation.confusion
        )


def test_images_without_a_count_are_zeros_in_the_file(tmp_path, store_file):
    confusions = ConfusionStore(store_file, 3, 2)
    counted = np.array([[[1, 0], [0, 2]], [[0, 3], [2**31 - 1, 0]]], np.int32)
    confusions.add([2, 0], counted)
    confusions.save(tmp_path / "confusions.npz")
    with np.load(tmp_path / "confusions.npz") as arrays:
        stored = arrays["per_image"]
    np.testing.assert_array_equal(stored, [counted[1], np.zeros((2, 2)), counted[0]])


def test_a_run_decodes_again_only_what_it_draws(
    finished_folder_run, small_folder, tmp_path, decoded
):
    shutil.copytree(finished_folder_run, tmp_path / "run")
    config = read_config(tmp_path / "run")
    config.data.root = str(small_folder)
    config.data.data_dir = str(tmp_path / "datasets")
    dataset = open_dataset("folder", root=small_folder, data_dir=config.data.data_dir)
    dataset.class_index("train")
    decoded.clear()
    results = evaluate_run(config, tmp_path / "run")
    assert results["num_images"] == 2
    # The figure shows the best, the median and the worst, which are two images.
    assert decoded.count("L") == 2 + 2
