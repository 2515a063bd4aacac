"""The folders of one batch: how many stay open, and what is synced of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockproto.store.folder_io import SYNC_EACH_MAX, Folders


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
