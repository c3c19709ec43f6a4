"""Random batches of the sizes that Balance-batch makes: its control."""

import numpy as np

from segloss.data.samplers.balance_batch import BalanceBatch
from segloss.data.samplers.class_sets import Presence
from segloss.data.samplers.epochs import EpochSampler, Plan


class MatchedRandom(EpochSampler):
    """Random batches of the sizes of `BalanceBatch`: the control of its experiments.

    Balance-batch changes two things at once: its batches hold more classes, and, since
    it stops when it has them, fewer samples. This sampler changes the sizes alone.
    Batch k has as many samples as batch k of `BalanceBatch` with the same arguments and
    seed, so both see equally many samples in equally many steps, exactly. Which samples
    these are is independent of their classes: each deal is shuffled anew.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`.
        batch_cl: number of distinct classes for which Balance-batch stops.
        batch_max: largest number of samples in a batch.
        seed: seed of the shuffles, at least 0.
        exact: as for `BalanceBatch`, and so are `on_reject`, `count_background` and
            `max_attempts`.

    Raises:
        ValueError: if `BalanceBatch` does for the same arguments.

    >>> import numpy as np
    >>> from segloss.data import BalanceBatch, MatchedRandom
    >>> presence = np.eye(4, dtype=bool)[[0, 0, 0, 1, 2, 3]]
    >>> given = dict(batch_cl=2, batch_max=4, seed=1)
    >>> balanced = BalanceBatch(presence, **given)
    >>> random = MatchedRandom(presence, **given)
    >>> [len(balanced[k]) for k in range(3)] == [len(random[k]) for k in range(3)]
    True
    """

    # Although no crop owes a class: Balance-batch counts only the classes that one crop
    # can keep (`index_windows`), and sizes match only if both count alike.
    takes_for_classes = True

    def __init__(
        self,
        presence: Presence,
        *,
        batch_cl: int,
        batch_max: int,
        seed: int = 0,
        exact: bool = False,
        on_reject: str = "drop",
        count_background: bool = True,
        max_attempts: int = 1_000,
    ):
        super().__init__(presence, batch_max, seed)
        self._balanced = BalanceBatch(
            presence,
            batch_cl=batch_cl,
            batch_max=batch_max,
            seed=seed,
            exact=exact,
            on_reject=on_reject,
            count_background=count_background,
            max_attempts=max_attempts,
        )
        self.batches_per_epoch = self._balanced.batches_per_epoch

    @property
    def batch_min(self) -> int:
        """Every batch has at least this many samples; see `BalanceBatch.batch_min`."""
        return self._balanced.batch_min

    def describe(self) -> str:
        """Returns what `BalanceBatch.describe` does: the mean batch is the same."""
        return self._balanced.describe()

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        offsets = self._balanced._deal(rng, missing).offsets
        # A child's draws leave the generator of the sizes as Balance-batch leaves it.
        ids = self._shuffle_all(rng.spawn(1)[0])
        return Plan(ids[: offsets[-1]], offsets)
