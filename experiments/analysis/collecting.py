"""Collects a study: the finished runs of a sweep, of its folder and stored before."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.analysis.run_folder import Run, read_run
from experiments.analysis.store import Study, check_comparable
from experiments.running.fingerprint import FREE, read_results
from experiments.running.sweep import load_study, smoke_overrides
from segloss.errors import SeglossError


def collect(
    study_config_path: str | pathlib.Path,
    workdir: str | pathlib.Path,
    *,
    smoke: bool = False,
    stored: Study | None = None,
    partial: bool = False,
) -> Study:
    """Reads the finished runs of a study from their folders.

    Args:
        study_config_path: `configs/sweeps/STUDY.py`.
        workdir: folder of the runs, which are in `ARM/seed=S/`.
        smoke: True reads the part of the sweep that `--smoke` trains, False all of it.
        stored: the study as it was stored before; a run that `workdir` lacks is taken
            from there.
        partial: True allows runs that neither has; `Study.missing` counts them.

    Raises:
        ValueError: if runs are missing, or differ in code, in fields that the sweep
            does not change, or in the images they were scored on. It names them.
    """
    about, workdir = load_study(study_config_path), pathlib.Path(workdir)
    planned = [dict(o) for o in (smoke_overrides(about) if smoke else about.sweep())]
    overrides = {f"{o.pop('arm')}/seed={o['seed']}": o for o in planned}
    new = [key for key in overrides if read_results(workdir / key) is not None]
    kept = {
        run.key: run
        for run in (stored.runs if stored else ())
        if run.key in overrides and run.key not in new
    }
    missing = [key for key in overrides if key not in new and key not in kept]
    if missing and (not partial or len(missing) == len(overrides)):
        raise SeglossError(
            f"{workdir} lacks {len(missing)} of {len(overrides)} runs of {about.name}: "
            f"{', '.join(missing)}; the same command of experiments.run resumes it."
        )
    read = {key: read_run(workdir / key) for key in new}
    setting, base = _shared_setting(
        {key: _flat(config) for key, (_, config) in read.items()},
        {key: overrides[key] for key in new},
        workdir,
    )
    if kept:
        of_both = {key: overrides[key] for key in (*new, *kept)}
        setting, base = _same_setting(setting, base, stored, kept, of_both)
    runs = kept | {key: run for key, (run, _) in read.items()}
    study = Study(
        name=about.name,
        question=about.question,
        comparisons=about.comparisons[:1] if smoke else about.comparisons,
        paper=about.paper,
        runs=tuple(runs[key] for key in overrides if key in runs),
        setting=setting,
        base=base,
        missing=len(missing),
        # Runs of seconds reach nothing, and need not have the arm.
        bars={} if smoke else dict(about.bars),
    )
    check_comparable(study)
    return study


def _same_setting(
    setting: Mapping[str, Any],
    base: Mapping[str, Any],
    stored: Study,
    kept: Mapping[str, Run],
    overrides: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `Study.setting` and `Study.base` of stored runs and new ones together.

    `setting` and `base` are those of the new runs, empty without any; `kept` are the
    stored ones.

    Raises:
        ValueError: if they differ in a field, or if a stored run has other values than
            the sweep gives it.
    """
    for key, run in kept.items():
        wanted = {k: x for k, x in overrides[key].items() if k != "seed"}
        fields = {**vars(run), **run.others}
        ours = run.others | {k: fields[k] for k in wanted if k in fields}
        if json.dumps(ours, sort_keys=True) != json.dumps(wanted, sort_keys=True):
            raise SeglossError(
                f"study {stored.name}: the stored run {key} has {ours}, the sweep says "
                f"{wanted}; results of different configs are never mixed. Delete "
                "`results`, or go back to that sweep."
            )
    if not setting:
        return dict(stored.setting), dict(stored.base)
    ours, theirs = {**base, **setting}, {**stored.base, **stored.setting}
    in_new = {k for key in overrides.keys() - kept.keys() for k in overrides[key]}
    in_kept = {k for key in kept for k in overrides[key]}
    for field in sorted(ours.keys() | theirs):
        # Where all runs of one part change a field, the part has no value of the rest.
        if (field not in ours and _is_under(field, in_new)) or (
            field not in theirs and _is_under(field, in_kept)
        ):
            continue
        new, old = (json.dumps(x.get(field, "missing")) for x in (ours, theirs))
        if new != old:
            raise SeglossError(
                f"study {stored.name}: {field} is {new} in the new runs, {old} in the "
                "stored ones; results of different configs are never mixed. Delete "
                "`results`, or run the new ones with the config of the stored ones."
            )
    everything = theirs | ours
    shared = {k: x for k, x in setting.items() if k in stored.setting}
    return shared, {k: everything[k] for k in sorted(everything) if k not in shared}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    from segloss.config import flat_fields

    return flat_fields(ConfigDict(tree, allow_dotted_keys=True))


def _is_under(field: str, sections: Iterable[str]) -> bool:
    return any(f"{field}.".startswith(f"{section}.") for section in sections)


def _shared_setting(
    configs: Mapping[str, Mapping[str, Any]],
    overrides: Mapping[str, Mapping[str, Any]],
    workdir: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields that affect results and that no run, or not all, override.

    They are `Study.setting` and `Study.base`.

    Args:
        configs: all fields of each run, by its key.
        overrides: the fields or sections that the sweep changes in each run, by key.
        workdir: the folder of the runs.

    Raises:
        ValueError: if a field differs from the sweep's value or, if the sweep does not
            change it, between runs.
    """
    for key, config in configs.items():
        wanted = _flat(overrides[key])
        for field in sorted(wanted.keys() | config.keys()):
            ours, theirs = config.get(field), wanted.get(field)
            if _is_under(field, overrides[key]) and ours != theirs:
                problem = f"is {ours!r}" if field in config else "is missing"
                raise SeglossError(
                    f"{workdir / key / 'config.json'}: {field} {problem}, the sweep "
                    f"says {theirs!r}; results of different configs are never mixed. "
                    "Delete the folder and run it again, or go back to that sweep."
                )
    setting, base = {}, {}
    for field in dict.fromkeys(
        field for config in configs.values() for field in config
    ):
        values = {
            key: config.get(field)
            for key, config in configs.items()
            if not _is_under(field, ("seed", *FREE, *overrides[key]))
        }
        first = next(iter(values), None)
        for key, value in values.items():
            # A file of weights may be renamed; `check_comparable` compares its hash.
            if value != values[first] and field != "model.pretrained":
                raise SeglossError(
                    f"results of different configs are never mixed: {field} is "
                    f"{value!r} in {key}, {values[first]!r} in {first}. Delete the "
                    "runs that should not be, and run them again."
                )
        if values:
            of_all = len(values) == len(configs)
            (setting if of_all else base)[field] = values[first]
    for fields in (setting, base):
        if fields.get("model.pretrained"):
            path = pathlib.PurePath(fields["model.pretrained"])
            fields["model.pretrained"] = path.name
    return setting, dict(sorted(base.items()))
