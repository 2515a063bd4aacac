"""A client that may open few files: it has fewer of them open at once, or says so in one sentence; never a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import COMMAND, TIMEOUT_S, Server

from blockproto.cli.output import Status
from blockproto.errors import Refused, StoreFailed, TooFewFiles
from blockproto.store.os_errors import refusal, refusal_of_sync

ENOUGH = 30
"""As many as a run needs that has one file after another, and some more."""


def get_with(files: int, server: Server, dest: Path) -> subprocess.CompletedProcess[str]:
    """Fetch the folder ``t`` with so many descriptors."""
    limited = ["sh", "-c", 'ulimit -n "$0"; exec "$@"', str(files)]
    command = [*limited, *COMMAND, "get", f"{server.address}/t", str(dest)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture
def server(start_server: Callable[..., Server], tmp_path: Path) -> Server:
    """A server of a folder with small files, some that are written as they come, and two of several blocks."""
    folder = tmp_path / "served" / "t"
    folder.mkdir(parents=True)
    for number in range(60):
        (folder / f"small {number}").write_bytes(os.urandom(1000 + number))
    for number in range(20):
        (folder / f"middle {number}").write_bytes(os.urandom(100_000 + number))
    for number in range(2):
        (folder / f"big {number}").write_bytes(os.urandom(3_000_000 + number))
    return start_server(tmp_path / "served")


def contents(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir() if not one.name.startswith(".blockproto-")}


@pytest.mark.parametrize("files", [12, 16, 18, ENOUGH])
def test_get_with_few_descriptors(server: Server, tmp_path: Path, files: int) -> None:
    dest = tmp_path / "here"
    dest.mkdir()
    ran = get_with(files, server, dest)
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) <= 2, ran.stderr
    there = contents(server.folder / "t")
    here = contents(dest / "t") if (dest / "t").is_dir() else {}
    assert here.items() <= there.items()
    if files >= ENOUGH or ran.returncode == Status.DONE:
        assert ran.returncode == Status.DONE, ran.stderr
        assert here == there
    else:
        assert ran.returncode == Status.FAILED, ran.stderr
        assert "ulimit -n" in ran.stderr or os.strerror(errno.EMFILE) in ran.stderr


def test_what_downloads_need_is_imported_before_the_first() -> None:
    needed = ["part_file.store", "part_file.brief_downloads", "folder_io"]
    program = (
        "import sys; from blockproto import client; client._open_downloads();"
        f"print({{'blockproto.store.' + name for name in {needed}}} - {{*sys.modules}})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    )
    assert ran.stdout.strip() == "set()"


def test_what_cannot_be_opened_to_be_synced_says_nothing_of_the_medium() -> None:
    assert isinstance(refusal_of_sync(OSError(errno.EMFILE, "")), TooFewFiles)
    assert isinstance(refusal_of_sync(OSError(errno.ENOSPC, "")), StoreFailed)
    found = refusal(OSError(errno.ENFILE, ""))
    assert isinstance(found, Refused)
    assert not isinstance(found, TooFewFiles), "others than this process have them: that passes"
