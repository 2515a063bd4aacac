"""What a server answers besides uploads: LIST, REMOVE and FETCH."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import trio
from blake3 import blake3
from peers import (
    MIB,
    Gate,
    Heard,
    RawPeer,
    Sample,
    Served,
    WatchedStore,
    bytes_of,
    content_of,
    names_in,
    run,
    serving,
)
from trio.testing import wait_all_tasks_blocked

from blockproto.common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, digest_of, root_of
from blockproto.common.names import SafeName
from blockproto.errors import Code, Scope
from blockproto.serving.handlers.requests import RequestHandler
from blockproto.serving.handlers.stored_source import StoredSource
from blockproto.store import FileEntry, StoredReader
from blockproto.wire import (
    HEADER_LENGTH,
    Ack,
    Block,
    Commit,
    Committed,
    Credit,
    EntryKind,
    Error,
    Fetch,
    FileItem,
    Have,
    Hello,
    List,
    ListKind,
    Message,
    Open,
    Opened,
    Piece,
    Priority,
    ReceiptItem,
    Remove,
    RemoveKind,
    Result,
    UploadItem,
    encode_frame,
)

quick = pytest.mark.trio(run=run)

PHOTO = Sample(bytes_of(2 * MIB + 5), "folder/photo.jpg", "image/jpeg")


class Asker:
    """A scripted client that asks on one stream after another."""

    def __init__(self, peer: RawPeer) -> None:
        self.peer = peer
        self.stream = -1

    async def say(self, message: Message, payload: bytes = b"") -> int:
        """Begin a stream with ``message``."""
        self.stream += 2
        await self.peer.say(self.stream, message, payload)
        return self.stream

    async def ask(self, message: Message) -> Result:
        return await self.peer.expect(Result, await self.say(message))

    async def refused(self, message: Message, code: Code) -> Error:
        return await self.peer.expect_error(code, Scope.STREAM, await self.say(message))

    async def put(self, *samples: Sample) -> list[Committed]:
        """Upload small files (and folders) without OPEN, big ones with it."""
        answers = []
        for sample in samples:
            if sample.blocknum <= 1:
                head, part = _brief(sample)
                answers.append(await self.peer.expect(Committed, await self.say(head, part)))
                continue
            stream = await self.say(sample.open())
            for blockno in range(sample.blocknum):
                await self.peer.say(stream, *sample.block(blockno))
            await self.peer.say(stream, sample.commit())
            while not isinstance(answer := (await self.peer.hear()).message, Committed):
                assert isinstance(answer, Opened | Ack | Credit)
            answers.append(answer)
        return answers


def _brief(sample: Sample) -> tuple[Block, bytes]:
    digest = digest_of(sample.content)
    head = Block(
        sample.sourceid,
        len(sample.content),
        sample.blocknum,
        0,
        0,
        sample.filename,
        sample.filetype,
        digest,
        commit=True,
    )
    return head, sample.content


def _named(name: str, content: bytes = b"x", filetype: str = "text/plain") -> Sample:
    return Sample(content, name, filetype, blake3(name.encode()).digest(16))


async def _asker(served: Served, hello: Hello | None = None) -> Asker:
    return Asker(await served.peer(hello))


# ---- LIST files -----------------------------------------------------------------------------------------------


@quick
async def test_a_listing_is_in_byte_order_and_says_all_there_is_to_say() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(_named("b"), _named("中文"), _named("B"), _named("a/z"), _named("a b"))
        result = await asker.ask(List(ListKind.FILES))
        items = [item for item in result.items if isinstance(item, FileItem)]
        assert [item.filename for item in items] == ["B", "a", "a b", "b", "中文"]
        assert [item.kind for item in items] == [1, EntryKind.FOLDER, 1, 1, 1]
        assert result.cursor == ""
        assert items[3].filesize == 1
        assert items[3].root == digest_of(b"x")
        assert items[3].filetype == "text/plain"
        assert len({item.version for item in items}) == 5


@quick
async def test_a_folder_and_everything_below_it() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(_named("a/b/c"), _named("a/d"), _named("e"))
        names = [
            [getattr(item, "filename", "") for item in (await asker.ask(message)).items]
            for message in (
                List(ListKind.FILES, "a"),
                List(ListKind.FILES, "a", recursive=True),
                List(ListKind.FILES, recursive=True),
            )
        ]
        assert names == [["a/b", "a/d"], ["a/b", "a/b/c", "a/d"], ["a", "a/b", "a/b/c", "a/d", "e"]]


async def _all_pages(asker: Asker, message: List) -> tuple[list[object], int]:
    items: list[object] = []
    pages = 0
    while True:
        result = await asker.ask(message)
        assert len(result.items) <= message.limit
        items += result.items
        pages += 1
        if not result.cursor:
            return items, pages
        assert result.items
        message = replace(message, cursor=result.cursor)


@quick
async def test_pages_of_a_listing_have_every_entry_once() -> None:
    names = [f"file {number:03}" for number in range(25)]
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(*map(_named, names))
        items, pages = await _all_pages(asker, List(ListKind.FILES, limit=10))
        assert [getattr(item, "filename", "") for item in items] == names
        assert pages == 3


@quick
async def test_a_page_fits_the_head_that_the_client_takes() -> None:
    names = [f"{number:03}" + "n" * 200 for number in range(40)]
    async with serving() as served:
        asker = await _asker(served, Hello(head_length_max=4096))
        await asker.put(*map(_named, names))
        items, pages = await _all_pages(asker, List(ListKind.FILES, limit=1000))
        assert [getattr(item, "filename", "") for item in items] == names
        assert pages > 3


@quick
async def test_a_page_fits_when_names_grow_while_it_is_made() -> None:
    class Growing(WatchedStore):
        length = 100

        def files(self, *args: Any, **options: Any) -> tuple[list[FileEntry], str]:
            entries, cursor = super().files(*args, **options)
            self.length = min(self.length + 200, 900)
            name = "/".join(["n" * 99] * (self.length // 100))
            return [replace(entry, filename=SafeName.parse(name)) for entry in entries], cursor

    async with serving(Growing()) as served:
        asker = await _asker(served, Hello(head_length_max=4096))
        await asker.put(*(_named(f"{number:03}") for number in range(40)))
        result = await asker.ask(List(ListKind.FILES, limit=1000))
        assert 1 <= len(result.items) < 40
        assert len(encode_frame(1, result)) <= 4096 + HEADER_LENGTH


@quick
async def test_an_answer_that_cannot_be_sent_ends_its_own_stream(caplog: pytest.LogCaptureFixture) -> None:
    async def stat(self: RequestHandler, message: List) -> Result:
        return Result(ListKind.FILES, cursor="c" * 70_000 if message.name == "too big" else message.name)

    async with serving() as served:
        asker = await _asker(served)
        names = ["fine", "too big"] * 10
        with mock.patch.object(RequestHandler, "_stat", stat):
            asked = {await asker.say(List(ListKind.FILES, name, exact=True)): name for name in names}
            for _ in names:
                heard = await asker.peer.hear()
                while isinstance(heard.message, Credit):
                    heard = await asker.peer.hear()
                if asked.pop(heard.stream) == "fine":
                    assert heard.message == Result(ListKind.FILES, cursor="fine")
                else:
                    assert isinstance(heard.message, Error)
                    assert heard.message.code == Code.INTERNAL
        assert not asked
    assert sum("nobody expected" in record.message for record in caplog.records) == 10


@quick
async def test_an_empty_store_lists_nothing() -> None:
    async with serving() as served:
        asker = await _asker(served)
        assert await asker.ask(List(ListKind.FILES)) == Result(ListKind.FILES)


@quick
async def test_what_cannot_be_listed() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(_named("file"))
        await asker.refused(List(ListKind.FILES, "absent"), Code.UNKNOWN_FILE)
        await asker.refused(List(ListKind.FILES, "file"), Code.UNKNOWN_FILE)
        await asker.refused(List(ListKind.FILES, "../up"), Code.NAME_REFUSED)
        await asker.refused(List(ListKind.FILES, ".blockproto"), Code.NAME_REFUSED)
        await asker.refused(List(ListKind.FILES, follow=True), Code.UNSUPPORTED)


@quick
async def test_kinds_of_a_later_profile_are_refused() -> None:
    async with serving() as served:
        peer = await served.peer()
        message = List(ListKind.FILES)
        object.__setattr__(message, "kind", 4)
        await peer.send_bytes(encode_frame(1, message))
        await peer.expect_error(Code.UNSUPPORTED, Scope.STREAM, 1)


# ---- stat and b3sum -------------------------------------------------------------------------------------------


@quick
async def test_one_entry_exactly() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(PHOTO)
        (item,) = (await asker.ask(List(ListKind.FILES, "folder/photo.jpg", exact=True))).items
        assert isinstance(item, FileItem)
        assert (item.filename, item.filesize, item.root) == (PHOTO.filename, len(PHOTO.content), PHOTO.root)
        assert item.b3sum is None
        (folder,) = (await asker.ask(List(ListKind.FILES, "folder", exact=True, b3sum=True))).items
        assert isinstance(folder, FileItem)
        assert folder.kind == EntryKind.FOLDER
        await asker.refused(List(ListKind.FILES, "absent", exact=True), Code.UNKNOWN_FILE)
        await asker.refused(List(ListKind.FILES, "", exact=True), Code.NAME_REFUSED)


@quick
async def test_b3sum_is_computed_once_and_remembered() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(PHOTO)
        question = List(ListKind.FILES, PHOTO.filename, exact=True, b3sum=True)
        for _ in range(2):
            (item,) = (await asker.ask(question)).items
            assert isinstance(item, FileItem)
            assert item.b3sum == blake3(PHOTO.content).digest()
        assert isinstance(served.store, WatchedStore)
        assert len([work for work in served.store.works if type(work).__name__ == "RecordB3sum"]) == 1


@pytest.mark.clause("BP1-DIG-003")
@quick
async def test_what_a_sender_claims_of_its_file_is_handed_to_nobody() -> None:
    async with serving() as served:
        asker = await _asker(served)
        stream = await asker.say(PHOTO.open(b3sum=b"b" * 32, root=b"r" * 32))
        for blockno in range(PHOTO.blocknum):
            await asker.peer.say(stream, *PHOTO.block(blockno))
        await asker.peer.say(stream, PHOTO.commit(b3sum=b"b" * 32))
        await asker.peer.expect(Opened)
        assert (await asker.peer.expect(Committed)).b3sum is None
        (item,) = (await asker.ask(List(ListKind.FILES, PHOTO.filename, exact=True))).items
        (receipt,) = (await asker.ask(List(ListKind.RECEIPTS, ids=(PHOTO.sourceid,)))).items
        assert isinstance(item, FileItem)
        assert isinstance(receipt, ReceiptItem)
        assert (item.root, item.b3sum, receipt.root, receipt.b3sum) == (PHOTO.root, None, PHOTO.root, None)
        opened = await asker.peer.expect(Open, await asker.say(Fetch(PHOTO.filename)))
        assert (opened.root, opened.b3sum) == (PHOTO.root, None)


@quick
async def test_without_exact_no_b3sum_is_computed() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(PHOTO)
        (item,) = (await asker.ask(List(ListKind.FILES, "folder", b3sum=True))).items
        assert isinstance(item, FileItem)
        assert item.b3sum is None


@quick
async def test_a_file_that_changes_while_it_is_hashed_is_not_summed() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(PHOTO)
        readers = _watch_readers(served, changed=True)
        await asker.refused(List(ListKind.FILES, PHOTO.filename, exact=True, b3sum=True), Code.SOURCE_CHANGED)
        assert [reader.closed for reader in readers] == [True]


class Reader:
    """A reader that knows whether it was closed, and may say that its file changed."""

    def __init__(self, inner: StoredReader, changed: bool) -> None:
        self.entry = inner.entry
        self.read_into = inner.read_into
        self.closed = False
        self.changed = changed

    def unchanged(self) -> bool:
        return not self.changed

    def close(self) -> None:
        self.closed = True


def _watch_readers(served: Served, *, changed: bool = False) -> list[Reader]:
    """Every reader that the store opens from now on."""
    readers: list[Reader] = []
    opens = served.store.open_file

    def open_file(filename: SafeName | None, file_id: bytes | None, within: SafeName | None = None) -> Reader:
        readers.append(Reader(opens(filename, file_id, within), changed))
        return readers[-1]

    served.store.open_file = open_file  # type: ignore[method-assign, assignment]
    return readers


# ---- LIST uploads and receipts --------------------------------------------------------------------------------


@quick
async def test_unfinished_uploads_are_listed_in_pages() -> None:
    samples = [replace(PHOTO, filename=f"f{n}", sourceid=bytes([n]) * 16) for n in range(1, 6)]
    async with serving() as served:
        asker = await _asker(served)
        for sample in samples:
            stream = await asker.say(sample.open())
            await asker.peer.expect(Opened, stream)
            await asker.peer.say(stream, *sample.block(0))
            await asker.peer.expect(Ack, stream)
        items, pages = await _all_pages(asker, List(ListKind.UPLOADS, limit=2))
        assert pages == 3
        assert [(item.sourceid, item.filename) for item in items if isinstance(item, UploadItem)] == [
            (sample.sourceid, sample.filename) for sample in samples
        ]
        first = items[0]
        assert isinstance(first, UploadItem)
        assert (first.position, first.held_count, first.filesize, first.blocknum) == (
            MIB,
            1,
            len(PHOTO.content),
            3,
        )
        assert first.expires_ms


@quick
async def test_an_upload_of_unknown_size_is_listed_as_such() -> None:
    sample = replace(PHOTO, known=False)
    async with serving() as served:
        asker = await _asker(served)
        stream = await asker.say(sample.open())
        await asker.peer.expect(Opened, stream)
        await asker.peer.say(stream, *sample.block(0))
        await asker.peer.expect(Ack, stream)
        (item,) = (await asker.ask(List(ListKind.UPLOADS))).items
        assert isinstance(item, UploadItem)
        assert (item.filesize, item.blocknum) == (None, None)


@quick
async def test_receipts_of_what_is_still_there() -> None:
    samples = [_named(f"f{number}") for number in range(5)]
    async with serving() as served:
        asker = await _asker(served)
        committed = await asker.put(*samples)
        await asker.ask(Remove(RemoveKind.FILE, filename="f1"))
        ids = (b"never heard of!!", *(sample.sourceid for sample in samples))
        result = await asker.ask(List(ListKind.RECEIPTS, ids=ids))
        found = [item for item in result.items if isinstance(item, ReceiptItem)]
        expected = [answer for answer in committed if answer.stored_as != "f1"]
        assert [(item.sourceid, item.root, item.filesize, item.stored_as) for item in found] == [
            (answer.sourceid, answer.root, answer.filesize, answer.stored_as) for answer in expected
        ]
        assert result.cursor == ""
        assert (await asker.ask(List(ListKind.RECEIPTS))).items == ()


@quick
async def test_receipts_come_in_pages() -> None:
    samples = [_named(f"{number:02}" + "n" * 200) for number in range(60)]
    ids = tuple(sample.sourceid for sample in samples)
    async with serving() as served:
        asker = await _asker(served, Hello(head_length_max=4096))
        await asker.put(*samples)
        items, pages = await _all_pages(asker, List(ListKind.RECEIPTS, ids=ids))
        assert pages > 3
        assert {item.sourceid for item in items if isinstance(item, ReceiptItem)} == set(ids)
        assert len(items) == 60


@quick
async def test_a_cursor_that_is_none_of_ours_is_refused() -> None:
    async with serving() as served:
        asker = await _asker(served)
        for cursor in ("abc", "9" * 5_000, "٣", "\udcff"):
            await asker.refused(List(ListKind.RECEIPTS, cursor=cursor, ids=(bytes(16),)), Code.NOT_PERMITTED)
            await asker.refused(List(ListKind.UPLOADS, cursor=cursor), Code.NOT_PERMITTED)
            assert (await asker.ask(List(ListKind.FILES, cursor=cursor))).items == ()


# ---- REMOVE ---------------------------------------------------------------------------------------------------


@quick
async def test_a_file_is_removed_by_name_or_by_id() -> None:
    async with serving() as served:
        asker = await _asker(served)
        first, second = await asker.put(_named("a"), _named("b"))
        assert await asker.ask(Remove(RemoveKind.FILE, filename="a")) == Result(RemoveKind.FILE)
        assert first.file_id != second.file_id
        await asker.ask(Remove(RemoveKind.FILE, id=second.file_id, filename="not looked at/.."))
        assert names_in(served.store) == []


@quick
async def test_a_folder_goes_with_everything_in_it_only_when_asked_so() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(_named("a/b/c"), _named("d"))
        await asker.refused(Remove(RemoveKind.FILE, filename="a"), Code.NOT_EMPTY)
        await asker.ask(Remove(RemoveKind.FILE, filename="a", recursive=True))
        assert names_in(served.store) == ["d"]


@quick
async def test_what_cannot_be_removed() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(_named("a"))
        await asker.refused(Remove(RemoveKind.FILE, filename="absent"), Code.UNKNOWN_FILE)
        await asker.refused(Remove(RemoveKind.FILE, id=b"never heard of!!"), Code.UNKNOWN_FILE)
        await asker.refused(Remove(RemoveKind.FILE, filename=""), Code.NAME_REFUSED)
        await asker.refused(Remove(RemoveKind.FILE, filename=".blockproto/x"), Code.NAME_REFUSED)
        assert names_in(served.store) == ["a"]


@quick
async def test_an_answer_waits_until_it_is_durable() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(_named("a"))
        gate = Gate(served.server)
        stream = await asker.say(Remove(RemoveKind.FILE, filename="a"))
        await gate.waits.wait()
        (item,) = (await asker.ask(List(ListKind.FILES))).items  # others do not wait
        assert isinstance(item, FileItem)
        gate.open()
        await asker.peer.expect(Result, stream)


@quick
@pytest.mark.parametrize("how", ["close", "error"])
async def test_an_asker_that_is_gone_harms_nobody(how: str) -> None:
    async with serving() as served:
        asker, other = await _asker(served), await _asker(served)
        await asker.put(_named("a"))
        gate = Gate(served.server)
        stream = await asker.say(Remove(RemoveKind.FILE, filename="a"))
        await gate.waits.wait()
        if how == "close":
            await asker.peer.stream.aclose()
        else:
            await asker.peer.say(stream, Error(Code.CANCELLED, Scope.STREAM, False))
        await wait_all_tasks_blocked()
        gate.open()
        assert (await other.ask(List(ListKind.FILES))).items == ()


@quick
async def test_a_request_has_no_payload_after_it() -> None:
    async with serving() as served:
        asker = await _asker(served)
        gate = Gate(served.server)
        await asker.say(Remove(RemoveKind.FILE, filename="a"))
        await gate.waits.wait()
        await asker.peer.say(1, *PHOTO.block(0))
        await asker.peer.expect_error(Code.UNEXPECTED, Scope.CONNECTION, 0)
        gate.open()


# ---- FETCH ----------------------------------------------------------------------------------------------------


class Fetcher:
    """Receives what a FETCH brings.

    Attributes:
        opened: the server's OPEN.
        blocks: what came, by blockno.
        commit: its COMMIT, once it came.
    """

    def __init__(self, asker: Asker) -> None:
        self.peer = asker.peer
        self.asker = asker
        self.stream = 0
        self.blocks: dict[int, bytearray] = {}
        self.positions: dict[int, int] = {}
        self.digests: dict[int, bytes] = {}
        self.opened: Open | None = None
        self.commit: Commit | None = None

    async def fetch(self, message: Fetch) -> Commit:
        """Ask, and take everything up to COMMIT."""
        self.stream = await self.asker.say(message)
        self.opened = await self.peer.expect(Open, self.stream)
        return await self.take()

    async def take(self, *, acks: bool = False) -> Commit:
        """Everything up to COMMIT; with ``acks`` each block is acknowledged when it is whole."""
        blockno = -1
        while True:
            heard: Heard = await self.peer.hear()
            message = heard.message
            if isinstance(message, Credit):
                continue
            if isinstance(message, Commit):
                self.commit = message
                return message
            assert isinstance(message, Block | Piece), message
            if isinstance(message, Block):
                blockno = message.blockno
                self.blocks[blockno], self.positions[blockno] = bytearray(), message.position
            self.blocks[blockno] += heard.payload
            if message.digest is not None:
                self.digests[blockno] = message.digest
                if acks:
                    await self.peer.say(self.stream, Ack(0, ((blockno, 1),)))

    async def finish(self) -> None:
        """Say COMMITTED."""
        assert self.opened is not None
        assert self.commit is not None
        message = Committed(
            self.opened.sourceid, bytes(16), self.commit.root, self.opened.filesize or 0, stored_as=""
        )
        await self.peer.say(self.stream, message)

    @property
    def content(self) -> bytes:
        return b"".join(bytes(self.blocks[no]) for no in sorted(self.blocks))


async def _photo(served: Served, hello: Hello | None = None) -> tuple[Fetcher, Committed]:
    asker = await _asker(served, hello)
    (committed,) = await asker.put(PHOTO)
    return Fetcher(asker), committed


@quick
async def test_a_file_is_fetched_by_name_or_by_id() -> None:
    async with serving() as served:
        fetcher, committed = await _photo(served)
        for message in (Fetch(PHOTO.filename), Fetch("../not looked at", file_id=committed.file_id)):
            commit = await fetcher.fetch(message)
            assert fetcher.content == PHOTO.content
            assert (commit.root, commit.filesize, commit.blocknum) == (PHOTO.root, len(PHOTO.content), 3)
            await fetcher.finish()


@quick
async def test_the_answer_to_fetch_is_open_with_the_files_facts() -> None:
    async with serving() as served:
        fetcher, committed = await _photo(served)
        await fetcher.fetch(Fetch(PHOTO.filename, first=5, length=5, priority=Priority.BULK))
        opened = fetcher.opened
        assert opened is not None
        entry = served.store.stat(SafeName.parse(PHOTO.filename))
        assert (opened.filename, opened.filetype) == (PHOTO.filename, "image/jpeg")
        assert (opened.filesize, opened.blocknum) == (len(PHOTO.content), 3)
        assert (opened.attempt, opened.if_exists, opened.priority) == (0, 0, Priority.BULK)
        assert (opened.version, opened.file_id) == (entry.version, committed.file_id)
        assert (opened.mtime_ns, opened.mode, opened.root) == (entry.mtime_ns, entry.mode, PHOTO.root)


RANGES = [
    (0, None),
    (0, 1),
    (0, MIB),
    (MIB - 1, 1),
    (MIB - 1, 2),
    (MIB, 1),
    (MIB, MIB),
    (MIB - 10, MIB + 20),
    (2 * MIB + 4, 1),
    (2 * MIB + 4, 1000),
    (5, None),
]


@quick
@pytest.mark.parametrize(("first", "length"), RANGES)
async def test_a_range_is_cut_out_of_the_files_blocks(first: int, length: int | None) -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        commit = await fetcher.fetch(Fetch(PHOTO.filename, first=first, length=length))
        end = len(PHOTO.content) if length is None else min(len(PHOTO.content), first + length)
        assert fetcher.content == PHOTO.content[first:end]
        numbers = list(range(first // BLOCK_LENGTH, (end - 1) // BLOCK_LENGTH + 1))
        assert sorted(fetcher.blocks) == numbers
        assert fetcher.positions[numbers[0]] == first
        parts = [fetcher.blocks[no] for no in numbers]
        assert [fetcher.digests[no] for no in numbers] == [digest_of(part) for part in parts]
        assert commit.root == root_of((digest_of(part) for part in parts), len(parts))
        assert (commit.filesize, commit.blocknum) == (len(PHOTO.content), 3)


@quick
@pytest.mark.parametrize("first", [0, 5, MIB])
async def test_a_range_of_no_bytes(first: int) -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        commit = await fetcher.fetch(Fetch(PHOTO.filename, first=first, length=0))
        assert fetcher.blocks == {}
        assert commit.root == EMPTY_DIGEST


@quick
async def test_an_empty_file_is_fetched() -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(_named("empty", b""))
        fetcher = Fetcher(asker)
        commit = await fetcher.fetch(Fetch("empty"))
        assert (fetcher.blocks, commit.root, commit.filesize) == ({}, EMPTY_DIGEST, 0)


@quick
async def test_what_is_held_is_not_sent_and_prefixes_are_continued() -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        version = served.store.stat(SafeName.parse(PHOTO.filename)).version
        message = Fetch(PHOTO.filename, version=version, held=((0, 1),), prefixes=((1, 300_000),))
        commit = await fetcher.fetch(message)
        assert sorted(fetcher.blocks) == [1, 2]
        assert fetcher.positions[1] == MIB + 300_000
        assert fetcher.digests[1] == digest_of(PHOTO.bytes_of(1))
        assert commit.root == PHOTO.root


@quick
async def test_a_prefix_of_all_but_one_byte_is_not_read_byte_by_byte() -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        version = served.store.stat(SafeName.parse(PHOTO.filename)).version
        read: list[int] = []
        read_into = StoredSource.read_piece

        async def counted(source: StoredSource, position: int, view: memoryview) -> None:
            read.append(len(view))
            await read_into(source, position, view)

        with mock.patch.object(StoredSource, "read_piece", counted):
            message = Fetch(PHOTO.filename, version=version, held=((1, 2),), prefixes=((0, MIB - 1),))
            await fetcher.fetch(message)
        assert fetcher.positions[0] == MIB - 1
        assert fetcher.digests[0] == digest_of(PHOTO.bytes_of(0))
        assert sum(read) == MIB
        assert len(read) <= 17


@quick
async def test_a_prefix_of_a_range_begins_where_the_range_does() -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        version = served.store.stat(SafeName.parse(PHOTO.filename)).version
        message = Fetch(PHOTO.filename, version=version, first=MIB - 100, length=200, prefixes=((0, 40),))
        await fetcher.fetch(message)
        assert fetcher.positions[0] == MIB - 60
        assert fetcher.digests[0] == digest_of(PHOTO.content[MIB - 100 : MIB])


@pytest.mark.clause("BP1-LIM-002")
@quick
async def test_holding_four_billion_blocks_costs_the_server_nothing() -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        version = served.store.stat(SafeName.parse(PHOTO.filename)).version
        commit = await fetcher.fetch(Fetch(PHOTO.filename, version=version, held=((0, 0xFFFFFFFE),)))
        assert fetcher.blocks == {}
        assert commit.root == PHOTO.root


@quick
async def test_what_cannot_be_fetched() -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        readers = _watch_readers(served)
        asker = fetcher.asker
        await asker.refused(Fetch("absent"), Code.UNKNOWN_FILE)
        await asker.refused(Fetch("", file_id=b"never heard of!!"), Code.UNKNOWN_FILE)
        await asker.refused(Fetch("folder"), Code.NOT_PERMITTED)
        await asker.refused(Fetch("../up"), Code.NAME_REFUSED)
        await asker.refused(Fetch(PHOTO.filename, version=b"another version!"), Code.SOURCE_CHANGED)
        await asker.refused(Fetch(PHOTO.filename, first=len(PHOTO.content)), Code.BAD_FACTS)
        assert all(reader.closed for reader in readers)


@quick
async def test_a_damaged_block_of_a_download_is_sent_again() -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        await fetcher.fetch(Fetch(PHOTO.filename))
        await fetcher.peer.say(fetcher.stream, Error(Code.DIGEST_MISMATCH, Scope.BLOCK, True, blockno=1))
        message = (await fetcher.peer.hear()).message
        assert isinstance(message, Block)
        assert (message.blockno, message.position) == (1, MIB)


@quick
async def test_a_download_whose_root_differs_is_repaired() -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        version = served.store.stat(SafeName.parse(PHOTO.filename)).version
        message = Fetch(PHOTO.filename, version=version, held=((0, 2),))
        await fetcher.fetch(message)
        await fetcher.peer.say(fetcher.stream, Error(Code.DIGESTS_DIFFER, Scope.BLOCK, True))
        have = await fetcher.peer.expect(Have, fetcher.stream)
        assert [no for no, _ in have.digests] == [0, 1, 2]
        assert fetcher.opened is not None
        held = Opened(fetcher.opened.sourceid, bytes(16), 0, 0, 1, None, held=((0, 1), (2, 1)))
        await fetcher.peer.say(fetcher.stream, held)
        assert (await fetcher.take()).root == PHOTO.root
        assert fetcher.blocks[1] == PHOTO.bytes_of(1)
        await fetcher.finish()


@pytest.mark.clause("BP1-FET-011")
@quick
async def test_a_file_that_changes_while_it_is_sent_ends_the_stream() -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        readers = _watch_readers(served, changed=True)
        await fetcher.asker.say(Fetch(PHOTO.filename))
        while not isinstance(message := (await fetcher.peer.hear()).message, Error):
            assert not isinstance(message, Commit)
        assert (message.code, message.scope) == (Code.SOURCE_CHANGED, Scope.STREAM)
        await wait_all_tasks_blocked()
        assert [reader.closed for reader in readers] == [True]


@quick
async def test_a_file_that_became_shorter_ends_the_stream() -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        served.store._files[PHOTO.filename].content = PHOTO.content[: MIB + 5]
        await fetcher.asker.say(Fetch(PHOTO.filename))
        while not isinstance(message := (await fetcher.peer.hear()).message, Error):
            assert not isinstance(message, Commit)
        assert (message.code, message.scope) == (Code.SOURCE_CHANGED, Scope.STREAM)


@quick
@pytest.mark.parametrize("how", ["close", "error", "committed"])
async def test_the_file_is_let_go_of_however_a_download_ends(how: str) -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        readers = _watch_readers(served)
        await fetcher.fetch(Fetch(PHOTO.filename))
        assert not readers[0].closed
        if how == "close":
            await fetcher.peer.stream.aclose()
        elif how == "error":
            await fetcher.peer.say(fetcher.stream, Error(Code.CANCELLED, Scope.STREAM, False))
        else:
            await fetcher.finish()
        await wait_all_tasks_blocked()
        assert readers[0].closed


@quick
async def test_a_download_stops_at_the_fetchers_credit() -> None:
    hello = Hello(connection_allowance=MIB, stream_allowance=262_144)
    async with serving() as served:
        fetcher, _ = await _photo(served, hello)
        stream = await fetcher.asker.say(Fetch(PHOTO.filename))
        await fetcher.peer.expect(Open, stream)
        received = 0
        with trio.move_on_after(5):
            while True:
                received += len((await fetcher.peer.hear()).payload)
        assert 0 < received <= 262_144


@quick
async def test_a_fetcher_that_reads_nothing_of_one_file_gets_the_others() -> None:
    small = _named("small", bytes_of(200_000))
    async with serving() as served:
        fetcher, _ = await _photo(served, Hello(connection_allowance=MIB, stream_allowance=262_144))
        await fetcher.asker.put(small)
        stream = await fetcher.asker.say(Fetch(PHOTO.filename))
        await fetcher.peer.expect(Open, stream)
        received = 0
        while received < 262_144:
            received += len((await fetcher.peer.hear()).payload)
        beside = Fetcher(fetcher.asker)
        await beside.fetch(Fetch("small"))
        assert beside.content == small.content
        assert len((await fetcher.asker.ask(List(ListKind.FILES))).items) == 2


@quick
async def test_a_replaced_file_goes_on_with_its_old_bytes() -> None:
    other = replace(PHOTO, content=bytes_of(100, 5), sourceid=b"another sourceid")
    async with serving() as served:
        fetcher, _ = await _photo(served, Hello(undurable_max=MIB))
        fetcher.stream = await fetcher.asker.say(Fetch(PHOTO.filename))
        fetcher.opened = await fetcher.peer.expect(Open)
        replacing = await _asker(served)
        head, part = other.block(0, commit=True, if_exists=2)
        await replacing.say(head, part)
        await replacing.peer.expect(Committed)
        await fetcher.take(acks=True)
        assert fetcher.content == PHOTO.content
        assert content_of(served.store, PHOTO.filename) == other.content


@quick
async def test_requests_on_one_connection_are_answered_side_by_side() -> None:
    async with serving() as served:
        fetcher, _ = await _photo(served)
        streams = {await fetcher.asker.say(List(ListKind.FILES)) for _ in range(50)}
        answered: set[int] = set()
        while len(answered) < 50:
            heard = await fetcher.peer.hear()
            answered |= {heard.stream} if isinstance(heard.message, Result) else set()
        assert answered == streams
