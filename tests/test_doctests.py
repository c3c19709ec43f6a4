"""Every public function has an example, and the examples print what they show."""

import doctest

import pytest

from segloss import data, losses, metrics
from segloss.losses import balancing

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (data, losses, metrics)
    for name in module.__all__
} | {f"{f.__module__}.{name}": f for name, f in balancing.CLASS_WEIGHTS.items()}
EXAMPLES = {name: x for name, x in PUBLIC.items() if ">>>" in (x.__doc__ or "")}
FUNCTIONS = [
    name
    for name, x in PUBLIC.items()
    if callable(x) and not isinstance(x, type) and not name.startswith("segloss.data.")
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_has_an_example(name):
    if PUBLIC[name].__module__ != losses.make_loss.__module__:
        assert name in EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_shows(name):
    function = EXAMPLES[name]
    names = {"__name__": name, function.__name__: function}
    parser = doctest.DocTestParser()
    example = parser.get_doctest(function.__doc__, names, name, name, None)
    assert doctest.DocTestRunner().run(example).failed == 0
