"""The store on disk: killed anywhere it tells the truth, changed it is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kdlite.distill import label_store
from kdlite.distill.label_manifest import Manifest, Origin
from kdlite.distill.label_store import LabelStore, LabelWriter

ORIGIN = Origin("t" * 64, [["uint8", [2]]], "f" * 64, views=2, seed=0, augment="a")
SAMPLES, VIEWS, CLASSES = 12, 2, 3
LOGITS = np.arange(SAMPLES * VIEWS * CLASSES, dtype="float32").reshape(-1, 2, 3)
PACKAGE = str(Path(label_store.__file__).parent)
PRINTS = np.arange(100, 100 + SAMPLES, dtype="uint64")

# Writes stores four samples at a time and safe after each, each in a copy of itself
# that kills itself (as by `kill -9`) at the n-th call that touches the disk. For each
# line with a path and an n it prints how that ended, and how many calls there were. The
# package around the modules, which takes seconds to load, is left out.
WRITER = """
import json, os, signal, sys, types
import numpy as np
package = sys.modules["kdlite.distill"] = types.ModuleType("kdlite.distill")
package.__path__ = [sys.argv[2]]
from kdlite.distill import label_manifest, label_store as store
store._SECONDS_BETWEEN_COMMITS = 0.0
calls = 0
def deadly(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
os.replace, os.fsync = deadly(os.replace), deadly(os.fsync)
label_manifest.json.dumps = deadly(json.dumps)
append = store.LabelWriter.append
def torn_append(writer, logits, prints):
    stream, _ = writer._files["logits.f32"]
    deadly(lambda: None)()
    at = stream.tell()
    stream.write(b"half a row")
    stream.flush()
    deadly(lambda: None)()
    stream.seek(at)
    append(writer, logits, prints)
store.LabelWriter.append = torn_append
origin = label_manifest.Origin(**json.loads(sys.argv[1]))
logits = np.arange(72, dtype="float32").reshape(-1, 2, 3)
prints = np.arange(100, 112, dtype="uint64")
from pathlib import Path
def write(path):
    with store.LabelWriter(Path(path), origin) as writer:
        for at in range(writer.manifest.samples, 12, 4):
            writer.append(logits[at : at + 4], prints[at : at + 4])
        writer.commit(12)
while line := sys.stdin.readline():
    path, kill_at = json.loads(line)
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            write(path)
            os.write(tell, str(calls).encode())
        finally:
            os._exit(0)
    os.close(tell)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print([code, int(os.read(told, 99) or 0)], flush=True)
    os.close(told)
"""


@pytest.fixture
def write_in_a_process() -> Iterator[Callable[[Path, int], tuple[int, int]]]:
    """Writes a store; returns the process's exit code and its calls."""
    origin = json.dumps(dataclasses.asdict(ORIGIN))
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, origin, PACKAGE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def write(path: Path, kill_at: int) -> tuple[int, int]:
            print(json.dumps([str(path), kill_at]), file=process.stdin, flush=True)
            code, calls = json.loads(process.stdout.readline())
            return code, calls

        yield write
        process.stdin.close()


def write(path: Path, samples: int = SAMPLES, finished: bool = True) -> None:
    with LabelWriter(path, ORIGIN) as writer:
        if writer.manifest.finished:
            return
        for at in range(writer.manifest.samples, samples, 4):
            writer.append(LOGITS[at : at + 4], PRINTS[at : at + 4])
        writer.commit(SAMPLES if finished else None)


def check_whole(path: Path) -> None:
    store = LabelStore(path)
    assert store.manifest.finished and store.manifest.samples == SAMPLES
    for view in range(VIEWS):
        logits = store.rows(slice(None), view)
        np.testing.assert_array_equal(logits, LOGITS[:, view])
        assert not logits.flags.writeable and isinstance(logits, np.memmap)
    np.testing.assert_array_equal(store.samples, PRINTS)
    assert store.samples.dtype == np.uint64 and not store.samples.flags.writeable


def test_killed_at_any_moment_it_goes_on(tmp_path, write_in_a_process):
    code, moments = write_in_a_process(tmp_path / "whole", 0)
    assert code == 0 and moments > 20
    check_whole(tmp_path / "whole")
    done = set()
    for kill_at in range(1, moments + 1):
        path = tmp_path / str(kill_at)
        assert write_in_a_process(path, kill_at)[0] == -signal.SIGKILL
        manifest = Manifest.read(path)
        if manifest is None or not manifest.finished:
            with pytest.raises((ValueError, FileNotFoundError)):
                LabelStore(path)
        done.add(manifest.samples if manifest else None)
        with LabelWriter(path, ORIGIN) as writer:
            # What is kept is right, and what is after it was cut off.
            np.testing.assert_array_equal(writer.known, PRINTS[: len(writer.known)])
        write(path)
        check_whole(path)
    assert done == {None, 0, 4, 8, 12}


def test_killed_again_and_again_it_ends(tmp_path, write_in_a_process):
    for _ in range(30):
        # In this many calls a process gets its first samples safe, hardly more.
        if write_in_a_process(tmp_path, 16)[0] == 0:
            break
    check_whole(tmp_path)


@pytest.mark.parametrize("name", ["logits.f32", "samples.u64"])
def test_a_file_that_was_tampered_with(tmp_path, name):
    write(tmp_path)
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"must have the SHA-256.*{name} with"):
        LabelStore(tmp_path)


@pytest.mark.parametrize("name", ["logits.f32", "samples.u64"])
@pytest.mark.parametrize("size", [0, -1, 1, None])
def test_a_file_of_another_length(tmp_path, name, size):
    write(tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    file.unlink()
    if size is not None:
        file.write_bytes((content + b"x")[: len(content) + size] if size else b"")
    with pytest.raises(ValueError, match=f"as long as its manifest says.*{name} with"):
        LabelStore(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_what_is_safe_is_checked_before_going_on(tmp_path, damage):
    write(tmp_path, samples=8, finished=False)
    file = tmp_path / "logits.f32"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content if damage == "flip" else content[:-1])
    expected = "SHA-256" if damage == "flip" else "as long as"
    with pytest.raises(ValueError, match=expected):
        write(tmp_path)
    with LabelWriter(tmp_path, ORIGIN, overwrite=True) as writer:
        assert writer.manifest.samples == 0
    write(tmp_path)
    check_whole(tmp_path)


def test_unfinished_and_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder that SoftLabels.build made"):
        LabelStore(tmp_path)
    with pytest.raises(FileNotFoundError, match="Received: path="):
        LabelStore(tmp_path / "nowhere")
    write(tmp_path, samples=8, finished=False)
    with pytest.raises(ValueError, match="Only finished.*first 8 samples are done"):
        LabelStore(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        b"\xff",
        '{"format": "other 1"}',
        {"samples": -1},
        {"logits_shape": [0]},
        {"logits_shape": ["x"]},
        {"sha256": {}},
        {"origin": {}},
        {"more": 1},
    ],
)
def test_a_damaged_manifest(tmp_path, text):
    write(tmp_path)
    file = tmp_path / "manifest.json"
    if isinstance(text, dict):
        text = json.dumps({**json.loads(file.read_text()), **text})
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for use in (LabelStore, write):
        with pytest.raises(ValueError, match="need a manifest of the format"):
            use(tmp_path)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"teacher": "x"}, "another teacher, for"),
        (
            {"sample_spec": [["float32", [3]]]},
            r"another data set \(samples of float32 \(3,\), stored uint8 \(2,\)\), for",
        ),
        ({"first_samples": "x"}, r"another data set \(other first samples\), for"),
        ({"views": 3}, r"another views \(views=3, stored 2\), for"),
        ({"seed": 1, "augment": "b"}, r"another seed \(seed=1, stored 0\), for"),
        ({"augment": "b"}, "Received: another augment, for"),
        ({"augment": None}, r"another augment \(none, stored one\), for"),
        ({"augment": "b", "teacher": "x"}, "another teacher, another augment, for"),
        # Views of other samples are others: that says nothing about the augmentation.
        ({"augment": "b", "first_samples": "x"}, "other first samples.?, for"),
    ],
)
def test_another_origin(tmp_path, change, text):
    origin = dataclasses.replace(ORIGIN, **change)
    for finished in (False, True):
        write(tmp_path, samples=8 if not finished else 12, finished=finished)
        with pytest.raises(ValueError, match=text):
            LabelWriter(tmp_path, origin).__enter__()
    with LabelWriter(tmp_path, origin, overwrite=True) as writer:
        assert writer.manifest == Manifest(origin)


def test_nothing_is_lost_when_nothing_was_done(tmp_path):
    with LabelWriter(tmp_path, ORIGIN):
        pass
    origin = dataclasses.replace(ORIGIN, teacher="x")
    with LabelWriter(tmp_path, origin) as writer:
        assert writer.manifest.origin == origin


def test_logits_of_another_shape(tmp_path):
    with LabelWriter(tmp_path, ORIGIN) as writer:
        writer.append(LOGITS[:4], PRINTS[:4])
        with pytest.raises(
            ValueError, match=r"one shape. Received: \(2,\) after \(3,\)"
        ):
            writer.append(LOGITS[4:8, :, :2], PRINTS[4:8])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_with_something_else(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(FileExistsError, match="in a folder of their own"):
            LabelWriter(path, ORIGIN, overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_two_writers(tmp_path):
    with LabelWriter(tmp_path, ORIGIN) as writer:
        with pytest.raises(RuntimeError, match="by one process at a time"):
            LabelWriter(tmp_path, ORIGIN).__enter__()
        writer.append(LOGITS, PRINTS)
        writer.commit(SAMPLES)
    check_whole(tmp_path)


def test_an_interrupt_keeps_what_was_done(tmp_path):
    with pytest.raises(KeyboardInterrupt), LabelWriter(tmp_path, ORIGIN) as writer:
        writer.append(LOGITS[:4], PRINTS[:4])
        raise KeyboardInterrupt
    assert Manifest.read(tmp_path).samples == 4
    write(tmp_path)
    check_whole(tmp_path)


def test_it_is_safe_every_few_seconds(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(label_store.time, "monotonic", lambda: now)
    with LabelWriter(tmp_path, ORIGIN) as writer:
        for at, now in ((0, 3.0), (4, 5.0), (8, 9.9)):  # noqa: B007
            writer.append(LOGITS[at : at + 4], PRINTS[at : at + 4])
        assert Manifest.read(tmp_path).samples == 8


def test_nothing_is_pickled(tmp_path):
    write(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"manifest.json", "logits.f32", "samples.u64", "lock"}
    assert os.path.getsize(tmp_path / "logits.f32") == LOGITS.nbytes


def resident_bytes(file: Path) -> int:
    """How much of a mapped file is in memory, as Linux counts it."""
    kilobytes, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            inside = line.endswith(str(file))
        elif inside and first == "Rss:":
            kilobytes += int(line.split()[1])
    return 1024 * kilobytes


@pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="counts as Linux does"
)
def test_what_was_read_is_let_go_of(tmp_path, monkeypatch, rng):
    origin = dataclasses.replace(ORIGIN, views=1)
    samples, size = 20_000, 16_000_000
    with LabelWriter(tmp_path, origin) as writer:
        for at in range(0, samples, 1000):
            logits = rng.normal(size=(1000, 1, 200)).astype("float32")
            writer.append(logits, np.arange(at, at + 1000, dtype="uint64"))
        writer.commit(samples)
    file = tmp_path / "logits.f32"
    most = {}
    for limit in (1 << 20, 1 << 40):
        monkeypatch.setattr(label_store, "_RESIDENT_BYTES", limit)
        store = LabelStore(tmp_path)
        most[limit] = 0
        # Enough that the system maps each page once.
        for places in rng.permutation(samples).reshape(-1, 8)[:500]:
            assert store.rows(places, np.zeros(8, int)).shape == (8, 200)
            if places[0] % 20 == 0:
                most[limit] = max(most[limit], resident_bytes(file))
        del store
    assert most[1 << 40] > 0.9 * size  # else there would be nothing to see
    assert most[1 << 20] < 4 << 20  # twice what was touched since, and a margin
