"""A synthetic class index (pixel counts of each class in each sample) for benchmarks.

`CASES` are the samplers to benchmark on it.
"""

from pathlib import Path

import numpy as np

from segloss.data import ClassIndex

BALANCE = dict(name="balance_batch", batch_max=9, batch_cl=8)
GREEDY = dict(name="greedy_cover", batch_max=9, batch_cl=8)
CASES = {
    "balance_batch": BALANCE,
    "balance_batch, batch_cl=12": BALANCE | dict(batch_cl=12),
    "balance_batch, batch_cl=12, requeue": BALANCE
    | dict(batch_cl=12, on_reject="requeue"),
    "balance_batch, exact": BALANCE | dict(exact=True),
    "greedy_cover": GREEDY,
    "greedy_cover, batch_cl=12": GREEDY | dict(batch_cl=12),
    "matched_random": BALANCE | dict(name="matched_random"),
    "random": dict(name="random", batch_max=9),
    "repeat_factor": dict(name="repeat_factor", batch_max=9, threshold=0.1),
    "rare_class": dict(name="rare_class", batch_max=9),
    "class_uniform": dict(name="class_uniform", batch_max=9),
    "foreground_oversample": dict(name="foreground_oversample", batch_max=9),
}


def write_index(path: Path, num_samples: int, num_classes: int) -> None:
    """Writes a class index of `num_samples` samples, which `ClassIndex.load` opens.

    Each sample has class 0 and one to four other classes; higher ids are rarer.
    """
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(2, num_classes + 1)
    unsaved = path.with_suffix(".unsaved")
    counts = np.memmap(unsaved, np.int32, "w+", shape=(num_samples, num_classes))
    for start in range(0, num_samples, 100_000):
        rows = counts[start : start + 100_000]
        rows[:, 0] = 5_000
        for most in range(4):
            more = np.flatnonzero(rng.random(len(rows)) < 0.5**most)
            held = rng.choice(num_classes - 1, len(more), p=shares / shares.sum())
            rows[more, 1 + held] = 1_000
    ClassIndex(counts, "synthetic").save(path)
    unsaved.unlink()
