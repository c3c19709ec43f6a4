"""Turns SIGINT (Ctrl-C) and SIGTERM into a request that the training loop checks."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopRequest:
    """True once a signal asked the run to stop; `number` is that signal, else None."""

    number: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextlib.contextmanager
def stop_on_signals(request: StopRequest) -> Iterator[None]:
    """Within the block, the first SIGINT or SIGTERM sets `request.number`.

    Further signals go to the handlers from before the block. Outside the main thread,
    where Python cannot handle signals, this does nothing.
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
