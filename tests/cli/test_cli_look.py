"""``ls``, ``stat``, ``uploads``, ``rm`` and ``cancel`` against a real server process."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from processes import COMMAND, Process, Ran, Server, wait_until_held

from blockproto.cli.output import Status

Run = Callable[..., Ran]


@pytest.fixture
def filled(server: Server) -> Server:
    (server.folder / "sub" / "empty").mkdir(parents=True)
    (server.folder / "sub" / "中 文").write_bytes(b"x" * 2000)
    (server.folder / "a").write_bytes(b"123")
    return server


def test_ls(filled: Server, run: Run) -> None:
    ran = run("ls", filled.address)
    assert ran.status == Status.DONE
    assert [line.split()[-1] for line in ran.out.splitlines()] == ["a", "sub/"]
    ran = run("ls", "-r", filled.address + "/")
    assert [line[45:] for line in ran.out.splitlines()] == ["a", "sub/", "sub/empty/", "sub/中 文"]
    assert "2.0 KiB" in ran.out
    objects = run("ls", filled.address + "/sub", "--json").objects
    assert [(one["filename"], one["folder"], one["filesize"]) for one in objects] == [
        ("sub/empty", True, 0),
        ("sub/中 文", False, 2000),
    ]
    assert run("ls", filled.address + "/a").out.endswith("  a\n")
    assert run("ls", filled.address + "/sub/").out.splitlines()[0].startswith("d")


@pytest.mark.clause("BP1-ERR-003")
def test_names_on_disk_cannot_move_a_terminal(server: Server, run: Run) -> None:
    (server.folder / "red\x1b[31m").write_bytes(b"")
    ran = run("ls", server.address)
    assert ran.status == Status.DONE
    assert "\x1b" not in ran.out


def test_stat(filled: Server, run: Run) -> None:
    ran = run("stat", filled.address + "/a", "--json", "--b3sum")
    assert ran.status == Status.DONE, ran.err
    assert ran.objects[0]["b3sum"] == blake3(b"123").hexdigest()
    ran = run("stat", filled.address + "/sub/中%20文")
    assert "filename  sub/中 文\n" in ran.out
    assert "filesize  2000 (2.0 KiB)\n" in ran.out
    folder = run("stat", filled.address + "/sub").out
    assert "filetype  inode/directory\n" in folder
    assert "filesize" not in folder
    assert "file_id" not in folder


def test_what_json_calls_an_address_can_be_pasted(server: Server, tmp_path: Path, run: Run) -> None:
    name = "文件?#%41 100%.txt"
    (server.folder / "q").mkdir()
    (server.folder / "q" / name).write_bytes(b"1")
    (listed,) = run("ls", server.address + "//q", "--json").objects
    assert listed["filename"] == f"q/{name}"
    for command in (["stat"], ["get"], ["ls"], ["rm"]):
        typed = run(*command, f"{server.address}/q/{name}", cwd=tmp_path)
        assert typed.status == Status.FAILED
        assert f"write '{listed['address']}'" in typed.err
    for command in (["stat"], ["get"], ["ls"], ["rm"]):
        assert run(*command, listed["address"], cwd=tmp_path).status == Status.DONE
    assert (tmp_path / name).read_bytes() == b"1"


def test_two_slashes_are_one_for_every_command(server: Server, tmp_path: Path, run: Run) -> None:
    (server.folder / "q").mkdir()
    (server.folder / "q/broken").write_bytes(b"1")
    assert run("ls", server.address + "//q").out.endswith("  broken\n")
    assert run("get", server.address + "//q", "gq", cwd=tmp_path).status == Status.DONE
    assert (tmp_path / "gq/broken").read_bytes() == b"1"
    assert run("put", tmp_path / "gq", server.address + "//x//y//").status == Status.DONE
    assert (server.folder / "x/y/gq/broken").read_bytes() == b"1"


def test_stat_takes_several_names(filled: Server, run: Run) -> None:
    at = filled.address
    ran = run("stat", at + "/a", at + "/nothing", at + "/sub", "--json")
    assert ran.status == Status.FAILED
    assert f"{at}/nothing: " in ran.err
    assert [one["filename"] for one in ran.objects] == ["a", "sub"]
    assert run("stat", at + "/a", at + "/sub").out.count("filename ") == 2


def test_ls_takes_several_addresses(filled: Server, run: Run) -> None:
    """As ls does: each folder is named above what is in it, and one that is not there keeps nothing from the others."""
    at = filled.address
    ran = run("ls", at + "/sub", at + "/nothing", at + "/a", at + "/sub/empty")
    assert ran.status == Status.FAILED
    assert f"{at}/nothing: " in ran.err
    assert [line[45:] if line[0] in "d-" else line for line in ran.out.splitlines() if line] == [
        f"{at}/sub:",
        "empty/",
        "中 文",
        "a",
        f"{at}/sub/empty:",
    ]
    ran = run("ls", "--json", at + "/sub", at + "/a")
    assert [one["filename"] for one in ran.objects] == ["sub/empty", "sub/中 文", "a"]


def test_ls_of_two_servers_lists_the_one_that_is_there(
    filled: Server, start_server: Callable[..., Server], tmp_path: Path, run: Run
) -> None:
    gone = start_server(tmp_path / "gone")
    gone.stop()
    ran = run("ls", gone.address, filled.address)
    assert ran.status == Status.UNREACHABLE
    assert "  a\n" in ran.out


@pytest.mark.parametrize("command", ["ls", "stat", "rm"])
def test_what_is_not_there_says_so(command: str, filled: Server, run: Run) -> None:
    ran = run(command, filled.address + "/nothing")
    assert ran.status == Status.FAILED
    assert f"{filled.address}/nothing: " in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("command", ["ls", "cancel"])
def test_nobody_there(command: str, start_server: Callable[..., Server], run: Run) -> None:
    server = start_server()
    server.stop()
    ran = run(command, server.address, *(["0" * 32] if command == "cancel" else []))
    assert ran.status == Status.UNREACHABLE, ran.err
    assert server.address in ran.err
    assert "Traceback" not in ran.err


def test_rm(filled: Server, run: Run) -> None:
    ran = run("rm", filled.address + "/sub", filled.address + "/a", "--json")
    assert ran.status == Status.FAILED
    assert f"{filled.address}/sub: " in ran.err
    refused, removed = ran.objects
    assert (refused["filename"], refused["removed"], refused["code"]) == ("sub", False, "NOT_EMPTY")
    assert removed == {"filename": "a", "removed": True}
    assert not (filled.folder / "a").exists()
    assert run("rm", "-r", "-v", filled.address + "/sub").err == f"{filled.address}/sub: removed\n"
    assert sorted(path.name for path in filled.folder.iterdir()) == [".blockproto"]


def test_uploads_and_cancel(server: Server, tmp_path: Path, run: Run) -> None:
    assert run("uploads", server.address).err == "no unfinished uploads\n"
    begun = Process(
        [*COMMAND, "put", "-", server.address + "/", "--as", "half 中"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with begun:
        assert begun.stdin is not None
        begun.stdin.write(os.urandom(3 << 20))
        begun.stdin.flush()
        trio.run(wait_until_held, server.address, 1)
        begun.send_signal(signal.SIGKILL)
    (upload,) = run("uploads", server.address, "--json").objects
    assert list(upload) == [
        "sourceid", "file_id", "filename", "filetype", "filesize", "blocknum", "position", "held_count", "expires_ms",
    ]  # fmt: skip
    assert (upload["filename"], upload["filesize"], upload["blocknum"]) == ("half 中", None, None)
    assert f"{upload['sourceid']}  " in run("uploads", server.address).out
    ran = run("cancel", upload["sourceid"], server.address, "--json")
    assert ran.status == Status.DONE, ran.err
    assert ran.objects == [{"sourceid": upload["sourceid"], "cancelled": True}]
    assert run("uploads", server.address, "--json").objects == []
    again = run("cancel", server.address, upload["sourceid"])
    assert again.status == Status.FAILED
    assert upload["sourceid"] in again.err
