"""Finds the runs of a sweep whose results are stored, on whatever machine they ran."""

from collections.abc import Iterable, Sequence

from experiments.analysis.run_folder import Run
from experiments.analysis.store import load
from experiments.running.fingerprint import config_fingerprint
from experiments.running.sweep import PlannedRun, StudyConfig, study_folder


def stored_runs(
    study: StudyConfig,
    runs: Iterable[PlannedRun],
    *,
    code: str,
    accept_code: Sequence[str] = (),
) -> tuple[list[Run], list[str]]:
    """Finds the runs whose results `experiments.collect` has stored.

    Args:
        study: the study, whose results are in `experiments/STUDY/results`.
        runs: the runs of the sweep.
        code: the current `code_fingerprint`.
        accept_code: beginnings of fingerprints of other code that the user says
            computes the same.

    Returns:
        The stored runs with their planned config and with `code` or accepted code; and
        the fingerprints of the accepted code that they have.

    Raises:
        ValueError: if the stored files are damaged.
    """
    folder = study_folder(study.name) / "results"
    if not folder.exists():
        return [], []
    known = {run.key: run for run in load(folder).runs}
    found, accepted = [], {}
    for run in runs:
        if (stored := known.get(run.key)) is None:
            continue
        codes = {stored.code, *stored.accepted_code}
        by_user = any(map(stored.code.startswith, accept_code))
        if code not in codes and not by_user:
            continue
        if stored.config == config_fingerprint(run.config):
            found.append(stored)
            if stored.code != code:
                accepted[stored.code] = None
    return found, list(accepted)
