from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kdlite.lite import fork_server
from kdlite.lite.fork_server import Ended, ForkServers

Make = Callable[..., ForkServers]


@pytest.fixture
def servers(tmp_path, monkeypatch) -> Iterator[Make]:
    """Makes servers that find the module `jobs`, of these pieces of code."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[ForkServers] = []

    def make(*code: str, preload: Sequence[str] = ("jobs",), **options) -> ForkServers:
        (tmp_path / "jobs.py").write_text("\n".join(map(textwrap.dedent, code)))
        made.append(ForkServers(preload, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def is_gone(pid: int) -> bool:
    """Whether a process ends within a while, or has ended."""
    for _ in range(600):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # ended, and nobody asked how
            return True
        time.sleep(0.05)
    return False


def written(path: Path) -> str:
    """What is in a file, once it is there."""
    for _ in range(600):
        if path.is_file() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


WHO = """
    import os
    seen = []
    def job(folder):
        seen.append(folder)
        (folder / "pids").write_text(f"{len(seen)} {os.getpid()} {os.getppid()}")
"""


THREAD = """
    import threading
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


def test_each_job_finds_what_the_imports_left(servers, folder) -> None:
    pool = servers(WHO)
    found = []
    for _ in range(3):
        assert pool.run("jobs:job", folder) == Ended(0, "", "")
        found.append((folder / "pids").read_text().split())
    counts, copies, originals = zip(*found, strict=True)
    assert counts == ("1", "1", "1")
    assert len(set(copies)) == 3 and len(set(originals)) == 1


def test_errors_of_any_language_in_any_locale(servers, folder, monkeypatch) -> None:
    for name, value in (
        *(("LC_ALL", "C"), ("LANG", "C")),
        *(("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")),
    ):
        monkeypatch.setenv(name, value)
    pool = servers(
        """
        import locale
        def fails(folder):
            assert locale.getpreferredencoding() == "ANSI_X3.4-1968"
            raise ValueError("gr\\u00f6\\u00dfe \\u6f22 \\udc80")
        """
    )
    ended = pool.run("jobs:fails", folder)
    assert ended.error == "ValueError: gr\u00f6\u00dfe \u6f22 \\udc80"


@pytest.mark.parametrize(
    ("code", "returncode", "error", "text"),
    [
        ("os.abort()", -signal.SIGABRT, "", r"crashed \(SIGABRT\)"),
        ("os.kill(os.getpid(), 11)", -signal.SIGSEGV, "", r"crashed \(SIGSEGV\)"),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL, "", "was killed, .* memory ran"),
        ("os.kill(os.getpid(), 40)", -40, "", r"crashed \(signal 40\)"),
        ("raise OSError('no such op')", 1, "OSError: no such op", "raised an error"),
        ("raise SystemExit(3)", 1, "SystemExit: 3", "raised an error"),
    ],
)
def test_however_a_job_ends_the_server_goes_on(
    servers, folder, code, returncode, error, text
) -> None:
    pool = servers(
        f"""
        import os
        def fails(folder):
            print("words", flush=True)
            os.write(2, b"of C++")
            {code}
        def works(folder):
            (folder / "parent").write_text(str(os.getppid()))
        """,
    )
    pool.run("jobs:works", folder)
    before = (folder / "parent").read_text()
    ended = pool.run("jobs:fails", folder)
    assert (ended.returncode, ended.error) == (returncode, error)
    assert ended.printed.startswith("words\nof C++")
    assert ended.last_words.endswith(error or "of C++")
    assert re.search(text, str(ended))
    assert pool.run("jobs:works", folder).returncode == 0
    assert (folder / "parent").read_text() == before


HANGS = """
    import os, time
    def job(folder):
        (folder / "copy").write_text(str(os.getpid()))
        (folder / "server").write_text(str(os.getppid()))
        time.sleep(600)
    def works(folder):
        (folder / "again").write_text(str(os.getppid()))
"""


def test_a_job_that_hangs_is_stopped(servers, folder) -> None:
    pool = servers(HANGS)
    ended = pool.run("jobs:job", folder, time_limit_s=2)
    assert ended.stopped == "time" and ended.returncode < 0
    assert is_gone(int(written(folder / "copy")))
    # Its server has its imports still.
    assert pool.run("jobs:works", folder).returncode == 0
    assert written(folder / "again") == written(folder / "server")


def test_a_job_that_ends_just_as_it_is_stopped(servers, folder) -> None:
    pool = servers(HANGS)
    pool.run("jobs:works", folder)
    first = (folder / "again").read_text()
    # It is heard of too late: the server takes it for the next job.
    pool._idle[0]._send({"job": ""})
    assert pool.run("jobs:works", folder).returncode == 0
    assert (folder / "again").read_text() == first


def test_a_job_that_takes_too_much_memory_is_stopped(servers, folder) -> None:
    pool = servers(
        """
        import time
        held = [b"x" * 50_000_000]  # what the server has counts as well
        def job(folder):
            for _ in range(100):
                held.append(b"x" * 5_000_000)
                time.sleep(0.05)
        def small(folder):
            pass
        """,
    )
    ended = pool.run("jobs:job", folder, memory_limit_bytes=150e6)
    assert ended.stopped == "memory"
    assert 150e6 < ended.memory_bytes < 500e6
    for _ in range(3):  # nothing is left of a job for the next
        assert not pool.run("jobs:small", folder, memory_limit_bytes=150e6).stopped


def test_a_server_with_threads_does_one_job_itself(servers, folder) -> None:
    pool = servers(
        THREAD,
        WHO,
        """
        def fails(folder):
            raise OSError("no such op")
        """,
    )
    found = []
    for _ in range(2):
        assert pool.run("jobs:job", folder).returncode == 0
        found.append((folder / "pids").read_text().split())
    assert [count for count, _, _ in found] == ["1", "1"]
    assert found[0][1] != found[1][1]
    # No server is between it and this process.
    assert {parent for _, _, parent in found} == {str(os.getpid())}
    ended = pool.run("jobs:fails", folder)
    assert (ended.returncode, ended.error) == (1, "OSError: no such op")


def test_a_server_with_threads_is_stopped(servers, folder) -> None:
    pool = servers(THREAD, HANGS)
    assert pool.run("jobs:job", folder, time_limit_s=2).stopped == "time"
    assert is_gone(int(written(folder / "copy")))


def test_imports_that_fail(servers, folder, tmp_path) -> None:
    (tmp_path / "raises.py").write_text("raise OSError('no AVX')")
    (tmp_path / "aborts.py").write_text("import os; os.write(2, b'no!'); os.abort()")
    pool = servers(WHO, preload=["raises"])
    assert pool.run("jobs:job", folder).returncode == 0
    assert pool.run("raises:job", folder).error == "OSError: no AVX"
    ended = servers(WHO, preload=["aborts"]).run("jobs:job", folder)
    assert (ended.returncode, ended.printed) == (-signal.SIGABRT, "no!")


def test_what_no_job_needs_is_left_out(servers, folder, tmp_path) -> None:
    (tmp_path / "heavy.py").write_text("raise SystemExit('imported')")
    pool = servers(
        """
        try:
            import heavy
        except ImportError:
            heavy = None

        def job(folder):
            (folder / "heavy").write_text(str(heavy))
        """,
        without=["heavy"],
    )
    assert pool.run("jobs:job", folder).returncode == 0
    assert (folder / "heavy").read_text() == "None"


def test_a_server_ends_when_nobody_needs_it(servers, folder) -> None:
    pool = servers(WHO, preload=[], idle_s=0.2)
    for _ in range(2):
        assert pool.run("jobs:job", folder).returncode == 0
        assert is_gone(int((folder / "pids").read_text().split()[2]))


def test_a_server_that_ends_just_then_is_replaced(servers, folder) -> None:
    pool = servers(WHO)
    pool.run("jobs:job", folder)
    first = int((folder / "pids").read_text().split()[2])
    # It has not been seen that it is gone.
    pool._idle[0]._process.poll = lambda: None
    os.kill(first, signal.SIGKILL)
    assert pool.run("jobs:job", folder).returncode == 0
    assert int((folder / "pids").read_text().split()[2]) != first


def test_a_server_that_is_killed_takes_its_copy_along(servers, folder) -> None:
    pool = servers(HANGS)
    ended = []
    thread = threading.Thread(
        target=lambda: ended.append(pool.run("jobs:job", folder)), daemon=True
    )
    thread.start()
    os.kill(int(written(folder / "server")), signal.SIGKILL)
    thread.join(60)
    assert ended[0].returncode == -signal.SIGKILL and not ended[0].stopped
    assert is_gone(int(written(folder / "copy")))


def test_several_at_once(servers, tmp_path) -> None:
    pool = servers(
        """
        import time
        def job(folder):
            (folder / "here").touch()
            while len(list(folder.parent.glob("*/here"))) < 3:
                time.sleep(0.01)
        """
    )
    ended: dict[int, Ended] = {}

    def run(k: int) -> None:
        (tmp_path / str(k)).mkdir()
        ended[k] = pool.run("jobs:job", tmp_path / str(k), time_limit_s=60)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == dict.fromkeys(range(3), Ended(0, "", ""))


def script(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    """A process of its own that uses servers."""
    (tmp_path / "jobs.py").write_text(textwrap.dedent(HANGS))
    head = """
        import os, signal, sys
        from pathlib import Path
        from kdlite.lite.fork_server import ForkServers
        # Of a shell's job in the background it is ignored, and of what that starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        folder = Path(sys.argv[1])
        pool = ForkServers(())
        """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head + code), str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(tmp_path), str(Path(fork_server.__file__).parents[2])]
            ),
        },
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_caller_that_ends(tmp_path, how) -> None:
    with script(tmp_path, 'pool.run("jobs:job", folder)') as caller:
        copy, server = (int(written(tmp_path / name)) for name in ("copy", "server"))
        # As a terminal does on Ctrl-C: to the caller and all that belong to it.
        (os.killpg if how == signal.SIGINT else os.kill)(caller.pid, how)
        said = caller.communicate(timeout=60)[1]
    assert said.endswith("KeyboardInterrupt\n") or not said
    assert is_gone(copy) and is_gone(server)


def test_a_caller_that_ends_as_it_should(tmp_path) -> None:
    code = """
        pool.run("os:listdir", folder)
        print(pool._idle[0]._process.pid, file=(folder / "server").open("w"))
        """
    with script(tmp_path, code) as caller:
        assert caller.communicate(timeout=60)[1] == ""
    assert caller.returncode == 0
    assert is_gone(int((tmp_path / "server").read_text()))


def test_a_caller_that_makes_a_copy_of_itself(tmp_path) -> None:
    code = """
        import warnings
        warnings.simplefilter("ignore")  # of threads; it has one
        assert pool.run("os:listdir", folder).returncode == 0
        mine = pool._idle[0]._process.pid
        pid = os.fork()
        assert pool.run("os:listdir", folder).returncode == 0
        theirs = pool._idle[0]._process.pid
        assert (mine == theirs) == bool(pid)
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
            assert pool.run("os:listdir", folder).returncode == 0
            assert pool._idle[0]._process.pid == mine
        """
    with script(tmp_path, code) as caller:
        assert caller.communicate(timeout=60)[1] == ""
    assert caller.returncode == 0
