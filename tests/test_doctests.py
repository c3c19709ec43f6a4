"""Public functions and samplers have examples that print what they show."""

import doctest

import pytest

from segloss import data, losses, metrics
from segloss.losses import balancing

FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (losses, metrics)
    for name in module.__all__
    if callable(getattr(module, name)) and not isinstance(getattr(module, name), type)
}
FUNCTIONS |= {
    f"{f.__module__}.{name}": f for name, f in balancing.CLASS_WEIGHTS.items()
}
FUNCTIONS |= {f"{data.__name__}.{s.__name__}": s for s in data.SAMPLERS.values()}
OTHERS = {f"{data.__name__}.{name}": getattr(data, name) for name in data.__all__}
EXAMPLES = {
    name: f
    for name, f in (FUNCTIONS | OTHERS).items()
    if callable(f) and ">>>" in (f.__doc__ or "")
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_has_an_example(name):
    if FUNCTIONS[name].__module__ != losses.make_loss.__module__:
        assert name in EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_shows(name):
    function = EXAMPLES[name]
    names = {"__name__": name, function.__name__: function}
    parser = doctest.DocTestParser()
    example = parser.get_doctest(function.__doc__, names, name, name, None)
    assert doctest.DocTestRunner().run(example).failed == 0
