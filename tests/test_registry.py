import inspect
import re

import pytest

from segloss.registry import bind, hyperparameters_of


def scale(image, *, factor, offset=0.0, num_classes=None):
    return image * factor + offset, num_classes


class Module:
    def __init__(self, *, features=8, name=None, parent=None):
        self.features = features


KNOWN = {"scale": scale, "module": Module}


def test_bind_binds_what_was_chosen_and_what_was_given():
    bound = bind("op", KNOWN, "scale", {"factor": 2, "offset": 1}, num_classes=5)
    assert bound(10) == (21, 5)


def test_given_arguments_that_the_entry_does_not_take_are_left_out():
    assert (
        bind("model", KNOWN, "module", {"features": 3}, num_classes=5)().features == 3
    )


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("scales", {}, "op: no op is named 'scales'; known are module, scale."),
        (
            "scale",
            {"factor": 1, "fctor": 2},
            "op: scale has no hyperparameter 'fctor'; known are factor, offset.",
        ),
        (
            "scale",
            {"factor": 1, "image": 2},
            "op: scale has no hyperparameter 'image'; known are factor, offset.",
        ),
        (
            "scale",
            {"factor": 1, "num_classes": 2},
            "op: scale has no hyperparameter 'num_classes'; known are factor, offset.",
        ),
        ("scale", {"offset": 1}, "op: scale needs the hyperparameter 'factor'."),
        (
            "module",
            {"name": "stem"},
            "op: module has no hyperparameter 'name'; known are features.",
        ),
    ],
)
def test_bind_refuses(name, hyperparameters, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        bind("op", KNOWN, name, hyperparameters, num_classes=5)


def test_each_default_has_the_type_that_is_asked_of_its_user():
    from segloss import train
    from segloss.config import CHOICES

    checked = 0
    for kind, registry in {**CHOICES, **train.CHOICES}.items():
        for name, entry in registry.items():
            parameters = hyperparameters_of(entry)
            defaults = {k: p.default for k, p in parameters.items()}
            needed = {k for k, x in defaults.items() if x is inspect.Parameter.empty}
            chosen = {k: x for k, x in defaults.items() if k not in needed}
            given = dict.fromkeys(needed)
            bind(kind, registry, name, chosen, **given)
            checked += len(chosen)
    assert checked > 100
