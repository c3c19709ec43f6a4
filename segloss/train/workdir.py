"""Claims a directory for one run at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from segloss import hosts
from segloss.errors import SeglossError
from segloss.locking import locked
from segloss.writing import on_disk, remove_unfinished

# Files that a run replaces, in its directory.
_REPLACED = (
    *("config.json", "metrics.jsonl", "confusions.npz", "results.json"),
    "figures/examples.png",
)


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Locks the directory of a run within the block, for one process to train.

    Removes the temporary files that earlier runs left when they were killed. Of several
    processes of a run, the first has the lock, and the others wait for it. Evaluation,
    prediction and export write other files than a run, and read complete checkpoints,
    so they take no lock.

    Raises:
        SeglossError: if another process trains in `workdir`; or instead of any error
            after which `workdir` is gone.
        OSError: if the disk is full; it names a file or the directory.
    """
    if not hosts.is_first():
        hosts.exchange(None)
        yield
        return
    with on_disk(workdir), locked(workdir):
        scores = [x / "metadata" for x in workdir.glob("checkpoints/*/score")]
        for path in [*(workdir / name for name in _REPLACED), *scores]:
            remove_unfinished(path)
        hosts.exchange(None)
        try:
            yield
        except Exception as error:
            if workdir.is_dir():
                raise
            raise gone(workdir) from error


def gone(path: Path) -> SeglossError:
    """Makes the error of a run whose directory, or file `path` in it, is gone."""
    return SeglossError(
        f"{path} was moved, deleted or replaced while the run was writing to it; move "
        "it back, or give its new directory as --workdir, and give the same command "
        "again to resume from the newest checkpoint."
    )
