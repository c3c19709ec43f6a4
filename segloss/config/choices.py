"""Sections of a config with a `name`: what a changed name does to the other fields."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from ml_collections import ConfigDict

from segloss.config.parsed import LOADING
from segloss.data import DATASETS, SAMPLERS
from segloss.losses import LOSSES
from segloss.models import MODELS
from segloss.registry import hyperparameters_of

# By section of a config: what its `name` may be. `segloss.train` has its own.
CHOICES: dict[str, Mapping[str, Callable]] = {
    "data": DATASETS,
    "loss": LOSSES,
    "model": MODELS,
    "sampler": SAMPLERS,
}
# Fields of a section that other code than the chosen function takes.
_ELSEWHERE = {
    "data": LOADING,
    "loss": ("weight",),
    "model": ("pretrained",),
    "optimizer": ("loss_scale",),
    "sampler": ("min_pixels",),
}


def follow_names(
    config: ConfigDict,
    given: Collection[str],
    choices: Mapping[str, Mapping[str, Callable]] = MappingProxyType({}),
) -> ConfigDict:
    """Drops the fields that belong to the old choice where a `name` was changed.

    For example, `given=["model.name"]` for a config whose `model.name` was "unet" and
    is "fcn" drops the `depth` of the U-Net, which no FCN takes. Fields that the new
    choice takes as well keep their values. A line is printed for each section with a
    changed name; it says which fields were kept and which dropped.

    Args:
        config: a config with the changes.
        given: dotted paths of the fields that were changed; these are not dropped.
        choices: by section, the functions that its `name` may choose, for sections that
            are not in `CHOICES`.

    Returns:
        A locked copy of the config.
    """
    config = config.copy_and_resolve_references().unlock()
    for section, registry in {**CHOICES, **choices}.items():
        fields = config.get(section)
        if f"{section}.name" not in given or not isinstance(fields, ConfigDict):
            continue
        if (name := fields.get("name")) not in registry:
            continue  # an error lists the known names
        known = {*hyperparameters_of(registry[name]), *_ELSEWHERE.get(section, ())}
        others = [x for x in fields if x != "name" and f"{section}.{x}" not in given]
        set_ones = [x for x in others if fields[x] is not None]
        kept = [f"{x}={fields[x]!r}" for x in set_ones if x in known]
        dropped = [f"{x}={fields[x]!r}" for x in set_ones if x not in known]
        for field in set(others) - known:
            del fields[field]
        print(
            f"{section}.name={name}: keeps {', '.join(kept) or 'no other field'}"
            + (f"; drops {', '.join(dropped)}, unknown to {name}" if dropped else "")
        )
    return config.lock()
