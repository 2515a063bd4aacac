"""What this machine refuses is said of its own paths, never of the server's files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from campaigns.tools import CannotMount, mounted
from processes import COMMAND, TIMEOUT_S, Process, Ran, Server, wait_until_held

from blockproto.cli.output import Status
from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.errors import StoreFull
from blockproto.store.os_errors import NO_ROOM, refusal_here

Run = Callable[..., Ran]
NOWHERE = Path("/proc")
"""A folder in which nobody can make anything: ENOENT, whoever asks."""

FILLED_MEANWHILE = """
import shutil, sys
from types import SimpleNamespace
from blockproto.__main__ import main
shutil.disk_usage = lambda path: SimpleNamespace(free=1 << 40)
sys.exit(main())
"""
"""A command that finds room when it looks, and none when it writes: others filled the disk in between."""

needs_proc = pytest.mark.skipif(not NOWHERE.is_dir(), reason="there is no /proc")


@pytest.fixture
def filled(server: Server, tmp_path: Path, run: Run) -> Server:
    source = tmp_path / "source"
    source.mkdir()
    (source / "small").write_bytes(b"1")
    (source / "big").write_bytes(os.urandom(BLOCK_LENGTH + 1))
    assert run("put", source, server.address + "/").status == Status.DONE
    return server


@needs_proc
@pytest.mark.parametrize("name", ["small", "big"])
@pytest.mark.parametrize("dest", ["/proc/", "/proc/x"])
def test_a_place_here_where_nothing_can_be_made(filled: Server, run: Run, name: str, dest: str) -> None:
    ran = run("get", f"{filled.address}/source/{name}", dest, "--json")
    assert ran.status == Status.FAILED
    place = f"/proc/{name}" if dest.endswith("/") else dest
    assert f"blockproto: {place}: it cannot be made there: No such file or directory" in ran.err
    assert "blockproto ls" not in ran.err
    assert ran.objects[0]["code"] == "NOT_PERMITTED"


@needs_proc
def test_a_folder_here_where_nothing_can_be_made(filled: Server, run: Run) -> None:
    ran = run("get", f"{filled.address}/source", "/proc/")
    assert ran.status == Status.FAILED
    assert "blockproto: /proc/source: No such file or directory" in ran.err


@needs_proc
def test_a_queue_says_it_of_the_path_here(filled: Server, run: Run, tmp_path: Path) -> None:
    env = {"BLOCKPROTO_CONFIG": str(tmp_path / "config")}
    assert run("queue", "get", f"{filled.address}/source/small", "/proc/x", env=env).status == Status.DONE
    ran = run("queue", "run", "--until-empty", env=env)
    assert ran.status == Status.FAILED
    assert "/proc/x: it cannot be made there: No such file or directory" in ran.err


@needs_proc
def test_so_does_what_follows_an_upload(server: Server, run: Run) -> None:
    with Process([*COMMAND, "put", "-", server.address + "/"], stdin=-1, stderr=-3) as sender:
        assert sender.stdin is not None
        sender.stdin.write(os.urandom(2 * BLOCK_LENGTH))
        sender.stdin.flush()
        upload = trio.run(wait_until_held, server.address, 1)
        ran = run("get", "--upload", upload.sourceid, server.address, "/proc/x")
        sender.kill()
    assert ran.status == Status.FAILED
    assert "blockproto: /proc/x: it cannot be made there: No such file or directory" in ran.err


def test_a_queue_makes_the_folder_that_is_named_with_a_slash(
    filled: Server, run: Run, tmp_path: Path
) -> None:
    """As `get` does; what cannot be made is said at once."""
    env = {"BLOCKPROTO_CONFIG": str(tmp_path / "config")}
    dest = tmp_path / "new" / "folder"
    ran = run("queue", "get", f"{filled.address}/source/small", f"{dest}/", env=env)
    assert ran.status == Status.DONE
    assert run("queue", "run", "--until-empty", env=env).status == Status.DONE
    assert (dest / "small").read_bytes() == b"1"
    (tmp_path / "file").touch()
    ran = run("queue", "get", f"{filled.address}/source/small", f"{tmp_path}/file/", env=env)
    assert ran.status == Status.FAILED
    assert f"blockproto: {tmp_path}/file/: " in ran.err
    assert run("queue", "list", "--json", env=env).objects == []


@pytest.mark.parametrize("number", sorted(NO_ROOM), ids=errno.errorcode.get)
def test_a_disk_here_that_is_full_is_said_to_be_here(number: int) -> None:
    error = refusal_here(OSError(number, os.strerror(number)))
    assert isinstance(error, StoreFull)
    assert str(error) == f"there is no room on this machine: {os.strerror(number)}"


@pytest.mark.root
@pytest.mark.parametrize("name", ["small", "big"])
def test_a_disk_here_that_others_fill_meanwhile(filled: Server, tmp_path: Path, name: str) -> None:
    """The words are not those of a full disk at the server, which has the file."""
    (filled.folder / "source" / "small").write_bytes(os.urandom(BLOCK_LENGTH // 2))
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-c", FILLED_MEANWHILE, "get", f"{filled.address}/source/{name}", f"{place}/"]
    try:
        with mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs", place):
            ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except CannotMount as exc:
        pytest.skip(str(exc))
    assert ran.returncode == Status.FAILED, ran.stderr
    assert ": there is no room on this machine: No space left on device; make room" in ran.stderr
