"""The parts of orbax's checkpoint manager that `Checkpoints` puts together."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from segloss import hosts
from segloss.trained.digests import write_digests


class _DigestedArrays(ocp.PyTreeCheckpointHandler):
    """Stores a tree of arrays, and digests of its files."""

    def finalize(self, directory: Any) -> None:
        """Called in the background, before the checkpoint gets its name."""
        super().finalize(directory)
        write_digests(Path(directory))


class _DigestedJson(ocp.JsonCheckpointHandler):
    """Stores a JSON file, and its digest."""

    def finalize(self, directory: Any) -> None:
        """Called in the background, before the checkpoint gets its name."""
        super().finalize(directory)
        write_digests(Path(directory))


def only_this_process() -> ocp.options.MultiprocessingOptions:
    """Says that orbax waits for no other process of the run."""
    if hosts.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = hosts.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}
    )


def make_handlers(items: Iterable[str]) -> ocp.handlers.CheckpointHandlerRegistry:
    """Makes the handlers of a checkpoint, of `items` of arrays and of `meta`."""
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in items:
        arrays = _DigestedArrays()
        handlers.add(item, ocp.args.PyTreeSave, arrays)
        handlers.add(item, ocp.args.PyTreeRestore, arrays)
    values = _DigestedJson()
    handlers.add("meta", ocp.args.JsonSave, values)
    handlers.add("meta", ocp.args.JsonRestore, values)
    return handlers


@dataclasses.dataclass(frozen=True)
class Best(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint with the highest `rank` of its step."""

    rank: Any

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        best = max((x.step for x in checkpoints), key=self.rank, default=None)
        return [x.step == best for x in checkpoints]
