"""The examples in public docstrings give what they say."""

import doctest

import pytest

from segloss import data, losses, metrics

EXAMPLES = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (data, losses, metrics)
    for name in module.__all__
    if ">>>" in (getattr(module, name).__doc__ or "")
}


def test_there_are_examples():
    assert len(EXAMPLES) >= 11


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name):
    function = EXAMPLES[name]
    names = {"__name__": name, function.__name__: function}
    parser = doctest.DocTestParser()
    example = parser.get_doctest(function.__doc__, names, name, name, None)
    assert doctest.DocTestRunner().run(example).failed == 0
