"""Processes that wait with their imports done, and make a copy of themselves by job.

What may crash, hang or eat memory runs in a process of its own. TensorFlow takes such a
process seconds to import, so one imports and waits, and for each job it makes a copy of
itself, which does the job and ends. A job finds what the imports left and nothing of
the jobs before it, and takes none but itself along when it crashes.

A copy has the memory of the whole process but only the thread that made it: what
another thread had locked stays locked in it for ever. So a server counts its threads
before it makes one. If it has others, or the system does not say, it does the job
itself and ends, and the next job waits for its own imports.

This very file is the script that such a process runs.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import math
import os
import queue
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# How often memory is looked at.
_LOOK_S = 0.1
# How long a server may take to end its copy and itself.
_GRACE_S = 10.0
_OUTPUT, _ERROR = "output.txt", "error.txt"
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "1",
    # NumPy's would start threads when it is imported.
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        returncode: 0 if the job returned, a number above 0 if it raised, minus the
            signal's number if one ended it.
        error: What it raised, `"Type: text"`; empty if nothing.
        printed: What it printed, also in C++.
        stopped: "time" or "memory" if that limit ended it, else empty.
        memory_bytes: How much memory it had when it was last looked at; 0 if never.
    """

    returncode: int
    error: str
    printed: str
    stopped: str = ""
    memory_bytes: int = 0

    @property
    def last_words(self) -> str:
        """The last lines of what it said."""
        words = (self.error or self.printed).strip().splitlines()
        return "\n".join(words[-5:]) or "none"

    def __str__(self) -> str:
        if self.returncode >= 0:
            return "raised an error"
        if -self.returncode == signal.SIGKILL:
            return "was killed, most likely because memory ran out"
        with contextlib.suppress(ValueError):
            return f"crashed ({signal.Signals(-self.returncode).name})"
        return f"crashed (signal {-self.returncode})"


class ForkServers:
    """Servers with the same imports: as many as there are jobs at once.

    They end with this process, however that ends, and when they have waited for long.

    Args:
        preload: Modules that a server imports before it takes jobs. They may start no
            threads, or the server is of use for one job only.
        without: Packages that these would import if they could, and that no job needs.
        idle_s: Seconds after which a server ends that nobody needs.
    """

    def __init__(
        self,
        preload: Sequence[str],
        without: Sequence[str] = (),
        idle_s: float = 120.0,
    ) -> None:
        self._settings = {
            "preload": list(preload),
            "without": list(without),
            "idle_s": idle_s,
        }
        self._lock = threading.Lock()
        self._idle: list[_Server] = []
        _POOLS.add(self)

    def start(self) -> None:
        """Lets a server begin with its imports, unless one waits already."""
        self._give_back(self._take())

    def run(
        self,
        job: str,
        folder: Path,
        time_limit_s: float = math.inf,
        memory_limit_bytes: float = math.inf,
    ) -> Ended:
        """Runs a function in a process of its own.

        Args:
            job: `"module:function"`; called with `folder`. What it returns is lost.
            folder: Where it finds and leaves what it works on; its output is put into
                `output.txt`, what it raises into `error.txt`.
            time_limit_s: Seconds after which it is stopped.
            memory_limit_bytes: Memory beyond which it is stopped, where the system says
                how much a process has.

        Returns:
            How it ended. The process is gone by then.

        Raises:
            BaseException: What the caller is interrupted by, after the job is stopped.
        """
        request = {"job": job, "folder": str(folder)}
        for name in (_OUTPUT, _ERROR):
            (folder / name).unlink(missing_ok=True)
        while True:
            server = self._take()
            fresh = not server.ready
            try:
                ended = server.run(request, time_limit_s, memory_limit_bytes)
            except BaseException:
                server.close()
                raise
            if server.ready:
                self._give_back(server)
            else:
                server.close()
            # One that has ended meanwhile, since it had waited for too long, never
            # began with the job.
            if server.began or fresh or ended.stopped:
                return ended

    def close(self) -> None:
        """Ends all servers that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for server in idle:
            server.close()

    def _take(self) -> _Server:
        with self._lock:
            while self._idle:
                server = self._idle.pop()
                if server.alive:
                    return server
                server.close()
        return _Server(self._settings)

    def _give_back(self, server: _Server) -> None:
        with self._lock:
            self._idle.append(server)

    def _forget(self) -> None:
        """In a copy of this process: the servers are the original's."""
        self._lock = threading.Lock()
        for server in self._idle:
            server.forget()
        self._idle = []


_POOLS: weakref.WeakSet[ForkServers] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for pool in list(_POOLS):
        pool.close()


def _forget_all() -> None:
    for pool in list(_POOLS):
        pool._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class _Server:
    """One server, from without.

    Attributes:
        ready: Whether it has done its imports and waits for a job.
        began: Whether it began with the last job.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.ready = self.began = False
        self._doing = 0
        self._log: IO[bytes] = tempfile.TemporaryFile()
        # -P: the modules beside the script must not be taken for others of their name.
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._send({"path": sys.path, **settings})

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(
        self, request: dict[str, str], time_limit_s: float, memory_limit_bytes: float
    ) -> Ended:
        end = time.monotonic() + time_limit_s
        watched = memory_limit_bytes < math.inf
        folder = Path(request["folder"])
        memory, returncode, stopped = 0, -int(signal.SIGKILL), ""
        self.began = False
        self._doing = self._process.pid
        self._send(request)
        while True:
            left = end - time.monotonic()
            if watched and self.began:
                memory = _memory_bytes(self._doing)
            if left <= 0 or memory > memory_limit_bytes:
                stopped = "time" if left <= 0 else "memory"
                self._stop()
                break
            try:
                wait = min(left, _LOOK_S if watched else left, threading.TIMEOUT_MAX)
                word, _, number = self._replies.get(timeout=wait).partition(" ")
            except queue.Empty:
                continue
            if word == "ready":
                self.ready = True
            elif word == "began":
                self.began, self._doing = True, int(number)
                # One that does it itself is of no use for another.
                self.ready = self._doing != self._process.pid
            elif word == "ended":
                returncode = int(number)
                break
            else:  # the server itself has ended
                self.ready = False
                returncode = self._process.wait()
                break
        self._doing = 0
        return Ended(
            returncode,
            _text(folder / _ERROR),
            _text(folder / _OUTPUT) or self._said(),
            stopped,
            memory,
        )

    def close(self) -> None:
        self._end()
        self._log.close()

    def _stop(self) -> None:
        """Has the server end its copy and go on, or ends both if it cannot."""
        if self.ready and self._doing != self._process.pid:
            self._send({"job": ""})
            with contextlib.suppress(queue.Empty):
                if self._replies.get(timeout=_GRACE_S).startswith("ended"):
                    return
        self._end()

    def _end(self) -> None:
        self.ready = False
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        if self._doing not in (0, self._process.pid):
            # It ends its copy, as nobody else can be sure that it is its copy.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                os.close(pipe.fileno())  # type: ignore[union-attr]
        self._process.returncode = 0  # it is not this process's to wait for

    def _send(self, words: dict[str, Any]) -> None:
        # If it is gone, that is what is heard of it.
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{json.dumps(words)}\n".encode())  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def _listen(self) -> None:
        with self._process.stdout as replies:  # type: ignore[union-attr]
            for line in replies:
                self._replies.put(line.decode().strip())
        self._replies.put("")

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def _memory_bytes(pid: int) -> int:
    """Returns the memory of a process, 0 where the system does not say."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return 1024 * int(found[1]) if found else 0
    return 0


# --- the server, from within


def _serve() -> None:
    """Imports, and does what it is told line by line until nobody is there."""
    # Of what a terminal sends to all its processes, the caller says what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Where memory runs out, the kernel ends these processes and not the one that waits.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Without a buffer: what `select` says must be true of it.
    asked = open(0, "rb", buffering=0, closefd=False)
    told = json.loads(asked.readline())
    sys.path[:] = told["path"]
    for package in told["without"]:
        sys.modules[package] = None  # type: ignore[assignment]  # not there, to import
    for module in told["preload"]:
        # A job that needs it says so.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.freeze()  # collections in copies would write to, so copy, what is shared
    print("ready", file=replies)
    while line := _next_line(asked, told["idle_s"]):
        job = json.loads(line)
        if not job["job"]:
            continue  # the last was to be stopped, and had ended already
        if _may_fork():
            _run_in_copy(job, replies)
        else:
            print("began", os.getpid(), file=replies)
            os._exit(_run(job))


def _next_line(asked: IO[bytes], idle_s: float) -> bytes:
    """Returns what is to be done, nothing if nobody is there or for too long."""
    if os.name == "posix" and not select.select([asked], [], [], idle_s)[0]:
        return b""
    return bytes(asked.readline())


def _may_fork() -> bool:
    """Whether this is the only thread; False where the system does not say."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/task")) == 1
    return False


def _run_in_copy(job: dict[str, str], replies: IO[str]) -> None:
    # No byte is ever written: the copy holds it open until it ends.
    ended, held = os.pipe()
    server = os.getpid()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            _end_with(server)
            os.close(replies.fileno())
            code = _run(job)
        finally:
            os._exit(code)
    os.close(held)
    print("began", pid, file=replies)
    # While a job runs nobody asks for another: there is something to be read if the
    # caller wants no more of it, or is gone.
    if ended not in select.select([ended, 0], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.close(ended)
    with contextlib.suppress(OSError):  # nobody is there
        print("ended", os.waitstatus_to_exitcode(status), file=replies)


def _end_with(server: int) -> None:
    """Ends this process when the server does, by Linux's `prctl`."""
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:
        os._exit(1)


def _run(job: dict[str, str]) -> int:
    """Does a job; returns the process's exit code."""
    folder = Path(job["folder"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(folder / _OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    module, _, function = job["job"].partition(":")
    try:
        getattr(importlib.import_module(module), function)(folder)
    except BaseException as err:
        # Whatever the locale, and with what no encoding has.
        text = f"{type(err).__name__}: {err}"
        (folder / _ERROR).write_text(text, "utf-8", "backslashreplace")
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    return 0


if __name__ == "__main__":
    _serve()
    os._exit(0)
