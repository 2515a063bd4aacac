"""The same file again, through a server: what is there is the file, is left, or is really replaced."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from blake3 import blake3
from peers import MIB, RawPeer, Sample, Served, bytes_of, run, serving
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from blockproto.common.names import SafeName
from blockproto.connection.dispatch import BACKLOGS_AT_ONCE
from blockproto.dialects.sourceid import Sourceid
from blockproto.errors import Code, Scope
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.principals import Register
from blockproto.identity.realm import EVERYTHING
from blockproto.observability.logs import Log
from blockproto.serving.server import Server
from blockproto.store.local.finished_files import LocalReader
from blockproto.store.local.store import LocalStore
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.committer import Committer
from blockproto.transfer.compare_files import FileComparer
from blockproto.wire import (
    FEATURE_IF_EXISTS,
    Auth,
    Committed,
    Fetch,
    FileItem,
    List,
    ListKind,
    Open,
    Opened,
    Remove,
    RemoveKind,
    Result,
    Scopes,
)

real = pytest.mark.trio
STUCK_S = 20
"""What has to come at once has not come after this time."""
KEEP, REFUSE, REPLACE, SKIP, UPDATE = range(5)
SMALL = Sample(bytes_of(3000, 1), "a.bin", sourceid=b"the small file 1")
BIG = Sample(bytes_of(2 * MIB + 9, 2), "big.bin", sourceid=b"the big file ..1")


def again(sample: Sample, number: int, **changes: Any) -> Sample:
    """The same file of another sender."""
    facts = {"content": sample.content, "filename": sample.filename, **changes}
    return Sample(**facts, sourceid=sample.sourceid[:-1] + b"%d" % number)


def made(tmp_path: Path) -> Path:
    """The folder that is served."""
    folder = tmp_path / "served"
    folder.mkdir(exist_ok=True)
    return folder


@asynccontextmanager
async def serving_folder(folder: Path, **options: Any) -> AsyncIterator[tuple[Served, LocalStore, RawPeer]]:
    """A server of a real folder, and a peer of it."""
    store = LocalStore.open(folder)
    async with serving(cast(MemoryStore, store), **options) as served:
        yield served, store, await served.peer()


async def brief(peer: RawPeer, stream: int, sample: Sample, rule: int = KEEP, **facts: Any) -> Committed:
    await peer.say(stream, *sample.block(0, commit=True, if_exists=rule, **facts))
    return await peer.expect(Committed, stream)


async def whole(peer: RawPeer, stream: int, sample: Sample, **facts: Any) -> Committed:
    await peer.say(stream, sample.open(**facts))
    await peer.expect(Opened, stream)
    for blockno in range(sample.blocknum):
        await peer.say(stream, *sample.block(blockno))
    await peer.say(stream, sample.commit())
    return await peer.expect(Committed, stream)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".blockproto")


@real
async def test_a_new_sender_sends_digests_and_no_payload(tmp_path: Path) -> None:
    """Files that are known, sent by somebody else: COMMITTED at OPEN, one copy of each."""
    samples = [Sample(bytes_of(5000 + n, n), f"f{n}", sourceid=b"%016d" % n) for n in range(20)]
    async with serving_folder(made(tmp_path)) as (served, _, peer):
        assert (await RawPeer(served.connect()).greet()).features & FEATURE_IF_EXISTS
        for number, sample in enumerate(samples):
            await brief(peer, 1 + 2 * number, sample)
        other = await served.peer()
        for number, sample in enumerate(samples):
            same = Sample(sample.content, sample.filename, sourceid=b"other%011d" % number)
            await other.say(1 + 2 * number, same.open(root=same.root))
            committed = await other.expect(Committed, 1 + 2 * number)
            assert (committed.there, committed.root, committed.stored_as) == (
                True,
                sample.root,
                sample.filename,
            )
    assert len(files_in(tmp_path / "served")) == 20


@real
@pytest.mark.parametrize("is_brief", [True, False])
async def test_two_who_send_the_same_at_once_make_one_file(tmp_path: Path, is_brief: bool) -> None:
    sample = SMALL if is_brief else BIG
    async with serving_folder(made(tmp_path)) as (served, _, _peer):
        found: list[Committed] = []

        async def send(number: int) -> None:
            peer = await served.peer()
            send_it = brief if is_brief else whole
            found.append(await send_it(peer, 1, again(sample, number)))

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(send, number)
        assert [one.stored_as for one in found] == [sample.filename] * 6
        assert sum(one.there for one in found) == 5
        assert len({one.file_id for one in found}) == 6
    assert files_in(tmp_path / "served") == [sample.filename]


@real
async def test_others_are_served_while_a_file_is_read_to_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is read beside the committer: a commit of somebody else does not wait for it."""
    made(tmp_path)
    (tmp_path / "served" / BIG.filename).write_bytes(BIG.content)
    reading, go_on = threading.Event(), threading.Event()
    read_into = LocalReader.read_into

    def slow(reader: LocalReader, position: int, view: memoryview) -> int:
        reading.set()
        assert go_on.wait(30)
        return read_into(reader, position, view)

    async with serving_folder(made(tmp_path)) as (served, store, peer):
        monkeypatch.setattr(LocalReader, "read_into", slow)
        await peer.say(1, BIG.open(root=BIG.root))
        await trio.to_thread.run_sync(reading.wait, 30)
        other = await served.peer()
        assert not (await brief(other, 1, SMALL)).there
        assert not store.receipts(bytes(16), [BIG.sourceid])
        go_on.set()
        assert (await peer.expect(Committed, 1)).there
    assert files_in(tmp_path / "served") == [SMALL.filename, BIG.filename]


@real
@pytest.mark.clause("BP1-STR-018")
async def test_openings_that_wait_for_comparisons_hold_up_no_other_of_their_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are tasks for backlogs; another OPEN and a FETCH need such a task, too."""
    (made(tmp_path) / BIG.filename).write_bytes(BIG.content)
    go_on = threading.Event()
    compare = FileComparer._read

    async def slow(self: FileComparer, name: SafeName, principal: bytes) -> None:
        while not go_on.is_set():
            await trio.to_thread.run_sync(go_on.wait, 30)
        await compare(self, name, principal)

    monkeypatch.setattr(FileComparer, "_read", slow)
    async with serving_folder(made(tmp_path)) as (_, _, peer):
        for number in range(BACKLOGS_AT_ONCE):
            one = Sample(BIG.content, BIG.filename, sourceid=b"%016d" % number)
            await peer.say(2 * number + 1, one.open(root=BIG.root))
        await peer.say(201, Sample(b"x" * 9000, "other", sourceid=b"another one 1234").open())
        try:
            with trio.fail_after(STUCK_S):
                await peer.expect(Opened, 201)
                await peer.say(203, Fetch(BIG.filename))
                await peer.expect(Open, 203)
        finally:
            go_on.set()
        committed = 0
        while committed < BACKLOGS_AT_ONCE:
            committed += isinstance((await peer.hear()).message, Committed)


@real
async def test_principals_take_turns_with_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine questions of one principal hold up the only one of another no longer than those that are being read."""
    read: list[str] = []
    all_read = trio.Event()

    async def note(self: FileComparer, name: SafeName, principal: bytes) -> None:
        await trio.lowlevel.checkpoint()
        read.append(name.text)
        if len(read) == 10:
            all_read.set()

    monkeypatch.setattr(FileComparer, "_read", note)
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        comparer = FileComparer(store, Committer(store))
        for number in range(9):
            comparer._ask((f"many {number}",), b"a" * 16, lambda: None)
        comparer._ask(("one",), b"b" * 16, lambda: None)
        nursery.start_soon(comparer.run)
        with trio.fail_after(STUCK_S):
            await all_read.wait()
        nursery.cancel_scope.cancel()
    assert read.index("one") <= 2
    assert sorted(read) == sorted(["one", *(f"many {number}" for number in range(9))])


@real
@pytest.mark.parametrize("times", [1, 100])
async def test_what_changes_while_it_is_read_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The version moves while the file is read: it is read again, and if it never rests, both are kept."""
    made(tmp_path)
    path = tmp_path / "served" / SMALL.filename
    path.write_bytes(SMALL.content)
    left = [times]
    read_into = LocalReader.read_into

    def restless(reader: LocalReader, position: int, view: memoryview) -> int:
        count = read_into(reader, position, view)
        if left[0]:
            left[0] -= 1
            os.utime(path, ns=(left[0], left[0]))
        return count

    monkeypatch.setattr(LocalReader, "read_into", restless)
    async with serving_folder(made(tmp_path)) as (_, _, peer):
        committed = await brief(peer, 1, SMALL)
        assert committed.there == (times == 1)
        assert committed.stored_as == ("a.bin" if times == 1 else "a (1).bin")
    monkeypatch.undo()
    for name in files_in(tmp_path / "served"):
        assert (tmp_path / "served" / name).read_bytes() == SMALL.content


@real
@pytest.mark.clause("BP1-COM-024")
async def test_the_digest_of_a_file_is_that_of_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed underneath while it is read, or after, with its mtime put back: LIST tells neither the old one nor a mix."""
    folder = made(tmp_path)
    new = bytes_of(len(BIG.content), 77)
    fresh = Sample(new, BIG.filename)
    path = folder / BIG.filename
    read_into = LocalReader.read_into
    changed = []

    def change() -> None:
        before = path.stat()
        with path.open("r+b") as file:
            file.write(new)
        os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))

    def meddled(reader: LocalReader, position: int, view: memoryview) -> int:
        count = read_into(reader, position, view)
        if not changed:
            changed.append(position)
            change()
        return count

    async with serving_folder(folder) as (_, _, peer):
        await whole(peer, 1, BIG)
        monkeypatch.setattr(LocalReader, "read_into", meddled)
        item = await stat(peer, 3, BIG.filename)
        assert changed
        assert item.b3sum == fresh_b3sum(fresh)
        new = bytes_of(len(BIG.content), 78)
        change()
        assert (await stat(peer, 5, BIG.filename)).b3sum == fresh_b3sum(Sample(new))
        assert (await stat(peer, 7, BIG.filename)).root is None


def fresh_b3sum(sample: Sample) -> bytes:
    return blake3(sample.content).digest()


async def stat(peer: RawPeer, stream: int, name: str) -> FileItem:
    await peer.say(stream, List(ListKind.FILES, name, exact=True, b3sum=True))
    (item,) = (await peer.expect(Result, stream)).items
    assert isinstance(item, FileItem)
    return item


# ---- rules, over the wire, on a store in memory


quick = pytest.mark.trio(run=run)


@quick
async def test_replace_after_keep_replaces_and_removing_ends_everything() -> None:
    async with serving() as served:
        peer = await served.peer()
        await brief(peer, 1, SMALL)
        second = again(SMALL, 2, content=bytes_of(3000, 9))
        kept = await brief(peer, 3, second)
        assert kept.stored_as == "a (1).bin"
        replaced = await brief(peer, 5, second, REPLACE)
        assert (replaced.stored_as, replaced.file_id) == ("a.bin", kept.file_id)
        for rule, count in ((KEEP, 0), (REPLACE, 1), (None, 1)):
            stream = 7 + 2 * (rule or 0) if rule is not None else 13
            await peer.say(stream, List(ListKind.RECEIPTS, ids=(second.sourceid,), if_exists=rule))
            assert len((await peer.expect(Result, stream)).items) == count
        await peer.say(15, Remove(RemoveKind.FILE, replaced.file_id))
        await peer.expect(Result, 15)
        await peer.say(17, Fetch("a.bin"))
        await peer.expect_error(Code.UNKNOWN_FILE, Scope.STREAM, 17)


@quick
async def test_a_resumed_upload_may_have_another_rule() -> None:
    """BP1-COM-015: what is held stays, and the last OPEN's rule counts."""
    async with serving() as served:
        peer = await served.peer()
        await brief(peer, 1, again(BIG, 2, content=b"in the way"))
        await peer.say(3, BIG.open(if_exists=REFUSE))
        await peer.expect_error(Code.FILE_EXISTS, Scope.STREAM, 3)
        await peer.say(5, BIG.open())
        await peer.expect(Opened, 5)
        await peer.say(5, *BIG.block(0))
        await peer.wait_acked(0)
        await peer.say(7, BIG.open(attempt=2, if_exists=REPLACE))
        await peer.expect_error(Code.SUPERSEDED, Scope.STREAM, 5)
        assert (await peer.expect(Opened, 7)).position == MIB
        for blockno in (1, 2):
            await peer.say(7, *BIG.block(blockno))
        await peer.say(7, BIG.commit())
        assert (await peer.expect(Committed, 7)).stored_as == BIG.filename


@quick
@pytest.mark.parametrize("rule", [SKIP, UPDATE])
async def test_who_follows_an_upload_that_is_left_is_told(rule: int) -> None:
    """The name is taken while the upload is under way: LEFT, and the file id names nothing."""
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, BIG.open(if_exists=rule))
        opened = await peer.expect(Opened, 1)
        await peer.say(1, *BIG.block(0))
        await peer.wait_acked(0)
        await brief(peer, 3, again(BIG, 2, content=b"first"))
        for blockno in (1, 2):
            await peer.say(1, *BIG.block(blockno))
        await peer.say(1, BIG.commit())
        left = await peer.expect(Committed, 1)
        assert (left.left, left.filesize, left.stored_as) == (True, 5, BIG.filename)
        await peer.say(5, Fetch("", opened.file_id))
        await peer.expect_error(Code.UNKNOWN_FILE, Scope.STREAM, 5)
        await peer.say(7, List(ListKind.UPLOADS))
        assert (await peer.expect(Result, 7)).items == ()


@quick
@pytest.mark.clause("BP1-PRN-005")
async def test_a_quota_counts_the_file_once() -> None:
    door_register, token = Register({}).with_token(
        "alice", folder="alice", quota=5 * MIB, scopes=EVERYTHING, now_ms=0, expires_ms=None
    )
    async with serving(policy=AuthPolicy(door_register, None)) as served:
        peer = await served.peer()
        await peer.say(1, Auth(token))
        await peer.expect(Result, 1)
        await whole(peer, 3, BIG)
        for number in range(2, 5):
            same = again(BIG, number)
            assert (await whole(peer, 1 + 2 * number, same)).there
        for number in range(5, 9):
            same = again(BIG, number)
            await peer.say(1 + 2 * number, same.open(root=same.root))
            assert (await peer.expect(Committed, 1 + 2 * number)).there
        assert sum(served.server.engine.quotas.used().values()) == len(BIG.content)
        assert not (await whole(peer, 21, again(BIG, 9, filename="other"))).there


@quick
@pytest.mark.clause("BP1-PRN-006", "BP1-PRN-010")
async def test_who_may_only_write_learns_nothing_by_sending() -> None:
    """The same question with the bytes that are there and with others: alike in answers and in what the store is asked."""
    heard: list[list[tuple[bool, bool, bytes, int, str]]] = []
    worked: list[list[str]] = []
    for content in (SMALL.content, bytes_of(3000, 9)):
        register, token = Register({}).with_token(
            "drop", folder="drop", quota=None, scopes=Scopes.WRITE, now_ms=0, expires_ms=None
        )
        async with serving(policy=AuthPolicy(register, None)) as served:
            peer = await served.peer()
            await peer.say(1, Auth(token))
            await peer.expect(Result, 1)
            await brief(peer, 3, SMALL)
            asked = again(SMALL, 2, content=content)
            before = len(served.store.works)  # type: ignore[attr-defined]
            answers = [await whole(peer, 5, asked, root=asked.root)]
            await peer.say(7, again(asked, 3).open(if_exists=SKIP, root=asked.root))
            answers.append(await peer.expect(Committed, 7))
            await peer.say(9, again(asked, 4).open(if_exists=REFUSE, root=asked.root))
            await peer.expect_error(Code.FILE_EXISTS, Scope.STREAM, 9)
            heard.append(
                [
                    (one.left, one.there, one.file_id if one.left else b"", one.filesize, one.stored_as)
                    for one in answers
                ]
            )
            worked.append([type(work).__name__ for work in served.store.works[before:]])  # type: ignore[attr-defined]
    assert heard[0] == heard[1]
    assert worked[0] == worked[1]
    assert heard[0] == [(False, False, b"", 3000, "a (1).bin"), (True, False, bytes(16), 0, "a.bin")]


@quick
async def test_a_dialect_finds_the_file_that_is_there() -> None:
    """Sent natively, then by an old client that knows no sourceid of it: one file."""
    async with serving(dialects=[Sourceid()]) as served:
        peer = await served.peer()
        await brief(peer, 1, SMALL)
        stream = served.connect()
        line = f"Content-Length={len(SMALL.content)};filename={SMALL.filename};sourceid=\r\n"
        await stream.send_all(line.encode())
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += await stream.receive_some(1000)
        await stream.send_all(SMALL.content)
        await wait_all_tasks_blocked()
        await stream.aclose()
        entries, _ = served.store.files("", True, "", 10)
        assert [entry.filename.text for entry in entries] == [SMALL.filename]


@real
async def test_the_log_says_what_became_of_an_upload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = LocalStore.open(made(tmp_path))
    server = Server(store, observer=Log())
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        here, there = memory_stream_pair()
        nursery.start_soon(server.serve_stream, there)
        peer = RawPeer(here)
        await peer.greet()
        await brief(peer, 1, SMALL)
        await brief(peer, 3, again(SMALL, 2))
        await brief(peer, 5, again(SMALL, 3, content=b"x"), SKIP)
        await peer.say(7, again(SMALL, 4).open(root=SMALL.root))
        await peer.expect(Committed, 7)
        server.stop()
    said = [record.message for record in caplog.records if record.message.startswith("upload ")]
    told = [one for one in said if "begun" not in one]
    events = [
        "upload committed",
        "upload was there already",
        "upload left what was there",
        "upload was there already",
    ]
    assert [one.startswith(event) for one, event in zip(told, events, strict=True)] == [True] * 4


@quick
async def test_a_file_is_fetched_on_by_either_id_as_its_version() -> None:
    """BP1-FET-017: who followed the second upload goes on with what it became."""
    async with serving() as served:
        peer = await served.peer()
        ids = [(await brief(peer, 1 + 2 * number, again(SMALL, number))).file_id for number in range(3)]
        for file_id in ids:
            peer = await served.peer()
            await peer.say(1, Fetch("", file_id, version=file_id))
            opened = await peer.expect(Open, 1)
            assert (opened.version, opened.file_id) == (file_id, file_id)


@quick
@pytest.mark.parametrize("rule", [KEEP, REFUSE, REPLACE])
async def test_a_folder_with_a_root_takes_on_its_facts(rule: int) -> None:
    """BP1-BLK-016 holds whatever OPEN says of the root."""
    folder = Sample(b"", "folder", "inode/directory", sourceid=b"a folder .......")
    async with serving() as served:
        peer = await served.peer()
        for number in range(2):
            same = again(folder, number, filetype=folder.filetype)
            committed = await whole(
                peer, 1 + 2 * number, same, root=same.root, if_exists=rule, mode=0o700 + number
            )
            assert (committed.stored_as, committed.left) == ("folder", False)
        assert served.store.stat(SafeName.parse("folder")).mode == 0o701
