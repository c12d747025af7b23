"""How far long work is: a bar on a terminal, a line now and then in a log.

>>> progress = Progress("labelling", total=3, unit="sample", verbose=0)
>>> for done in (1, 2, 3):
...     progress.update(done)
>>> progress.close()
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

logger = logging.getLogger(__name__)

# Short work says nothing in a log.
_SECONDS_BETWEEN_LINES = 30.0
# Nor on a terminal, unless a bar is asked for.
_SECONDS_BEFORE_A_BAR = 1.0


def verbosity(verbose: str | int) -> int:
    """Returns 0 for silence, 1 for a bar, 2 for lines in the log.

    Args:
        verbose: One of these, or `"auto"`: a bar on a terminal, else lines. A bar that
            moves fills a file with its every step.

    Raises:
        ValueError: If it is something else.
    """
    if verbose == "auto":
        return 1 if sys.stdout.isatty() else 2
    if verbose in (0, 1, 2):
        return int(verbose)
    raise ValueError(
        f"`verbose` must be 'auto', 0, 1 or 2. Received: verbose={verbose!r}. Fix: "
        f"1 for a progress bar, 2 for lines in the log, 0 for none."
    )


class Progress:
    """Tells how far a piece of work is.

    The bar is Keras's own, on stdout; lines are logged at level INFO, one each half
    minute, with the time that is left. Where neither was asked for, work of a moment
    has none.

    Args:
        work: What is done, such as `"labelling"`.
        total: How many there are, or `None` where that is not known.
        unit: What is counted, one of them.
        verbose: See `verbosity`.
        done: How many an earlier run has done.
    """

    def __init__(
        self,
        work: str,
        total: int | None,
        unit: str,
        verbose: str | int = "auto",
        done: int = 0,
    ) -> None:
        self._work, self._total, self._unit = work, total, unit
        self._verbose = verbosity(verbose)
        self._first = self._done = done
        self._started = self._told = time.monotonic()
        self._bar: Any = None
        self._bar_from = self._started
        if verbose == "auto":
            self._bar_from += _SECONDS_BEFORE_A_BAR

    def update(self, done: int, **figures: float) -> None:
        """Tells how many are done.

        Args:
            done: How many, those of an earlier run included.
            **figures: What else the bar shows, by name.
        """
        self._done = done
        now = time.monotonic()
        if self._verbose == 1:
            if now >= self._bar_from:
                self._show(done, figures, finalize=None)
        elif self._verbose == 2 and now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            logger.info("%s", self._line(now))

    def close(self) -> None:
        """Ends the bar, or the lines: with one that says how long it took, if any."""
        if self._bar is not None and self._done != self._total:
            self._show(self._done, {}, finalize=True)
        elif self._verbose == 2 and self._told > self._started:
            took = _duration(time.monotonic() - self._started)
            logger.info("%s: %s %ss in %s", *self._counted(), took)

    def _counted(self) -> tuple[str, str, str]:
        return self._work, f"{self._done:,}", self._unit

    def _line(self, now: float) -> str:
        if self._total is None:
            return "{}: {} {}s".format(*self._counted())
        line = "{}: {} of {:,} {}s".format(
            self._work, f"{self._done:,}", self._total, self._unit
        )
        new = self._done - self._first
        if new <= 0:
            return line
        left = (self._total - self._done) * (now - self._started) / new
        return f"{line}, {_duration(left)} left"

    def _show(
        self, done: int, figures: dict[str, float], finalize: bool | None
    ) -> None:
        if self._bar is None:
            from keras.utils import Progbar  # slow to load, and not needed in a log

            self._bar = Progbar(
                self._total, stateful_metrics=list(figures), unit_name=self._unit
            )
        self._bar.update(done, list(figures.items()), finalize=finalize)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
