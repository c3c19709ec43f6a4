"""Refuses checkpoints whose weights are NaN or infinite."""

import numpy as np

from segloss.errors import SeglossError
from segloss.trained.checkpoints import Stored

_SHOWN = 3


def check_finite(stored: Stored) -> None:
    """Checks the parameters and the batch statistics of a checkpoint.

    Raises:
        SeglossError: if a value is NaN or infinite; it names the first such arrays.
    """
    counts = {
        path: array.size - int(np.isfinite(array.astype(np.float32)).sum())
        for path, array in stored.arrays.items()
        if path.split("/")[0] in ("params", "batch_stats")
    }
    faults = [
        f"{count} of {stored.arrays[path].size} in {path}"
        for path, count in sorted(counts.items())
        if count
    ]
    if faults:
        more = f" and in {len(faults) - _SHOWN} more" if faults[_SHOWN:] else ""
        raise SeglossError(
            f"checkpoint {stored.path} has values that are NaN or infinite: "
            f"{', '.join(faults[:_SHOWN])}{more}; its predictions would mean nothing: "
            "move its folder away, so that another checkpoint is used, or train again "
            "with a lower learning rate."
        )
