"""The processes of a run on several hosts: what they exchange, and who does what."""

from segloss.hosts.broadcasting import arrays_of_first
from segloss.hosts.exchange import (
    after_first,
    exchange,
    exchange_arrays,
    is_first,
    of_first,
    process_count,
    process_index,
    send_to_first,
)
from segloss.hosts.sharing import Interrupted, shared_work
from segloss.hosts.starting import start
from segloss.hosts.watch import watched

__all__ = [
    "Interrupted",
    "after_first",
    "arrays_of_first",
    "exchange",
    "exchange_arrays",
    "is_first",
    "of_first",
    "process_count",
    "process_index",
    "send_to_first",
    "shared_work",
    "start",
    "watched",
]
