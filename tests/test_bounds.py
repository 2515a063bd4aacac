"""What one peer can take is bounded: the rules one by one; ``campaigns/attack_bounds.py`` measures them together."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
from blake3 import blake3
from peers import MIB, RawPeer, Sample, WatchedStore, bytes_of, run, serving
from trio.testing import wait_all_tasks_blocked

from blockproto.client_side import upload_many
from blockproto.common.blocks import digest_of, root_of
from blockproto.common.names import SafeName
from blockproto.errors import BlockprotoError, Code, FileExists, Scope, SourceChanged, UnknownFile
from blockproto.observability.observer import CURRENT_CONNECTION, ConnectionLabel
from blockproto.results import Receipt, UploadJob
from blockproto.store import (
    BlockDone,
    Discard,
    Facts,
    Finish,
    IfExists,
    Remove,
    StoredFile,
    StoredReader,
    Upload,
    UploadKey,
    Work,
    folder_io,
)
from blockproto.store.local import batch
from blockproto.store.local.check import check_store
from blockproto.store.local.finished_files import FinishedFiles
from blockproto.store.local.ledger import READERS_MAX
from blockproto.store.local.ledger_view import View
from blockproto.store.local.name_choice import COMPARED_MAX, NameChooser
from blockproto.store.local.store import LocalStore
from blockproto.store.open_file import Descriptors, OpenFile
from blockproto.testing.memory_store import MemoryStore, MemoryUpload
from blockproto.transfer import file_hashing, slow_disk, threads
from blockproto.transfer.threads import Kind, run_in_thread
from blockproto.wire import (
    Ack,
    Commit,
    Committed,
    Credit,
    Error,
    Fetch,
    Hello,
    List,
    ListKind,
    Message,
    Opened,
    RemoveKind,
    Result,
)
from blockproto.wire import Remove as RemoveMessage

quick = pytest.mark.trio(run=run)

PHOTO = Sample(bytes_of(2 * MIB + 5), "photo.jpg")


async def upload(peer: RawPeer, stream: int, sample: Sample) -> Committed:
    await peer.say(stream, sample.open())
    await peer.expect(Opened, stream)
    for blockno in range(sample.blocknum):
        await peer.say(stream, *sample.block(blockno))
    await peer.say(stream, sample.commit())
    return await peer.expect(Committed, stream)


class CountingStore(WatchedStore):
    """A store that counts what is read of its finished files, and calls ``before_read`` first."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0
        self.open_now = 0
        self.before_read: Callable[[], None] = lambda: None

    def open_file(
        self, filename: SafeName | None, file_id: bytes | None, within: SafeName | None = None
    ) -> StoredReader:
        reader = super().open_file(filename, file_id, within)
        read_into, close = reader.read_into, reader.close
        self.open_now += 1

        def counted(position: int, view: memoryview) -> int:
            self.before_read()
            read = read_into(position, view)
            self.read += read
            return read

        def closed() -> None:
            self.open_now -= 1
            close()

        reader.read_into, reader.close = counted, closed  # type: ignore[method-assign]
        return reader


# ---- digests of files -------------------------------------------------------------------------------------------


@quick
@pytest.mark.clause("BP1-LIM-008")
async def test_a_file_is_read_once_for_all_who_want_its_digest() -> None:
    store = CountingStore()
    async with serving(store) as served:
        peers = [await served.peer() for _ in range(3)]
        await upload(peers[0], 1, PHOTO)
        ask = List(ListKind.FILES, PHOTO.filename, exact=True, b3sum=True)
        for peer in peers:
            for stream in range(3, 43, 2):
                await peer.say(stream, ask)
        for peer in peers:
            for _ in range(20):
                (item,) = (await peer.expect(Result)).items
                assert item.b3sum == blake3(PHOTO.content).digest()
        assert store.read == len(PHOTO.content)
        assert store.open_now == 0


@quick
async def test_who_waits_on_reads_on_when_who_asked_first_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashing, "STEP_LENGTH", 64 * 1024)
    monkeypatch.setattr(file_hashing, "READ_LENGTH", 64 * 1024)
    store = CountingStore()
    async with serving(store) as served:
        first, second = await served.peer(), await served.peer()
        await upload(first, 1, PHOTO)
        reads = 0

        def go() -> None:
            nonlocal reads
            reads += 1
            if reads == 1:
                served.nursery.start_soon(first.stream.aclose)

        store.before_read = go
        ask = List(ListKind.FILES, PHOTO.filename, exact=True, b3sum=True)
        await first.say(3, ask)
        await second.say(3, ask)
        (item,) = (await second.expect(Result)).items
        assert item.b3sum == blake3(PHOTO.content).digest()
        assert store.read == len(PHOTO.content)


@quick
async def test_nothing_is_read_any_more_when_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashing, "STEP_LENGTH", 64 * 1024)
    monkeypatch.setattr(file_hashing, "READ_LENGTH", 64 * 1024)
    store = CountingStore()
    async with serving(store) as served:
        peer = await served.peer()
        await upload(peer, 1, PHOTO)
        store.before_read = lambda: served.nursery.start_soon(peer.stream.aclose)
        await peer.say(3, List(ListKind.FILES, PHOTO.filename, exact=True, b3sum=True))
        await wait_all_tasks_blocked()
        assert 0 < store.read < len(PHOTO.content)
        assert served.server.engine.hashing.count == 0
        assert store.open_now == 0


# ---- threads ----------------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_no_kind_of_work_waits_for_the_threads_of_another() -> None:
    """As many as want to list and read: a commit, a look and a write begin at once."""
    let_go = trio.Event()

    def hold() -> None:
        trio.from_thread.run(let_go.wait)

    async with trio.open_nursery() as nursery:
        for kind in (Kind.LIST, Kind.READ, Kind.HASH):
            for _ in range(3 * kind.threads):
                nursery.start_soon(run_in_thread, hold, kind)
        await wait_all_tasks_blocked()
        with trio.fail_after(20):
            for kind in (Kind.COMMIT, Kind.LOOK, Kind.WRITE):
                assert await run_in_thread(lambda: 7, kind) == 7
        let_go.set()
    assert sum(kind.threads for kind in Kind) < 40


@pytest.mark.trio
@pytest.mark.clause("BP1-LIM-007")
async def test_what_one_peer_looks_up_keeps_no_other_waiting(tmp_path: Path) -> None:
    """FETCH and OPEN on very many streams: a few of them are looked up at once, whatever they are."""
    let_go, all_look, store = trio.Event(), trio.Event(), CountingStore()
    open_file, open_upload, held, looking = store.open_file, store.open_upload, True, 0

    async def wait() -> None:
        nonlocal looking
        looking += 1
        if looking == Kind.LOOK.of_one:
            all_look.set()
        await let_go.wait()

    def hold() -> None:
        if held:
            trio.from_thread.run(wait)

    def open_file_late(*args: Any, **options: Any) -> StoredReader:
        hold()
        return open_file(*args, **options)

    def open_upload_late(*args: Any, **options: Any) -> Upload | StoredFile:
        hold()
        return open_upload(*args, **options)

    store.open_file, store.open_upload = open_file_late, open_upload_late  # type: ignore[method-assign]
    async with serving(store) as served:
        first, second = await served.peer(), await served.peer()
        try:
            for stream in range(1, 81, 4):
                await first.say(stream, Fetch("", file_id=bytes([stream]) * 16))
                sample = Sample(bytes_of(2 * MIB), f"begun{stream}", sourceid=bytes([stream]) * 16)
                await first.say(stream + 2, sample.open())
            with trio.fail_after(20):
                await all_look.wait()
            await wait_all_tasks_blocked()
            held = False
            with trio.fail_after(20):
                await second.say(1, Fetch("", file_id=b"x" * 16))
                await second.expect_error(Code.UNKNOWN_FILE, Scope.STREAM, 1)
                await second.say(3, PHOTO.open())
                await second.expect(Opened, 3)
            assert looking == Kind.LOOK.of_one
        finally:
            let_go.set()
        with trio.fail_after(20):
            answers: set[int] = set()
            while len(answers) < 40:
                heard = await first.hear()
                if isinstance(heard.message, Error if heard.stream % 4 == 1 else Opened):
                    answers.add(heard.stream)
    assert Kind.LOOK.of_one <= Kind.LOOK.threads // 2


@pytest.mark.trio
@pytest.mark.parametrize(
    "question",
    [
        Fetch("", file_id=b"x" * 16),
        Fetch("nothing", first=1),
        List(ListKind.FILES, "nothing", exact=True, b3sum=True),
        RemoveMessage(RemoveKind.FILE, bytes(16), "nothing"),
        RemoveMessage(RemoveKind.UPLOAD, b"x" * 16, ""),
    ],
    ids=["fetch-id", "fetch-range", "digest", "remove", "discard"],
)
async def test_refusals_leave_nothing_to_collect(question: Message) -> None:
    """Collecting what thousands of them left in cycles would hold everybody for a quarter of a second."""
    async with serving(MemoryStore()) as served:
        peer = await served.peer()

        async def ask(first: int) -> None:
            for stream in range(first, first + 20, 2):
                await peer.say(stream, question)
                await peer.expect(Error, stream)

        await ask(1)
        gc.collect()
        gc.disable()
        try:
            await ask(21)
            assert gc.collect() < 50
        finally:
            gc.enable()
            await peer.stream.aclose()


@pytest.mark.trio
async def test_a_share_of_the_threads_is_forgotten_with_its_last_user() -> None:
    token = CURRENT_CONNECTION.set(ConnectionLabel(1, "somebody"))
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(3 * Kind.LOOK.of_one):
                nursery.start_soon(run_in_thread, lambda: None)
    finally:
        CURRENT_CONNECTION.reset(token)
    assert threads._all_threads()._shares == {}


# ---- what is fetched --------------------------------------------------------------------------------------------


@quick
@pytest.mark.clause("BP1-LIM-003")
async def test_nothing_is_read_before_there_is_credit_for_it() -> None:
    """Four hundred FETCHes of 2 MiB on a connection of 1 MiB: one MiB and a few pieces are read, whatever is asked."""
    store = CountingStore()
    async with serving(store) as served:
        keeper = await served.peer()
        await upload(keeper, 1, PHOTO)
        peer = await served.peer(Hello(agent="raw", connection_allowance=MIB, stream_allowance=MIB // 4))
        for stream in range(1, 801, 2):
            await peer.say(stream, Fetch(PHOTO.filename))
        heard = 0
        with trio.move_on_after(60):
            while True:
                heard += len((await peer.hear()).payload)
        assert heard <= MIB
        assert store.read <= heard + 8 * MIB // 4
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert store.open_now == 0


@quick
@pytest.mark.clause("BP1-LIM-003", "BP1-STR-018")
async def test_streams_without_credit_hold_back_no_other() -> None:
    """Ten streams never get credit again; the eleventh gets all it wants, and its file arrives."""
    store = CountingStore()
    async with serving(store) as served:
        peer = await served.peer(Hello(agent="raw", connection_allowance=8 * MIB, stream_allowance=MIB // 4))
        await upload(peer, 1, PHOTO)
        for stream in range(3, 23, 2):
            await peer.say(stream, Fetch(PHOTO.filename))
        content = bytearray()
        await peer.say(23, Fetch(PHOTO.filename))
        while True:
            heard = await peer.hear()
            if heard.stream != 23:
                continue
            content += heard.payload
            if isinstance(heard.message, Commit):
                break
            if heard.payload:
                received = len(content)
                await peer.say(23, Credit(allowance=received + MIB // 4, received=received))
        assert bytes(content) == PHOTO.content
        assert heard.message.root == PHOTO.root
        await peer.stream.aclose()


@quick
async def test_small_files_are_not_read_without_credit_either() -> None:
    store = CountingStore()
    async with serving(store) as served:
        keeper = await served.peer()
        small = [Sample(bytes_of(60_000, no), f"small{no}", sourceid=bytes([no]) * 16) for no in range(64)]
        for no, sample in enumerate(small):
            await keeper.say(2 * no + 1, *sample.block(0, commit=True))
            await keeper.expect(Committed, 2 * no + 1)
        peer = await served.peer(Hello(agent="raw", connection_allowance=MIB, stream_allowance=MIB // 4))
        for no in range(256):
            await peer.say(2 * no + 1, Fetch(small[no % 64].filename, length=64 * 1024))
        heard = 0
        with trio.move_on_after(60):
            while True:
                heard += len((await peer.hear()).payload)
        assert heard <= MIB
        assert store.read <= heard + 2 * 64 * 1024
        await peer.stream.aclose()


# ---- descriptors ------------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-LIM-007")
def test_files_that_rest_are_closed_and_opened_again(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path)
    store.context.descriptors._most = 3
    for number in range(20):
        (tmp_path / f"file{number}").write_bytes(bytes([number]) * 100)
    readers = [store.open_file(SafeName.parse(f"file{number}"), None) for number in range(20)]
    memory = memoryview(bytearray(100))
    for number, reader in (*enumerate(readers), *enumerate(readers)):
        assert store.context.descriptors.count <= 4
        assert reader.read_into(0, memory) == 100
        assert bytes(memory) == bytes([number]) * 100
        assert reader.unchanged()
    (tmp_path / "file3").write_bytes(b"other")
    os.unlink(tmp_path / "file4")
    for number in (3, 4):
        assert not readers[number].unchanged()
        with pytest.raises((SourceChanged, UnknownFile)):
            readers[number].read_into(0, memory)
    for reader in readers:
        reader.close()
    assert store.context.descriptors.count == 0
    store.close()


@pytest.mark.clause("BP1-LIM-007")
def test_uploads_that_rest_are_closed_and_go_on(tmp_path: Path) -> None:
    """Uploads with and without OPEN, more than descriptors; bytes, and what a sync of each would not see, are kept."""
    store = LocalStore.open(tmp_path)
    store.context.descriptors._most = 2
    synced: list[int] = []
    contents = {number: bytes_of(2 * MIB + number, number) for number in range(12)}
    uploads: dict[int, Upload] = {}
    for number, content in contents.items():
        facts = Facts(SafeName.parse(f"{number}"), "a/b", len(content))
        upload = store.open_upload(UploadKey(bytes(16), bytes([number]) * 16), facts, 1)
        assert not isinstance(upload, StoredFile)
        uploads[number] = upload
    for at in range(0, 2 * MIB, MIB // 2):
        for number, upload in uploads.items():
            upload.write(at, memoryview(contents[number])[at : at + MIB // 2])
            assert store.context.descriptors.count <= 3
    with mock.patch.object(batch, "syncfs", lambda fd: synced.append(fd) or folder_io.syncfs(fd)):
        for number, upload in uploads.items():
            content = contents[number]
            upload.write(2 * MIB, memoryview(content)[2 * MIB :])
            spans = [content[at : at + MIB] for at in range(0, len(content), MIB)]
            digests = [digest_of(span) for span in spans]
            works: list[Work] = [
                BlockDone(upload, 1, no, len(span), digests[no]) for no, span in enumerate(spans)
            ]
            root = root_of(digests, len(digests))
            *of_blocks, _ = store.decide([*works, Finish(upload, 1, root, len(content), upload.facts)])
            assert of_blocks == [None] * len(works)
    assert synced, "what was closed before its sync needs a sync of everything"
    for number, content in contents.items():
        assert (tmp_path / str(number)).read_bytes() == content
    store.close()


def test_a_descriptor_in_use_is_never_closed(tmp_path: Path) -> None:
    pool = Descriptors(0)
    (tmp_path / "a").write_bytes(b"a")
    opened = [OpenFile(lambda: os.open(tmp_path / "a", os.O_RDONLY), pool) for _ in range(3)]
    fds = [one.take() for one in opened]
    assert len(set(fds)) == 3
    opened[0].rest()
    assert os.pread(fds[0], 1, 0) == b"a"
    for one in opened:
        one.give()
    with pytest.raises(OSError):
        os.fstat(fds[0])
    other = OpenFile(lambda: os.open(tmp_path / "a", os.O_RDONLY), pool)
    other.take()
    other.give()
    for one in (*opened[1:], other):
        one.rest()
    assert pool.count == 0


# ---- uploads by their id ----------------------------------------------------------------------------------------


def test_an_unfinished_upload_is_found_by_its_id(tmp_path: Path) -> None:
    """Also after a restart; not by somebody else, not when it has ended; and without looking at the others."""
    key, facts = UploadKey(b"p" * 16, b"s" * 16), Facts(SafeName.parse("name"), "a/b", 2 * MIB)
    content = bytes_of(2 * MIB)
    for restarted in (False, True):
        store = LocalStore.open(tmp_path)
        upload = store.open_upload(key, facts, 1)
        assert not isinstance(upload, StoredFile)
        if not upload.held:
            assert store.upload_of(key.principal, upload.file_id) is None
            upload.write(0, memoryview(content))
            store.decide([BlockDone(upload, 1, 0, MIB, digest_of(content[:MIB]))])
        with mock.patch.object(View, "uploads", side_effect=AssertionError):
            found = store.upload_of(key.principal, upload.file_id)
            assert found is not None
            assert (found.key, found.position, found.held_count) == (key, MIB, 1)
            assert store.upload_of(bytes(16), upload.file_id) is None
            assert store.upload_of(key.principal, bytes(16)) is None
        upload.close()
        if restarted:
            store.decide([Discard(key)])
            assert store.upload_of(key.principal, upload.file_id) is None
        store.close()


@quick
async def test_fetch_of_an_unknown_id_looks_through_no_uploads() -> None:
    async with serving() as served:
        peer = await served.peer()
        for number in range(20):
            sample = Sample(bytes_of(2 * MIB), f"begun{number}", sourceid=bytes([number + 1]) * 16)
            await peer.say(2 * number + 1, sample.open())
            await peer.expect(Opened, 2 * number + 1)
            await peer.say(2 * number + 1, *sample.block(0))
        await peer.expect(Ack)
        with mock.patch.object(served.store, "uploads", side_effect=AssertionError):
            for number in range(50):
                stream = 2 * number + 101
                await peer.say(stream, Fetch("", file_id=bytes([number]) * 15 + b"x"))
                await peer.expect_error(Code.UNKNOWN_FILE, Scope.STREAM, stream)


# ---- many of one name -------------------------------------------------------------------------------------------


def test_many_files_of_one_name_cost_no_more_each(tmp_path: Path) -> None:
    """The thousandth file of a name is looked for as often as the hundred-and-first."""
    store = LocalStore.open(tmp_path)
    (tmp_path / "name.txt").touch()
    for number in range(1, 1001):
        (tmp_path / f"name ({number}).txt").touch()
    looks = 0
    really = NameChooser.look

    def counting(self: NameChooser, name: str) -> object:
        nonlocal looks
        looks += 1
        return really(self, name)

    content = b"other"
    with mock.patch.object(NameChooser, "look", counting):
        facts = Facts(SafeName.parse("name.txt"), "a/b", len(content))
        upload = store.begin_brief(UploadKey(bytes(16), b"s" * 16), facts, 0)
        upload.write(0, memoryview(content))
        done = BlockDone(upload, 0, 0, len(content), digest_of(content))
        finish = Finish(upload, 0, digest_of(content), len(content), facts, (done,))
        [outcome] = store.decide([finish])
    assert isinstance(outcome, StoredFile)
    assert outcome.stored_as == "name (1001).txt"
    assert looks <= 60
    store.close()


def _of_one_name(store: LocalStore, numbers: range, **facts: Any) -> list[Finish]:
    works = []
    for number in numbers:
        content = number.to_bytes(8, "big")
        wanted = Facts(SafeName.parse("name.txt"), "a/b", len(content), **facts)
        upload = store.begin_brief(UploadKey(bytes(16), content * 2), wanted, 0)
        upload.write(0, memoryview(content))
        done = BlockDone(upload, 0, 0, len(content), digest_of(content))
        works.append(Finish(upload, 0, digest_of(content), len(content), wanted, (done,), reader=True))
    return works


def test_a_batch_of_one_name_looks_at_each_name_once(tmp_path: Path) -> None:
    """Also where every one of them is compared with all that were given before it."""
    store = LocalStore.open(tmp_path)
    store.decide(_of_one_name(store, range(200)))
    looked: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    look, root_of = NameChooser.look, FinishedFiles.root_of

    def looking(self: NameChooser, name: str) -> os.stat_result | None:
        looked[name] += 1
        return look(self, name)

    def asking(self: FinishedFiles, view: View, name: str, found: os.stat_result) -> bytes | None:
        asked[name] += 1
        return root_of(self, view, name, found)

    batch = _of_one_name(store, range(200, 500))
    with mock.patch.object(NameChooser, "look", looking), mock.patch.object(FinishedFiles, "root_of", asking):
        outcomes = store.decide(batch)
    names = [outcome.stored_as for outcome in outcomes if isinstance(outcome, StoredFile)]
    assert names == [f"name ({number}).txt" for number in range(200, 500)]
    assert sum(looked.values()) <= len(looked) + 1  # once more of the last, when it has its name
    assert max(asked.values()) == 1
    assert len(asked) <= COMPARED_MAX
    store.close()


def test_what_a_batch_remembers_of_a_name_ends_with_what_has_it(tmp_path: Path) -> None:
    """A name that is removed is free for the next work of the batch."""
    store = LocalStore.open(tmp_path)
    store.decide(_of_one_name(store, range(1)))
    refused, taken = _of_one_name(store, range(1, 3), if_exists=IfExists.REFUSE)
    remove = Remove(SafeName.parse("name.txt"), None, False)
    outcomes = store.decide([refused, remove, taken])
    assert [type(outcome) for outcome in outcomes] == [FileExists, type(None), StoredFile]
    store.close()
    assert check_store(tmp_path, read=True) == []


def test_works_of_one_batch_that_set_the_time_of_a_file_keep_each_other_s_receipts(tmp_path: Path) -> None:
    """Each is the same file again, which has another mtime since the one before."""
    store = LocalStore.open(tmp_path)
    (first,) = _of_one_name(store, range(1))
    store.decide([first])
    again = []
    for number in range(1, 4):
        facts = replace(first.facts, if_exists=IfExists.REPLACE, mtime_ns=number * 10**18)
        upload = store.begin_brief(UploadKey(bytes(16), bytes([number]) * 16), facts, 0)
        upload.write(0, memoryview(bytes(8)))
        again.append(Finish(upload, 0, first.root, 8, facts, (BlockDone(upload, 0, 0, 8, first.root),), True))
    outcomes = store.decide(again)
    assert [isinstance(outcome, StoredFile) and outcome.there for outcome in outcomes] == [True] * 3
    assert (tmp_path / "name.txt").stat().st_mtime_ns == 3 * 10**18
    ids = [work.upload.key.sourceid for work in (first, *again)]
    assert [receipt.sourceid for receipt in store.receipts(bytes(16), ids)] == ids
    store.close()
    assert check_store(tmp_path, read=True) == []


# ---- places for readers of the ledger ---------------------------------------------------------------------------


def test_refusals_that_are_remembered_keep_no_place_in_the_ledger(tmp_path: Path) -> None:
    """Five hundred FETCHes of what is not there ended the store: each exception kept a read transaction."""
    store = LocalStore.open(tmp_path)
    kept: list[BlockprotoError] = []
    for number in range(2 * READERS_MAX):
        with pytest.raises(UnknownFile) as raised:
            store.open_file(None, number.to_bytes(16, "big"))
        kept.append(raised.value)
        with pytest.raises(UnknownFile) as raised:
            store.stat(SafeName.parse(f"nothing/{number}"))
        kept.append(raised.value)
    assert store.context.ledger._env.readers() == "(no active readers)\n"
    assert len(kept) == 4 * READERS_MAX
    store.close()


# ---- slow disks -------------------------------------------------------------------------------------------------


class ThreadStore(WatchedStore):
    """A store that remembers where its uploads were written: whether that was the main thread."""

    def __init__(self) -> None:
        super().__init__()
        self.in_main: list[bool] = []

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> MemoryUpload:
        upload = super().begin_brief(key, facts, attempt)
        write = upload.write

        def remembered(position: int, piece: memoryview) -> None:
            self.in_main.append(threading.current_thread() is threading.main_thread())
            write(position, piece)

        upload.write = remembered  # type: ignore[method-assign]
        return upload


@pytest.mark.trio
@pytest.mark.clause("BP1-STR-018")
async def test_a_file_without_open_is_written_where_a_slow_disk_holds_up_nobody() -> None:
    store = ThreadStore()
    async with serving(store) as served:
        peer = await served.peer()
        sample = Sample(bytes_of(300_000), "brief")
        for slow in (False, True):
            for _ in range(16):
                served.server.engine.disk.took(1.0 if slow else 0.0)
            store.in_main.clear()
            stream = 3 if slow else 1
            message, content = sample.block(0, commit=True, sourceid=bytes([stream]) * 16)
            await peer.say(stream, message, content)
            assert (await peer.expect(Committed, stream)).filesize == len(content)
            assert store.in_main
            assert set(store.in_main) == {not slow}
        await peer.stream.aclose()


def test_what_is_carried_in_memory_needs_no_thread(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path)
    small = store.begin_brief(UploadKey(bytes(16), b"1" * 16), Facts(SafeName.parse("s"), "a/b", 5), 0)
    large = store.begin_brief(UploadKey(bytes(16), b"2" * 16), Facts(SafeName.parse("l"), "a/b", MIB), 0)
    assert (small.in_memory, large.in_memory) == (True, False)
    for upload in (small, large):
        upload.close()
    store.close()


@pytest.mark.trio
async def test_a_client_reads_small_files_where_a_slow_disk_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one file has shown counts for the next, however small they are, and whatever reads them."""
    in_main: list[bool] = []
    really = upload_many._read_whole

    def remembered(one: upload_many.Prepared) -> bytes:
        in_main.append(threading.current_thread() is threading.main_thread())
        return really(one)

    monkeypatch.setattr(upload_many, "_read_whole", remembered)
    for number in range(6):
        (tmp_path / f"{number}").write_bytes(bytes_of(100, number))
    async with serving(files=False) as served, served.client() as client:
        slow_disk.local_disk().took(1.0)
        jobs = [UploadJob(tmp_path / f"{number}", f"{number}") for number in range(6)]
        async for _, outcome in client.upload_all(jobs):
            assert isinstance(outcome, Receipt), outcome
    assert in_main == [False] * 6
