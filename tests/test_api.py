"""What every public loss and metric has in common."""

import inspect
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segloss import losses, metrics

each_loss = pytest.mark.parametrize("loss", losses.LOSSES.values(), ids=losses.LOSSES)


def test_the_registry_holds_every_public_loss_by_its_name():
    public = {name: getattr(losses, name) for name in losses.__all__}
    takes_logits = {
        name: value
        for name, value in public.items()
        if callable(value) and "logits" in inspect.signature(value).parameters
    }
    assert takes_logits == losses.LOSSES


@each_loss
def test_arrays_are_positional_and_hyperparameters_keyword_only(loss):
    parameters = inspect.signature(loss).parameters
    positional = [
        name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY
    ]
    assert positional == ["logits", "labels", "valid"]
    assert list(parameters)[-1] == "axis_name"
    assert parameters["valid"].default is parameters["axis_name"].default is None


@each_loss
def test_the_docstring_names_the_source(loss):
    assert re.search(r"arXiv:\d{4}\.\d{5}|doi:10\.|Eq\. \d", loss.__doc__)


@pytest.mark.parametrize("module", [losses, metrics])
def test_everything_public_is_documented(module):
    for name in module.__all__:
        value = getattr(module, name)
        assert value.__doc__ if callable(value) else isinstance(value, dict)
    assert module.__all__ == sorted(module.__all__)


@each_loss
def test_losses_work_under_jit_grad_and_vmap(loss):
    logits = jax.random.normal(jax.random.key(0), (3, 2, 4, 5))
    labels = jax.random.randint(jax.random.key(1), (3, 2, 4), 0, 5)
    # Whatever it asks for beside the labels, logits of another key will do.
    other = jax.random.normal(jax.random.key(2), logits.shape)
    inputs = dict.fromkeys(losses.inputs_of(loss.__name__), other)
    arrays = logits, labels, None, inputs

    def call(logits, labels, valid, inputs):
        return loss(logits, labels, valid, **inputs)

    values, grads = jax.jit(jax.vmap(jax.value_and_grad(call)))(*arrays)
    alone = [call(*jax.tree.map(lambda x, i=i: x[i], arrays)) for i in range(3)]
    np.testing.assert_allclose(values, alone, rtol=1e-6)
    # Downhill from here, for each of the three.
    lower = logits - 0.1 * grads / jnp.abs(grads).max()
    lower = jax.vmap(call)(lower, *arrays[1:])
    assert (lower < values).all()


@pytest.mark.parametrize("module", ["segloss.losses", "segloss.metrics"])
def test_import_needs_neither_a_training_nor_a_plotting_package(module):
    unwanted = ["flax", "grain", "matplotlib", "optax", "orbax", "tensorflow_datasets"]
    code = f"import sys, {module}; print(*(set({unwanted}) & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
