"""Times that the wire or a file system cannot keep: clamped on both sides, equal to their clamp, said once."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from blockproto.cli.output import show_time
from blockproto.common import times
from blockproto.common.names import SafeName
from blockproto.common.times import (
    EARLIEST_KEPT_NS,
    LATEST_KEPT_NS,
    MTIME_MAX_NS,
    MTIME_MIN_NS,
    S,
    SaidOnce,
    clamp,
    same_mtime,
    set_mtime,
)
from blockproto.store.local.store import LocalStore

FAR = [-(1 << 80), -(1 << 63), MTIME_MIN_NS, -1, 0, 1, MTIME_MAX_NS, 1 << 63, 10_413_792_000 * S, 1 << 80]


@pytest.mark.clause("BP1-FRM-021")
def test_a_time_is_said_as_the_nearest_that_can_be_said() -> None:
    assert [clamp(one) for one in FAR] == [
        MTIME_MIN_NS, MTIME_MIN_NS, MTIME_MIN_NS, -1, 0, 1, MTIME_MAX_NS, MTIME_MAX_NS, MTIME_MAX_NS, MTIME_MAX_NS,
    ]  # fmt: skip
    assert all(-(1 << 63) < clamp(one) < 1 << 63 for one in FAR)


@pytest.mark.clause("BP1-FRM-021")
def test_a_time_is_equal_to_what_a_file_system_made_of_it() -> None:
    for said in FAR:
        assert same_mtime(said, clamp(said))
        for earliest in EARLIEST_KEPT_NS:
            assert same_mtime(said, max(said, earliest))
            assert same_mtime(max(said, earliest), said)
        for latest in LATEST_KEPT_NS:
            assert same_mtime(said, min(said, latest))
    now = 1_700_000_000 * S
    assert not same_mtime(now, now + 1)
    assert not same_mtime(0, now)
    assert not same_mtime(-1, -2)
    assert not same_mtime(LATEST_KEPT_NS[1] + 1, LATEST_KEPT_NS[1] + 2)


class _FileSystem:
    """``os.utime`` of a file system that takes times within bounds only."""

    def __init__(self, least: int, most: int, error: Exception) -> None:
        self.least, self.most, self.error = least, most, error
        self.set: int | None = None

    def utime(self, _: Any, *, ns: tuple[int, int], follow_symlinks: bool = True) -> None:
        if not self.least <= ns[1] <= self.most:
            raise self.error
        self.set = ns[1]


@pytest.mark.parametrize("error", [OSError(errno.EINVAL, "no"), OverflowError("too large")])
@pytest.mark.parametrize("bounds", list(zip(EARLIEST_KEPT_NS, LATEST_KEPT_NS, strict=True)))
def test_a_file_system_that_refuses_a_time_gets_the_nearest_it_takes(
    monkeypatch: pytest.MonkeyPatch, bounds: tuple[int, int], error: Exception
) -> None:
    for wanted in FAR:
        system = _FileSystem(*bounds, error)
        monkeypatch.setattr(times.os, "utime", system.utime)
        set_mtime("file", wanted)
        assert system.set is not None
        assert same_mtime(system.set, wanted)
    system = _FileSystem(1, 0, error)
    monkeypatch.setattr(times.os, "utime", system.utime)
    set_mtime("file", 5)
    assert system.set is None
    system = _FileSystem(1, 0, PermissionError(errno.EPERM, "not yours"))
    monkeypatch.setattr(times.os, "utime", system.utime)
    with pytest.raises(PermissionError):
        set_mtime("file", 5)


def test_it_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    once = SaidOnce(said.append)
    far, near = (os.stat_result([0] * 10, {"st_mtime_ns": ns}) for ns in (1 << 70, 5))
    assert [once.look(found, "f") for found in (near, far, far)] == [5, MTIME_MAX_NS, MTIME_MAX_NS]
    assert len(said) == 1
    assert "'f'" in said[0]


@pytest.mark.clause("BP1-FRM-021")
def test_a_store_lists_reads_and_keeps_files_of_any_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").mkdir()
    for number, mtime_ns in enumerate(FAR):
        for name in (f"{number}.txt", f"folder/{number}"):
            (tmp_path / name).write_bytes(b"x")
            os.utime(tmp_path / name, ns=(0, mtime_ns))
    os.utime(tmp_path / "folder", ns=(0, 1 << 70))
    store = LocalStore.open(tmp_path)
    try:
        with caplog.at_level(logging.WARNING):
            entries, _ = store.files("", True, "", 100)
            assert len(entries) == 2 * len(FAR) + 1
            for entry in entries:
                found = os.stat(tmp_path / entry.filename.text)
                assert entry.mtime_ns == clamp(found.st_mtime_ns)
                assert store.stat(entry.filename).version == entry.version
                if not entry.folder:
                    reader = store.open_file(entry.filename, None)
                    assert reader.unchanged()
                    reader.close()
        if any(abs(os.stat(tmp_path / f"{number}.txt").st_mtime_ns) >= 1 << 63 for number in range(len(FAR))):
            assert len(caplog.records) == 1
        versions = []
        for year_s in (10_413_792_000, 10_445_328_000):
            os.utime(tmp_path / "9.txt", ns=(0, year_s * S))
            versions.append((store.stat(SafeName("9.txt")).version, os.stat(tmp_path / "9.txt").st_mtime_ns))
        assert (versions[0][0] == versions[1][0]) is (versions[0][1] == versions[1][1])
    finally:
        store.close()


@pytest.mark.parametrize("mtime_ns", [*FAR, (1 << 62) * 10**6])
def test_every_time_can_be_shown(mtime_ns: int) -> None:
    assert show_time(mtime_ns)
