"""A run's folder: what is not its own stays as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kdlite import result_folder
from kdlite.result_folder import (
    begin_or_go_on,
    check_free,
    make_work_folder,
    put_in_place,
)


def result(folder: Path, word: str = "old") -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(word)
    return folder


# --- where the result is to be


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_and_an_empty_folder_are_free(tmp_path, overwrite) -> None:
    check_free(tmp_path / "none" / "out", overwrite)
    (tmp_path / "out").mkdir()
    check_free(tmp_path / "out", overwrite)


def test_a_result_is_replaced_only_if_asked(tmp_path) -> None:
    out = result(tmp_path / "out")
    with pytest.raises(FileExistsError, match="must not exist.*overwrite=True"):
        check_free(out, False)
    check_free(out, True)


def test_what_no_run_made_is_not_replaced(tmp_path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.png").touch()
    (tmp_path / "file").touch()
    for out in (tmp_path / "images", tmp_path / "file"):
        with pytest.raises(FileExistsError, match=r"that an earlier run made.*report"):
            check_free(out, True)


def test_a_folder_that_cannot_be_renamed_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path("."), tmp_path):
        with pytest.raises(ValueError, match="where this process is.*Name a folder in"):
            check_free(out, True)
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(ValueError, match="a mount point. Name a folder in it, such as"):
        check_free(tmp_path / "volume", True)


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    for fails in (lambda: check_free(out, False), lambda: make_work_folder(out)):
        with pytest.raises(NotADirectoryError, match="`out` must be a place that can"):
            fails()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write all
    with pytest.raises(PermissionError, match="`out` must be a place that can be"):
        check_free(tmp_path / "out", False)


# --- the unfinished work


def test_the_same_run_goes_on_and_another_is_refused(tmp_path) -> None:
    work = make_work_folder(tmp_path / "out")
    begin_or_go_on(work, {"epochs": 2}, False)
    (work / "labels").mkdir()
    begin_or_go_on(work, {"epochs": 2}, False)
    assert (work / "labels").exists()
    with pytest.raises(FileExistsError, match="same settings.*other epochs, seed"):
        begin_or_go_on(work, {"epochs": 3, "seed": 1}, False)
    begin_or_go_on(work, {"epochs": 3}, True)
    assert [path.name for path in work.iterdir()] == ["run.json"]


def test_a_folder_that_no_run_made_is_left_alone(tmp_path) -> None:
    work = tmp_path / "out.partial"
    work.mkdir()
    (work / "thesis.txt").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="'thesis.txt', which no run has"):
            begin_or_go_on(work, {}, overwrite)
    assert (work / "thesis.txt").read_text() == "years"


def test_a_kill_while_it_is_emptied_leaves_it_of_nobody(tmp_path, monkeypatch) -> None:
    work = make_work_folder(tmp_path / "out")
    begin_or_go_on(work, {"epochs": 2}, False)
    (work / "labels").mkdir()

    def killed(path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(result_folder.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            begin_or_go_on(work, {"epochs": 3}, True)
    # Neither run may take what is left for its own.
    begin_or_go_on(work, {"epochs": 2}, False)
    assert [path.name for path in work.iterdir()] == ["run.json"]
    assert json.loads((work / "run.json").read_text()) == {"epochs": 2}


# --- the end


def test_an_old_result_leaves_only_when_the_new_one_is_there(tmp_path) -> None:
    out, work = result(tmp_path / "out"), tmp_path / "out.partial"
    result(work / "final", "new")
    result(tmp_path / "out.old", "somebody's copy")
    put_in_place(work, out)
    assert (out / "report.json").read_text() == "new"
    assert (tmp_path / "out.old/report.json").read_text() == "somebody's copy"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.old"]


def test_a_kill_between_old_and_new_loses_neither(tmp_path, monkeypatch) -> None:
    out, work = result(tmp_path / "out"), tmp_path / "out.partial"
    result(work / "final", "new")
    replace = os.replace

    def killed(source, target) -> None:
        if Path(source).name == "final":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(work, out)
    assert (work / "replaced/report.json").read_text() == "old"
    put_in_place(work, out)
    assert (out / "report.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
