"""Many downloads at once: small files pipelined into a real folder, over memory streams and over a socket."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from local_faults import check_closing_while_a_write_runs
from peers import MIB, Served, bytes_of, frames_of, run, serving
from processes import Server

import blockproto
from blockproto.client import Client, connect_with
from blockproto.client_side import brief_download
from blockproto.client_side.config import ClientConfig
from blockproto.client_side.download import Downloader
from blockproto.client_side.download_files import FilesFetch
from blockproto.client_side.resume_id import derive_label
from blockproto.common.blocks import BRIEF_LENGTH_MAX
from blockproto.errors import (
    BlockprotoError,
    ConnectionLost,
    DigestMismatch,
    NotPermitted,
    Refused,
    SourceChanged,
    StoreFailed,
)
from blockproto.results import DownloadJob, FileInfo, Receipt
from blockproto.serving.handlers import served_files
from blockproto.store import Destination
from blockproto.store.part_file import brief_downloads
from blockproto.store.part_file.brief_downloads import BriefDownloads
from blockproto.store.part_file.leftovers import find_leftovers
from blockproto.store.part_file.local_files import FolderFiles
from blockproto.store.part_file.part_names import names_of
from blockproto.store.part_file.store import PartFileStore
from blockproto.store.part_file.target_folder import TargetFolder
from blockproto.store.part_file.writer_process import tag_of_this_process
from blockproto.testing.store_contract.steps import facts_of, key_of
from blockproto.wire import Fetch, Files, List, Open

quick = pytest.mark.trio(run=run)

SIZES = {
    "empty": 0,
    "one": 1,
    "4k": 4096,
    "with spaces and 中文.txt": 5000,
    "carried": BRIEF_LENGTH_MAX,
    "written at once": BRIEF_LENGTH_MAX + 1,
    "block": MIB,
    "big": MIB + 1,
}
MANY = {f"file {number:03}": 100 + number for number in range(200)}
Ended = dict[str, Receipt | BlockprotoError]


@asynccontextmanager
async def _client(served: Served, tries: int = 5) -> AsyncIterator[Client]:
    async with connect_with(
        served.dial,
        "memory",
        lambda dest, first: PartFileStore(dest, first=first),
        ClientConfig(tries=tries, open_downloads=BriefDownloads, open_files=FolderFiles),
    ) as client:
        yield client


def _make(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


async def _stored(client: Client, folder: Path, sizes: dict[str, int]) -> list[FileInfo]:
    """Files on the server, as it lists them; their sources stay in ``folder``."""
    _make(folder)
    for seed, (name, size) in enumerate(sizes.items()):
        source = folder / name
        source.write_bytes(bytes_of(size, seed))
        source.chmod(0o604)
        os.utime(source, ns=(0, 1_600_000_000_987_654_321 + seed))
        await client.upload(source, if_exists="replace")
    return [entry async for entry in client.listing()]


def _jobs(entries: Iterable[FileInfo], here: Path) -> list[DownloadJob]:
    here.mkdir(exist_ok=True)
    return [DownloadJob(entry, here / entry.filename) for entry in entries]


async def _all(client: Client, jobs: Any) -> Ended:
    """What became of each job, which is told once."""
    outcomes: Ended = {}
    async with aclosing(client.download_all(jobs, if_exists="replace")) as ended:
        async for job, outcome in ended:
            assert job.entry.filename not in outcomes
            outcomes[job.entry.filename] = outcome
    return outcomes


def _facts(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in a folder, what is hidden too."""
    return {
        path.name: (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.iterdir()
    }


@quick
async def test_files_of_every_size_come_whole_with_the_receipts_of_download(tmp_path: Path) -> None:
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", SIZES)
        outcomes = await _all(client, _jobs(entries, tmp_path / "here"))
        assert _facts(tmp_path / "here") == _facts(tmp_path / "source")
        for name, outcome in outcomes.items():
            assert isinstance(outcome, Receipt), outcome
            one = await client.download(name, tmp_path / "alone", if_exists="replace")
            assert replace(outcome, elapsed_s=0, stored_as="") == replace(one, elapsed_s=0, stored_as="")
        assert outcomes.keys() == SIZES.keys()


@quick
async def test_nine_bits_of_what_a_server_says_are_applied(tmp_path: Path) -> None:
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", {"small": 10, "big": MIB + 1})
        lying = [replace(entry, mode=0o6755) for entry in entries]
        outcomes = await _all(client, _jobs(lying, tmp_path / "here"))
        assert all(isinstance(outcome, Receipt) for outcome in outcomes.values()), outcomes
        assert {path.stat().st_mode & 0o7777 for path in (tmp_path / "here").iterdir()} == {0o755}


@quick
async def test_nothing_is_asked_that_the_listing_said(tmp_path: Path) -> None:
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", SIZES)
        before = len(served.lines[0].sent)
        await _all(client, _jobs(entries, tmp_path / "here"))
        said = [type(heard.message) for heard in frames_of(served.lines[0].sent)]
        asked = [
            heard.message for heard in frames_of(served.lines[0].sent) if isinstance(heard.message, Files)
        ]
        wanted = {name for message in asked if message.wanted for name in message.table.names}
        assert wanted == {name for name, size in SIZES.items() if size <= BRIEF_LENGTH_MAX}
        assert said.count(Fetch) == len(SIZES) - len(wanted)
        assert said.count(List) == 1
        assert before < len(served.lines[0].sent)


@quick
@pytest.mark.parametrize("size", [100, 2 * MIB])
async def test_a_changed_file_is_refused_and_leaves_nothing(size: int, tmp_path: Path) -> None:
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", {"changes": size, "stays": 3})
        await _stored(client, tmp_path / "other", {"changes": size + 1})
        outcomes = await _all(client, _jobs(entries, tmp_path / "here"))
        assert isinstance(outcomes["changes"], SourceChanged)
        assert isinstance(outcomes["stays"], Receipt)
        assert list(_facts(tmp_path / "here")) == ["stays"]
        said = [heard.message for heard in frames_of(served.lines[0].received)]
        assert not [message.filename for message in said if isinstance(message, Open)]
        assert [message.table.names for message in said if isinstance(message, Files)] == [("stays",)]


@quick
async def test_a_destination_that_cannot_be_is_refused_alone(tmp_path: Path) -> None:
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", dict.fromkeys("abc", 10))
        jobs = _jobs(entries, tmp_path / "here")
        jobs[0].dest.mkdir()
        jobs[1] = DownloadJob(jobs[1].entry, tmp_path / "missing" / "b")
        outcomes = await _all(client, jobs)
        assert isinstance(outcomes["a"], NotPermitted)
        assert isinstance(outcomes["b"], NotPermitted)
        assert isinstance(outcomes["c"], Receipt)
        assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["a", "c"]


@quick
async def test_a_folder_that_comes_in_the_way_later_is_refused_alone(tmp_path: Path) -> None:
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", dict.fromkeys("ab", 10))
        here = tmp_path / "here"
        jobs = _jobs(entries, here)

        async def taken() -> AsyncIterator[DownloadJob]:
            for job in jobs:
                yield job
            (here / "a").mkdir()  # before anything can have come

        outcomes = await _all(client, taken())
        assert isinstance(outcomes["a"], NotPermitted)
        assert isinstance(outcomes["b"], Receipt)
        assert sorted(path.name for path in here.iterdir()) == ["a", "b"]


@quick
@pytest.mark.parametrize("bytes_until", [5_000, 20_000, 45_000])
async def test_a_lost_connection_costs_nothing_but_what_was_under_way(
    bytes_until: int, tmp_path: Path
) -> None:
    async with serving() as served:
        async with _client(served) as client:
            entries = await _stored(client, tmp_path / "source", MANY)
        served.line_options = [{"cut_received": bytes_until}, {"cut_received": 2 * bytes_until}]
        async with _client(served) as client:
            outcomes = await _all(client, _jobs(entries, tmp_path / "here"))
        assert len(served.lines) >= 3
        assert {name for name, outcome in outcomes.items() if isinstance(outcome, Receipt)} == MANY.keys()
        assert _facts(tmp_path / "here") == _facts(tmp_path / "source")


@quick
async def test_what_stays_lost_is_told_of_each_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_files, "FRAME_LENGTH_MAX", 4096)
    async with serving() as served:
        async with _client(served) as client:
            entries = await _stored(client, tmp_path / "source", MANY)
        served.line_options = [{"cut_received": 30_000}] * 5
        async with _client(served, tries=1) as client:
            outcomes = await _all(client, _jobs(entries, tmp_path / "here"))
        lost = {name for name, outcome in outcomes.items() if isinstance(outcome, ConnectionLost)}
        assert 0 < len(lost) < len(MANY) == len(outcomes)
        assert _facts(tmp_path / "here").keys() == MANY.keys() - lost


@quick
async def test_what_arrives_damaged_comes_the_ordinary_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> None:
        raise DigestMismatch("damaged", blockno=0)

    monkeypatch.setattr(brief_download.BriefFetch, "_verify", damaged)
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", dict.fromkeys("abc", BRIEF_LENGTH_MAX + 1))
        outcomes = await _all(client, _jobs(entries, tmp_path / "here"))
        assert all(isinstance(outcome, Receipt) for outcome in outcomes.values())
        assert _facts(tmp_path / "here") == _facts(tmp_path / "source")


@pytest.mark.clause("BP1-FET-012")
@quick
async def test_bytes_that_do_not_have_their_digest_get_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> Receipt:
        raise Refused("not this way")

    monkeypatch.setattr(Downloader, "file", refuse)
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", {"a": 1000, "b": BRIEF_LENGTH_MAX + 1})
        for fetches in (brief_download.BriefFetch, FilesFetch):
            _damage(monkeypatch, fetches)
        outcomes = await _all(client, _jobs(entries, tmp_path / "here"))
        assert [type(outcome) for outcome in outcomes.values()] == [Refused, Refused]
        assert not _facts(tmp_path / "here")


def _damage(monkeypatch: pytest.MonkeyPatch, fetches: type[Any]) -> None:
    real = fetches.payload

    async def damaged(fetch: Any, position: int, view: memoryview, last: bool) -> None:
        await real(fetch, position, memoryview(bytes(len(view))), last)

    monkeypatch.setattr(fetches, "payload", damaged)


def _destination(path: Path) -> Destination:
    return Destination(path, derive_label(bytes(32), "server", path.name, str(path)))


def test_which_destinations_are_left_to_the_ordinary_download(tmp_path: Path) -> None:
    long = "n" * 255
    for dest in (tmp_path / "begun", tmp_path / long):
        (tmp_path / names_of(_destination(dest).label).ledger).touch()
    (tmp_path / "old.blockproto-ledger").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "another link").symlink_to("file")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    taken = ["new", "file", "m" * 255, "old.blockproto-ledger"]
    left = ["begun", long, "folder", "link", "another link", "pipe", "no/folder", "old"]
    with closing(BriefDownloads()) as store:
        assert [name for name in taken if not store.takes(_destination(tmp_path / name))] == [
            "old.blockproto-ledger"
        ]
        assert [name for name in left if store.takes(_destination(tmp_path / name))] == []


@quick
async def test_who_stops_in_the_middle_leaves_whole_files_only(tmp_path: Path) -> None:
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", dict.fromkeys(MANY, BRIEF_LENGTH_MAX + 1))
        async with aclosing(client.download_all(_jobs(entries, tmp_path / "here"))) as ended:
            async for _ in ended:
                break
        facts, source = _facts(tmp_path / "here"), _facts(tmp_path / "source")
        assert 0 < len(facts) < len(MANY)
        assert facts.items() <= source.items()
        assert await client.stat(entries[0].filename) == entries[0]
        assert (await client.connection()).session.open_streams == 0


@quick
async def test_what_the_jobs_raise_comes_out_after_the_others(tmp_path: Path) -> None:
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", {"a": 1000})

        async def jobs() -> AsyncIterator[DownloadJob]:
            yield _jobs(entries, tmp_path / "here")[0]
            raise KeyError("x")

        with pytest.raises(KeyError):
            await _all(client, jobs())
        assert list(_facts(tmp_path / "here")) == ["a"]


@pytest.mark.clause("BP1-FET-012")
@quick
@pytest.mark.parametrize("count", [3, 50])
async def test_names_come_after_the_bytes_are_synced_and_folders_after_the_names(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for place, name in ((os, "fsync"), (TargetFolder, "move_new"), (TargetFolder, "sync")):
        real = getattr(place, name)

        def noted(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            steps.append(_name)
            return _real(*args, **options)

        monkeypatch.setattr(place, name, noted)
    monkeypatch.setattr(brief_downloads.BriefDownloads, "_syncfs", lambda *_: steps.append("fsync"))
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", dict(list(MANY.items())[:count]))
        steps.clear()
        await _all(client, _jobs(entries, tmp_path / "here"))
    assert steps.count("move_new") == count
    assert steps[0] == "fsync"
    unsynced = 0
    for step in steps:
        unsynced = 0 if step == "sync" else unsynced + (step == "move_new")
    assert unsynced == 0


@quick
async def test_a_failing_disk_gives_no_name_and_stops_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise StoreFailed("the medium reported: I/O error")

    monkeypatch.setattr(brief_downloads.BriefDownload, "sync", fails)
    monkeypatch.setattr(brief_downloads.BriefDownloads, "_syncfs", fails)
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", MANY)
        outcomes = await _all(client, _jobs(entries, tmp_path / "here"))
        assert len(outcomes) == len(MANY)
        assert {type(outcome) for outcome in outcomes.values()} == {StoreFailed}
        assert not _facts(tmp_path / "here")


@quick
async def test_what_an_ended_process_left_goes_at_once(tmp_path: Path) -> None:
    """And what another machine, or a process that lives, may be writing stays."""
    here, gone = tmp_path / "here", _number_of_an_ended_process()
    here.mkdir()
    living = tag_of_this_process()
    ended = f"{living[:10]}{gone:06x}"
    elsewhere = f"{'5' * 10}{gone:06x}"
    left = {tag: here / f".blockproto-{'0' * 16}-{tag}.part" for tag in (living, ended, elsewhere)}
    for path in left.values():
        path.write_bytes(b"some")
    running = {leftover.path: leftover.running for leftover in find_leftovers(here, time.time(), _never)}
    assert running == {left[living]: True, left[ended]: False, left[elsewhere]: True}
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", {"a": 10})
        await _all(client, _jobs(entries, here))
    assert sorted(_facts(here)) == sorted([left[living].name, left[elsewhere].name, "a"])


def _number_of_an_ended_process() -> int:
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    return int(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)


def _never(path: Path, error: Exception) -> None:
    raise AssertionError(path) from error


@quick
async def test_what_a_kill_left_goes_once_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    left = here / f".blockproto-0123456789abcdef-{'0' * 16}.part"
    others = [here / ".blockproto-mine.part", here / "mine.blockproto-part"]
    others += [here / f".blockproto-{'ab' * 8}.{ending}" for ending in ("part", "ledger")]
    for path in (left, *others):
        path.write_bytes(b"some")
    async with serving() as served, _client(served) as client:
        entries = await _stored(client, tmp_path / "source", {"a": 10, "b": 11})
        await _all(client, _jobs(entries[:1], here))
        assert left.exists()
        monkeypatch.setattr(brief_downloads, "ORPHAN_S", -10)
        await _all(client, _jobs(entries, here))
        assert sorted(_facts(here)) == sorted([*(other.name for other in others), "a", "b"])


def test_over_a_socket(server: Server, tmp_path: Path) -> None:
    sizes = {**MANY, **SIZES}
    for name, size in sizes.items():
        (server.folder / name).write_bytes(bytes_of(size))

    async def fetch() -> Ended:
        async with blockproto.connect(server.address) as client:
            return await _all(client, _jobs([entry async for entry in client.listing()], tmp_path / "here"))

    outcomes = trio.run(fetch)
    assert {name for name, outcome in outcomes.items() if isinstance(outcome, Receipt)} == sizes.keys()
    stored = {path.name: path.read_bytes() for path in server.folder.iterdir() if path.is_file()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == stored


@pytest.mark.parametrize("what", ["upload", "store"])
def test_closing_while_a_write_runs(
    what: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The contract that holds for every store."""
    with closing(BriefDownloads()) as store:
        upload = store.begin_at(_destination(tmp_path / "file.bin"), key_of(1), facts_of(300_000))
        upload.write(0, memoryview(b"x" * 100_000))
        before = len(os.listdir("/proc/self/fd"))
        close = store.close if what == "store" else upload.close
        check_closing_while_a_write_runs(upload, close, tmp_path_factory.mktemp("other"), monkeypatch)
        upload.close()
        assert len(os.listdir("/proc/self/fd")) <= before
    assert what == "store" or list(tmp_path.iterdir()) == []
