from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from kdlite import interrupts
from kdlite.interrupts import lasting_interrupts


@pytest.fixture(autouse=True)
def soon_again(monkeypatch) -> None:
    """A fifth of the time in which people wait for it."""
    monkeypatch.setattr(interrupts, "_SECONDS_UNTIL_AGAIN", 0.05)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def test_an_interrupt_that_a_library_drops_comes_again() -> None:
    with pytest.raises(KeyboardInterrupt), lasting_interrupts():
        try:
            press_ctrl_c()
            work(1)
        except KeyboardInterrupt:
            pass  # as TensorFlow does
        work(10)
        raise AssertionError("it was lost")


def test_an_interrupt_that_a_library_makes_another_error_of_is_one_again() -> None:
    with pytest.raises(KeyboardInterrupt) as stop, lasting_interrupts():
        try:
            press_ctrl_c()
            work(1)
        except KeyboardInterrupt:
            pass  # as TensorFlow does, and then
        raise AttributeError("'dict' object has no attribute '_type_spec'")
    assert isinstance(stop.value.__cause__, AttributeError)


def test_errors_are_themselves_where_nothing_was_pressed() -> None:
    with pytest.raises(AttributeError), lasting_interrupts():
        raise AttributeError


def test_what_puts_things_in_order_is_not_interrupted() -> None:
    done = []

    class Folder:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            work(0.15)
            done.append("exit")

    with pytest.raises(KeyboardInterrupt), lasting_interrupts():
        try:
            with Folder():
                press_ctrl_c()
                work(10)
        finally:
            try:
                raise FileNotFoundError
            except FileNotFoundError:
                work(0.15)
                done.append("except")
            work(0.15)
            done.append("finally")
    assert done == ["exit", "except", "finally"]


def test_it_raises_once_where_it_is_heard_and_leaves_no_trace() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    with pytest.raises(KeyboardInterrupt), lasting_interrupts():
        press_ctrl_c()
        work(10)
    work(0.15)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    assert after == before


def test_who_hears_nothing_of_ctrl_c_has_it_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with lasting_interrupts():
            press_ctrl_c()
            work(0.15)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_has_no_signals() -> None:
    entered = []

    def run() -> None:
        with lasting_interrupts():
            entered.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered
