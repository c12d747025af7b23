"""Shards: put together they are what one worker makes; what is wrong is named."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from kdlite.distill import label_shards
from kdlite.distill.label_manifest import Manifest, Origin
from kdlite.distill.label_shards import merge_shards
from kdlite.distill.label_store import LabelStore, LabelWriter, shard_folder

ORIGIN = Origin("t" * 64, [["uint8", [2]]], "f" * 64, views=2, seed=0, augment="a")
SAMPLES, CLASSES = 11, 5
LOGITS = np.random.default_rng(0).normal(size=(SAMPLES, 2, CLASSES)).astype("float32")
PRINTS = np.arange(100, 100 + SAMPLES, dtype="uint64")


def write(path, shard=None, origin=ORIGIN, samples=SAMPLES, finished=True):
    first, step = (shard[0] - 1, shard[1]) if shard else (0, 1)
    if shard:
        path = shard_folder(path, shard)
        origin = dataclasses.replace(origin, shard=list(shard))
    with LabelWriter(path, origin) as writer:
        rows = slice(first, samples, step)
        if len(PRINTS[rows]):
            writer.append(LOGITS[rows], PRINTS[rows])
        writer.commit(samples if finished else None)


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


@pytest.mark.parametrize("count", [1, 2, 3, 11, 14])
@pytest.mark.parametrize("form", [{}, {"dtype": "float16", "top_k": 2}])
def test_together_they_are_what_one_worker_makes(count, form, tmp_path, monkeypatch):
    monkeypatch.setattr(label_shards, "_SAMPLES_AT_ONCE", 2)
    origin = dataclasses.replace(ORIGIN, **form)
    write(tmp_path / "one", origin=origin)
    for index in range(count, 0, -1):
        write(tmp_path / "many", (index, count), origin)
    merge_shards(tmp_path / "many")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    merge_shards(tmp_path / "many")  # again: it is there


def test_a_merge_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(label_shards, "_SAMPLES_AT_ONCE", 1)
    monkeypatch.setattr("kdlite.distill.label_store._SECONDS_BETWEEN_COMMITS", 0.0)
    for index in (1, 2, 3):
        write(tmp_path, (index, 3))
    append, calls = LabelWriter.append_stored, []

    def interrupted(writer, *rows):
        calls.append(rows)
        if len(calls) == 3:
            raise OSError("no space left")
        append(writer, *rows)

    monkeypatch.setattr(LabelWriter, "append_stored", interrupted)
    with pytest.raises(OSError, match="no space"):
        merge_shards(tmp_path)
    assert Manifest.read(tmp_path).samples == 6
    merge_shards(tmp_path)
    assert len(calls) == 5
    whole = LabelStore(tmp_path)
    np.testing.assert_array_equal(whole.samples, PRINTS)
    np.testing.assert_array_equal(whole.rows(slice(None), 1), LOGITS[:, 1])


def break_shard(tmp_path, what):
    shard = shard_folder(tmp_path, (2, 3))
    if what == "missing":
        shutil.rmtree(shard)
    elif what == "doubled":
        shutil.copytree(shard, tmp_path / "shard-2-of-3-copy")
    elif what == "corrupt":
        file = shard / "logits.f32"
        content = bytearray(file.read_bytes())
        content[7] ^= 4
        file.write_bytes(content)
    elif what == "cut":
        file = shard / "logits.f32"
        file.write_bytes(file.read_bytes()[:-1])
    elif what == "no manifest":
        (shard / "manifest.json").unlink()
    elif what == "broken manifest":
        (shard / "manifest.json").write_text("{")
    else:
        shutil.rmtree(shard)
        if what == "unfinished":
            write(tmp_path, (2, 3), finished=False)
        elif what == "teacher":
            write(tmp_path, (2, 3), dataclasses.replace(ORIGIN, teacher="x"))
        elif what == "longer":
            write(tmp_path, (2, 3), samples=SAMPLES - 1)
        elif what == "other number":
            write(tmp_path, (2, 4))


@pytest.mark.parametrize(
    "what, text",
    [
        ("missing", "Received: at .*, missing are 2 of 3. Fix: build what is missing"),
        ("doubled", "shard 2 is doubled, in shard-2-of-3 and shard-2-of-3-copy. Fix"),
        ("corrupt", r"shard-2-of-3 is damaged \(.*SHA-256.*logits.f32 with"),
        ("cut", r"shard-2-of-3 is damaged \(.*as long as.*logits.f32 with"),
        ("no manifest", "shard-2-of-3 holds no shard; missing are 2 of 3"),
        ("broken manifest", r"shard-2-of-3 is damaged \(.*manifest.json"),
        ("unfinished", "at .*, shard-2-of-3 is unfinished. Fix"),
        ("teacher", "shard-2-of-3 is of another labelling than shard-1-of-3: another"),
        ("longer", r"another number of samples \(10, not 11\)"),
        ("other number", r"missing are 4 of 4.*another number of shards \(4, not 3\)"),
    ],
)
def test_what_is_wrong_is_named(what, text, tmp_path):
    for index in (1, 2, 3):
        write(tmp_path, (index, 3))
    break_shard(tmp_path, what)
    with pytest.raises(ValueError, match=text):
        merge_shards(tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    for index in (1, 2):
        write(tmp_path, (index, 5))
    (shard_folder(tmp_path, (1, 5)) / "samples.u64").unlink()
    with pytest.raises(ValueError, match="1-of-5 is damaged.*missing are 3 of 5, 4 of"):
        merge_shards(tmp_path)


def test_there_are_none(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no folder shard-i-of-n"):
            merge_shards(path)
