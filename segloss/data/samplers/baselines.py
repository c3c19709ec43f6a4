"""Baselines for Balance-batch: samplers without a guarantee for single batches."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from segloss.data.samplers.class_sets import ClassSets, Presence
from segloss.data.samplers.epochs import EpochSampler, Plan
from segloss.errors import SeglossError

_CHUNK = 1 << 16  # samples for which matrices [samples, classes] are made at a time


class RandomBatch(EpochSampler):
    """Random batches: each epoch is shuffled and cut, and the remainder is dropped.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`; only n is
            used.
        batch_max: samples per batch; a smaller dataset gives batches of all samples.
        seed: seed of the shuffles, at least 0.

    Raises:
        ValueError: if there is no sample, or `batch_max` or `seed` is out of range.

    >>> import numpy as np
    >>> sampler = RandomBatch(np.ones((6, 2), bool), batch_max=3)
    >>> sampler.batches_per_epoch, len(sampler[0])
    (2, 3)
    >>> sorted([*sampler[0].tolist(), *sampler[1].tolist()])
    [0, 1, 2, 3, 4, 5]
    """

    takes_for_classes = False

    def __init__(self, presence: Presence, *, batch_max: int, seed: int = 0):
        super().__init__(presence, batch_max, seed)

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        return Plan.cut(self._shuffle_all(rng), self.batch_max)


class RepeatFactor(EpochSampler):
    """Repeat-factor sampling: Gupta et al. 2019 (arXiv:1908.03195), sec. 4.1.

    Repeats samples of rare classes. An epoch has sample i
    `r_i = max_c max(1, sqrt(threshold / f_c))` times, where c runs over the classes of
    the sample and `f_c` is the share of the samples with class c. The fractional part
    of `r_i` is the probability of rounding up, drawn anew in each epoch. A sample
    without a class has `r_i = 1`. The epoch is shuffled and cut into batches, and the
    remainder is dropped, so a batch can contain a sample twice.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`.
        batch_max: samples per batch; an epoch with fewer is a single batch.
        threshold: share of the samples below which a class is repeated, in (0, 1].
            The paper's 0.001 suits a thousand classes; with twenty it repeats nothing.
        seed: seed of the rounding and the shuffles, at least 0.

    Raises:
        ValueError: if there is no sample, or a hyperparameter is out of range.

    >>> import numpy as np
    >>> presence = np.array([[True, True]] + [[True, False]] * 15)  # class 1 is rare
    >>> RepeatFactor(presence, batch_max=4, threshold=0.25).repeats[:3]
    array([2., 1., 1.])
    """

    takes_for_classes = False

    def __init__(
        self,
        presence: Presence,
        *,
        batch_max: int,
        threshold: float | int,
        seed: int = 0,
    ):
        super().__init__(presence, batch_max, seed)
        if not 0 < threshold <= 1:
            raise SeglossError(
                f"{self._name}: threshold must be in (0, 1], got {threshold}."
            )
        sets = ClassSets.of(presence)
        shares = sets.samples_per_class() / len(sets)
        self.repeats = np.ones(len(sets))
        for c in np.flatnonzero((shares > 0) & (shares < threshold)).tolist():
            holders = sets.holders(c)
            repeats = np.sqrt(threshold / shares[c])
            self.repeats[holders] = np.maximum(self.repeats[holders], repeats)
        self.batches_per_epoch = len(self._deal(self._rng(0)))

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        whole = np.floor(self.repeats)
        rounded = whole + (rng.random(self.num_samples) < self.repeats - whole)
        ids = np.repeat(self._all_ids(), rounded.astype(np.int64))
        rng.shuffle(ids)
        return Plan.cut(ids, self.batch_max)


class _ClassFirst(EpochSampler):
    """Draws a class for each position of a batch, then a sample with that class.

    The class c is drawn with a probability proportional to `weights[c]`. `owed` marks
    the class for which each sample was drawn.

    All draws are independent, so a batch can contain a sample twice. Classes without
    samples and samples without classes are never drawn.
    """

    owes_one = True

    def __init__(
        self,
        presence: Presence,
        batch_max: int,
        seed: int,
        weights: Float[np.ndarray, " c"],
    ):
        super().__init__(presence, batch_max, seed)
        sets = ClassSets.of(presence)
        self._holders = [
            sets.holders(c) if w > 0 else np.empty(0, np.int32)
            for c, w in enumerate(weights)
        ]
        held = np.array([len(holders) > 0 for holders in self._holders])
        if not held.any():
            raise SeglossError(f"{self._name}: presence must hold a class, got none.")
        weights = np.where(held, weights, 0)
        self.class_probs = weights / weights.sum()

    @property
    def batch_min(self) -> int:
        """Every batch has `batch_max` samples; they repeat if the dataset has fewer."""
        return self.batch_max

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        size = self.batches_per_epoch * self.batch_max
        ids = np.empty(size, np.int64)
        classes = rng.choice(len(self._holders), size, p=self.class_probs)
        for c, holders in enumerate(self._holders):
            places = np.flatnonzero(classes == c)
            if len(places):
                ids[places] = rng.choice(holders, len(places))
        return Plan.cut(ids, self.batch_max, classes)


class ClassUniform(_ClassFirst):
    """Draws a class uniformly, then a sample uniformly among those with that class.

    All draws are independent, so a batch can contain a sample twice. Classes without
    samples and samples without classes are never drawn.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`.
        batch_max: samples per batch.
        seed: seed of the draws, at least 0.

    Raises:
        ValueError: if no sample has a class, or a hyperparameter is out of range.

    >>> import numpy as np
    >>> presence = np.array([[True, False], [True, False], [False, True]])
    >>> ClassUniform(presence, batch_max=3).class_probs
    array([0.5, 0.5])
    """

    def __init__(self, presence: Presence, *, batch_max: int, seed: int = 0):
        sets = ClassSets.of(presence)
        super().__init__(sets, batch_max, seed, np.ones(sets.num_classes))


class RareClass(_ClassFirst):
    """Rare class sampling: Hoyer et al. 2022 (arXiv:2111.14887), eq. 8 and 9.

    Class c is drawn with probability `softmax((1 - f_c) / temperature)`, where `f_c` is
    its share of the labelled pixels; then a sample is drawn uniformly among those with
    class c. In the paper a sample needs at least 3,000 pixels of a class; choose that
    with `min_pixels` of `ClassIndex.presence`. The paper also repeats a random crop
    that misses the class. Here `owed` marks the class for which each sample was drawn,
    and crops keep it with `Windows.keep_classes`.

    All draws are independent, so a batch can contain a sample twice. Classes without
    samples and samples without classes are never drawn.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`.
        batch_max: samples per batch.
        class_pixels: number of labelled pixels of each class in the dataset.
        temperature: greater than 0; smaller values favour rare classes more. At the
            paper's 0.01, a class with 7% of the pixels is drawn a thousandth as often
            as a class with almost none.
        seed: seed of the draws, at least 0.

    Raises:
        ValueError: if no sample has a class, or an argument is out of range.

    >>> import numpy as np
    >>> presence = np.array([[True, False], [True, True]])
    >>> pixels = np.array([90, 10])
    >>> sampler = RareClass(presence, batch_max=2, class_pixels=pixels, temperature=0.5)
    >>> sampler.class_probs.round(2)
    array([0.17, 0.83])
    """

    def __init__(
        self,
        presence: Presence,
        *,
        batch_max: int,
        class_pixels: Int[np.ndarray, " c"],
        temperature: float | int = 0.01,
        seed: int = 0,
    ):
        sets = ClassSets.of(presence)
        if temperature <= 0:
            raise SeglossError(
                f"{self._name}: temperature must be > 0, got {temperature}."
            )
        if class_pixels.shape != (sets.num_classes,) or class_pixels.sum() <= 0:
            raise SeglossError(
                f"{self._name}: class_pixels must be counts of {sets.num_classes} "
                f"classes, got {class_pixels}."
            )
        scores = (1 - class_pixels / class_pixels.sum()) / temperature
        held = sets.samples_per_class() > 0
        # Shifted by the largest score of a class with samples, whose weight is then 1.
        top = scores[held].max(initial=-np.inf)
        weights = np.where(held, np.exp(np.minimum(scores - top, 0)), 0)
        super().__init__(sets, batch_max, seed, weights)


class ForegroundOversample(EpochSampler):
    """nnU-Net's foreground oversampling: a third of each batch has foreground.

    Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z). The last samples of each batch
    are drawn among those with foreground, and the others among all samples. nnU-Net
    instead draws all of them among all samples, and then moves the patches of the last
    ones onto their foreground, if they have any. Like nnU-Net, the sampler draws one
    foreground class of each of the last samples uniformly; `owed` marks it, and crops
    keep it with `Windows.keep_classes`.

    All draws are independent, so a batch can contain a sample twice.

    Args:
        presence: True where a sample has a class, `[n, c]`, or `ClassSets`; class 0 is
            the background.
        batch_max: samples per batch.
        foreground_fraction: share of the samples of a batch that must have foreground,
            in [0, 1]; the default gives three of nine samples.
        seed: seed of the draws, at least 0.

    Raises:
        ValueError: if no sample has foreground, or a hyperparameter is out of range.

    >>> import numpy as np
    >>> presence = np.array([[True, False]] * 99 + [[True, True]])  # 99 has foreground
    >>> ForegroundOversample(presence, batch_max=3)[0][-1]
    np.int64(99)
    """

    owes_one = True

    def __init__(
        self,
        presence: Presence,
        *,
        batch_max: int,
        foreground_fraction: float | int = 0.33,
        seed: int = 0,
    ):
        super().__init__(presence, batch_max, seed)
        if not 0 <= foreground_fraction <= 1:
            raise SeglossError(
                f"{self._name}: foreground_fraction must be in [0, 1], "
                f"got {foreground_fraction}."
            )
        foreground = ClassSets.of(presence).without_background()
        self._sets = foreground
        self._foreground = np.flatnonzero(foreground.words.any(axis=1))
        if not len(self._foreground):
            raise SeglossError(
                f"{self._name}: presence must hold a class besides 0, got none."
            )
        self._num_free = round(batch_max * (1 - foreground_fraction))

    @property
    def batch_min(self) -> int:
        """Every batch has `batch_max` samples; they repeat if the dataset has fewer."""
        return self.batch_max

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        shape = self.batches_per_epoch, self.batch_max
        ids = rng.integers(self.num_samples, size=shape)
        forced = ids[:, self._num_free :]
        forced[:] = rng.choice(self._foreground, forced.shape)
        classes = np.full(shape, -1)
        classes[:, self._num_free :] = self._draw_classes(forced.ravel(), rng).reshape(
            forced.shape
        )
        return Plan.cut(ids.ravel(), self.batch_max, classes.ravel())

    def _draw_classes(
        self, ids: Int[np.ndarray, " m"], rng: np.random.Generator
    ) -> Int[np.ndarray, " m"]:
        """Draws one foreground class uniformly for each of the sample ids `ids`."""
        shares = rng.random(len(ids))
        classes = np.empty(len(ids), np.int64)
        for start in range(0, len(ids), _CHUNK):
            part = slice(start, start + _CHUNK)
            sets = dataclasses.replace(self._sets, words=self._sets.words[ids[part]])
            nth = (shares[part] * sets.sizes()).astype(np.int64)
            places = np.cumsum(sets.presence(), axis=1, dtype=np.int32)
            classes[part] = (places > nth[:, None]).argmax(axis=1)
        return classes
