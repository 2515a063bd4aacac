"""A file that is too big for what is free fails alone, here and on the server; a disk that is full ends the run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import TIMEOUT_S, Process, Ran, Server, wait_for_line

from blockproto.cli import main
from blockproto.cli.output import Status
from blockproto.cli.tally import FULL_LENGTH, NAMED_MAX, ends_files
from blockproto.errors import Code, QuotaExceeded, Refused, StoreFull

Run = Callable[..., Ran]
MIB = 1 << 20
FREE = 2 * MIB
NEARLY_FULL = f"""
import sys
from blockproto.__main__ import main
from blockproto.store.local.free_space import FreeSpace
FreeSpace.free = lambda self: {FREE}
sys.exit(main())
"""


@pytest.fixture
def nearly_full(tmp_path: Path) -> Iterator[str]:
    """The address of a server whose disk always has two megabytes left."""
    (tmp_path / "served").mkdir()
    command = [
        sys.executable,
        "-c",
        NEARLY_FULL,
        "serve",
        str(tmp_path / "served"),
        "--listen",
        "127.0.0.1:0",
    ]
    with Process(command, stdout=subprocess.PIPE, text=True) as process:
        yield "bp://" + wait_for_line(process, TIMEOUT_S).removeprefix("listening on ")
        process.terminate()


def make_files(folder: Path, big: int, small: int) -> None:
    """Files of 3 MiB and of 3 bytes, the big ones first by name."""
    folder.mkdir()
    for number in range(big):
        (folder / f"0-big-{number}").write_bytes(bytes([number]) * 3 * MIB)
    for number in range(small):
        (folder / f"small-{number}").write_bytes(b"%3d" % number)


def test_put_goes_on_with_what_fits(nearly_full: str, tmp_path: Path, run: Run) -> None:
    make_files(tmp_path / "many", big=1, small=20)
    last = tmp_path / "last"
    last.write_bytes(b"z" * MIB)
    ran = run("put", tmp_path / "many/0-big-0", tmp_path / "many", last, nearly_full + "/", "--json")
    assert ran.status == Status.FAILED
    failed = [one for one in ran.objects if one["outcome"] == "failed"]
    assert sorted(one["filename"] for one in failed) == ["0-big-0", "many/0-big-0"]
    assert {one["code"] for one in failed} == {"STORE_FULL"}
    assert (
        f"{tmp_path}/many/0-big-0: there is no room on the server: 3145728 more bytes are needed" in ran.err
    )
    assert ran.err.splitlines()[-1].startswith("21 files, ")
    assert ran.err.rstrip().endswith("; 2 failed")
    assert len(list((tmp_path / "served/many").iterdir())) == 20
    assert (tmp_path / "served/last").exists()


def test_not_everyone_of_many_is_named(nearly_full: str, tmp_path: Path, run: Run) -> None:
    make_files(tmp_path / "many", big=NAMED_MAX + 2, small=1)
    ran = run("put", tmp_path / "many", nearly_full + "/", "--json")
    assert ran.err.count("more bytes are needed") == NAMED_MAX
    assert "there is no room for 2 more files either" in ran.err
    assert sum(one["outcome"] == "failed" for one in ran.objects) == NAMED_MAX + 2
    assert "1 file, 3 B in" in ran.err


def test_get_goes_on_with_what_fits(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(server.folder / "many", big=1, small=20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=FREE))
    assert main(["get", f"{server.address}/many", str(tmp_path / "here")]) == Status.FAILED
    said = capsys.readouterr().err
    assert "blockproto: many/0-big-0: there is no room on this machine: 3145728 more bytes" in said
    assert said.splitlines()[-1].startswith("20 files, 60 B in ")
    assert said.rstrip().endswith("; 1 failed")
    assert len(list((tmp_path / "here").glob("small-*"))) == 20


def test_get_of_a_full_disk_begins_nothing_more_and_counts_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(server.folder / "a", big=1, small=0)
    make_files(server.folder / "b", big=0, small=3)
    monkeypatch.setattr("blockproto.cli.tally.FULL_LENGTH", 4 * MIB)
    monkeypatch.setattr(
        "blockproto.client_side.download_many.PAGE_JOBS", 1
    )  # what has ended is heard before the next
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=FREE))
    words = ["get", f"{server.address}/a", f"{server.address}/b", str(tmp_path) + "/"]
    assert main(words) == Status.FAILED
    assert capsys.readouterr().err.count("there is no room") == 1
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("error", "filesize", "ends"),
    [
        (StoreFull(), FULL_LENGTH, True),
        (StoreFull(), FULL_LENGTH + 1, False),
        (StoreFull(), None, False),
        (QuotaExceeded(current=0), 1 << 40, True),
        (QuotaExceeded(current=5), 1, False),
        (Refused(code=Code.FORBIDDEN), 1 << 40, True),
    ],
)
def test_what_ends_a_run(error: BaseException, filesize: int | None, ends: bool) -> None:
    assert ends_files(error, filesize) is ends
