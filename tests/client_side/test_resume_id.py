"""Sourceids: the same file to the same place gives the same id, anything else another; attempts only rise."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from blockproto.client_side.resume_id import (
    SECRET_LENGTH,
    SECRET_VARIABLE,
    Attempts,
    derive_sourceid,
    installation_secret,
)

SECRET = bytes(range(32))


def _file(tmp_path: Path, content: bytes = b"content", name: str = "file") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def _id(path: Path, *, secret: bytes = SECRET, name: str = "file") -> bytes:
    return derive_sourceid(secret, name, str(path), os.stat(path))


@pytest.mark.clause("BP1-RES-002")
def test_the_same_file_gives_the_same_id(tmp_path: Path) -> None:
    path = _file(tmp_path)
    assert _id(path) == _id(path)
    assert len(_id(path)) == 16


@pytest.mark.clause("BP1-RES-002")
def test_another_name_or_installation_gives_another_id(tmp_path: Path) -> None:
    path = _file(tmp_path)
    ids = {_id(path), _id(path, name="other"), _id(path, secret=bytes(32))}
    assert len(ids) == 3


@pytest.mark.clause("BP1-RES-002")
def test_another_path_gives_another_id(tmp_path: Path) -> None:
    path = _file(tmp_path)
    linked = tmp_path / "linked"
    os.link(path, linked)  # the same inode, size and time
    assert _id(path) != _id(linked)


@pytest.mark.clause("BP1-RES-002")
def test_a_changed_file_gives_another_id(tmp_path: Path) -> None:
    path = _file(tmp_path)
    before = _id(path)
    os.utime(path, ns=(1, 1))
    touched = _id(path)
    path.write_bytes(b"longer content")
    os.utime(path, ns=(1, 1))
    assert len({before, touched, _id(path)}) == 3


@pytest.mark.clause("BP1-RES-002")
def test_a_replaced_file_gives_another_id(tmp_path: Path) -> None:
    """Same path, size and time, but another inode."""
    path = _file(tmp_path, b"content")
    os.utime(path, ns=(1, 1))
    before = _id(path)
    other = _file(tmp_path, b"CONTENT", "other")
    os.utime(other, ns=(1, 1))
    other.replace(path)
    assert _id(path) != before


def test_parts_cannot_be_shifted_into_each_other(tmp_path: Path) -> None:
    path = _file(tmp_path)
    facts = path.stat()
    assert derive_sourceid(SECRET, "a", "bc", facts) != derive_sourceid(SECRET, "ab", "c", facts)


def test_a_name_that_is_no_utf8_has_an_id(tmp_path: Path) -> None:
    assert len(_id(_file(tmp_path), name=os.fsdecode(b"\xff"))) == 16


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "deep"
    secret = installation_secret(folder)
    assert len(secret) == SECRET_LENGTH
    assert installation_secret(folder) == secret
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["secret"]


def test_two_processes_at_once_get_the_same_secret(tmp_path: Path) -> None:
    secrets: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: secrets.append(installation_secret(tmp_path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(secrets) == 8
    assert len(set(secrets)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_folder_that_cannot_be_written_gives_a_secret_for_now(tmp_path: Path) -> None:
    blocked = _file(tmp_path) / "config"
    first, second = installation_secret(blocked), installation_secret(blocked)
    assert len(first) == len(second) == SECRET_LENGTH
    assert first != second


def test_a_damaged_secret_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"short")
    assert len(installation_secret(tmp_path)) == SECRET_LENGTH
    assert (tmp_path / "secret").read_bytes() == b"short"


def test_the_folder_can_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, str(tmp_path / "named"))
    assert installation_secret() == installation_secret(tmp_path / "named")


def test_without_a_name_the_platform_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    secret = installation_secret()
    assert secret == installation_secret()
    assert [path for path in tmp_path.rglob("secret") if path.read_bytes() == secret]


def test_attempts_are_the_time_in_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= Attempts().next() <= time.time_ns() // 1_000_000


def test_attempts_rise_within_a_millisecond_and_when_the_clock_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([5_000_000_000, 5_000_000_000, 1_000_000_000, 9_000_000_000])
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    attempts = Attempts()
    assert [attempts.next() for _ in range(4)] == [5000, 5001, 5002, 9000]
