"""Checks that the runs of a study have the same code, config and kind of devices."""

import ast
import hashlib
import json
import pathlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from ml_collections import ConfigDict

import segloss
from experiments.running.sweep import PlannedRun
from segloss.errors import SeglossError
from segloss.writing import read_json

# The packages that affect results: numba plans batches, scipy measures distances,
# dm-pix changes colours.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow", "scipy")
_PACKAGES += ("dm-pix", "numba")
# Parts of segloss that do not affect results.
_NOT_COMPUTING = ("cli.py", "console.py", "inspection.py", "provenance.py", "report")
_NOT_COMPUTING += ("serving.py", "writing.py")
_SPEAKING = ("info", "print", "warn", "warning")
# Fields that do not affect results. `evaluate` and `on_bad_sample` are not among them:
# a run can be resumed with other values, but its results are then not comparable.
FREE = (
    "checkpoint_every_steps",
    "log_every_steps",
    "data.root",
    "data.data_dir",
    "data.num_threads",
    "data.num_workers",
    "data.prefetch_batches",
    "data.shared_files",
)
RECORD = "run.json"


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect results."""
    # Without the patch number: patch releases compute the same.
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"python": python, **{name: metadata.version(name) for name in _PACKAGES}}


def code_fingerprint(root: pathlib.Path | None = None) -> str:
    """Returns a SHA-256 of the code of segloss and of `package_versions`.

    Code that does not affect results is left out: comments, layout, docstrings, `raise`
    statements, calls that print, warn or log, and the modules in `_NOT_COMPUTING`.

    Args:
        root: folder of the package; None means that of the imported segloss.
    """
    root = root or pathlib.Path(segloss.__file__).parent
    digest = hashlib.sha256(json.dumps(package_versions()).encode())
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place.parts[0] not in _NOT_COMPUTING:
            code = ast.unparse(_OnlyComputing().visit(ast.parse(path.read_text())))
            digest.update(f"\n{place.as_posix()}\n{code}".encode())
    return digest.hexdigest()


class _OnlyComputing(ast.NodeTransformer):
    """Removes docstrings, raised exceptions, and calls that print or log from code."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        said = node.value
        if isinstance(said, ast.Call):
            name = getattr(said.func, "attr", getattr(said.func, "id", None))
            return ast.Pass() if name in _SPEAKING else node
        return ast.Pass() if isinstance(said, ast.Constant) else node

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        return ast.Raise()

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [x for x in body if not isinstance(x, ast.Pass)] or [ast.Pass()]
        return node


def config_fingerprint(config: ConfigDict) -> str:
    """Returns a SHA-256 of the fields of a config that affect results (not `FREE`)."""
    from segloss.config import flat_fields

    fields = flat_fields(config, without=FREE)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def make_record(
    run: PlannedRun, *, code: str, accepted_code: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the contents of a run's `run.json`.

    `code` is the current `code_fingerprint`; `accepted_code` lists fingerprints of
    other code that the user said computes the same.
    """
    from segloss.provenance import current_commit

    accepted = {"accepted_code": list(accepted_code)} if accepted_code else {}
    return {
        "arm": run.arm,
        "seed": run.seed,
        "overrides": run.overrides,
        "code": code,
        "config": config_fingerprint(run.config),
        "commit": current_commit(),
        "versions": package_versions(),
        **accepted,
    }


def newest_checkpoint(folder: pathlib.Path) -> int | None:
    """Returns the step of a run's newest checkpoint; None if there is none."""
    names = (path.name for path in (folder / "checkpoints").glob("*"))
    # The folder of an unfinished checkpoint has a longer name.
    return max((int(name) for name in names if name.isdecimal()), default=None)


def read_results(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the contents of a run's `results.json`; None if the run is unfinished.

    A run with a damaged `results.json` counts as unfinished, with a warning.
    """
    path = folder / "results.json"
    if not path.exists():
        return None
    try:
        remedy = "the run counts as unfinished, and is evaluated again when it resumes"
        return read_json(path, remedy=remedy, needs={"summary": dict})
    except SeglossError as error:
        # From this line whoever calls, so that it is said once.
        warnings.warn(str(error), stacklevel=1)
        return None


def has_begun(folder: pathlib.Path) -> bool:
    """Whether a run's folder has a checkpoint or `results.json`."""
    return (folder / "results.json").exists() or newest_checkpoint(folder) is not None


def check_unmixed(
    runs: Iterable[PlannedRun],
    workdir: pathlib.Path,
    *,
    code: str,
    accept_code: Sequence[str] = (),
) -> list[str]:
    """Checks that each run that has begun used this code and its planned config.

    Args:
        runs: the runs of the sweep.
        workdir: the folder of the sweep.
        code: the current `code_fingerprint`.
        accept_code: beginnings of fingerprints of other code that the user says
            computes the same.

    Returns:
        The other fingerprints that the runs have and that are accepted, by
        `accept_code` or, according to `run.json`, when a run was resumed earlier.

    Raises:
        ValueError: if a run used other code or another config. It lists each such run
            and what differs.
    """
    begun = [(run, run.folder(workdir)) for run in runs]
    begun = [(run, folder) for run, folder in begun if has_begun(folder)]
    records = [_read_record(folder) for _, folder in begun]
    accepted: dict[str, None] = {}
    for record in records:
        before = record.get("accepted_code", [])
        codes = [record.get("code", ""), *before]
        named = [c for c in codes if c.startswith(tuple(filter(None, accept_code)))]
        # Codes accepted earlier still count if the run's own code counts now.
        inherited = before if codes[0] == code or named else []
        accepted |= dict.fromkeys(c for c in [*named, *inherited] if c != code)
    faults = [
        f"{folder}: {difference}"
        for (run, folder), record in zip(begun, records, strict=True)
        for difference in _differences(run, folder, record, {code, *accepted})
    ]
    if faults:
        raise SeglossError(
            "runs of other code or config are never mixed:\n  "
            + "\n  ".join(faults)
            + "\nChoose another --workdir, or delete these folders to run them anew."
        )
    return list(accepted)


def _read_record(folder: pathlib.Path) -> dict[str, Any]:
    path, remedy = folder / RECORD, f"delete {folder} to run it anew"
    if not path.exists():
        return {}
    return read_json(path, remedy=remedy, needs={"code": str, "config": str})


def _differences(
    run: PlannedRun, folder: pathlib.Path, record: Mapping[str, Any], codes: set[str]
) -> list[str]:
    from segloss.config import check_same_weights, differing_fields

    if not record:
        return [f"has no {RECORD}, so no sweep made it."]
    differences = []
    if record["code"] not in codes:
        commit = (record.get("commit") or "none")[:12]
        versions = _version_differences(record.get("versions", {}))
        what = "the code or what it runs on" if versions else "the code"
        text = f"{what} changed since, at commit {commit}"
        accept = f"--accept_code={record['code'][:12]} if it computes the same"
        differences.append("; ".join([text, *versions, accept]) + ".")
    if record["config"] != config_fingerprint(run.config):
        if not (folder / "config.json").exists():
            return [*differences, "has no config.json."]
        differing = differing_fields(run.config, folder, free=FREE)
        fields = [f"{name} was {was!r}, is {now!r}" for name, was, now in differing]
        if fields:
            differences.append(f"the config changed: {'; '.join(fields)}.")
        try:
            # A run that is resumed checks its weights itself.
            began_with = (read_results(folder) or {}).get("pretrained")
            check_same_weights(run.config, began_with)
        except SeglossError as error:
            differences.append(f"the config changed: {error}")
    return differences


def _version_differences(before: Mapping[str, str]) -> list[str]:
    now = package_versions()
    differences = [
        f"{name} was {before[name]}, is {version}"
        for name, version in now.items()
        if before.get(name, version) != version
    ]
    # An older record holds fewer packages.
    if unknown := [name for name in now if name not in before]:
        differences.append(f"the record has no version of {', '.join(unknown)}")
    return differences


def check_devices(runs: Iterable[PlannedRun], workdir: pathlib.Path) -> str | None:
    """Returns the devices of the runs that have begun, such as "2 x NVIDIA A100".

    Returns None if no run has begun.

    Raises:
        ValueError: if runs used different devices.
    """
    runs_on: dict[str, list[str]] = {}
    for run in runs:
        folder = run.folder(workdir)
        if has_begun(folder):
            files = (read_results(folder) or {}, _read_record(folder))
            if devices := next((f["devices"] for f in files if "devices" in f), None):
                runs_on.setdefault(devices, []).append(run.key)
    if len(runs_on) > 1:
        where = "; ".join(f"{d}: {', '.join(keys)}" for d, keys in runs_on.items())
        raise SeglossError(
            f"runs on different devices are never mixed: {where}. Delete the folders "
            "of all but one kind, to run them anew on that."
        )
    return next(iter(runs_on), None)
