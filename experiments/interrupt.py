"""Ends a command cleanly on Ctrl-C and on SIGTERM: every `with` block is left and releases its resources.

Both signals raise KeyboardInterrupt. The exception can be lost when the signal arrives inside a callback that swallows
exceptions, such as a finalizer during garbage collection. So the request to stop is also stored, and `check`, which
long commands call at every step, raises KeyboardInterrupt again.
"""

import signal
import threading
from types import FrameType

_stop_requested = threading.Event()


def install() -> None:
    """Installs the handlers of both signals; Ctrl-C stays ignored if the parent process ignores it (`nohup`, `&`)."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)


def check() -> None:
    """Raises KeyboardInterrupt if one of the signals has arrived."""
    if _stop_requested.is_set():
        raise KeyboardInterrupt


def _stop(signal_number: int, frame: FrameType | None) -> None:
    _stop_requested.set()
    raise KeyboardInterrupt
