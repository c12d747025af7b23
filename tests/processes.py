"""kdlite's command in processes of its own, as shells and people start it.

A fresh process takes seconds to import TensorFlow. Where that is not what a test is
about, it uses a copy of one that has done so: of the process that waits for
conversions (`kdlite/lite/fork_server.py`), which never ran anything.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pty
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdlite.lite.fork_server import Ended

ROOT = Path(__file__).resolve().parent.parent
SLOW = ("tensorflow", "keras", "matplotlib", "scipy", "ai_edge_litert")
HEAVY = (*SLOW, "numpy")


def run_light(
    folder: Path,
    *arguments: str,
    program: tuple[str, ...] = ("-m", "kdlite"),
    without: tuple[str, ...] = HEAVY,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """The command where each heavy library ends the process that loads it.

    Args:
        folder: Where to run it.
        *arguments: Of the command.
        program: What Python is to run in the place of kdlite's command.
        without: The libraries.
        **environment: What it is told beside that.
    """
    with tempfile.TemporaryDirectory() as traps:
        for name in without:
            Path(traps, f"{name}.py").write_text("import os\nos._exit(99)\n")
        path = os.pathsep.join([traps, str(ROOT)])
        return subprocess.run(
            [sys.executable, *program, *arguments],
            env={**os.environ, "PYTHONPATH": path, **environment},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )


def run_in_copy(job: str, folder: Path, **told: Any) -> Ended:
    """Has `"module:function"` called with a folder, in a copy that has TensorFlow.

    Args:
        job: The function, of a module of the tests'.
        folder: What it is called with; made if it is not there.
        **told: What the function finds in `folder/told.json`.

    Returns:
        How it ended.
    """
    from kdlite.lite._converter import _SERVERS

    folder.mkdir(exist_ok=True)
    (folder / "told.json").write_text(json.dumps(told))
    (folder / "job").write_text(job)
    return _SERVERS.run("processes:run_job", folder, time_limit_s=500)


def run_job(folder: Path) -> None:
    """Runs a job where Keras can be imported, which conversions are kept from."""
    if sys.modules.get("keras", ...) is None:
        del sys.modules["keras"]
    resolve_name((folder / "job").read_text())(folder)


def run_kdlite(folder: Path) -> None:
    """Runs the command as a process that begins with it would, in a copy."""
    told = json.loads((folder / "told.json").read_text())
    os.setsid()
    output = os.open(told["output"], os.O_WRONLY | os.O_NOCTTY)
    (folder / "pid").write_text(f"{os.getpid()}\n")
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["directory"])
    tempfile.tempdir = None  # as the environment says now
    sys.argv = ["kdlite", *told["arguments"]]
    try:
        runpy.run_module("kdlite", run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


class KdliteCopy:
    """The command in a copy, with what is used here of `subprocess.Popen`.

    Args:
        arguments: Of the command.
        output: The file or terminal where its output goes.
        environment: All that it is told beside.
    """

    def __init__(
        self, arguments: list[str], output: str, environment: dict[str, str]
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        told = {"arguments": arguments, "directory": os.getcwd()}
        told |= {"environment": environment, "output": output}
        self._ended: list[Ended] = []

        def run() -> None:
            self._ended.append(run_in_copy("processes:run_kdlite", folder, **told))

        self._thread = threading.Thread(target=run)
        self._thread.start()
        pid, end = folder / "pid", time.monotonic() + 240
        while not (pid.exists() and pid.read_text().endswith("\n")):
            assert time.monotonic() < end, "it does not begin"
            time.sleep(0.01)
        self.pid = int(pid.read_text())

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        self._folder.cleanup()
        return self._ended[0].returncode


class OnTerminal:
    """The command on a terminal of its own, with what it shows.

    Args:
        *arguments: Of the command.
        fresh: Whether its process is one that begins with it, rather than a copy.
        **environment: What it is told beside what this process is.
    """

    def __init__(
        self, *arguments: str, fresh: bool = False, **environment: str
    ) -> None:
        self._ours, theirs = pty.openpty()
        self.shown = ""
        told = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), **environment}
        self._process: Any
        if fresh:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kdlite", *arguments],
                env=told,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,  # a group, as shells make one
            )
        else:
            self._process = KdliteCopy(list(arguments), os.ttyname(theirs), told)
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
