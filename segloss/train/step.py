"""The train step, for one device; `segloss.devices` maps it over all devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from segloss.data.augment import normalize
from segloss.data.bands import RGB, Bands
from segloss.data.loading.batches import Batch
from segloss.devices import AXIS
from segloss.losses import gradient_share
from segloss.losses.diagnostics import pixel_share
from segloss.train.loss_scaling import first_loss_scale, keep_if, scaled_value_and_grad
from segloss.train.loss_schedules import ScheduledLoss, loss_at
from segloss.train.non_finite import BATCH_STATS_FINITE
from segloss.train.parameter_groups import put_back, trained_part
from segloss.trained.inference import of_each_class


@flax.struct.dataclass
class TrainState:
    """The state from which a run resumes; `step` is the number of batches used so far.

    A pytree: the fields are arrays or trees of them.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    # Raw key data, because checkpoints contain plain arrays.
    key: Any
    # See `first_loss_scale`; empty without loss scaling.
    loss_scale: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """`params` and `batch_stats`, as `model.apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_hw: tuple[int, int],
    num_bands: int = 3,
    loss_scale: float | str | None = None,
) -> TrainState:
    """Makes the state before the first step; the random weights depend on `seed`.

    The model is initialised with an image of height and width `image_hw` that has
    `num_bands` bands. `loss_scale` is that of `first_loss_scale`.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    images = jnp.zeros((1, *image_hw, num_bands))
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(init_key, images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        key=jax.random.key_data(key),
        loss_scale=first_loss_scale(loss_scale),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    loss: Callable | ScheduledLoss,
    optimizer: optax.GradientTransformation,
    augment: Callable,
    num_classes: int,
    bands: Bands = RGB,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Updates the state with one device's part of the batch; needs the mapped `AXIS`.

    If the model returns a tuple of logits, as `MultiScale` does, the loss is the sum of
    their losses, each computed at the size of its logits.

    `augment` is `segloss.data.augment` with its hyperparameters bound; `loss` takes
    logits, class ids and `valid`; `bands` are those of the images.

    With loss scaling, a step whose gradient is NaN or infinite changes only `step` and
    `loss_scale` of the state.

    Returns:
        The next state and scalars by name, both equal on all devices. The scalars are
        `loss` of the global batch, `grad_norm` before clipping and without frozen
        parameters, `param_norm` of all parameters after the update, `classes_in_crops`,
        the number of distinct classes in the crops of the global batch, and the
        scheduled hyperparameters of the loss; whether all batch statistics are finite;
        and with loss scaling the scale and the number of skipped steps, in all and in a
        row. If the batch has a `stop_signal`, the highest one of all devices is added.
    """
    loss, scheduled = loss_at(loss, state.step)
    images, labels, valid, inputs = _augmented(state, batch, augment)

    # Autodiff makes no backward pass for the parameters that stay frozen.
    trained = trained_part(optimizer, state.params)

    def global_loss(trained):
        params = put_back(trained, state.params)
        logits, batch_stats = _forward(state, params, images, batch, model, bands)
        pairs = _pair_up(logits, labels, valid, inputs)
        with jax.named_scope("loss"):
            of_all = [loss(*each, axis_name=AXIS, **more) for *each, more in pairs]
        return sum(of_all), batch_stats

    finite, scaling = None, {}
    if state.loss_scale:
        (value, batch_stats), grads, finite, scaling = scaled_value_and_grad(
            global_loss, trained, state.loss_scale
        )
    else:
        differentiate = jax.value_and_grad(global_loss, has_aux=True)
        (value, batch_stats), grads = differentiate(trained)
        with jax.named_scope("gradients"):
            grads = lax.pmean(grads, AXIS)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = put_back(optax.apply_updates(trained, updates), state.params)
    updated = dict(params=params, batch_stats=batch_stats, opt_state=opt_state)
    if finite is not None:
        updated = keep_if(finite, updated, {k: getattr(state, k) for k in updated})
    state = state.replace(step=state.step + 1, loss_scale=scaling, **updated)
    with jax.named_scope("metrics"):
        shares = pixel_share(labels, valid, num_classes=num_classes, axis_name=AXIS)
    stop = {}
    if "stop_signal" in batch:
        stop["stop_signal"] = lax.pmax(batch["stop_signal"], AXIS)
    return state, {
        "loss": value,
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(state.params),
        "classes_in_crops": (shares > 0).sum(),
        **scheduled,
        **_health(state),
        **stop,
    }


def _health(state: TrainState) -> dict[str, jax.Array]:
    """Scalars that say whether training can continue from a state."""
    scalars = {}
    if stats := jax.tree.leaves(state.batch_stats):
        # Training normalises by the statistics of the batch, so the loss stays finite
        # when the running ones are not.
        finite = jnp.stack([lax.is_finite(x).all() for x in stats]).all()
        scalars[BATCH_STATS_FINITE] = finite
    if scaling := state.loss_scale:
        scalars["loss_scale"] = scaling["scale"]
        scalars |= {x: scaling[x] for x in ("skipped_steps", "skipped_in_a_row")}
    return scalars


def attention_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    loss: Callable | ScheduledLoss,
    augment: Callable,
    class_names: Sequence[str],
    bands: Bands = RGB,
) -> dict[str, jax.Array]:
    """Computes each class's share of the loss gradient and of the pixels of a batch.

    The arguments are those of `train_step`, for the same augmented batch; `class_names`
    lists the names by class id. If the model returns a tuple of logits, only the last,
    which fuse the others, are used.

    Returns:
        Scalars `gradient_share/NAME` (see `segloss.losses.gradient_share`) and
        `pixel_share/NAME`, with the name of each class, equal on all devices.
    """
    loss, _ = loss_at(loss, state.step)
    images, labels, valid, inputs = _augmented(state, batch, augment)
    logits, _ = _forward(state, state.params, images, batch, model, bands)
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
    """Augments this device's part of the batch, at random by the seed and the step.

    Returns images, labels, valid, and a dict with `distances` if the batch has them.
    """
    rows = batch["labels"].shape[0]
    # Keys depend on the row in the global batch, not on the number of devices.
    place = lax.axis_index(AXIS) * rows + jnp.arange(rows)
    keys = jax.vmap(functools.partial(jax.random.fold_in, _step_key(state)))(place)
    given = {name: batch[name] for name in ("window", "distances") if name in batch}
    images, labels, valid, *distances = augment(
        keys, batch["images"], batch["labels"], batch["valid"], **given
    )
    return images, labels, valid, {"distances": distances[0]} if distances else {}


def _forward(
    state: TrainState,
    params: Any,
    images: jax.Array,
    batch: Batch,
    model: nn.Module,
    bands: Bands,
) -> tuple[jax.Array | tuple[jax.Array, ...], Any]:
    """Applies the model with `train=True` to augmented images.

    Returns the logits, or a tuple of them, and the updated BatchNorm statistics.
    """
    logits, updated = model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        normalize(images, bands),
        train=True,
        sample_valid=batch["sample_valid"],
        mutable=["batch_stats"],
        # No row has this number; augmentation uses the keys of the row numbers.
        rngs={"dropout": jax.random.fold_in(_step_key(state), np.uint32(2**32 - 1))},
    )
    return logits, updated.get("batch_stats", {})


def _pair_up(
    logits: jax.Array | tuple[jax.Array, ...],
    labels: jax.Array,
    valid: jax.Array,
    inputs: dict[str, jax.Array],
) -> list[tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]]:
    """Pairs each of the model's logits with labels, valid and inputs of the same size.

    `inputs` holds further arguments of the loss, by name. For a tuple of logits, the
    others are resized by nearest neighbour, which picks the same pixels as PIL's
    NEAREST. The values of `distances` stay in pixels of the image.
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
