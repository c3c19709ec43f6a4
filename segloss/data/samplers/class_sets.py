"""Class sets packed into integers: what samplers plan with."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, UInt64

# Rows of a class index that are looked at together: a mapped file is never read whole.
_CHUNK = 1 << 16
_BITS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class ClassSets:
    """The set of classes that each sample holds, a bit per class.

    Every sampler takes it in the place of `presence`; for large sets it is an eighth
    as large.

    Attributes:
        words: bit `c % 64` of word `c // 64` is set where sample `n` holds class `c`.
        num_classes: bits that mean something.
    """

    words: UInt64[np.ndarray, "n w"]
    num_classes: int

    @classmethod
    def of(cls, presence: "Presence") -> "ClassSets":
        """Packs presence, chunk by chunk; class sets are handed through."""
        return presence if isinstance(presence, ClassSets) else _pack(presence, 1)

    @classmethod
    def from_counts(
        cls, pixel_counts: Int[np.ndarray, "n c"], *, min_pixels: int = 1
    ) -> "ClassSets":
        """The classes of which a sample holds at least `min_pixels` pixels.

        Args:
            pixel_counts: those of a class index; a mapped file is read in chunks.
            min_pixels: pixels from which on a class counts, at least 1.

        Raises:
            ValueError: if `min_pixels` is less than 1.
        """
        if min_pixels < 1:
            raise ValueError(f"ClassSets: min_pixels must be >= 1, got {min_pixels}.")
        return _pack(pixel_counts, min_pixels)

    def __len__(self) -> int:
        return len(self.words)

    def sizes(self) -> Int[np.ndarray, " n"]:
        """How many classes each sample holds."""
        return np.bitwise_count(self.words).sum(axis=1, dtype=np.int64)

    def presence(
        self, start: int = 0, stop: int | None = None
    ) -> Bool[np.ndarray, "m c"]:
        """The samples from `start` to `stop` unpacked: True where one holds a class."""
        rows = np.ascontiguousarray(self.words[start:stop].astype("<u8", copy=False))
        bits = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")
        return bits[:, : self.num_classes].astype(bool)

    def holders(self, c: int) -> Int[np.ndarray, " m"]:
        """The samples that hold class `c`."""
        word, bit = divmod(c, _BITS)
        mask = np.uint64(1 << bit)
        return np.flatnonzero(self.words[:, word] & mask).astype(np.int32)

    def samples_per_class(self) -> Int[np.ndarray, " c"]:
        """How many samples hold each class."""
        counts = np.zeros(self.num_classes, np.int64)
        for start in range(0, len(self), _CHUNK):
            counts += self.presence(start, start + _CHUNK).sum(axis=0)
        return counts

    def without_background(self) -> "ClassSets":
        """The same without class 0."""
        words = self.words.copy()
        words[:, 0] &= ~np.uint64(1)
        return dataclasses.replace(self, words=words)

    def distinct(self) -> "ClassSets":
        """Each set that occurs, once."""
        words = self.words
        if words.shape[1] == 1:  # many times faster than by rows
            unique = np.unique(words[:, 0])[:, None]
        else:
            unique = np.unique(words, axis=0)
        return dataclasses.replace(self, words=unique)


# What samplers take: True where a sample holds a class, or the same packed.
Presence = Bool[np.ndarray, "n c"] | ClassSets


def _pack(values: np.ndarray, threshold: int) -> ClassSets:
    n, c = values.shape
    words = np.zeros((n, max(1, -(-c // _BITS))), "<u8")
    packed = words.view(np.uint8)
    for start in range(0, n, _CHUNK):
        rows = np.asarray(values[start : start + _CHUNK]) >= threshold
        bits = np.packbits(rows, axis=1, bitorder="little")
        packed[start : start + _CHUNK, : bits.shape[1]] = bits
    return ClassSets(words.astype(np.uint64, copy=False), c)
