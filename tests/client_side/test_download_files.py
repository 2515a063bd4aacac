"""Many small files that come in frames: what is asked, what is taken, what is refused, and what is left after a cut."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peers import Served, bytes_of, frames_of, run, serving

from blockproto.client import Client, connect_with
from blockproto.client_side import download_files
from blockproto.client_side.config import ClientConfig
from blockproto.common.blocks import BRIEF_LENGTH_MAX
from blockproto.common.file_table import TableBuilder
from blockproto.errors import BadFacts, BlockprotoError, SourceChanged, UnknownFile
from blockproto.results import DownloadJob, FileInfo, Receipt
from blockproto.serving.handlers import served_files
from blockproto.store.part_file.brief_downloads import BriefDownloads
from blockproto.store.part_file.local_files import FolderFiles
from blockproto.store.part_file.store import PartFileStore
from blockproto.wire import FEATURE_WANTED, Fetch, Files, Stored

quick = pytest.mark.trio(run=run)
Outcomes = dict[str, Receipt | BlockprotoError]


@asynccontextmanager
async def client_of(served: Served, tries: int = 5) -> AsyncIterator[Client]:
    config = ClientConfig(tries=tries, open_downloads=BriefDownloads, open_files=FolderFiles)
    async with connect_with(
        served.dial, "memory", lambda dest, first: PartFileStore(dest, first=first), config
    ) as client:
        yield client


async def stored(client: Client, folder: Path, sizes: dict[str, int]) -> list[FileInfo]:
    """Files on the server, as it lists them."""
    for seed, (name, size) in enumerate(sizes.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes_of(size, seed))
        path.chmod(0o604)
        os.utime(path, ns=(0, 1_600_000_000_987_654_321 + seed))
        await client.upload(path, name=name, if_exists="replace")
    return [entry async for entry in client.listing(recursive=True) if not entry.folder]


async def download(client: Client, entries: Iterable[FileInfo], here: Path) -> Outcomes:
    """All outcomes by name; a job that ends twice fails the test."""
    outcomes: Outcomes = {}
    jobs = [DownloadJob(entry, here / entry.filename) for entry in entries]
    for job in jobs:
        job.dest.parent.mkdir(parents=True, exist_ok=True)
    async with aclosing(client.download_all(jobs)) as ended:
        async for job, outcome in ended:
            assert job.entry.filename not in outcomes
            outcomes[job.entry.filename] = outcome
    return outcomes


def facts(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def said(served: Served, kind: type[Any], line: int = 0) -> list[Any]:
    """What the client said of that kind on one connection."""
    messages = [frame.message for frame in frames_of(served.lines[line].sent)]
    return [message for message in messages if isinstance(message, kind)]


def asked(served: Served, line: int = 0) -> list[str]:
    """The files that the client asked for many at a time."""
    return [
        f"{message.folders[record[5]]}/{name}".lstrip("/")
        for message in said(served, Files, line)
        if message.wanted
        for record, name in zip(message.table.records, message.table.names, strict=True)
    ]


TREE = {f"{at % 3}/file {at:03}": 50 * (at % 40) for at in range(300)}


@quick
async def test_small_files_come_in_frames_whole_with_time_and_mode(tmp_path: Path) -> None:
    async with serving() as served, client_of(served) as client:
        entries = await stored(client, tmp_path / "source", TREE | {"big": BRIEF_LENGTH_MAX + 1})
        outcomes = await download(client, entries, tmp_path / "here")
        assert facts(tmp_path / "here") == facts(tmp_path / "source")
        assert sorted(asked(served)) == sorted(TREE)
        assert [fetch.filename for fetch in said(served, Fetch)] == ["big"]
        assert sum(len(message.statuses) for message in said(served, Stored)) == len(TREE)
        receipt = outcomes["1/file 001"]
        assert isinstance(receipt, Receipt)
        assert (receipt.filesize, receipt.payload_bytes_sent, receipt.outcome) == (50, 50, "sent")
        await download(client, entries, tmp_path / "here")
        assert len(asked(served)) == len(TREE), "the same again asks for nothing"


@pytest.mark.clause("BP1-FIL-017")
@quick
async def test_a_server_without_the_feature_is_asked_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as served:
        limits = served.server._limits
        monkeypatch.setattr(
            served.server, "_limits", replace(limits, features=limits.features & ~FEATURE_WANTED)
        )
        async with client_of(served) as client:
            entries = await stored(client, tmp_path / "source", {"a": 1, "b": 2})
            await download(client, entries, tmp_path / "here")
            assert facts(tmp_path / "here") == facts(tmp_path / "source")
            assert not asked(served)
            assert len(said(served, Fetch)) == 2


@pytest.mark.clause("BP1-FIL-020")
@quick
async def test_what_is_left_out_is_asked_for_by_itself_and_fails_alone(tmp_path: Path) -> None:
    async with serving() as served, client_of(served) as client:
        entries = await stored(client, tmp_path / "source", dict.fromkeys(("changes", "gone", "stays"), 10))
        await stored(client, tmp_path / "other", {"changes": 11})
        await client.remove("gone")
        outcomes = await download(client, entries, tmp_path / "here")
        assert isinstance(outcomes["changes"], SourceChanged)
        assert isinstance(outcomes["gone"], UnknownFile)
        assert isinstance(outcomes["stays"], Receipt)
        assert list(facts(tmp_path / "here")) == ["stays"]


@pytest.mark.clause("BP1-FIL-021")
@quick
async def test_what_arrives_damaged_gets_no_name_and_comes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_files, "digest_of", lambda content: bytes(32))
    monkeypatch.setattr(served_files, "check_committed", lambda entry, digest: None)
    async with serving() as served, client_of(served) as client:
        entries = await stored(client, tmp_path / "source", {"a": 10, "b": 20})
        outcomes = await download(client, entries, tmp_path / "here")
        assert all(isinstance(outcome, Receipt) for outcome in outcomes.values()), outcomes
        assert facts(tmp_path / "here") == facts(tmp_path / "source")
        assert [bytes(message.statuses) for message in said(served, Stored)] == [b"\x04\x04"]
        assert sorted(fetch.filename for fetch in said(served, Fetch)) == ["a", "b"]


LIES: dict[str, dict[str, Any]] = {
    "above": {"folder": "..", "name": "evil"},
    "not-asked-for": {"name": "evil"},
    "twice": {"name": "a"},
    "another-version": {"id_": b"another version!"},
}


@pytest.mark.clause("BP1-FIL-019")
@quick
@pytest.mark.parametrize("lie", LIES.values(), ids=list(LIES))
async def test_a_server_that_lies_gets_nothing_written(
    lie: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three files is said to be another one: BAD_FACTS, and no file gets a name that was not asked for."""
    names = ("id_", "digest", "filesize", "mtime_ns", "mode", "folder", "filetype", "name")

    class Lying(TableBuilder):
        def add(self, *values: Any) -> None:
            record = dict(zip(names, values, strict=True))
            super().add(**(record | lie if record["name"] == "b" else record))

    async with serving() as served, client_of(served, tries=1) as client:
        entries = await stored(client, tmp_path / "source", {"a": 10, "b": 20, "c": 30})
        monkeypatch.setattr(served_files, "TableBuilder", Lying)
        outcomes = await download(client, entries, tmp_path / "here")
        assert {type(outcome) for outcome in outcomes.values()} == {BadFacts}, outcomes
        assert outcomes.keys() == {"a", "b", "c"}
        assert not facts(tmp_path / "here")
        assert not (tmp_path / "evil").exists()


@pytest.mark.clause("BP1-FIL-022")
@quick
async def test_after_a_cut_only_what_is_not_here_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_files, "FRAME_LENGTH_MAX", 4096)
    async with serving() as served:
        async with client_of(served) as client:
            entries = await stored(client, tmp_path / "source", TREE)
        first = len(served.lines)
        served.line_options = [{"cut_received": 60_000}]
        async with client_of(served) as client:
            outcomes = await download(client, entries, tmp_path / "here")
        assert all(isinstance(outcome, Receipt) for outcome in outcomes.values())
        assert facts(tmp_path / "here") == facts(tmp_path / "source")
        assert len(served.lines) >= first + 2
        answered = sum(len(message.statuses) for message in said(served, Stored, first))
        again = [name for line in range(first + 1, len(served.lines)) for name in asked(served, line)]
        assert answered > 0
        assert len(again) <= len(TREE) - answered


@quick
async def test_frames_wait_while_much_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_files, "HELD_MAX", 1)
    monkeypatch.setattr(served_files, "FRAME_LENGTH_MAX", 4096)
    async with serving() as served, client_of(served) as client:
        entries = await stored(client, tmp_path / "source", TREE)
        await download(client, entries, tmp_path / "here")
        assert facts(tmp_path / "here") == facts(tmp_path / "source")
