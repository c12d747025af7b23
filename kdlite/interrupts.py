"""Ctrl-C that is not lost in a library."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_SECONDS_UNTIL_AGAIN = 0.25


@contextlib.contextmanager
def lasting_interrupts() -> Iterator[None]:
    """Has Ctrl-C raise `KeyboardInterrupt` until it is heard.

    Python raises it once, wherever it happens to be. Where that is a function that
    TensorFlow's C++ has called, TensorFlow drops it (about one in twenty while a data
    set is read), and the work goes on as if nothing had been pressed, or it comes out
    as another error. Here it is raised again every quarter of a second, but for the
    time that something is put in order on account of it: in `finally`, `except` and
    `__exit__` it is at work already. An error that comes of it is one of it.

    Outside the main thread, and where the system has no timer, all is as ever.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or not hasattr(signal, "setitimer"):
        yield
        return
    # Whoever starts a process that is to hear nothing of Ctrl-C, has it so.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = False

    def raise_until_heard(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        again = _SECONDS_UNTIL_AGAIN
        signal.setitimer(signal.ITIMER_REAL, again, again)
        raise KeyboardInterrupt

    def raise_unless_heard(number: int, frame: FrameType | None) -> None:
        handled = sys.exception()
        while handled is not None:
            if isinstance(handled, KeyboardInterrupt):
                return
            handled = handled.__context__
        raise KeyboardInterrupt

    alarm = signal.signal(signal.SIGALRM, raise_unless_heard)
    signal.signal(signal.SIGINT, raise_until_heard)
    try:
        yield
    except Exception as err:
        if pressed:  # what came of it in a library
            raise KeyboardInterrupt from err
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, alarm)
