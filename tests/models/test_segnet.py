import functools

import jax
import jax.numpy as jnp
import numpy as np

from segloss.models import make_model
from segloss.models.segnet import max_pool_with_indices, max_unpool

KEY = jax.random.key(0)
# An odd size, an edge with only negative numbers, and equal maxima in two windows.
IMAGE = [
    [1, 5, 2, 2, -3],
    [3, 4, 2, 1, -1],
    [0, 0, 7, 8, -2],
    [0, 0, 9, 8, -2],
    [6, -1, -5, -4, -7],
]
POOLED = [[5, 2, -1], [0, 9, -2], [6, -4, -7]]
# Flat places in the image, as torch's MaxPool2d(2, 2, ceil_mode=True,
# return_indices=True) gives them.
TORCH_INDICES = [[1, 2, 9], [10, 17, 14], [20, 23, 24]]
# Its MaxUnpool2d(2, 2) of these, with output_size=(5, 5).
UNPOOLED = [
    [0, 5, 2, 0, 0],
    [0, 0, 0, 0, -1],
    [0, 0, 0, 0, -2],
    [0, 0, 9, 0, 0],
    [6, 0, 0, -4, -7],
]


def as_maps(rows):
    """The rows in one channel and, negative, in another; only the first is checked."""
    rows = jnp.array(rows, jnp.float32)
    return jnp.stack([rows, -rows], axis=-1)[None]


def test_pooling_and_unpooling_equal_torch():
    pooled, indices = jax.jit(max_pool_with_indices)(as_maps(IMAGE))
    np.testing.assert_array_equal(pooled[0, :, :, 0], POOLED)
    row, column = np.divmod(np.asarray(indices[0, :, :, 0], int), 2)
    window = 2 * np.arange(3)
    flat = 5 * (window[:, None] + row) + window[None] + column
    np.testing.assert_array_equal(flat, TORCH_INDICES)
    unpooled = jax.jit(max_unpool, static_argnums=2)(pooled, indices, (5, 5))
    np.testing.assert_array_equal(unpooled[0, :, :, 0], UNPOOLED)


def test_gradients_go_where_the_maxima_are():
    @jax.jit
    def pulled_back(image, pooled):
        highest, pull, indices = jax.vjp(max_pool_with_indices, image, has_aux=True)
        _, pull_up = jax.vjp(lambda x: max_unpool(x, indices, (5, 5)), highest)
        return pull(pooled), pull_up(image)

    (down,), (up,) = pulled_back(as_maps(IMAGE), as_maps(POOLED))
    np.testing.assert_array_equal(down[0, :, :, 0], UNPOOLED)
    np.testing.assert_array_equal(up[0, :, :, 0], POOLED)


def test_parameters_are_those_of_the_paper():
    # 29.5 M in the paper. The authors' prototxt has twice VGG-16's
    # convolutions, the last with 11 classes: 29,433,483 with the biases, which norms
    # make idle. Here 7,936 biases give way to 2 x 7,936 of norms, but for the head.
    model = make_model("segnet", num_classes=11)
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, KEY, jnp.zeros((1, 32, 32, 3)))
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == 29_433_483 + 7_936
    widths = {
        f"{decoder}/{conv}": leaf["kernel"].shape[-1]
        for decoder, convs in variables["params"].items()
        if decoder.startswith("decoder")
        for conv, leaf in convs.items()
        if conv.startswith("conv")
    }
    assert widths == {
        **{f"decoder5/conv{i}": 512 for i in (1, 2, 3)},
        "decoder4/conv1": 512,
        "decoder4/conv2": 512,
        "decoder4/conv3": 256,
        "decoder3/conv1": 256,
        "decoder3/conv2": 256,
        "decoder3/conv3": 128,
        "decoder2/conv1": 128,
        "decoder2/conv2": 64,
        "decoder1/conv1": 64,
    }
