"""What every public loss and metric has in common."""

import inspect
import re
import subprocess
import sys

import pytest

from segloss import losses, metrics

each_loss = pytest.mark.parametrize("loss", losses.LOSSES.values(), ids=losses.LOSSES)


def test_the_registry_holds_every_public_loss_by_its_name():
    public = {name: getattr(losses, name) for name in losses.__all__}
    takes_logits = {
        name: value
        for name, value in public.items()
        if callable(value)
        and next(iter(inspect.signature(value).parameters)) == "logits"
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


@pytest.mark.parametrize("module", ["segloss.losses", "segloss.metrics"])
def test_import_brings_only_jax_numpy_and_jaxtyping(module):
    code = f"""
import sys
import jax, jaxtyping, numpy
before = set(sys.modules)
import {module}
packages = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*packages - {{"jax", "jaxlib", "jaxtyping", "numpy"}} - sys.stdlib_module_names)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["segloss"]
