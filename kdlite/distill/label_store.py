"""The files of stored soft labels: written so that a crash leaves no half-truth.

A store is a folder of three files, all plain bytes and JSON, nothing pickled:

- `logits.f32`: little-endian float32, `(samples, views, ..., classes)`, by sample;
- `samples.u64`: one 64-bit fingerprint a sample, of the sample before augmentation;
- `manifest.json`: what was labelled by whom, how far, and the SHA-256 of the other two.

The first two are only ever appended to. The manifest is replaced as a whole, after they
are safely on disk, so at any moment it tells the truth about their beginning; what lies
beyond is a rest of a crash and is cut off. `finished` is set last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # not on this system: two builds at once are not told apart
    fcntl = None  # type: ignore[assignment]

Array = np.ndarray[Any, Any]

_MANIFEST, _LOGITS, _SAMPLES, LOCK = (
    "manifest.json",
    "logits.f32",
    "samples.u64",
    "lock",
)
_DATA_FILES = (_LOGITS, _SAMPLES)
_OWN_FILES = {_MANIFEST, f"{_MANIFEST}.tmp", LOCK, *_DATA_FILES}
_FORMAT = "kdlite soft labels 1"
_SECONDS_BETWEEN_COMMITS = 5.0
_READ_BYTES = 1 << 22


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
    """

    teacher: str
    sample_spec: list[list[Any]]
    first_samples: str
    views: int
    seed: int
    augment: str | None

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
        return changed


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        origin: What the labels were made from.
        samples: Number of samples in the files that are safe.
        logits_shape: Of one sample in one view, classes last; empty: nothing yet.
        sha256: Of each data file, up to `samples`.
        finished: Whether these are all.
    """

    origin: Origin
    samples: int = 0
    logits_shape: list[int] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    finished: bool = False

    def row_bytes(self, name: str) -> int:
        """Bytes of one sample in a data file."""
        if name == _SAMPLES:
            return 8
        return 4 * self.origin.views * int(np.prod(self.logits_shape, dtype=int))

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """Returns the manifest of the store at `path`, or `None` if there is none.

        Raises:
            ValueError: If there is one that is not of this format.
        """
        file = path / _MANIFEST
        try:
            text = file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError:
            text = ""
        try:
            content = json.loads(text)
            if content.pop("format") != _FORMAT:
                raise ValueError
            manifest = cls(**{**content, "origin": Origin(**content["origin"])})
            sizes = [manifest.row_bytes(name) for name in _DATA_FILES]
            hashed = set(manifest.sha256) == set(_DATA_FILES)
            if (
                manifest.samples < 0
                or min(sizes) <= 0
                or (manifest.samples and not hashed)
            ):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"Soft labels need a manifest of the format '{_FORMAT}'. Received: "
                f"{file}, which is damaged or of another version. Fix: build them "
                f"again with overwrite=True."
            ) from None
        return manifest

    def write(self, path: Path) -> None:
        """Replaces the manifest at `path`, at once and on disk."""
        temporary = path / f"{_MANIFEST}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"format": _FORMAT, **asdict(self)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path / _MANIFEST)
        _sync_folder(path)


def read_store(path: Path) -> tuple[Manifest, Array, Array]:
    """Opens a finished store after checking each byte of it.

    Args:
        path: The folder.

    Returns:
        The manifest; the logits `(samples, views, ..., classes)`, float32, mapped from
        disk, read-only; the samples' fingerprints.

    Raises:
        FileNotFoundError: If there is no store at `path`.
        ValueError: If it is unfinished or damaged.
    """
    manifest = Manifest.read(path)
    if manifest is None:
        raise FileNotFoundError(
            f"Soft labels are loaded from a folder that SoftLabels.build made. "
            f"Received: path={path}, where there are none. Fix: build them there first."
        )
    if not manifest.finished:
        raise ValueError(
            f"Only finished soft labels can be used. Received: {path}, where the first "
            f"{manifest.samples:,} samples are done. Fix: call SoftLabels.build with "
            f"the same arguments; it goes on where it stopped."
        )
    for name in _DATA_FILES:
        size = manifest.samples * manifest.row_bytes(name)
        with open(_checked_size(path / name, size, exact=True), "rb") as file:
            digest = _digest_of(file, size)
        _check_digest(path / name, digest.hexdigest(), manifest.sha256[name])
    shape = (manifest.samples, manifest.origin.views, *manifest.logits_shape)
    logits = np.memmap(path / _LOGITS, "<f4", "r", shape=shape)
    samples = np.fromfile(path / _SAMPLES, "<u8").astype(np.uint64)
    return manifest, logits, samples


class LabelWriter:
    """Writes a store, going on where an earlier writer of the same origin stopped.

    Use it in a `with` statement, which holds the folder against a second writer.

    Args:
        path: The folder; made if it is not there.
        origin: What the labels are made from.
        overwrite: Start anew, whatever store is at `path`.

    Attributes:
        manifest: What is safe on disk.
        known: Fingerprints of the samples that are.

    Raises:
        FileExistsError: If at `path` is something that is not a store.
        ValueError: If there is a store of another origin, or a damaged one.
        RuntimeError: If another process is writing it.
    """

    def __init__(self, path: Path, origin: Origin, overwrite: bool = False) -> None:
        check_place(path)
        self.path = path
        self._origin = origin
        self._overwrite = overwrite
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> LabelWriter:
        with contextlib.ExitStack() as undo:
            self.path.mkdir(parents=True, exist_ok=True)
            undo.enter_context(locked(self.path, "Soft labels are"))
            if self._overwrite:
                # The manifest first: without it the others mean nothing.
                for name in (_MANIFEST, *_DATA_FILES):
                    (self.path / name).unlink(missing_ok=True)
            manifest = Manifest.read(self.path)
            if manifest is None or not manifest.samples:  # nothing lost
                manifest = Manifest(self._origin)
                manifest.write(self.path)
            _check_origin(self.path, self._origin, manifest.origin)
            self.manifest = manifest
            self.known = np.zeros(0, np.uint64)
            if not manifest.finished:
                self._files = {
                    name: undo.enter_context(self._opened(name)) for name in _DATA_FILES
                }
            if manifest.samples:
                known = np.fromfile(self.path / _SAMPLES, "<u8", manifest.samples)
                self.known = known.astype(np.uint64)
            self._exit = undo.pop_all()
        self._committed_at = time.monotonic()
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        try:
            if kind is KeyboardInterrupt and not self.manifest.finished:
                self.commit()
        finally:
            self._exit.close()

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], Any]]:
        """Opens a data file behind what is safe in it, with the digest so far."""
        size = self.manifest.samples * self.manifest.row_bytes(name)
        file = self.path / name
        file.touch()
        with open(_checked_size(file, size), "r+b") as stream:
            digest = _digest_of(stream, size)
            if size:
                stored = self.manifest.sha256[name]
                _check_digest(file, digest.hexdigest(), stored)
            stream.truncate(size)
            stream.seek(size)
            yield stream, digest

    def append(self, logits: Array, fingerprints: Array) -> None:
        """Appends whole samples; every few seconds all so far is made safe.

        Args:
            logits: `(samples, views, ..., classes)`.
            fingerprints: `(samples,)`.

        Raises:
            ValueError: If the logits have another shape than those before.
        """
        shape = list(logits.shape[2:])
        if self.manifest.samples and shape != self.manifest.logits_shape:
            raise ValueError(
                f"The teacher's logits must have one shape. Received: {tuple(shape)} "
                f"after {tuple(self.manifest.logits_shape)}. Fix: bring all samples to "
                f"one shape before they are labelled."
            )
        for name, rows in ((_LOGITS, logits), (_SAMPLES, fingerprints)):
            stream, digest = self._files[name]
            content = np.ascontiguousarray(rows, "<f4" if name == _LOGITS else "<u8")
            stream.write(content.data)
            digest.update(content.data)
        self.manifest = Manifest(
            self._origin, self.manifest.samples + len(logits), shape
        )
        if time.monotonic() - self._committed_at >= _SECONDS_BETWEEN_COMMITS:
            self.commit()

    def commit(self, finished: bool = False) -> None:
        """Makes all that was appended safe.

        Args:
            finished: Whether it is the whole.
        """
        sha256 = {}
        for name, (stream, digest) in self._files.items():
            stream.flush()
            os.fsync(stream.fileno())
            sha256[name] = digest.hexdigest()
        self.manifest = Manifest(
            self._origin,
            self.manifest.samples,
            self.manifest.logits_shape,
            sha256,
            finished,
        )
        self.manifest.write(self.path)
        self._committed_at = time.monotonic()


def check_place(path: Path) -> None:
    """Checks that a store may be made at a path, or is there.

    Args:
        path: The folder.

    Raises:
        FileExistsError: If there is something else.
    """
    foreign = not path.is_dir() and path.exists()
    if path.is_dir():
        foreign = not {file.name for file in path.iterdir()} <= _OWN_FILES
    if foreign:
        raise FileExistsError(
            f"Soft labels are stored in a folder of their own. Received: path={path}, "
            f"which holds something else. Fix: give a new folder."
        )


def _check_origin(path: Path, origin: Origin, stored: Origin) -> None:
    changed = origin.changes(stored)
    if changed:
        raise ValueError(
            f"Stored soft labels are those of one teacher, data set and augmentation. "
            f"Received: {', '.join(changed)}, for the store at {path}. Fix: give what "
            f"it was begun with, another path, or overwrite=True."
        )


def _checked_size(file: Path, size_bytes: int, exact: bool = False) -> Path:
    actual = file.stat().st_size if file.exists() else 0
    if actual < size_bytes or (exact and actual != size_bytes):
        raise ValueError(
            f"A file of soft labels must be as long as its manifest says. Received: "
            f"{file} with {actual:,} bytes instead of {size_bytes:,}. Fix: build them "
            f"again with overwrite=True."
        )
    return file


def _check_digest(file: Path, digest: str, expected: str) -> None:
    if digest != expected:
        raise ValueError(
            f"A file of soft labels must have the SHA-256 in its manifest. Received: "
            f"{file} with {digest[:12]} instead of {expected[:12]}: it was changed or "
            f"damaged. Fix: build them again with overwrite=True."
        )


def _digest_of(file: IO[bytes], size_bytes: int) -> Any:
    digest = hashlib.sha256()
    while size_bytes > 0 and (block := file.read(min(size_bytes, _READ_BYTES))):
        digest.update(block)
        size_bytes -= len(block)
    return digest


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Keeps other processes out of a folder while this one writes there.

    Args:
        path: The folder.
        what: What is written, and its verb, for the message.

    Raises:
        RuntimeError: If another process is at it.
    """
    with open(path / LOCK, "w") as file:
        try:
            if fcntl is not None:  # the system lets go of it when the process ends
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{what} written by one process at a time. Received: "
                f"path={path}, where another is at it. Fix: wait for it, or give "
                f"another path."
            ) from None
        yield


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
