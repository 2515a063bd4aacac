"""Walking a folder: order, what is left out, what cannot be read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from odd_folder import chain, remove

from blockproto.client_side.walk import Found, total_of, walk
from blockproto.common.names import FILENAME_LENGTH_MAX


class Told:
    """What walk told beside what it found."""

    def __init__(self) -> None:
        self.left_out: list[tuple[str, str]] = []
        self.failed: list[str] = []

    def leave_out(self, path: str, why: str) -> None:
        self.left_out.append((os.path.basename(path), why))

    def fail(self, path: str, error: OSError) -> None:
        self.failed.append(os.path.basename(path))

    def walk(self, path: Path, name: str = "top") -> list[Found]:
        return list(walk(path, name, self.leave_out, self.fail))


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_file_is_itself(tmp_path: Path, told: Told) -> None:
    (tmp_path / "a").write_bytes(b"123")
    assert told.walk(tmp_path / "a", "x/a") == [Found(str(tmp_path / "a"), "x/a", 3)]


def test_folders_come_after_what_is_in_them(tmp_path: Path, told: Told) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "f").write_bytes(b"1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "z 中文").write_bytes(b"22")
    found = told.walk(tmp_path)
    assert [(one.name, one.folder, one.empty) for one in found] == [
        ("top/b/deep/f", False, False),
        ("top/b/deep", True, False),
        ("top/b", True, False),
        ("top/empty", True, True),
        ("top/z 中文", False, False),
        ("top", True, False),
    ]
    assert total_of(iter(found)) == 3


def test_without_a_name_entries_stand_at_the_top(tmp_path: Path, told: Told) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert [one.name for one in told.walk(tmp_path, "")] == ["a", ""]


def test_the_present_folder_is_not_said_in_front_of_each_path(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "f").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    assert [one.path for one in told.walk(Path("."))] == ["b/f", "b", "."]


def test_names_come_in_the_order_of_their_bytes(tmp_path: Path, told: Told) -> None:
    names = [b"\xff", "\uff5e".encode(), "\U0001f600".encode(), b"z", b"Z", b"a.b", b"a b"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    assert [os.fsencode(one.path.rpartition("/")[2]) for one in told.walk(tmp_path)[:-1]] == sorted(names)


def test_what_is_ours_is_left_out_among_other_names(tmp_path: Path, told: Told) -> None:
    for name in ("a", ".blockproto-x", ".BlockProto", "\uff0eblockproto", "\u00e9"):
        (tmp_path / name).write_bytes(b"")
    assert [one.name for one in told.walk(tmp_path)] == ["top/a", "top/\u00e9", "top"]
    assert sorted(name for name, _ in told.left_out) == [".BlockProto", ".blockproto-x", "\uff0eblockproto"]


def test_each_file_has_what_was_seen_of_it(tmp_path: Path, told: Told) -> None:
    (tmp_path / "f").write_bytes(b"123")
    file, folder = told.walk(tmp_path)
    assert file.looked is not None
    assert (file.looked.st_size, file.looked.st_ino) == (3, (tmp_path / "f").stat().st_ino)
    assert folder.looked is None, "its times can still change"


def test_links_and_special_files_are_named_and_left_out(tmp_path: Path, told: Told) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (top / "link").symlink_to(tmp_path / "elsewhere")
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "sock"))
        found = told.walk(top)
    assert [(one.name, one.empty) for one in found] == [("top", True)]
    assert told.left_out == [
        ("dangling", "a symbolic link"),
        ("link", "a symbolic link"),
        ("pipe", "a pipe"),
        ("sock", "a socket"),
    ]


def test_a_device_is_left_out(told: Told) -> None:
    assert told.walk(Path("/dev/null")) == []
    assert told.left_out == [("null", "a device")]


def test_a_link_named_by_the_user_is_followed(tmp_path: Path, told: Told) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_bytes(b"1")
    (tmp_path / "link").symlink_to("real")
    assert [one.name for one in told.walk(tmp_path / "link", "link")] == ["link/f", "link"]


def test_what_is_missing_is_told_and_the_rest_comes(tmp_path: Path, told: Told) -> None:
    assert told.walk(tmp_path / "nothing") == []
    assert told.failed == ["nothing"]


def test_a_folder_that_vanishes_while_walking_is_told(tmp_path: Path, told: Told) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"1")
    walking = walk(tmp_path, "top", told.leave_out, told.fail)
    assert next(walking).name == "top/a/f"
    (tmp_path / "b" / "f").unlink()
    (tmp_path / "b").rmdir()
    assert [one.name for one in walking] == ["top/a", "top"]
    assert told.failed == ["b"]


def test_a_deep_tree_needs_no_recursion(tmp_path: Path, told: Told) -> None:
    chain(tmp_path, [b"d"] * 500, b"f")
    assert len(told.walk(tmp_path)) == 502
    assert told.failed == []


@pytest.mark.parametrize("names", [[b"d"] * 2000, [b"x" * 200] * 30, [b"\xff" * 100] * 50])
def test_a_tree_deeper_than_names_is_told_once_and_the_rest_comes(
    tmp_path: Path, told: Told, names: list[bytes]
) -> None:
    folder = tmp_path / "top"
    folder.mkdir()
    chain(folder, names, b"f")
    (folder / "z").write_bytes(b"1")
    found = told.walk(folder, "top")
    assert "top/z" in [one.name for one in found]
    assert all(len(os.fsencode(one.name)) < FILENAME_LENGTH_MAX for one in found)
    assert len(told.failed) == 1
    remove(folder)
