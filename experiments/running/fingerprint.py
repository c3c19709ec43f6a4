"""What must be the same for two runs to be results of one study: code and config."""

import ast
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from ml_collections import ConfigDict

import segloss
from experiments.running.sweep import PlannedRun

# Batches are planned with numba, distances to boundaries are scipy's, colours dm-pix's.
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "pillow",
    "scipy",
    "dm-pix",
    "numba",
)
# Fields that change no figure of a run. `evaluate` is none of them, though a run could
# go on with another: its figures would be no others' equals. Nor is `on_bad_sample`.
FREE = (
    "checkpoint_every_steps",
    "log_every_steps",
    "data.root",
    "data.data_dir",
    "data.num_threads",
    "data.num_workers",
    "data.prefetch_batches",
)
RECORD = "run.json"


def package_versions() -> dict[str, str]:
    """Those of Python and of the packages that compute."""
    # Without the patch number: patch releases mend faults and compute the same.
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"python": python, **{name: metadata.version(name) for name in _PACKAGES}}


def code_fingerprint(root: pathlib.Path | None = None) -> str:
    """SHA-256 of segloss as Python reads it, and of `package_versions`.

    Comments, docstrings and layout do not count.

    Args:
        root: folder of the package; None is that of the segloss which is imported.
    """
    root = root or pathlib.Path(segloss.__file__).parent
    digest = hashlib.sha256(json.dumps(package_versions()).encode())
    for path in sorted(root.rglob("*.py")):
        code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))
        digest.update(f"\n{path.relative_to(root).as_posix()}\n{code}".encode())
    return digest.hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)] or [ast.Pass()]
    return tree


def _is_text(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def config_fingerprint(config: ConfigDict) -> str:
    """SHA-256 of the fields of a config that change a figure."""
    from segloss import train

    fields = train.flat_fields(config, without=FREE)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def make_record(run: PlannedRun, *, code: str) -> dict[str, Any]:
    """What `run.json` of a run holds."""
    from segloss.train.evaluation import current_commit

    return {
        "arm": run.arm,
        "seed": run.seed,
        "overrides": run.overrides,
        "code": code,
        "config": config_fingerprint(run.config),
        "commit": current_commit(),
        "versions": package_versions(),
    }


def newest_checkpoint(folder: pathlib.Path) -> int | None:
    """The step from which a run goes on; None where it begins."""
    names = (path.name for path in (folder / "checkpoints").glob("*"))
    # While one is written, its name has more to it.
    return max((int(name) for name in names if name.isdecimal()), default=None)


def has_begun(folder: pathlib.Path) -> bool:
    """Whether a run left something that another could be mixed with."""
    return (folder / "results.json").exists() or newest_checkpoint(folder) is not None


def check_unmixed(
    runs: Iterable[PlannedRun], workdir: pathlib.Path, *, code: str
) -> None:
    """Checks that every run that has begun did so with this code and its config.

    Raises:
        ValueError: listing each run that did not, and what differs.
    """
    faults = []
    for run in runs:
        folder = run.folder(workdir)
        if has_begun(folder):
            faults += [f"{folder}: {d}" for d in _differences(run, folder, code=code)]
    if faults:
        raise ValueError(
            "runs of other code or config are never mixed:\n  "
            + "\n  ".join(faults)
            + "\nChoose another --workdir, or delete these folders to run them anew."
        )


def _differences(run: PlannedRun, folder: pathlib.Path, *, code: str) -> list[str]:
    from segloss import train

    path = folder / RECORD
    if not path.exists():
        return [f"has no {RECORD}, so no sweep made it."]
    record = json.loads(path.read_text())
    differences = []
    if record["code"] != code:
        commit = (record.get("commit") or "none")[:12]
        versions = _version_differences(record.get("versions", {}))
        what = "the code or what it runs on" if versions else "the code"
        text = f"{what} changed since, at commit {commit}"
        differences.append("; ".join([text, *versions]) + ".")
    if record["config"] != config_fingerprint(run.config):
        try:
            train.check_same_config(run.config, folder, free=FREE)
            train.check_same_weights(run.config, _pretrained(folder))
        except (FileNotFoundError, ValueError) as error:
            # What is wrong, without where, and what to do, which are said for all.
            text = str(error).split("another config: ")[-1]
            differences.append(f"the config changed: {text.split('. Choose')[0]}.")
    return differences


def _pretrained(folder: pathlib.Path) -> dict[str, str] | None:
    """The weights that a finished run began with; one that goes on checks its own."""
    results = folder / "results.json"
    if not results.exists():
        return None
    return json.loads(results.read_text()).get("pretrained")


def _version_differences(before: Mapping[str, str]) -> list[str]:
    now = package_versions()
    differences = [
        f"{name} was {before[name]}, is {version}"
        for name, version in now.items()
        if before.get(name, version) != version
    ]
    # Of a record that is older than what is recorded today.
    if unknown := [name for name in now if name not in before]:
        differences.append(f"the record has no version of {', '.join(unknown)}")
    return differences
