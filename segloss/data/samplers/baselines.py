"""What Balance-batch is compared with: samplers that promise nothing of a batch."""

import numpy as np
from jaxtyping import Float, Int

from segloss.data.samplers.class_sets import ClassSets, Presence
from segloss.data.samplers.epochs import EpochSampler, Plan


class RandomBatch(EpochSampler):
    """Plain random batches: each epoch is shuffled and cut, the rest dropped.

    Args:
        presence: True where a sample holds a class, `[n, c]`, or the class sets; only
            n is used.
        batch_max: samples per batch; a set that is smaller gives batches of all of it.
        seed: seed of the shuffles, at least 0.

    Raises:
        ValueError: if there is no sample, or `batch_max` or `seed` is out of range.
    """

    def __init__(self, presence: Presence, *, batch_max: int, seed: int = 0):
        super().__init__(len(presence), batch_max, seed)
        self.batches_per_epoch = max(1, self.num_samples // batch_max)

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        return Plan.cut(rng.permutation(self.num_samples), self.batch_max)


class RepeatFactor(EpochSampler):
    """Samples of rare classes repeated: Gupta et al. 2019 (arXiv:1908.03195), sec. 4.1.

    An epoch holds sample i `r_i = max_c max(1, sqrt(threshold / f_c))` times, where c
    are its classes and `f_c` the share of the samples that hold c; a fraction of `r_i`
    is rounded up as often as it says, anew each epoch. The epoch is shuffled and cut
    into batches, the rest dropped, so a batch can hold a sample twice. A sample without
    a class has `r_i = 1`.

    Args:
        presence: True where a sample holds a class, `[n, c]`, or the class sets.
        batch_max: samples per batch; a set that is smaller gives batches of all of it.
        threshold: share of the samples below which a class is repeated, in (0, 1].
            The paper's 0.001 is for a thousand classes; among twenty it repeats none.
        seed: seed of the rounding and the shuffles, at least 0.

    Raises:
        ValueError: if there is no sample, or a hyperparameter is out of range.
    """

    def __init__(
        self,
        presence: Presence,
        *,
        batch_max: int,
        threshold: float | int,
        seed: int = 0,
    ):
        super().__init__(len(presence), batch_max, seed)
        if not 0 < threshold <= 1:
            raise ValueError(
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
        ids = np.repeat(np.arange(self.num_samples), rounded.astype(np.int64))
        return Plan.cut(rng.permutation(ids), self.batch_max)


class _ClassFirst(EpochSampler):
    """Draws a class for each place of a batch, then a sample that holds it.

    All draws are independent, so a batch can hold a sample twice. A class that no
    sample holds is never drawn, nor is a sample without a class.
    """

    def __init__(
        self,
        presence: Presence,
        batch_max: int,
        seed: int,
        weights: Float[np.ndarray, " c"],
    ):
        super().__init__(len(presence), batch_max, seed)
        sets = ClassSets.of(presence)
        self._holders = [
            sets.holders(c) if w > 0 else np.empty(0, np.int32)
            for c, w in enumerate(weights)
        ]
        held = np.array([len(holders) > 0 for holders in self._holders])
        if not held.any():
            raise ValueError(f"{self._name}: presence must hold a class, got none.")
        weights = np.where(held, weights, 0)
        self.class_probs = weights / weights.sum()
        self.batches_per_epoch = max(1, self.num_samples // batch_max)

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        size = self.batches_per_epoch * self.batch_max
        ids = np.empty(size, np.int64)
        classes = rng.choice(len(self._holders), size, p=self.class_probs)
        for c, holders in enumerate(self._holders):
            places = np.flatnonzero(classes == c)
            if len(places):
                ids[places] = rng.choice(holders, len(places))
        return Plan.cut(ids, self.batch_max)


class ClassUniform(_ClassFirst):
    """A class at random, then a sample at random of those that hold it.

    All draws are independent, so a batch can hold a sample twice. A class that no
    sample holds is never drawn, nor is a sample without a class.

    Args:
        presence: True where a sample holds a class, `[n, c]`, or the class sets.
        batch_max: samples per batch.
        seed: seed of the draws, at least 0.

    Raises:
        ValueError: if no sample holds a class, or a hyperparameter is out of range.
    """

    def __init__(self, presence: Presence, *, batch_max: int, seed: int = 0):
        sets = ClassSets.of(presence)
        super().__init__(sets, batch_max, seed, np.ones(sets.num_classes))


class RareClass(_ClassFirst):
    """Rare class sampling: Hoyer et al. 2022 (arXiv:2111.14887), eq. 8 and 9.

    Class c is drawn with probability `softmax((1 - f_c) / temperature)`, where `f_c` is
    its share of the labelled pixels, then a sample at random of those that hold it. The
    paper lets a sample count from 3,000 pixels of c on: say so by `min_pixels` where
    presence is made. It also crops again where the crop lost the class; this chooses
    samples only.

    All draws are independent, so a batch can hold a sample twice. A class that no
    sample holds is never drawn, nor is a sample without a class.

    Args:
        presence: True where a sample holds a class, `[n, c]`, or the class sets.
        batch_max: samples per batch.
        class_pixels: labelled pixels of each class in the whole set.
        temperature: more than 0; the smaller, the more the rarest classes prevail. At
            the paper's 0.01, a class of 7% of the pixels is drawn a thousandth as often
            as one of next to none.
        seed: seed of the draws, at least 0.

    Raises:
        ValueError: if no sample holds a class, or an argument is out of range.
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
            raise ValueError(
                f"{self._name}: temperature must be > 0, got {temperature}."
            )
        if class_pixels.shape != (sets.num_classes,) or class_pixels.sum() <= 0:
            raise ValueError(
                f"{self._name}: class_pixels must be counts of {sets.num_classes} "
                f"classes, got {class_pixels}."
            )
        scores = (1 - class_pixels / class_pixels.sum()) / temperature
        held = sets.samples_per_class() > 0
        # Shifted by the largest that can be drawn, so that some weight is 1.
        top = scores[held].max(initial=-np.inf)
        weights = np.where(held, np.exp(np.minimum(scores - top, 0)), 0)
        super().__init__(sets, batch_max, seed, weights)


class ForegroundOversample(EpochSampler):
    """The last third of each batch holds foreground: Isensee et al. 2021
    (doi:10.1038/s41592-020-01008-z), as in nnU-Net's loader.

    The other samples are any. nnU-Net draws the forced samples from all too and then
    puts the patch on their foreground; samples without any stay as they are. Here a
    forced sample is one that holds foreground, and the crop is left to chance.

    All draws are independent, so a batch can hold a sample twice.

    Args:
        presence: True where a sample holds a class, `[n, c]`, or the class sets; class
            0 is the background.
        batch_max: samples per batch.
        foreground_fraction: share of a batch that is forced, in [0, 1]; of nine samples
            the default forces three.
        seed: seed of the draws, at least 0.

    Raises:
        ValueError: if no sample holds foreground, or a hyperparameter is out of range.
    """

    def __init__(
        self,
        presence: Presence,
        *,
        batch_max: int,
        foreground_fraction: float | int = 0.33,
        seed: int = 0,
    ):
        super().__init__(len(presence), batch_max, seed)
        if not 0 <= foreground_fraction <= 1:
            raise ValueError(
                f"{self._name}: foreground_fraction must be in [0, 1], "
                f"got {foreground_fraction}."
            )
        foreground = ClassSets.of(presence).without_background()
        self._foreground = np.flatnonzero(foreground.words.any(axis=1))
        if not len(self._foreground):
            raise ValueError(
                f"{self._name}: presence must hold a class besides 0, got none."
            )
        self._num_free = round(batch_max * (1 - foreground_fraction))
        self.batches_per_epoch = max(1, self.num_samples // batch_max)

    def _deal(self, rng: np.random.Generator, missing: int | None = None) -> Plan:
        shape = self.batches_per_epoch, self.batch_max
        ids = rng.integers(self.num_samples, size=shape)
        forced = ids[:, self._num_free :]
        forced[:] = rng.choice(self._foreground, forced.shape)
        return Plan.cut(ids.ravel(), self.batch_max)
