"""Counts are those of one device, however JAX spreads the pixels over eight."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from segloss.metrics import boundary_confusion, calibration_counts, confusion_matrix

pytestmark = pytest.mark.shared_out

CLASSES = 3
METRICS = {
    "confusion": functools.partial(confusion_matrix, num_classes=CLASSES),
    "boundary": functools.partial(
        boundary_confusion, num_classes=CLASSES, boundary_px=2
    ),
    "calibration": functools.partial(calibration_counts, bins=4),
}
SPECS = {
    "batch": PartitionSpec(("data", "rows")),
    "batch_and_height": PartitionSpec("data", "rows"),
    "height": PartitionSpec(None, "rows"),
}
EXPLICIT_AND_AUTO = [AxisType.Explicit, AxisType.Auto]


@pytest.fixture(params=METRICS)
def counted(request):
    """A metric, what it takes of 8 images of 8x6, and what it says of them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (8, 2, 3)).repeat(4, axis=1).repeat(2, axis=2)
    labels[:, 3, 1] = 255
    scores = rng.normal(0, 2, (*labels.shape, CLASSES)).astype(np.float32)
    scores += 3 * (labels[..., None] == np.arange(CLASSES))
    if request.param != "calibration":
        scores = scores.argmax(axis=-1)
    metric = METRICS[request.param]
    valid = (rng.random(labels.shape) < 0.9) & (labels != 255)
    inputs = (scores, labels, valid)
    expected = jax.tree.map(np.asarray, metric(*map(jnp.asarray, inputs)))
    return metric, inputs, expected


def assert_equal(counts, expected):
    for got, wanted in zip(
        jax.tree.leaves(counts), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def make_mesh(axis_type):
    return jax.make_mesh((2, 4), ("data", "rows"), axis_types=(axis_type,) * 2)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("axis_type", EXPLICIT_AND_AUTO, ids=lambda t: t.name)
def test_named_sharding(counted, axis_type, spec):
    metric, inputs, expected = counted
    mesh = make_mesh(axis_type)
    inputs = jax.device_put(inputs, NamedSharding(mesh, SPECS[spec]))
    counts = jax.jit(metric)(*inputs)
    assert_equal(counts, expected)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(counts))


@pytest.mark.parametrize("valid", [(), (True,)], ids=["no_valid", "one_valid_for_all"])
def test_named_sharding_of_some_inputs(counted, valid):
    metric, (scores, labels, _), _ = counted
    labels = labels % CLASSES
    valid = tuple(map(jnp.asarray, valid))
    expected = metric(jnp.asarray(scores), jnp.asarray(labels), *valid)
    mesh = make_mesh(AxisType.Explicit)
    sharding = NamedSharding(mesh, SPECS["batch_and_height"])
    labels = jax.device_put(labels, sharding)
    scores = jax.device_put(scores, NamedSharding(mesh, SPECS["height"]))
    assert_equal(metric(scores, labels, *valid), expected)


@pytest.mark.parametrize("axis_type", EXPLICIT_AND_AUTO, ids=lambda t: t.name)
@pytest.mark.parametrize("set_mesh", [True, False], ids=["set_mesh", "no_context"])
def test_vmap_over_sharded_images(counted, axis_type, set_mesh):
    metric, inputs, expected = counted
    # The metrics of boundaries take a batch: here each image is one.
    per_image = jax.jit(jax.vmap(lambda *image: metric(*(x[None] for x in image))))
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh) if set_mesh else contextlib.nullcontext():
        sharding = NamedSharding(mesh, SPECS["batch_and_height"])
        counts = per_image(*jax.device_put(inputs, sharding))
    assert_equal(jax.tree.map(lambda x: np.asarray(x).sum(axis=0), counts), expected)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(counted, check_vma):
    metric, inputs, expected = counted

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=make_mesh(AxisType.Auto),
        in_specs=SPECS["batch"],
        out_specs=PartitionSpec(),
        check_vma=check_vma,
    )
    def total(*inputs):
        return jax.lax.psum(metric(*inputs), ("data", "rows"))

    assert_equal(total(*inputs), expected)


def test_shard_map_over_one_axis_of_an_explicit_mesh(counted):
    metric, inputs, expected = counted
    mesh = make_mesh(AxisType.Explicit)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec(),
        axis_names={"data"},
    )
    def total(*inputs):
        return jax.lax.psum(metric(*inputs), "data")

    sharding = NamedSharding(mesh, SPECS["batch_and_height"])
    assert_equal(total(*jax.device_put(inputs, sharding)), expected)


def test_pmap(counted):
    metric, inputs, expected = counted

    @functools.partial(jax.pmap, axis_name="devices")
    def total(*inputs):
        return jax.lax.psum(metric(*inputs), "devices")

    counts = total(*(x[:, None] for x in inputs))
    assert_equal(jax.tree.map(lambda x: x[0], counts), expected)


def test_a_label_that_is_no_class_shows_in_the_sum_over_devices(counted):
    """Whichever device holds it, and if all do."""
    metric, (scores, labels, valid), _ = counted

    @functools.partial(jax.pmap, axis_name="devices")
    def total(*inputs):
        return jax.lax.psum(metric(*inputs), "devices")

    for devices in (slice(3, 4), slice(None)):
        stray = valid.copy()
        stray[devices, 3, 1] = True
        counts = total(*(x[:, None] for x in (scores, labels, stray)))
        assert all((leaf < 0).all() for leaf in jax.tree.leaves(counts))
