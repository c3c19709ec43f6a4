"""Ctrl-C and SIGTERM as a request that the loop answers between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopRequest:
    """Whether the run was asked to stop, and by which signal."""

    number: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextlib.contextmanager
def stop_on_signals(request: StopRequest) -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into a request; a second one acts at once.

    Outside the main thread, where signals cannot be caught, the request never comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(received, frame):
        request.number = signal.Signals(received)
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
