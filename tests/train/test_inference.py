import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from segloss.config import Inference
from segloss.data import normalize, put_on_canvas
from segloss.models import UNet
from segloss.trained.inference import of_each_class, predict_labels, window_starts

pytestmark = pytest.mark.shared_out

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (21, 27, 3), np.uint8)


class Colours(nn.Module):
    """Logits from each pixel's own colour: no size, scale or window matters to it."""

    def __call__(self, images, *, train):
        return images @ jnp.array([[1.0, -2.0, 0.5, 1.0], [2, 1, -1, 0], [-1, 1, 2, 1]])


class Neighbours(nn.Module):
    """Logits from each pixel and the one right of it: not the same when mirrored."""

    def __call__(self, images, *, train):
        return 3 * images + jnp.roll(images, -1, axis=2)


@functools.cache
def unet():
    model = UNet(num_classes=4, depth=1, width=4, norm="none")
    init = jax.jit(functools.partial(model.init, train=False))
    return model, init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.fixture(params=["pixels", "unet"])
def network(request):
    return unet() if request.param == "unet" else (Neighbours(), {})


@functools.cache
def compiled(model, inference):
    how = dict(model=model, inference=inference)
    return jax.jit(functools.partial(predict_labels, **how))


def predict(network, image=IMAGE, *, canvas_hw=None, **fields):
    """Class ids of one image, on a canvas of its own size unless said."""
    model, variables = network
    h, w, _ = image.shape
    canvas = put_on_canvas(image, canvas_hw or (h, w))
    labels = compiled(model, Inference(**fields))(
        variables, canvas[None], np.array([[h, w]])
    )
    return np.asarray(labels)[0, :h, :w]


def plain(network, image=IMAGE):
    """What the logits at the image's own size say."""
    model, variables = network
    image = (image / np.float32(255) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    logits = model.apply(variables, jnp.array(image[None], jnp.float32), train=False)
    return np.argmax(logits[0], axis=-1)


def agreement(a, b):
    return np.mean(np.asarray(a) == np.asarray(b))


def test_one_look_is_the_largest_logit(network):
    labels = predict(network)
    assert labels.dtype == np.uint8
    assert len(np.unique(labels)) > 2
    np.testing.assert_array_equal(labels, plain(network))


def test_a_scale_of_1_is_taken_for_what_it_is(network):
    np.testing.assert_array_equal(predict(network, scales=(1.0, 1)), plain(network))


def test_flip_of_a_network_without_sides_changes_nothing():
    network = Colours(), {}
    np.testing.assert_array_equal(predict(network, flip=True), plain(network))


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.75)])
def test_mirrored_image_gets_the_mirrored_prediction(scales):
    """Even where the canvas is wider than the image, on the right alone."""
    image = np.kron(IMAGE, np.ones((2, 2, 1), np.uint8))
    mirrored = np.ascontiguousarray(image[:, ::-1])
    look = functools.partial(predict, unet(), canvas_hw=(48, 64), size_multiple=16)
    assert agreement(look(mirrored), look(image)[:, ::-1]) < 0.95
    both = functools.partial(look, scales=scales, flip=True)
    np.testing.assert_array_equal(both(mirrored), both(image)[:, ::-1])


def test_flip_is_the_mean_of_two_softmaxes():
    class Sides(nn.Module):
        """Of two pixels, the left one is class 0 by 2, the right one class 1 by 3."""

        def __call__(self, images, *, train):
            left = jnp.array([[2.0, 0.0], [0.0, 3.0]])
            return jnp.broadcast_to(left[None, None], (*images.shape[:3], 2))

    image = np.zeros((1, 2, 3), np.uint8)
    assert predict((Sides(), {}), image).tolist() == [[0, 1]]
    # Class 1 in both: (1 / (1 + e^2) + 1 / (1 + e^-3)) / 2 = (0.12 + 0.95) / 2.
    assert predict((Sides(), {}), image, flip=True).tolist() == [[1, 1]]


# 21 and 27 times 0.75 are 15.75 and 20.25, times 1.5 31.5 and 40.5: halves go up.
@pytest.mark.parametrize(("scale", "scaled_hw"), [(0.75, (16, 20)), (1.5, (32, 41))])
def test_image_at_a_scale_is_resized_and_its_logits_back(scale, scaled_hw):
    def resize(x, hw):
        return jax.image.resize(x, (*hw, x.shape[-1]), "bilinear", antialias=False)

    image = resize(normalize(jnp.array(IMAGE)), scaled_hw)
    logits = resize(Neighbours()(image[None], train=False)[0], (21, 27))
    labels = predict((Neighbours(), {}), scales=(scale,))
    np.testing.assert_array_equal(labels, np.argmax(logits, axis=-1))


def test_prediction_at_a_scale_does_not_depend_on_the_canvas():
    """Of what lies beside an image, nothing is interpolated into it."""
    look = functools.partial(predict, (Colours(), {}), scales=(0.75, 1.4))
    for image in (IMAGE, IMAGE[:19, :23]):
        np.testing.assert_array_equal(look(image, canvas_hw=(40, 32)), look(image))


@given(size=st.integers(1, 300), window=st.integers(1, 120), share=st.floats(0.01, 1))
def test_windows_cover_every_pixel_and_end_at_the_border(size, window, share):
    window = min(window, size)
    starts = window_starts(size, window, max(1, round(share * window)))
    covered = np.zeros(size, int)
    for start in starts:
        covered[start : start + window] += 1
    assert (covered >= 1).all()
    assert starts[0] == 0
    assert starts[-1] + window == size
    assert starts == sorted(set(starts))


def test_windows_lie_where_mmsegmentation_has_them():
    # Cityscapes, 1024x2048, with its windows of 769 and steps of 513.
    assert window_starts(1024, 769, 513) == [0, 255]
    assert window_starts(2048, 769, 513) == [0, 513, 1026, 1279]


@pytest.mark.parametrize("window_hw", [(8, 8), (9, 40), (5, 7), (1, 1)])
def test_windows_of_a_network_that_sees_one_pixel_change_nothing(window_hw):
    labels = predict((Colours(), {}), window_hw=window_hw)
    np.testing.assert_array_equal(labels, plain((Colours(), {})))


def test_image_that_fits_the_window_is_seen_whole():
    np.testing.assert_array_equal(predict(unet(), window_hw=(21, 27)), plain(unet()))
    assert agreement(predict(unet(), window_hw=(8, 8)), plain(unet())) < 1


def test_window_sees_nothing_beyond_its_border_and_overlaps_are_averaged():
    class Mean(nn.Module):
        """The mean red of all that it sees, against 0."""

        def __call__(self, images, *, train):
            red = images[..., 0].mean(axis=(1, 2), keepdims=True)
            red = jnp.broadcast_to(red[..., None], (*images.shape[:3], 1))
            return jnp.concatenate([jnp.zeros_like(red), red], axis=-1)

    # Windows of 4 columns at 0, 3 and 4. Of the normalised red, -2.1 is black and 2.2
    # white: the means are -2.1, 0.08 (two of four) and 1.2 (three of four).
    image = np.zeros((2, 8, 3), np.uint8)
    image[:, 5:] = 255
    labels = predict((Mean(), {}), image, window_hw=(2, 4))
    # Column 3 lies in the first two: sigmoid(-2.1) = 0.11 and 0.52, in the mean 0.31.
    np.testing.assert_array_equal(labels, [[0, 0, 0, 0, 1, 1, 1, 1]] * 2)


def test_windows_at_another_scale_of_such_a_network_change_nothing():
    look = functools.partial(predict, (Colours(), {}), scales=(1.5,))
    np.testing.assert_array_equal(look(window_hw=(16, 16)), look())


def test_ways_to_predict_have_names():
    assert Inference(size_multiple=8).name == ""
    ways = Inference(scales=(0.75, 1), flip=True, window_hw=(64, 32), window_stride=0.5)
    assert ways.name == "scales_0.75_1_flip_windows_64x32_0.5"
    assert Inference(max_pixels=2**20).name == "max_pixels_1048576"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(scales=()), r"scales must be numbers > 0 such as .*, got \(\)"),
        (dict(scales=(1.0, 0)), r"scales must be .*, got \(1.0, 0\)"),
        (dict(scales=1.5), "scales must be .*, got 1.5"),
        (dict(scales=("1",)), r"scales must be .*, got \('1',\)"),
        (dict(flip=1), "flip must be True or False, got 1"),
        (dict(window_hw=(32,)), r"window_hw must be None, or .*, got \(32,\)"),
        (dict(window_hw=(32, 0)), r"window_hw must be None, or .*, got \(32, 0\)"),
        (dict(window_stride=0.0), r"window_stride must be in \(0, 1\], got 0.0"),
        (dict(window_stride=341), r"window_stride must be in \(0, 1\], got 341"),
        (
            dict(size_multiple=0),
            "evaluate.size_multiple must be an integer >= 1, got 0",
        ),
        (dict(max_pixels=2.5), "max_pixels must be an integer >= 1, got 2.5"),
    ],
)
def test_field_out_of_range_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Inference(**fields)


class Redder(nn.Module):
    """One logit: how much more red than green a pixel is."""

    def __call__(self, images, *, train):
        return images[..., :1] - images[..., 1:2]


@pytest.mark.parametrize(
    "fields", [{}, dict(scales=(1.0, 1)), dict(window_hw=(4, 4))], ids=str
)
def test_one_logit_is_that_of_class_1(fields):
    # As networks see them, red 130 and green 120 are 0.11 and 0.07.
    image = np.full((4, 8, 3), 120, np.uint8)
    image[:, 4:, 0] = 130
    image[:, :4, 1] = 130
    labels = predict((Redder(), {}), image, **fields)
    assert labels.tolist() == [[0] * 4 + [1] * 4] * 4


def test_the_softmax_of_one_logit_is_its_sigmoid():
    logits = jnp.log(jnp.array([[1 / 3], [3.0]]))
    probs = jax.nn.softmax(of_each_class(logits))
    np.testing.assert_allclose(probs, [[0.75, 0.25], [0.25, 0.75]], rtol=1e-6)


@pytest.mark.parametrize(
    ("scales", "scale"),
    [((0.5,), 0.5), ((1.0,), 1.0), ((0.5, 0.75, 1.25), 1.25), ((0.5, 1, 2.0), 1)],
)
def test_one_look_is_at_the_scale_nearest_1(scales, scale):
    inference = Inference(scales=scales, flip=True, size_multiple=8)
    assert inference.in_one_look == Inference(scales=(scale,), size_multiple=8)


def test_one_look_is_in_the_same_windows_and_tiles():
    inference = Inference(window_hw=(64, 64), max_pixels=4096)
    assert inference.in_one_look == inference
