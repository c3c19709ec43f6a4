"""Class sets packed into integers, the representation that samplers use."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, UInt64

from segloss.errors import SeglossError

# Rows of a class index to process at a time, so a mapped file is never read whole.
_CHUNK = 1 << 16
_BITS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class ClassSets:
    """The set of classes of each sample, as one bit per class.

    Every sampler accepts this instead of a boolean matrix [samples, classes]. With many
    classes it takes an eighth of the memory.

    Attributes:
        words: row `n` is for sample `n`; bit `c % 64` of column `c // 64` is set if the
            sample has class `c`.
        num_classes: number of classes, i.e. of bits in use per row.

    >>> import numpy as np
    >>> sets = ClassSets.from_counts(np.array([[9, 0], [5, 4]]), min_pixels=5)
    >>> sets.presence()
    array([[ True, False],
           [ True, False]])
    """

    words: UInt64[np.ndarray, "n w"]
    num_classes: int

    @classmethod
    def of(cls, presence: "Presence") -> "ClassSets":
        """Packs a boolean matrix [samples, classes]; returns `ClassSets` unchanged."""
        return presence if isinstance(presence, ClassSets) else _pack(presence, 1)

    @classmethod
    def from_counts(
        cls, pixel_counts: Int[np.ndarray, "n c"], *, min_pixels: int = 1
    ) -> "ClassSets":
        """Packs the classes that have at least `min_pixels` pixels in a sample.

        Args:
            pixel_counts: number of pixels of class `c` in sample `n`; a memory-mapped
                file is read in chunks.
            min_pixels: number of pixels from which a class counts, at least 1.

        Raises:
            ValueError: if `min_pixels` is less than 1.
        """
        if min_pixels < 1:
            raise SeglossError(f"ClassSets: min_pixels must be >= 1, got {min_pixels}.")
        return _pack(pixel_counts, min_pixels)

    def __len__(self) -> int:
        return len(self.words)

    def sizes(self) -> Int[np.ndarray, " n"]:
        """Returns the number of classes of each sample."""
        return np.bitwise_count(self.words).sum(axis=1, dtype=np.int64)

    def presence(
        self, start: int = 0, stop: int | None = None
    ) -> Bool[np.ndarray, "m c"]:
        """Returns True where a sample has a class, for samples `start` to `stop - 1`.

        None means up to the last sample.
        """
        rows = np.ascontiguousarray(self.words[start:stop].astype("<u8", copy=False))
        bits = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")
        return bits[:, : self.num_classes].astype(bool)

    def holders(self, c: int) -> Int[np.ndarray, " m"]:
        """Returns the ids of the samples with class `c`."""
        word, bit = divmod(c, _BITS)
        mask = np.uint64(1 << bit)
        return np.flatnonzero(self.words[:, word] & mask).astype(np.int32)

    def samples_per_class(self) -> Int[np.ndarray, " c"]:
        """Returns the number of samples with each class."""
        counts = np.zeros(self.num_classes, np.int64)
        for start in range(0, len(self), _CHUNK):
            counts += self.presence(start, start + _CHUNK).sum(axis=0)
        return counts

    def added_by(self, ids: Int[np.ndarray, " m"]) -> Bool[np.ndarray, "m c"]:
        """Returns True where a sample has a class that none before it in `ids` has.

        Row i is for the sample `ids[i]`.

        >>> import numpy as np
        >>> sets = ClassSets.of(np.array([[True, False], [True, True]]))
        >>> sets.added_by(np.array([0, 1]))
        array([[ True, False],
               [False,  True]])
        """
        words = self.words[ids]
        held = np.bitwise_or.accumulate(words, axis=0)
        words[1:] &= ~held[:-1]
        return dataclasses.replace(self, words=words).presence()

    def without_background(self) -> "ClassSets":
        """Returns a copy in which no sample has class 0, the background."""
        words = self.words.copy()
        words[:, 0] &= ~np.uint64(1)
        return dataclasses.replace(self, words=words)

    def distinct(self) -> "ClassSets":
        """Returns each class set that occurs once, in sorted order."""
        words = self.words
        if words.shape[1] == 1:  # much faster than np.unique over rows
            unique = np.unique(words[:, 0])[:, None]
        else:
            unique = np.unique(words, axis=0)
        return dataclasses.replace(self, words=unique)


# Accepted by samplers: True where a sample has a class, or the same packed.
Presence = Bool[np.ndarray, "n c"] | ClassSets


def count_classes(presence: Presence) -> int:
    """Returns the number of classes, i.e. of columns if `presence` is a matrix."""
    if isinstance(presence, ClassSets):
        return presence.num_classes
    return presence.shape[1]


def _pack(values: np.ndarray, threshold: int) -> ClassSets:
    n, c = values.shape
    words = np.zeros((n, max(1, -(-c // _BITS))), "<u8")
    packed = words.view(np.uint8)
    for start in range(0, n, _CHUNK):
        rows = np.asarray(values[start : start + _CHUNK]) >= threshold
        bits = np.packbits(rows, axis=1, bitorder="little")
        packed[start : start + _CHUNK, : bits.shape[1]] = bits
    return ClassSets(words.astype(np.uint64, copy=False), c)
