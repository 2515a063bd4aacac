"""``get`` against a real server process: files, trees, ranges, what is here already, names from a foreign server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import click
import pytest
from processes import COMMAND, Process, Ran, Server, wait_until

from blockproto import Client
from blockproto.cli.get import _place, _Tally, get
from blockproto.cli.left_out import LeftOutTeller
from blockproto.cli.output import RECEIPT_FIELDS, Status
from blockproto.errors import ConnectionLost
from blockproto.results import FileInfo

Run = Callable[..., Ran]
MIB = 1 << 20


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 1])
def test_a_file_comes_whole_with_time_and_rights(size: int, server: Server, here: Path, run: Run) -> None:
    stored = server.folder / "中文 name.bin"
    stored.write_bytes(os.urandom(size))
    stored.chmod(0o604)
    os.utime(stored, ns=(0, 1_600_000_000_987_654_321))
    ran = run("get", server.address + "/中文%20name.bin", "--json", cwd=here)
    assert ran.status == Status.DONE, ran.err
    (receipt,) = ran.objects
    assert list(receipt) == list(RECEIPT_FIELDS)
    got = here / "中文 name.bin"
    assert got.read_bytes() == stored.read_bytes()
    assert got.stat().st_mode & 0o777 == 0o604
    assert got.stat().st_mtime_ns == 1_600_000_000_987_654_321
    assert (receipt["filename"], receipt["filesize"]) == (stored.name, size)
    assert sorted(path.name for path in here.iterdir()) == [stored.name]


@pytest.mark.parametrize("length", [300_000, 30_000])
def test_killed_among_small_files_and_again(length: int, server: Server, here: Path, run: Run) -> None:
    """Nothing is left beside the files: neither of what the killed process was writing, nor of the folder's mark."""
    content = os.urandom(length)
    for number in range(400):
        (server.folder / f"{number}").write_bytes(content[number:])
    killed = Process([*COMMAND, "get", server.address + "/", "new"], cwd=here, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(here.glob("new/.blockproto-*.part")))
    killed.kill()
    killed.wait()
    assert list(here.glob("new/.blockproto-*.part")), "the file was finished in that instant"
    assert len(list(here.glob("new/[0-9]*"))) < 400
    ran = run("get", server.address + "/", "new", cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert sorted(os.listdir(here / "new")) == sorted(str(number) for number in range(400))
    for number in range(400):
        assert (here / "new" / str(number)).read_bytes() == content[number:]


def test_the_same_again_fetches_nothing(server: Server, here: Path, run: Run) -> None:
    (server.folder / "a").write_bytes(b"123")
    assert run("get", server.address + "/a", cwd=here).status == Status.DONE
    again = run("get", server.address + "/a", "--json", cwd=here)
    assert again.status == Status.DONE
    (receipt,) = again.objects
    assert list(receipt) == list(RECEIPT_FIELDS)
    assert (receipt["payload_bytes_sent"], receipt["blocks_skipped"], receipt["resumed"]) == (0, 1, True)
    assert "already here" in again.err


@pytest.mark.parametrize(
    ("dest", "place"),
    [
        (None, "a"),
        ("new name", "new name"),
        ("folder", "folder/a"),
        ("folder/", "folder/a"),
        ("made/", "made/a"),
    ],
)
def test_where_a_file_goes(dest: str | None, place: str, server: Server, here: Path, run: Run) -> None:
    (here / "folder").mkdir()
    (server.folder / "sub").mkdir()
    (server.folder / "sub" / "a").write_bytes(b"123")
    ran = run("get", server.address + "/sub/a", *([dest] if dest else []), cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert (here / place).read_bytes() == b"123"


def test_several_names_go_into_a_folder(server: Server, here: Path, run: Run) -> None:
    for name in ("a", "b"):
        (server.folder / name).write_bytes(name.encode())
    addresses = [f"{server.address}/{name}" for name in ("a", "missing", "b")]
    ran = run("get", *addresses, "into", cwd=here)
    assert ran.status == Status.FAILED
    assert f"{server.address}/missing: " in ran.err
    assert [(here / "into" / name).read_bytes() for name in ("a", "b")] == [b"a", b"b"]


def _make_tree(folder: Path) -> None:
    (folder / "empty").mkdir(parents=True)
    (folder / "deep" / "er 中").mkdir(parents=True)
    for number in range(30):
        (folder / "deep" / "er 中" / f"{number}").write_bytes(b"x" * number)
    (folder / "big").write_bytes(os.urandom(2 * MIB + 1))
    (folder / "deep").chmod(0o750)
    os.utime(folder / "deep", ns=(0, 1_500_000_000_000_000_000))


def _facts(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mode,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }


def test_a_tree_comes_with_everything(server: Server, here: Path, run: Run) -> None:
    _make_tree(server.folder / "tree")
    ran = run("get", server.address + "/tree", "--json", cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert _facts(here / "tree") == _facts(server.folder / "tree")
    assert len(ran.objects) == 31
    again = run("get", server.address + "/tree/", "--json", cwd=here)
    assert again.status == Status.DONE, again.err
    assert sum(one["payload_bytes_sent"] for one in again.objects) == 0


def test_the_whole_served_folder_goes_straight_into_dest(server: Server, here: Path, run: Run) -> None:
    _make_tree(server.folder / "tree")
    ran = run("get", server.address + "/", "copy", cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert _facts(here / "copy" / "tree") == _facts(server.folder / "tree")
    assert sorted(path.name for path in (here / "copy").iterdir()) == ["tree"]


@pytest.mark.parametrize(("first", "last"), [(0, 0), (5, MIB + 5), (MIB, 2 * MIB - 1), (2 * MIB, 99 * MIB)])
def test_a_range(first: int, last: int, server: Server, here: Path, run: Run) -> None:
    content = os.urandom(2 * MIB + 100)
    (server.folder / "a").write_bytes(content)
    ran = run("get", server.address + "/a", "part", "--range", f"{first}-{last}", cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert (here / "part").read_bytes() == content[first : last + 1]


def test_a_range_of_nothing_there(server: Server, here: Path, run: Run) -> None:
    (server.folder / "a").write_bytes(b"123")
    (server.folder / "folder").mkdir()
    assert run("get", server.address + "/a", "--range", "3-5", cwd=here).status == Status.FAILED
    assert run("get", server.address + "/folder", "--range", "3-5", cwd=here).status == Status.USAGE


def test_nobody_there_is_3_and_says_how_to_go_on(
    start_server: Callable[..., Server], here: Path, run: Run
) -> None:
    server = start_server()
    server.stop()
    ran = run("get", server.address + "/a", server.address + "/b", here)
    assert ran.status == Status.UNREACHABLE
    assert ran.err.startswith(f"blockproto: {server.address}: ")
    assert "run the same command again" in ran.err


def test_a_folder_in_the_way(server: Server, here: Path, run: Run) -> None:
    (server.folder / "a").write_bytes(b"123")
    (here / "into" / "a").mkdir(parents=True)
    ran = run("get", server.address + "/a", "into", cwd=here)
    assert ran.status == Status.FAILED
    assert "a folder stands where the file should go" in ran.err
    (server.folder / "b").mkdir()
    (here / "b").write_bytes(b"")
    assert run("get", server.address + "/b", cwd=here).status == Status.FAILED


def _entry(name: str) -> FileInfo:
    return FileInfo(name, False, "", 0, 0, 0, "", "", None, None)


@pytest.mark.clause("BP1-FET-013")
@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "top/../../x", "other/x", "top", "topper/x", "top/\x00", "", "top//x"]
)
def test_a_foreign_server_cannot_name_its_way_out(name: str, here: Path) -> None:
    tally = _Tally(LeftOutTeller(False), False)
    assert _place(tally, "top", _entry(name), here) is None
    assert (tally.failed, tally.status) == (1, Status.FAILED)


def test_places(here: Path) -> None:
    assert _place(_Tally(LeftOutTeller(False), False), "top", _entry("top/a/b"), here) == here / "a" / "b"
    assert _place(_Tally(LeftOutTeller(False), False), "", _entry("a/b"), here) == here / "a" / "b"


def test_what_stands_here_where_a_folder_should_be_is_said_once(server: Server, here: Path, run: Run) -> None:
    for name in ("2026/sub/1", "2026/sub/deep/2", "2026/sub.txt"):
        (server.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (server.folder / name).write_text(name)
    (here / "file").write_text("mine")
    whole = run("get", server.address + "/2026", here / "file")
    assert whole.status == Status.FAILED
    assert whole.err.startswith(
        f"blockproto: 2026: it is a folder on the server, and '{here}/file' here is none; move it away, or give another DEST"
    )
    (here / "2026").mkdir()
    (here / "2026/sub").write_text("mine")
    part = run("get", server.address + "/2026", here, "--json")
    assert part.status == Status.FAILED
    first, last = part.err.splitlines()
    assert first.startswith("blockproto: 2026/sub: it is a folder on the server")
    assert last.endswith("; 4 failed")
    assert [one["filename"] for one in part.objects if one["outcome"] == "failed"] == [
        "2026/sub", "2026/sub/1", "2026/sub/deep", "2026/sub/deep/2",
    ]  # fmt: skip
    assert (here / "2026/sub.txt").read_text() == "2026/sub.txt"
    assert (here / "2026/sub").read_text() == "mine"


# ---- a folder that was begun under another name


def _get_in_part(monkeypatch: pytest.MonkeyPatch, here: Path, *words: str, error: BaseException) -> None:
    """A ``get`` that ``error`` ends when its first file has come."""
    really_download = Client.download_all

    async def download_some(self: Client, *args: Any, **more: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(really_download(self, *args, **more)) as ended:
            async for one in ended:
                yield one
                raise error

    with monkeypatch.context() as patch:
        patch.setattr(Client, "download_all", download_some)
        patch.chdir(here)
        with suppress(BaseExceptionGroup, click.exceptions.Abort, click.exceptions.Exit):
            get.main(list(words), standalone_mode=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionLost("gone")], ids=["Ctrl-C", "lost"])
def test_a_folder_under_another_name_goes_on_until_it_is_complete(
    error: BaseException, server: Server, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_tree(server.folder / "tree")
    words = (server.address + "/tree", "new")
    _get_in_part(monkeypatch, here, *words, error=error)
    assert (here / "new").is_dir()
    assert run("put", here / "new", server.address + "/sent/").status == Status.DONE
    assert not [path for path in (server.folder / "sent").rglob("*") if path.name.startswith(".blockproto-")]
    ran = run("get", *words, cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert _facts(here / "new") == _facts(server.folder / "tree")
    assert run("get", *words, cwd=here).status == Status.DONE  # complete: DEST is a folder like any other
    assert (here / "new" / "tree" / "big").is_file()


def test_another_command_goes_into_a_folder_that_was_begun(
    server: Server, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_tree(server.folder / "tree")
    (server.folder / "other").mkdir()
    (server.folder / "other" / "file").write_bytes(b"1")
    (server.folder / "file").write_bytes(b"2")
    _get_in_part(monkeypatch, here, server.address + "/tree", "new", error=KeyboardInterrupt())
    for words in ((server.address + "/other", "new"), (server.address + "/file", "new")):
        assert run("get", *words, cwd=here).status == Status.DONE
    assert (here / "new" / "other" / "file").read_bytes() == b"1"
    assert (here / "new" / "file").read_bytes() == b"2"
    assert run("get", server.address + "/tree", "new/", cwd=here).status == Status.DONE
    assert _facts(here / "new" / "tree") == _facts(server.folder / "tree")
    assert run("clean", here, "--yes").status == Status.DONE
    assert not list(here.rglob(".blockproto-*"))


def test_a_file_where_a_folder_was_meant_is_called_that(server: Server, tmp_path: Path, run: Run) -> None:
    (server.folder / "a").write_bytes(b"1")
    (tmp_path / "target").write_bytes(b"2")
    ran = run("get", f"{server.address}/a", "target/", cwd=tmp_path)
    assert ran.status == Status.FAILED
    assert ran.err.startswith("blockproto: target: it is here, and is not a folder; ")
