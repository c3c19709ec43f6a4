"""The train and evaluation steps: written for one device, mapped over all with pmap."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from segloss.data.augment import normalize
from segloss.data.pipeline import Batch
from segloss.losses import gradient_share
from segloss.losses.diagnostics import pixel_share
from segloss.metrics import confusion_matrix
from segloss.train.inference import Inference, of_each_class, predict_labels
from segloss.train.loss_schedules import ScheduledLoss, loss_at

AXIS = "devices"


@flax.struct.dataclass
class TrainState:
    """All that a run needs to go on; `step` is the position in the data as well.

    The fields are trees of arrays, or of whatever `jax.tree.map` makes of them.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    # Raw key data, because a checkpoint holds plain arrays.
    key: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_hw: tuple[int, int],
) -> TrainState:
    """The state before the first step, a pure function of the seed."""
    init_key, key = jax.random.split(jax.random.key(seed))
    images = jnp.zeros((1, *image_hw, 3))
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(init_key, images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        key=jax.random.key_data(key),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    loss: Callable | ScheduledLoss,
    optimizer: optax.GradientTransformation,
    augment: Callable,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on one device's share of the batch; needs the mapped axis `AXIS`.

    Where the model gives several logits, as `MultiScale` does, the loss is the sum of
    those of each, at its own size.

    Returns:
        The next state, equal on all devices, and scalars: the global batch's `loss`,
        its `grad_norm` before clipping, the `param_norm` that results, and the values
        that schedules gave the loss.
    """
    loss, scheduled = loss_at(loss, state.step)
    images, labels, valid, inputs = _augmented(state, batch, augment)

    def global_loss(params):
        logits, batch_stats = _forward(state, params, images, batch, model)
        pairs = _pair_up(logits, labels, valid, inputs)
        with jax.named_scope("loss"):
            of_all = [loss(*each, axis_name=AXIS, **more) for *each, more in pairs]
        return sum(of_all), batch_stats

    (value, batch_stats), grads = jax.value_and_grad(global_loss, has_aux=True)(
        state.params
    )
    with jax.named_scope("gradients"):
        grads = lax.pmean(grads, AXIS)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, {
        "loss": value,
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
        **scheduled,
    }


def attention_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    loss: Callable | ScheduledLoss,
    augment: Callable,
    class_names: Sequence[str],
) -> dict[str, jax.Array]:
    """Which class gets how much of the gradient of the `train_step` with these arrays.

    Where the model gives several logits, of that through the last: the fused ones.

    Returns:
        Scalars `gradient_share/NAME` (see `segloss.losses.gradient_share`) and
        `pixel_share/NAME` of each class, equal on all devices.
    """
    loss, _ = loss_at(loss, state.step)
    images, labels, valid, inputs = _augmented(state, batch, augment)
    logits, _ = _forward(state, state.params, images, batch, model)
    logits, labels, valid, inputs = _pair_up(logits, labels, valid, inputs)[-1]
    options = {"num_classes": len(class_names), "axis_name": AXIS}
    num_outputs = logits.shape[-1]

    def of_all_classes(logits, *arrays, **axis):
        return loss(logits[..., -num_outputs:], *arrays, **axis, **inputs)

    shares = {
        "gradient_share": gradient_share(
            of_all_classes,
            of_each_class(logits),
            labels,
            valid,
            **options,
        ),
        "pixel_share": pixel_share(labels, valid, **options),
    }
    return {
        f"{kind}/{name}": share
        for kind, by_class in shares.items()
        for name, share in zip(class_names, by_class, strict=True)
    }


def _augmented(
    state: TrainState, batch: Batch, augment: Callable
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """This device's share as the step sees it: images, labels and what is valid.

    Then, by name, what else the loss takes; the batch holds it where the loss asks.
    """
    rows = batch["labels"].shape[0]
    # A key by the place in the global batch: the same images however many devices.
    place = lax.axis_index(AXIS) * rows + jnp.arange(rows)
    keys = jax.vmap(functools.partial(jax.random.fold_in, _step_key(state)))(place)
    inputs = {k: batch[k] for k in ("distances",) if k in batch}
    images, labels, valid, *maps = augment(
        keys, batch["images"], batch["labels"], batch["valid"], **inputs
    )
    return images, labels, valid, dict(zip(inputs, maps, strict=True))


def _forward(
    state: TrainState, params: Any, images: jax.Array, batch: Batch, model: nn.Module
) -> tuple[jax.Array | tuple[jax.Array, ...], Any]:
    """Logits as in training, and the BatchNorm statistics that result."""
    logits, updated = model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        normalize(images),
        train=True,
        sample_valid=batch["sample_valid"],
        mutable=["batch_stats"],
        # A place that no sample has, because augmentation draws from theirs.
        rngs={"dropout": jax.random.fold_in(_step_key(state), np.uint32(2**32 - 1))},
    )
    return logits, updated.get("batch_stats", {})


def _pair_up(
    logits: jax.Array | tuple[jax.Array, ...],
    labels: jax.Array,
    valid: jax.Array,
    inputs: dict[str, jax.Array],
) -> list[tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]]:
    """What the loss takes, for each of the model's logits.

    Of several, each has the labels of the pixels nearest to its own, which are those
    that PIL's NEAREST takes. Distances stay in pixels of the image.
    """
    if not isinstance(logits, tuple):
        return [(logits, labels, valid, inputs)]

    def at_pixels_of(each: jax.Array, of_image: Any) -> Any:
        spatial = each.shape[1:-1]

        def nearest(x: jax.Array) -> jax.Array:
            shape = (len(x), *spatial, *x.shape[labels.ndim :])
            return jax.image.resize(x, shape, "nearest")

        return jax.tree.map(nearest, of_image)

    of_image = (labels, valid, inputs)
    return [(each, *at_pixels_of(each, of_image)) for each in logits]


def _step_key(state: TrainState) -> jax.Array:
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)


def evaluation_step(
    variables: dict[str, Any],
    batch: Batch,
    *,
    model: nn.Module,
    inference: Inference,
    num_classes: int,
) -> jax.Array:
    """Confusion matrix of each image, int32 `[b, num_classes, num_classes]`."""
    predicted = predict_labels(
        variables, batch["images"], batch["hw"], model=model, inference=inference
    )
    count = functools.partial(confusion_matrix, num_classes=num_classes)
    return jax.vmap(count)(predicted, batch["labels"], batch["valid"])


def pmap_train_step(
    devices: Sequence[jax.Device] | None = None, **parts: Any
) -> Callable:
    """`train_step` over all devices, or those given; uses up the state it is given."""
    return jax.pmap(
        functools.partial(train_step, **parts),
        axis_name=AXIS,
        donate_argnums=0,
        devices=devices,
    )


def pmap_attention_step(**parts: Any) -> Callable:
    """`attention_step` over all devices; leaves the state as it is."""
    return jax.pmap(functools.partial(attention_step, **parts), axis_name=AXIS)


def pmap_evaluation_step(**parts: Any) -> Callable:
    """`evaluation_step` over all devices."""
    return jax.pmap(functools.partial(evaluation_step, **parts), axis_name=AXIS)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """A copy for each device, placed just as the pmapped steps place what they return.

    With `flax.jax_utils.replicate`, whose mesh has another name, the second step would
    be compiled again.
    """
    devices = devices or jax.local_devices()
    copy = jax.pmap(
        lambda _, leaf: leaf, in_axes=(0, None), axis_name=AXIS, devices=devices
    )
    return copy(np.arange(len(devices)), tree)


def shard(batch: Batch, num_devices: int | None = None) -> Batch:
    """Splits this process's rows over its devices: `[b, ...]` to `[n, b / n, ...]`."""
    devices = num_devices or jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


def prefetch_to_devices(batches: Iterable[Batch], *, ahead: int = 2) -> Iterator[Batch]:
    """Batches on the devices, sharded for the steps, so many of them before their turn.

    flax's `prefetch_to_device` copies each batch once more before it is sent.
    """
    # The mesh as the steps have it, or the batch would be placed again.
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    sharding = jax.NamedSharding(mesh, jax.P(AXIS))
    sent = collections.deque()
    for batch in batches:
        sent.append(jax.device_put(shard(batch), sharding))
        if len(sent) > ahead:
            yield sent.popleft()
    yield from sent


def first_replica(tree: Any) -> Any:
    """One device's copy of a replicated tree, on the host, without the others."""
    return jax.tree.map(
        lambda x: np.asarray(x.addressable_shards[0].data).reshape(x.shape[1:]), tree
    )
