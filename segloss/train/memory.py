"""Which parts of a training step need memory, for the error if it does not suffice."""

import contextlib
import functools
import math

import jax
import numpy as np

from segloss.data import count_rows
from segloss.data.bands import label_dtype
from segloss.train.first_state import make_fresh_state
from segloss.train.setup import Setup
from segloss.trained.memory import bytes_of, memory_named


def training_memory_named(setup: Setup) -> contextlib.AbstractContextManager[None]:
    """Context manager in which a lack of memory names the fields of the run to lower.

    Raises:
        OutOfMemoryError: instead of the errors of NumPy and JAX.
    """
    config = setup.config
    model = config.model.hyperparameters
    fields = {
        "config.data.crop_hw": config.data.crop_hw,
        "config.sampler.batch_max": setup.sampler.batch_max,
        "config.data.prefetch_batches": config.data.prefetch_batches or None,
        "config.model.width": model.get("width"),
    }
    return memory_named("training", functools.partial(training_parts, setup), fields)


def training_parts(setup: Setup) -> dict[str, int]:
    """Estimates the bytes of the largest arrays of a run, without making them.

    Those of a device are for its share of the batch.
    """
    config, loading = setup.config, setup.loading
    rows = count_rows(setup.sampler.batch_max, jax.device_count())
    on_device = rows // jax.device_count()
    state = jax.eval_shape(lambda: make_fresh_state(setup))
    labels = label_dtype(setup.dataset.num_classes, setup.dataset.ignore_label)
    per_pixel = loading.bands.num_bands * np.dtype(loading.bands.dtype).itemsize
    per_pixel += np.dtype(labels).itemsize + 1
    return {
        "the weights and the optimizer on each device": bytes_of(state),
        "one batch on the host": rows * math.prod(loading.canvas_hw) * per_pixel,
        "the features of the network on each device": _features(setup, on_device),
        "the logits on each device": (
            on_device
            * math.prod(config.data.crop_hw)
            * config.count_outputs(setup.dataset.num_classes)
            * 4
        ),
    }


def _features(setup: Setup, rows: int) -> int:
    """Bytes of the outputs of all layers, which the backward pass needs.

    Frozen first layers are counted, too, although they have no backward pass.
    """
    shape = (rows, *setup.config.data.crop_hw, setup.dataset.bands.num_bands)

    def outputs() -> dict:
        images = jax.numpy.zeros(shape)
        how = dict(train=False, capture_intermediates=True)
        variables = setup.model.init(jax.random.key(0), images, **how)
        return variables.get("intermediates", {})

    return bytes_of(jax.eval_shape(outputs))
