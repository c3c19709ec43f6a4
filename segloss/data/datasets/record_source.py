"""Random access to the samples of a split, which are records of TFDS."""

import abc
import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex, TypeVar

from PIL import UnidentifiedImageError

from segloss.data.loading.batches import BadSampleError
from segloss.errors import SeglossError

_Fields = TypeVar("_Fields")


class RecordSource(abc.ABC):
    """Base class of the sources of samples.

    Args:
        directory: directory of the record files, for messages.
        split: name of the split.
        records: the encoded records of the split.
        images: False leaves the images out.
    """

    def __init__(
        self, directory: str, split: str, records: Sequence[bytes], *, images: bool
    ):
        self.split = split
        self._directory = directory
        self._records = records
        self._images = images

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        sample = self.opened(i)
        if self._images:
            sample["image"] = sample["image"][:, :]
        return sample

    @abc.abstractmethod
    def opened(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns sample i with an image that is decoded when it is sliced."""

    @abc.abstractmethod
    def label_hw(self, i: SupportsIndex) -> tuple[int, int]:
        """Returns height and width of the labels of sample i without decoding them."""

    def _parsed(self, i: SupportsIndex, parse: Callable[[bytes], _Fields]) -> _Fields:
        """Returns what `parse` makes of record i."""
        i = operator.index(i)
        if not 0 <= i < len(self):
            name = type(self).__name__
            raise IndexError(f"{name}: must be in [0, {len(self)}), got {i}.")
        try:
            return parse(self._records[i])
        # The reader raises RuntimeError, parsers errors of several kinds.
        except Exception as error:
            raise SeglossError(
                f"{self._directory}: sample {i} of split {self.split!r} cannot be "
                f"read, its file is damaged ({error!r}); delete that directory to "
                "prepare the dataset again."
            ) from error

    @contextlib.contextmanager
    def faults_named(self, kind: str, stem: str) -> Iterator[None]:
        """Context manager in which any error becomes one that names the sample."""
        try:
            yield
        # Decoders raise many kinds of errors on broken bytes.
        except Exception as error:
            # Pillow's message has a memory address, so a warning would be repeated.
            unknown = isinstance(error, UnidentifiedImageError)
            raise BadSampleError(
                f"{kind} of sample {stem!r} of split {self.split!r} cannot be used "
                f"({'it is not an image' if unknown else error})."
            ) from error
