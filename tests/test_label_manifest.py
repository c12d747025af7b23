"""A store from elsewhere: whatever was done to it, it is refused by the file's name."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from kdlite.distill import label_manifest
from kdlite.distill.label_manifest import Manifest, Origin
from kdlite.distill.label_store import LabelStore, LabelWriter

ORIGIN = Origin(
    "t" * 64,
    [["uint8", [2]]],
    "f" * 64,
    views=2,
    seed=0,
    augment="a",
    dtype="float16",
    top_k=2,
)
SAMPLES = 6
LOGITS = np.arange(SAMPLES * 2 * 5, dtype="float32").reshape(-1, 2, 5) % 7
FILES = ("manifest.json", "samples.u64", "top.f16", "classes.bin")


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "store"
    with LabelWriter(path, ORIGIN) as writer:
        writer.append(LOGITS, np.arange(SAMPLES, dtype="uint64"))
        writer.commit(SAMPLES)
    return path


def forge(path, digest=True, **changes):
    """A manifest that lies, with a digest that says it is whole."""
    file = path / "manifest.json"
    content = json.loads(file.read_text())
    content.pop("format"), content.pop("digest")
    for name, value in changes.items():
        (content if name in content else content["origin"])[name] = value
    whole = {
        "format": label_manifest._FORMAT,
        "digest": label_manifest._json_digest(content),
        **content,
    }
    file.write_text(json.dumps(whole))


def check_refused(path, name):
    with pytest.raises(ValueError) as caught:
        LabelStore(path)
    assert name in str(caught.value) and "Fix: " in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_any_byte_that_is_changed_is_found(path, name, rng):
    file = path / name
    whole = file.read_bytes()
    meaning = json.loads(whole) if name == "manifest.json" else None
    places = range(len(whole)) if len(whole) < 99 else rng.choice(len(whole), 99)
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        try:
            if meaning is not None and json.loads(changed) == meaning:
                continue  # a space became a tab
        except ValueError:
            pass
        check_refused(path, name)
    file.write_bytes(whole)
    LabelStore(path)


@pytest.mark.parametrize("name", FILES)
def test_any_length_but_its_own_is_found(path, name):
    file = path / name
    whole = file.read_bytes()
    for length in {0, 1, len(whole) // 2, len(whole) - 2, len(whole) + 1}:
        file.write_bytes((whole + b"x")[:length])
        check_refused(path, name)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"samples": 7, "dataset_samples": 7}, "with 48 bytes instead of 56"),
        ({"samples": 5, "dataset_samples": 5}, "with 48 bytes instead of 40"),
        ({"samples": 2**61, "dataset_samples": 2**61}, "manifest.json"),
        ({"samples": 10**30}, "manifest.json"),
        ({"samples": 6.0}, "manifest.json"),
        ({"samples": True}, "manifest.json"),
        ({"samples": 5}, "manifest.json"),
        ({"samples": 0, "dataset_samples": 0}, "manifest.json"),
        ({"dataset_samples": None}, "manifest.json"),
        ({"logits_shape": [300]}, "classes.bin with"),
        ({"logits_shape": [3, 5]}, "top.f16 with"),
        ({"logits_shape": [2**32, 2**32, 5]}, "manifest.json"),
        ({"logits_shape": [2**63, 2, 5]}, "manifest.json"),
        ({"logits_shape": [-5]}, "manifest.json"),
        ({"logits_shape": [2]}, "manifest.json"),
        ({"logits_shape": "5"}, "manifest.json"),
        ({"logits_shape": [["5"]]}, "manifest.json"),
        ({"views": 3}, "top.f16 with"),
        ({"views": 0}, "manifest.json"),
        ({"views": "2"}, "manifest.json"),
        ({"top_k": 3}, "top.f16 with"),
        ({"top_k": -1}, "manifest.json"),
        ({"dtype": "object"}, "manifest.json"),
        ({"dtype": "../../secret"}, "manifest.json"),
        ({"dtype": ["float16"]}, "manifest.json"),
        ({"teacher": None}, "manifest.json"),
        ({"augment": 3}, "manifest.json"),
        ({"sample_spec": [["uint8", [2], 3]]}, "manifest.json"),
        ({"sample_spec": 3}, "manifest.json"),
        ({"shard": [3, 2]}, "manifest.json"),
        ({"shard": [1, 2]}, "manifest.json"),
        ({"sha256": {"../secret": "0" * 64}}, "manifest.json"),
        ({"sha256": {name: None for name in FILES[1:]}}, "samples.u64 with"),
        ({"origin": []}, "manifest.json"),
    ],
    ids=str,
)
def test_a_manifest_that_lies(path, changes, name):
    forge(path, **changes)
    with pytest.raises(ValueError, match=name):
        LabelStore(path)


def test_a_forged_manifest_of_the_truth_is_one(path):
    forge(path)  # the test above would see nothing if this were refused
    assert LabelStore(path).manifest.samples == SAMPLES


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, "1" * 5000, " " * (1 << 20) + "{}"]
)
def test_a_manifest_that_is_too_much(path, text):
    (path / "manifest.json").write_text(text)
    check_refused(path, "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "broken link", "folder", "pipe"])
def test_files_that_stand_for_others(path, name, kind, tmp_path):
    file = path / name
    secret = tmp_path / "secret"
    secret.write_bytes(file.read_bytes())
    file.unlink()
    if kind == "link":
        file.symlink_to(secret)
    elif kind == "broken link":
        file.symlink_to(tmp_path / "nowhere")
    elif kind == "folder":
        file.mkdir()
    else:
        os.mkfifo(file)
    with pytest.raises(ValueError, match=f"plain files in their folder.*{name}, which"):
        LabelStore(path)


@pytest.mark.parametrize("name", [*FILES, "manifest.json.tmp", "lock"])
def test_nothing_is_written_through_a_link(name, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    path = tmp_path / "store"
    path.mkdir()
    (path / name).symlink_to(secret)
    # What means nothing without a manifest is taken away, the link and not the file.
    with contextlib.suppress(ValueError):
        with LabelWriter(path, ORIGIN) as writer:
            writer.append(LOGITS, np.arange(SAMPLES, dtype="uint64"))
            writer.commit(SAMPLES)
    assert secret.read_text() == "mine"


def test_overwriting_takes_links_away_and_not_what_they_stand_for(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    path = tmp_path / "store"
    path.mkdir()
    for name in FILES:
        (path / name).symlink_to(secret)
    with LabelWriter(path, ORIGIN, overwrite=True):
        pass
    assert secret.read_text() == "mine" and Manifest.read(path).samples == 0


def test_a_class_that_is_none_is_found_when_it_is_read(path):
    file = path / "classes.bin"
    content = bytearray(file.read_bytes())
    content[3] = 200
    file.write_bytes(content)
    content = json.loads((path / "manifest.json").read_text())
    sha256 = {
        **content["sha256"],
        "classes.bin": label_manifest.hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    forge(path, sha256=sha256)
    store = LabelStore(path)
    with pytest.raises(ValueError, match="class 200 in classes.bin"):
        store.rows(slice(None), 1)
