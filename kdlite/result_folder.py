"""The folder of a run: begun, gone on with, put in place whole; no other is touched."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from kdlite.distill.label_store import LOCK

logger = logging.getLogger(__name__)

_STATE = "run.json"
_REPORT = "report.json"
_OURS = (LOCK, _STATE, f"{_STATE}.tmp")


def check_free(out: Path, overwrite: bool) -> None:
    """Raises if a result cannot be put at `out`, before the work that makes it.

    Args:
        out: Where the folder is to be.
        overwrite: Whether an earlier result there may be replaced.

    Raises:
        FileExistsError: If there is something at `out` that is to stay.
        ValueError: If no folder can take the place of what `out` is.
        OSError: If `out` is in no place that can be written.
    """
    if out.is_dir() and (os.path.ismount(out) or out.resolve() == Path.cwd()):
        raise ValueError(
            "`out` must be a folder that can be made anew, as it appears whole. "
            f"Received: {out}, which is "
            f"{'a mount point' if os.path.ismount(out) else 'where this process is'}. "
            f"Name a folder in it, such as {out / 'run'}."
        )
    there = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if there and not overwrite:
        raise FileExistsError(
            f"`out` must not exist. Received: {out}, which is there. Choose another "
            "folder, or pass overwrite=True to replace it."
        )
    if there and not (out / _REPORT).is_file():
        raise FileExistsError(
            "`out` must be a folder that an earlier run made, to be replaced. "
            f"Received: {out}, without a {_REPORT}. Choose another folder, or remove "
            "it yourself."
        )
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise _no_place(PermissionError if above.is_dir() else NotADirectoryError, out)


def begin_or_go_on(work: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Leaves what the same run had done when it was stopped, and drops another's.

    Args:
        work: Where a run's unfinished work lies; it is there.
        settings: What makes two runs the same, as JSON takes it.
        overwrite: Whether an unfinished run with other settings may be dropped.

    Raises:
        FileExistsError: If it may not, or there is what no run has made.
    """
    state = work / _STATE
    if state.exists():
        before = json.loads(state.read_text())
        changed = sorted(
            key for key in {*settings, *before} if settings.get(key) != before.get(key)
        )
        if not changed:
            logger.info("going on with the run in %s", work)
            return
        # Empty while such a folder is being emptied: of nobody's settings.
        if before and not overwrite:
            raise FileExistsError(
                "A run that was stopped goes on only with the same settings. Received: "
                f"{work} from a run with other {', '.join(changed)}. Repeat the call "
                "of then, delete the folder, or pass overwrite=True."
            )
        _write_state(work, {})
    elif others := sorted(p.name for p in work.iterdir() if p.name not in _OURS):
        raise FileExistsError(
            f"{work} must be free for the unfinished run. Received: a folder with "
            f"{others[0]!r}, which no run has made. Move it, or choose another `out`."
        )
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in _OURS:
            path.unlink()
    _write_state(work, settings)


def _write_state(work: Path, settings: dict[str, Any]) -> None:
    temporary = work / f"{_STATE}.tmp"
    temporary.write_text(json.dumps(settings, indent=2))
    os.replace(temporary, work / _STATE)


def make_work_folder(out: Path) -> Path:
    """Returns the folder where a run's unfinished work lies, beside `out`.

    Args:
        out: Where the result is to be.

    Returns:
        `<out>.partial`, which is there now.

    Raises:
        OSError: If it cannot be made.
    """
    work = Path(f"{out}.partial")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise _no_place(type(err), out, f" ({err.strerror})") from err
    return work


def _no_place(kind: type[OSError], out: Path, why: str = "") -> OSError:
    return kind(
        f"`out` must be a place that can be written. Received: {out}{why}. Choose "
        "another folder, or change its permissions."
    )


def put_in_place(work: Path, out: Path) -> None:
    """Renames the finished folder to `out`, and removes all that is left of the work.

    An earlier result leaves only when the new one is there.

    Args:
        work: The folder of the work, with the result in `final`.
        out: Where the result is to be.
    """
    if out.exists():
        replaced = work / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)  # of a kill just here
        os.replace(out, replaced)
    os.replace(work / "final", out)
    shutil.rmtree(work)
