"""kdlite's command in processes of its own, as shells and people start it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("tensorflow", "keras", "numpy", "matplotlib", "ai_edge_litert")


def run_light(
    folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command where each heavy library ends the process that loads it.

    Args:
        folder: Where to run it.
        *arguments: Of the command.
        **environment: What it is told beside that.
    """
    with tempfile.TemporaryDirectory() as traps:
        for name in HEAVY:
            Path(traps, f"{name}.py").write_text("import os\nos._exit(99)\n")
        path = os.pathsep.join([traps, str(ROOT)])
        return subprocess.run(
            [sys.executable, "-m", "kdlite", *arguments],
            env={**os.environ, "PYTHONPATH": path, **environment},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )


class OnTerminal:
    """A process on a terminal of its own, with what it shows.

    Args:
        command: What is run.
        **environment: What it is told beside what this process is.
    """

    def __init__(self, command: list[str], **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self.shown = ""
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,  # a group, as shells make one
        )
        os.close(theirs)

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._ours)

    def until(self, ready: Callable[[], bool], seconds: float = 240) -> None:
        """Reads what it shows until something is so."""
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, f"not in {seconds} s: {self.shown[-2000:]}"
            assert self._read(0.01), f"it ended: {self.shown[-2000:]}"

    def press_ctrl_c(self) -> None:
        """Sends what a terminal sends to the whole group."""
        os.killpg(self._process.pid, signal.SIGINT)

    def end(self, seconds: float = 240) -> int:
        """Reads until it ends, and returns its exit code."""
        end = time.monotonic() + seconds
        while self._read(0.1):
            assert time.monotonic() < end, f"not in {seconds} s: {self.shown[-2000:]}"
        return self._process.wait(timeout=60)

    def leaves_nothing_running(self, seconds: float = 60) -> bool:
        """Whether each process of its group ends soon after it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self._running():
                return True
            time.sleep(0.1)
        return False

    def _running(self) -> bool:
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = status.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self._process.pid and state != "Z":
                    return True
        return False

    def _read(self, seconds: float) -> bool:
        if select.select([self._ours], [], [], seconds)[0]:
            try:
                self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")
            except OSError:  # all that had the terminal are gone
                return False
        return True
