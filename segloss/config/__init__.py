"""Parses and checks configs, stores them with a run, and reads them back."""

from segloss.config.choices import CHOICES, follow_names
from segloss.config.inference import MAX_PIXELS, Inference, is_size
from segloss.config.parsed import (
    DataConfig,
    EvaluateConfig,
    Named,
    RunConfig,
    Term,
    parse_config,
    parse_named,
)
from segloss.config.parts import (
    WINDOW_FIELDS,
    after_first,
    check_split,
    choose_sampler,
    choose_windows,
    find_ignored_classes,
    index_windows,
    make_configured_model,
    open_configured_dataset,
)
from segloss.config.paths import as_run_folder, as_workdir, expand
from segloss.config.steps import to_steps
from segloss.config.stored import (
    change_fields,
    check_same_config,
    check_same_weights,
    describe_changes,
    differing_fields,
    flat_fields,
    read_config,
    write_config,
)

__all__ = [
    "CHOICES",
    "MAX_PIXELS",
    "WINDOW_FIELDS",
    "DataConfig",
    "EvaluateConfig",
    "Inference",
    "Named",
    "RunConfig",
    "Term",
    "after_first",
    "as_run_folder",
    "as_workdir",
    "change_fields",
    "check_same_config",
    "check_same_weights",
    "check_split",
    "choose_sampler",
    "choose_windows",
    "describe_changes",
    "differing_fields",
    "expand",
    "find_ignored_classes",
    "flat_fields",
    "follow_names",
    "index_windows",
    "is_size",
    "make_configured_model",
    "open_configured_dataset",
    "parse_config",
    "parse_named",
    "read_config",
    "to_steps",
    "write_config",
]
