"""Claims a directory for one run at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from segloss.locking import locked
from segloss.writing import remove_unfinished

# Files that a run replaces, in its directory.
_REPLACED = (
    *("config.json", "metrics.jsonl", "confusions.npz", "results.json"),
    "figures/examples.png",
)


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Locks the directory of a run within the block, for one process to train.

    Removes the temporary files that earlier runs left when they were killed. Of the
    processes of a multi-host run, the first has the lock. Evaluation, prediction and
    export write other files than a run, and read complete checkpoints, so they take no
    lock.

    Raises:
        SeglossError: if another process trains in `workdir`.
    """
    if jax.process_index() != 0:
        yield
        return
    with locked(workdir):
        scores = [x / "metadata" for x in workdir.glob("checkpoints/*/score")]
        for path in [*(workdir / name for name in _REPLACED), *scores]:
            remove_unfinished(path)
        yield
