"""Ctrl-C and kill -TERM end a command in order: every `with` block gives back what it holds.

The exception that a signal raises can land in a callback that swallows it (garbage collection in the middle of an
import); so the wish to stop is also kept, and `check` raises it again at the next step of the work.
"""

import signal
import threading
from types import FrameType

_wanted = threading.Event()


def install() -> None:
    """Takes over both signals; Ctrl-C stays ignored where our parent ignores it (`nohup`, `&`)."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)


def check() -> None:
    """Raises KeyboardInterrupt if a signal has asked to stop."""
    if _wanted.is_set():
        raise KeyboardInterrupt


def _stop(signal_number: int, frame: FrameType | None) -> None:
    _wanted.set()
    raise KeyboardInterrupt
