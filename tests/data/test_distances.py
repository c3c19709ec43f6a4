import numpy as np
import pytest

from segloss.data import signed_distances


def test_distances_of_a_row_match_hand_computed_values():
    distances = signed_distances(np.array([0, 0, 0, 1, 1, 2], np.uint8), num_classes=4)
    assert distances.dtype == np.float16
    expected = [
        [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5],
        [2.5, 1.5, 0.5, -0.5, -0.5, 0.5],
        [4.5, 3.5, 2.5, 1.5, 0.5, -0.5],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(distances.T, expected)


def test_distances_are_euclidean():
    labels = np.zeros((5, 6), int)
    labels[0, 0] = 1
    distances = signed_distances(labels, num_classes=2)
    assert distances[3, 4].tolist() == [-4.5, 4.5]
    assert distances[0, 0].tolist() == [0.5, -0.5]


def test_void_is_neither_a_region_nor_a_boundary():
    labels = np.array([255, 0, 0, 255, 1, 1, 255])
    distances = signed_distances(labels, labels != 255, num_classes=2)
    first = [0, -2.5, -1.5, 0, 1.5, 2.5, 0]
    np.testing.assert_array_equal(distances.T, [first, np.negative(first)])
    for junk in (0, 1, -1):
        other = signed_distances(
            np.where(labels == 255, junk, labels), labels != 255, num_classes=2
        )
        np.testing.assert_array_equal(other, distances)


@pytest.mark.parametrize("void", [(), (0, 2), (0, 1, 2, 3)])
def test_an_image_of_one_class_or_none_has_no_boundary(void):
    valid = np.isin(np.arange(4), void, invert=True)
    labels = np.where(valid, 1, 0)
    distances = signed_distances(labels, valid, num_classes=3)
    np.testing.assert_array_equal(distances, np.zeros((4, 3)))


@pytest.mark.parametrize("shape", [(9, 7), (4, 5, 6)])
def test_distances_equal_a_search_over_all_pixels(shape):
    rng = np.random.default_rng(0)
    labels = rng.choice(4, shape, p=[0.8, 0.1, 0.1, 0])
    valid = rng.random(shape) < 0.8
    pixels = np.stack(np.indices(shape), axis=-1).reshape(-1, len(shape))
    apart = np.linalg.norm(pixels[:, None] - pixels, axis=-1)
    expected = np.zeros((*shape, 4))
    for c in range(3):
        inside = (valid & (labels == c)).ravel()
        outside = (valid & (labels != c)).ravel()
        to_inside, to_outside = (
            apart[:, side].min(axis=1) - 0.5 for side in (inside, outside)
        )
        signed = np.where(inside, -to_outside, np.where(outside, to_inside, 0))
        expected[..., c] = signed.reshape(shape)
    distances = signed_distances(labels, valid, num_classes=4)
    np.testing.assert_array_equal(distances, expected.astype(np.float16))
