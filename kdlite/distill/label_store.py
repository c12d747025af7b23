"""The files of stored soft labels: written so that a crash leaves no half-truth.

A store is a folder of a few files, all plain bytes and JSON, nothing pickled:

- `logits.f32` (or what another `LabelForm` calls for): little-endian arrays,
  `(samples, views, ...)`, by sample;
- `samples.u64`: one 64-bit fingerprint a sample, of the sample before augmentation;
- `manifest.json`: see `Manifest`.

The others are only ever appended to. The manifest is replaced as a whole, after they
are safely on disk, so at any moment it tells the truth about their beginning; what lies
beyond is a rest of a crash and is cut off. `finished` is set last.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from kdlite.distill.label_forms import FORM_FILES, LabelForm
from kdlite.distill.label_manifest import (
    MANIFEST,
    SAMPLES,
    Manifest,
    Origin,
    open_own,
)

try:
    import fcntl
except ImportError:  # not on this system: two builds at once are not told apart
    fcntl = None  # type: ignore[assignment]

Array = np.ndarray[Any, Any]

LOCK = "lock"
FEATURES = "features"  # a folder of stores, each of a layer of the teacher
_OWN_FILES = {MANIFEST, f"{MANIFEST}.tmp", LOCK, SAMPLES, *FORM_FILES}
_SECONDS_BETWEEN_COMMITS = 5.0
_READ_BYTES = 1 << 22
_RESIDENT_BYTES = 16 << 20
_PAGES_AT_A_FAULT = 16  # the system maps so many around the one that is asked for


class LabelStore:
    """A finished store, each byte of it checked, mapped from disk.

    Its share of resident memory does not grow with the number of samples: what was
    read is let go of again, and comes back from the disk or the system's cache of it.

    Args:
        path: The folder.

    Attributes:
        manifest: What it is.
        samples: Fingerprints of the samples, mapped, read-only.

    Raises:
        FileNotFoundError: If there is no store at `path`.
        ValueError: If it is unfinished or damaged.
    """

    def __init__(self, path: Path) -> None:
        manifest = Manifest.read(path)
        if manifest is None:
            raise FileNotFoundError(
                f"Soft labels are loaded from a folder that SoftLabels.build made. "
                f"Received: path={path}, where there are none. Fix: build them there "
                f"first."
            )
        if not manifest.finished:
            raise ValueError(
                f"Only finished soft labels can be used. Received: {path}, where the "
                f"first {manifest.samples:,} samples are done. Fix: call "
                f"SoftLabels.build with the same arguments; it goes on where it "
                f"stopped."
            )
        self.manifest = manifest
        maps = {}
        for name, (dtype, shape) in manifest.layout().items():
            size = manifest.size_bytes(name)
            # Mapped is the very file that was checked, whatever has its name then.
            with _checked(path / name, size, exact=True) as stream:
                _check_digest(path / name, _digest_of(stream, size), manifest.sha256)
                maps[name] = (
                    np.memmap(stream, dtype, "r", shape=(manifest.samples, *shape))
                    if size
                    else np.zeros((manifest.samples, *shape), dtype)
                )
        self.samples: Array = maps.pop(SAMPLES)
        self._maps: dict[str, Array] = maps
        self._touched_bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the logits on disk."""
        return sum(array.nbytes for array in self._maps.values())

    def rows(self, places: Any, views: Any) -> Array:
        """Returns logits, float32 `(..., classes)`, of samples in a view each.

        Args:
            places: The samples' places, integers or a slice.
            views: The views' numbers, of the same shape, or one.
        """
        if isinstance(views, int) and self.manifest.origin.form == LabelForm():
            return next(iter(self._maps.values()))[places, views]  # as it is on disk
        rows = self._stored(places, views)
        return self.manifest.origin.form.decode(rows, self.manifest.logits_shape[-1])

    def _stored(self, places: Any, views: Any) -> dict[str, Array]:
        rows = {
            name: np.array(array[places, views]) for name, array in self._maps.items()
        }
        self._let_go(max(map(len, rows.values()), default=0), rows)
        return rows

    def block(self, first: int, size: int) -> tuple[dict[str, Array], Array]:
        """Returns what is stored of some samples that follow each other.

        Args:
            first: The place of the first.
            size: How many; there may be fewer.

        Returns:
            The arrays by file, `(samples, views, ...)`, and the fingerprints.
        """
        part = slice(first, first + size)
        rows = {name: np.array(array[part]) for name, array in self._maps.items()}
        prints = np.array(self.samples[part])
        self._let_go(len(prints), rows)
        return rows, prints

    def _let_go(self, count: int, rows: Mapping[str, Array]) -> None:
        """Gives back pages that were read, once there may be many of them."""
        around = _PAGES_AT_A_FAULT * mmap.PAGESIZE
        for array in rows.values():
            self._touched_bytes += count * around + array.nbytes
        if self._touched_bytes < _RESIDENT_BYTES:
            return
        self._touched_bytes = 0
        for array in self._maps.values():
            mapping = getattr(array, "_mmap", None)
            if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapping.madvise(mmap.MADV_DONTNEED)


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
                for name in (MANIFEST, SAMPLES, *FORM_FILES):
                    (self.path / name).unlink(missing_ok=True)
            manifest = Manifest.read(self.path)
            if manifest is None or not (manifest.samples or manifest.finished):
                for name in FORM_FILES:  # nothing lost, and perhaps of another form
                    (self.path / name).unlink(missing_ok=True)
                manifest = Manifest(self._origin)
                manifest.write(self.path)
            _check_origin(self.path, self._origin, manifest.origin)
            self.manifest = manifest
            self.known: Array = np.zeros(0, np.uint64)
            if not manifest.finished:
                self._files = {
                    name: undo.enter_context(self._opened(name))
                    for name in manifest.files
                }
            if manifest.samples:
                size = manifest.size_bytes(SAMPLES)
                with _checked(self.path / SAMPLES, size) as stream:
                    self.known = np.memmap(stream, "<u8", "r", shape=manifest.samples)
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
        size = self.manifest.size_bytes(name)
        file = self.path / name
        with _checked(file, size, os.O_RDWR | os.O_CREAT) as stream:
            digest = _digest_of(stream, size)
            if size:
                _check_digest(file, digest, self.manifest.sha256)
            stream.truncate(size)
            stream.seek(size)
            yield stream, digest

    def append(self, logits: Array, fingerprints: Array) -> None:
        """Appends whole samples; every few seconds all so far is made safe.

        Args:
            logits: `(samples, views, ..., classes)`.
            fingerprints: `(samples,)`.

        Raises:
            ValueError: If the logits have another shape than those before, or cannot be
                stored in this form.
        """
        shape = list(logits.shape[2:])
        if self.manifest.samples and shape != self.manifest.logits_shape:
            raise ValueError(
                f"The teacher's logits must have one shape. Received: {tuple(shape)} "
                f"after {tuple(self.manifest.logits_shape)}. Fix: bring all samples to "
                f"one shape before they are labelled."
            )
        self.append_stored(self._origin.form.encode(logits), fingerprints, shape)

    def append_stored(
        self, rows: Mapping[str, Array], fingerprints: Array, logits_shape: list[int]
    ) -> None:
        """Appends samples that are in the store's form already.

        Args:
            rows: By file, `(samples, views, ...)`.
            fingerprints: `(samples,)`.
            logits_shape: Of one sample in one view, classes last.
        """
        prints = np.ascontiguousarray(fingerprints, "<u8")
        for name, content in {**rows, SAMPLES: prints}.items():
            stream, digest = self._files[name]
            stream.write(content.data)
            digest.update(content.data)
        self.manifest = Manifest(
            self._origin, self.manifest.samples + len(prints), logits_shape
        )
        if time.monotonic() - self._committed_at >= _SECONDS_BETWEEN_COMMITS:
            self.commit()

    def commit(self, dataset_samples: int | None = None) -> None:
        """Makes all that was appended safe.

        Args:
            dataset_samples: Number of samples of the whole data set, if this is all
                there is to store of it.
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
            dataset_samples is not None,
            dataset_samples,
        )
        self.manifest.write(self.path)
        self._committed_at = time.monotonic()


def shard_folders(path: Path) -> list[Path]:
    """Returns the folders of shards in that of a store.

    Args:
        path: The folder.
    """
    return sorted(path.glob("shard-*/")) if path.is_dir() else []


def shard_folder(path: Path, shard: tuple[int, int]) -> Path:
    """Returns where a shard of the store at a path is.

    Args:
        path: The folder of the whole.
        shard: `(i, n)`, the i-th of n.
    """
    return path / f"shard-{shard[0]}-of-{shard[1]}"


def check_place(path: Path) -> None:
    """Checks that a store may be made at a path, or is there.

    Args:
        path: The folder.

    Raises:
        FileExistsError: If there is something else.
    """
    foreign = not path.is_dir() and path.exists()
    if path.is_dir():
        folders = {folder.name for folder in shard_folders(path)} | {FEATURES}
        foreign = not {file.name for file in path.iterdir()} <= _OWN_FILES | folders
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


@contextlib.contextmanager
def _checked(
    file: Path, size_bytes: int, flags: int = os.O_RDONLY, exact: bool = False
) -> Iterator[IO[bytes]]:
    """Opens a data file that has its length."""
    try:
        with open_own(file, flags) as stream:
            actual = os.fstat(stream.fileno()).st_size
            if actual >= size_bytes and not (exact and actual != size_bytes):
                yield stream
                return
    except FileNotFoundError:
        actual = 0
    raise ValueError(
        f"A file of soft labels must be as long as its manifest says. Received: "
        f"{file} with {actual:,} bytes instead of {size_bytes:,}. Fix: build them "
        f"again with overwrite=True."
    )


def _check_digest(file: Path, digest: Any, sha256: Mapping[str, str]) -> None:
    found, expected = digest.hexdigest(), str(sha256[file.name])
    if found != expected:
        raise ValueError(
            f"A file of soft labels must have the SHA-256 in its manifest. Received: "
            f"{file} with {found[:12]} instead of {expected[:12]}: it was changed or "
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
    with open_own(path / LOCK, os.O_WRONLY | os.O_CREAT) as stream:
        try:
            if fcntl is not None:  # the system lets go of it when the process ends
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{what} written by one process at a time. Received: "
                f"path={path}, where another is at it. Fix: wait for it, or give "
                f"another path."
            ) from None
        yield
