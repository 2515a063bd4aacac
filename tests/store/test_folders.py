"""The folders of one batch: how many stay open, and what is synced of them."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

import blockproto.store.folder_io as folder_io_module
from blockproto.store.folder_io import SYNC_EACH_MAX, Folders, create_unnamed, give_name, open_own_fds


def test_a_folder_that_was_closed_for_others_is_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More folders than stay open are on the way to the few that changed: each is synced itself, and no other file."""
    deep = ["/".join([letter] * 20) for letter in "abcdef"]
    assert len(deep) <= SYNC_EACH_MAX
    synced: list[tuple[int, int]] = []

    def fsync(fd: int) -> None:
        facts = os.fstat(fd)
        synced.append((facts.st_dev, facts.st_ino))

    root_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with Folders(root_fd, open_max=8) as folders:
            for name in deep:
                folders.make(name)
            folders.changed = set(deep)
            monkeypatch.setattr(os, "fsync", fsync)
            folders.sync()
    finally:
        os.close(root_fd)
    wanted = [(tmp_path / name).stat() for name in deep]
    assert sorted(synced) == sorted((facts.st_dev, facts.st_ino) for facts in wanted)


@pytest.mark.parametrize("by_descriptor", [True, False])
def test_a_file_gets_a_name_that_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_descriptor: bool
) -> None:
    """Also where the system links no descriptor; it is asked once."""
    asked: list[int] = []

    def linkat(fd: int, *_: object) -> int:
        asked.append(fd)
        ctypes.set_errno(errno.ENOENT)
        return -1

    if not by_descriptor:
        monkeypatch.setattr(folder_io_module, "_linkat", linkat)
    folder_fd, own_fds = os.open(tmp_path, os.O_RDONLY), open_own_fds()
    assert own_fds is not None
    files = [fd for fd in (create_unnamed(folder_fd, 0o600) for _ in range(3)) if fd is not None]
    try:
        for fd, name in zip(files, (b"a", b"b", b"a"), strict=True):
            os.write(fd, name)
            if fd != files[-1]:
                give_name(own_fds, fd, folder_fd, name)
                continue
            with pytest.raises(FileExistsError):
                give_name(own_fds, fd, folder_fd, name)
            with pytest.raises(FileNotFoundError):
                give_name(own_fds, fd, folder_fd, b"missing/a")
    finally:
        for open_fd in (*files, folder_fd, own_fds):
            os.close(open_fd)
    assert [(path.name, path.read_text()) for path in sorted(tmp_path.iterdir())] == [("a", "a"), ("b", "b")]
    assert len(asked) == (0 if by_descriptor else 1)
