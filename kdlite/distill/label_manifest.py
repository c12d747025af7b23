"""What a store of soft labels says about itself, and whether it may be believed.

`manifest.json` says what was labelled by whom, how far, the SHA-256 of the other files,
and of itself. A store that comes from elsewhere is not trusted: its files must be plain
files of its folder, and what the manifest says is checked before any memory is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from kdlite.distill.label_forms import LabelForm

MANIFEST, SAMPLES = "manifest.json", "samples.u64"
_FORMAT = "kdlite soft labels 2"
_MANIFEST_BYTES = 1 << 20  # at most


@dataclass(frozen=True)
class Origin:
    """What soft labels were made from. Those of another origin are other labels.

    Attributes:
        teacher: Fingerprint of the teacher.
        sample_spec: Type and shape of each array of a sample, as it is in the data set.
        first_samples: Fingerprint of the first few samples.
        views: Number of augmented views of each sample.
        seed: From which the views' seeds are drawn.
        augment: Fingerprint of views of the first few samples; `None`: not augmented.
        dtype: Of the stored logits.
        top_k: How many logits of each sample are stored; `None`: all.
        shard: `[i, n]`: every n-th sample from the i-th on, i from 1; `None`: all.
        outputs: What the teacher returned, of which the logits were read, as
            `LogitsModel.outputs`; `None`: not told, by an earlier version.
    """

    teacher: str
    sample_spec: list[list[Any]]
    first_samples: str
    views: int
    seed: int
    augment: str | None
    dtype: str = "float32"
    top_k: int | None = None
    shard: list[int] | None = None
    outputs: str | None = None

    @property
    def form(self) -> LabelForm:
        """How the logits are written."""
        return LabelForm(self.dtype, self.top_k)

    @property
    def part(self) -> tuple[int, int]:
        """The shard, `(1, 1)` if it is the whole."""
        return (1, 1) if self.shard is None else (self.shard[0], self.shard[1])

    def changes(self, stored: Origin) -> list[str]:
        """Names what is other than in the store."""
        changed = []
        if self.teacher != stored.teacher:
            changed.append("another teacher")
        if self.sample_spec != stored.sample_spec:
            changed.append(
                f"another data set (samples of {_listed(self.sample_spec)}, stored "
                f"{_listed(stored.sample_spec)})"
            )
        elif self.first_samples != stored.first_samples:
            changed.append("another data set (other first samples)")
        for name in ("views", "seed"):
            mine, theirs = getattr(self, name), getattr(stored, name)
            if mine != theirs:
                changed.append(f"another {name} ({name}={mine}, stored {theirs})")
        has, had = self.augment is not None, stored.augment is not None
        # Its fingerprint is one of its outputs, which change with the rest as well.
        outputs_tell = not (set(changed) - {"another teacher"})
        if has != had or (outputs_tell and self.augment != stored.augment):
            kind = ["none", "one"]
            note = f" ({kind[has]}, stored {kind[had]})" if has != had else ""
            changed.append(f"another augment{note}")
        for name in ("dtype", "top_k", "shard"):
            mine, theirs = getattr(self, name), getattr(stored, name)
            if mine != theirs:
                changed.append(f"another {name} ({name}={mine}, stored {theirs})")
        if stored.outputs not in (None, self.outputs):
            changed.append(
                f"logits of another head (of {self.outputs}, stored {stored.outputs})"
            )
        return changed

    def check(self) -> None:
        """Checks the types of what was read from a file.

        Raises:
            ValueError: If one is not what it should be.
        """
        texts = (self.teacher, self.first_samples, self.dtype)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError
        if not (self.augment is None or isinstance(self.augment, str)):
            raise ValueError
        if not (_is_count(self.views, 1) and _is_count(self.seed, 0)):
            raise ValueError
        if not (self.outputs is None or isinstance(self.outputs, str)):
            raise ValueError
        if self.top_k is not None and not _is_count(self.top_k, 1):
            raise ValueError
        for dtype, shape in self.sample_spec:
            if not (isinstance(dtype, str) and _is_shape(shape, least=0)):
                raise ValueError
        if self.shard is not None:
            index, count = self.shard
            if not (_is_count(index, 1) and _is_count(count, index)):
                raise ValueError


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        origin: What the labels were made from.
        samples: Number of samples in the files that are safe.
        logits_shape: Of one sample in one view, classes last; empty: nothing yet.
        sha256: Of each data file, up to `samples`.
        finished: Whether these are all.
        dataset_samples: Number of samples of the whole data set, when that is known: of
            a shard more than there are in it.
    """

    origin: Origin
    samples: int = 0
    logits_shape: list[int] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    dataset_samples: int | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the data files."""
        return (*self.origin.form.files, SAMPLES)

    def layout(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Type and shape of one sample in each data file; of none before the first."""
        layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
        layout = {SAMPLES: (np.dtype("<u8"), ())}
        if self.logits_shape:
            views = self.origin.views
            for name, (dtype, shape) in self.origin.form.layout(
                self.logits_shape
            ).items():
                layout[name] = (dtype, (views, *shape))
        return layout

    def size_bytes(self, name: str) -> int:
        """Bytes that are safe in a data file."""
        if not self.samples:
            return 0
        dtype, shape = self.layout()[name]
        return self.samples * dtype.itemsize * math.prod(shape)

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """Returns the manifest of the store at `path`, or `None` if there is none.

        Raises:
            ValueError: If there is one that is not of this format.
        """
        file = path / MANIFEST
        try:
            with open_own(file, os.O_RDONLY) as stream:
                text = stream.read(_MANIFEST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            if len(text) > _MANIFEST_BYTES:
                raise ValueError
            content = json.loads(text.decode())
            if content.pop("format") != _FORMAT or content.pop(
                "digest"
            ) != _json_digest(content):
                raise ValueError
            manifest = cls(**{**content, "origin": Origin(**content["origin"])})
            manifest._check()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(
                f"Soft labels need a manifest of the format '{_FORMAT}'. Received: "
                f"{file}, which is damaged or of another version. Fix: build them "
                f"again with overwrite=True."
            ) from None
        return manifest

    def _check(self) -> None:
        self.origin.check()
        form = self.origin.form
        whole = self.dataset_samples
        if not (
            _is_count(self.samples, 0)
            and isinstance(self.finished, bool)
            and (whole is None or _is_count(whole, self.samples))
        ):
            raise ValueError
        if self.finished and self.samples != self._expected_samples():
            raise ValueError
        if not self.samples:
            return
        if not _is_shape(self.logits_shape, least=1) or not self.logits_shape:
            raise ValueError
        form.check_shape(self.logits_shape)
        if set(self.sha256) != set(self.files):
            raise ValueError
        # Nothing larger is on any disk, and numpy counts bytes in 64 bits.
        if max(map(self.size_bytes, self.files)) >= 2**62:
            raise ValueError

    def _expected_samples(self) -> int | None:
        """How many samples there are when all are there."""
        index, count = self.origin.part
        whole = self.dataset_samples
        return len(range(index - 1, whole, count)) if whole else None

    def write(self, path: Path) -> None:
        """Replaces the manifest at `path`, at once and on disk."""
        temporary = path / f"{MANIFEST}.tmp"
        content = asdict(self)
        content = {"format": _FORMAT, "digest": _json_digest(content), **content}
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open_own(temporary, flags) as stream:
            stream.write(json.dumps(content, indent=1).encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path / MANIFEST)
        _sync_folder(path)


@contextlib.contextmanager
def open_own(file: Path, flags: int) -> Iterator[IO[bytes]]:
    """Opens a file of a store: a plain file, never what a link or device stands for.

    Args:
        file: The file.
        flags: As `os.open` takes them.

    Raises:
        ValueError: If it is something else.
    """
    try:
        # Not to wait for the other end, should it be a pipe.
        safely = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(file, flags | safely, 0o666)
    except OSError as err:
        if not file.is_symlink() and not (file.exists() and not file.is_file()):
            raise
        raise ValueError(_NOT_PLAIN.format(file)) from err
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(_NOT_PLAIN.format(file))
    mode = {os.O_RDONLY: "rb", os.O_WRONLY: "wb", os.O_RDWR: "r+b"}[
        flags & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
    ]
    with open(descriptor, mode) as stream:
        yield stream


_NOT_PLAIN = (
    "The files of soft labels must be plain files in their folder. Received: {}, which "
    "is a link, a folder or a device. Fix: copy what it stands for in its place."
)


def _json_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 2**63


def _is_shape(value: Any, least: int) -> bool:
    return isinstance(value, list) and all(_is_count(side, least) for side in value)


def _sync_folder(path: Path) -> None:
    """Makes the new name in a folder safe, where the system can."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _listed(spec: list[list[Any]]) -> str:
    return " and ".join(f"{dtype} {tuple(shape)}" for dtype, shape in spec)
