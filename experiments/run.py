r"""Runs every arm of a sweep, one after the other, and shows their scores side by side.

python -m experiments.run --config=configs/sweeps/demo_samplers.py \
    --workdir=runs/demo-compare
"""

import importlib.util
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from segloss import cli

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file with `get_config` and `sweep`."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Holds a run per arm.", required=True)


def expand(base: ConfigDict, overrides: Iterator[Mapping[str, Any]]):
    """Yields (arm, config) for each set of overrides, dotted paths to values.

    An arm is named by its overrides, a section by its `name`, a list by its members.

    Raises:
        ValueError: if a path is not in the config, or two arms have the same name.
    """
    seen = set()
    for override in overrides:
        config = base.copy_and_resolve_references()
        labels = []
        with config.unlocked():
            for path, value in override.items():
                *parents, field = path.split(".")
                section = config
                for parent in parents:
                    section = section[parent]
                if field not in section:
                    raise ValueError(f"sweep: the config has no field {path!r}.")
                # Deleted first: an update would keep the siblings of another `name`.
                del section[field]
                section[field] = value
                labels.append(f"{path}={_label(value)}")
        arm = ",".join(labels)
        if arm in seen:
            raise ValueError(f"sweep: two arms are named {arm!r}.")
        seen.add(arm)
        yield arm, config


def _label(value: Any) -> str:
    if isinstance(value, Mapping):
        return value["name"]
    if isinstance(value, list):
        return "+".join(map(_label, value))
    return str(value)


def load_sweep(path: str):
    """The `sweep` function of a config file.

    Raises:
        ValueError: if the file has none.
    """
    spec = importlib.util.spec_from_file_location("sweep_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "sweep"):
        raise ValueError(
            f"{path} has no function 'sweep'; run.py takes single configs."
        )
    return module.sweep


def main(argv: list[str]) -> None:
    from segloss import train
    from segloss.report import class_table, summary_table

    workdir = pathlib.Path(WORKDIR.value)
    # Without the argument of `get_config`, which follows a colon.
    path = config_flags.get_config_filename(flags.FLAGS["config"]).rsplit(":", 1)[0]
    sweep = load_sweep(path)
    results = {}
    for arm, config in expand(CONFIG.value, sweep()):
        path = workdir / arm / "results.json"
        if path.exists():
            train.check_same_config(config, workdir / arm)
            results[arm] = json.loads(path.read_text())
        else:
            results[arm] = train.train(config, workdir / arm)
    console = Console()
    for arm, result in results.items():
        console.rule(arm)
        console.print(class_table(result))
    console.print(summary_table(results))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
