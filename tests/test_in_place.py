"""What a file may take the place of, and what it leaves as it was."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdlite.in_place import check_target, put_in_place
from kdlite.lite.model_card import card_path


@pytest.fixture(params=["named pipe", "socket", "folder", "link that leads back"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Something that is no regular file, and what it is called."""
    path = tmp_path / "model.tflite"
    if request.param == "named pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            # By a short name: a socket's address has a hundred characters at most.
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path)
                server.bind(path.name)
            yield path, request.param
        return
    else:
        path.symlink_to(path.name)
    yield path, request.param


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("through_a_link", [False, True])
def test_only_a_regular_file_is_replaced(
    odd: tuple[Path, str], tmp_path: Path, overwrite: bool, through_a_link: bool
) -> None:
    path, kind = odd
    before = os.lstat(path)
    asked = path
    if through_a_link:
        asked = tmp_path / "link.tflite"
        asked.symlink_to(path.name)
    with pytest.raises(ValueError, match=f"`path` must be .*Received: .*a {kind}.*ive"):
        check_target(asked, overwrite)
    # It may have come into being since.
    with pytest.raises(ValueError, match=f"Received: .*{asked.name}', a {kind}.* Fix:"):
        put_in_place(asked, b"new", overwrite)
    if not through_a_link:
        with pytest.raises(ValueError, match=f"Received: .*{asked.name}', a {kind}"):
            put_in_place(tmp_path / "new", b"new", overwrite, {asked: b"beside"})
    assert os.lstat(path).st_mode == before.st_mode
    assert {each.name for each in tmp_path.iterdir()} == {path.name, asked.name}


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    elsewhere.mkdir()
    model, card = elsewhere / "model-7.tflite", elsewhere / "card-7.md"
    model.write_text("old")
    link, card_link = there / "model.tflite", there / "MODEL_CARD.md"
    link.symlink_to(Path("..", "elsewhere", model.name))
    card_link.symlink_to(card)  # of nothing yet
    with pytest.raises(FileExistsError, match="`path` must not exist"):
        check_target(link, overwrite=False)
    check_target(link, overwrite=True)
    put_in_place(link, b"new", True, {card_link: b"told"})
    assert link.is_symlink() and card_link.is_symlink()
    assert (model.read_bytes(), card.read_bytes()) == (b"new", b"told")
    assert len(list(there.iterdir())) == len(list(elsewhere.iterdir())) == 2


def test_a_link_to_nothing_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "none" / "model.tflite")
    with pytest.raises(FileNotFoundError, match="The folder .*Make .*none' first"):
        check_target(link, overwrite=True)
    (tmp_path / "none").mkdir()
    check_target(link, overwrite=False)
    put_in_place(link, b"new", overwrite=False)
    assert link.is_symlink() and link.read_bytes() == b"new"


@pytest.mark.parametrize("letter", ["m", "\N{GREEK SMALL LETTER OMEGA}"])
def test_names_as_long_as_the_system_takes(tmp_path: Path, letter: str) -> None:
    longest = tmp_path / (letter * (255 // len(letter.encode())))
    check_target(longest, overwrite=False)
    put_in_place(longest, b"new", overwrite=False)
    assert longest.read_bytes() == b"new"
    size = len((longest.name + letter).encode())
    with pytest.raises(ValueError, match=f"a name of {size} bytes, .*Fix: .*255 bytes"):
        check_target(longest.with_name(longest.name + letter), overwrite=False)
    assert list(tmp_path.iterdir()) == [longest]


def test_a_card_is_no_pipe_and_has_a_possible_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "MODEL_CARD.md")
    assert card_path(tmp_path / "m.tflite").name == "m.MODEL_CARD.md"
    with pytest.raises(FileExistsError, match="or no file can be named so"):
        card_path(tmp_path / ("m" * 248 + ".tflite"))
    assert stat.S_ISFIFO(os.stat(tmp_path / "MODEL_CARD.md").st_mode)
