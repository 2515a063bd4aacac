"""The receiver: blocks in any order, damaged, repeated or continued; brief files; and what leaves nothing behind."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from peers import (
    MIB,
    Gate,
    RawPeer,
    Sample,
    Served,
    WatchedStore,
    assert_untouched,
    bytes_of,
    content_of,
    names_in,
    run,
    serving,
    uploads_in,
)
from trio.testing import wait_all_tasks_blocked

from blockproto.common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, digest_of
from blockproto.errors import Code, Scope, UnknownFile
from blockproto.store import FOLDER_FILETYPE, Finish, KeepPrefixes
from blockproto.wire import (
    Ack,
    Block,
    Cancel,
    Commit,
    Committed,
    Error,
    Message,
    Opened,
    Ping,
    Remove,
    RemoveKind,
    Result,
    encode_frame,
)

quick = pytest.mark.trio(run=run)

THREE = Sample(bytes_of(2 * MIB + 5))


async def _opened(peer: RawPeer, sample: Sample, stream: int = 1, attempt: int = 1) -> Opened:
    await peer.say(stream, sample.open(attempt))
    return await peer.expect(Opened, stream)


async def _commit(peer: RawPeer, sample: Sample, stream: int = 1) -> Committed:
    await peer.say(stream, sample.commit())
    return await peer.expect(Committed, stream)


async def _alive(peer: RawPeer) -> None:
    """The connection goes on; what was to be acknowledged before has been heard (an ACK may come behind one answer)."""
    for opaque in (b"alive???", b"really??"):
        await peer.say(0, Ping(opaque, 0))
        assert (await peer.expect(Ping)).opaque == opaque


# ---- whole uploads --------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_blocks_in_any_order(order: tuple[int, ...]) -> None:
    async with serving() as served:
        peer = await served.peer()
        opened = await _opened(peer, THREE)
        assert (opened.position, opened.held, opened.prefixes) == (0, (), ())
        for blockno in order:
            await peer.say(1, *THREE.block(blockno))
        committed = await _commit(peer, THREE)
        assert (committed.root, committed.filesize) == (THREE.root, len(THREE.content))
        assert committed.file_id == opened.file_id
        assert content_of(served.store, committed.stored_as) == THREE.content


@quick
async def test_blocks_in_pieces_of_any_length() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        for blockno in range(3):
            length = len(THREE.bytes_of(blockno))
            cuts = sorted({0, min(1, length), min(4097, length), min(70_000, length), length})
            for first, last in pairwise(cuts):
                make = THREE.piece if first else THREE.block
                await peer.say(1, *make(blockno, first, last, end=last == length))
        await _commit(peer, THREE)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_an_end_without_payload_ends_a_block() -> None:
    sample = Sample(bytes_of(1000))
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, sample)
        await peer.say(1, *sample.block(0, end=False))
        await peer.say(1, *sample.piece(0, 1000))
        await _commit(peer, sample)
        assert content_of(served.store, "sample.bin") == sample.content


@quick
async def test_two_files_on_one_connection_at_once() -> None:
    other = Sample(bytes_of(2 * MIB, 9), "other.bin", sourceid=b"another sourceid")
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE, 1)
        await _opened(peer, other, 3)
        for blockno in (0, 1):
            await peer.say(1, *THREE.block(blockno, 0, 1000, end=False))
            await peer.say(3, *other.block(blockno, 0, 1000, end=False))
            await peer.say(1, *THREE.piece(blockno, 1000))
            await peer.say(3, *other.piece(blockno, 1000))
        await peer.say(1, *THREE.block(2))
        await _commit(peer, THREE, 1)
        await _commit(peer, other, 3)
        assert content_of(served.store, "sample.bin") == THREE.content
        assert content_of(served.store, "other.bin") == other.content


@quick
async def test_an_acknowledgement_names_blocks_and_position() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        for blockno, position in ((1, 0), (0, 2 * MIB), (2, 2 * MIB + 5)):
            await peer.say(1, *THREE.block(blockno))
            assert await peer.expect(Ack) == Ack(position, ((blockno, 1),))


@pytest.mark.clause("BP1-RES-015")
@quick
async def test_nothing_is_acknowledged_before_it_is_durable() -> None:
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer()
        await _opened(peer, THREE)
        for blockno in range(3):
            await peer.say(1, *THREE.block(blockno))
        await peer.say(1, THREE.commit())
        await gate.waits.wait()
        await _alive(peer)
        assert peer.acked == set()
        assert names_in(served.store) == []
        gate.open()
        await peer.expect(Committed)  # which says more than the acknowledgements that it overtakes
        assert content_of(served.store, "sample.bin") == THREE.content


# ---- unknown size, empty files, folders -----------------------------------------------------------------------


@quick
@pytest.mark.parametrize("size", [0, 5, MIB, MIB + 5, 2 * MIB])
async def test_a_file_whose_size_shows_at_its_end(size: int) -> None:
    sample = Sample(bytes_of(size), known=False)
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, sample)
        for blockno in range(sample.blocknum):
            await peer.say(1, *sample.block(blockno))
        assert (await _commit(peer, sample)).filesize == size
        assert content_of(served.store, "sample.bin") == sample.content


@quick
async def test_of_unknown_size_there_is_one_short_block() -> None:
    sample = Sample(bytes_of(3 * MIB), known=False)
    short = Sample(sample.content[: MIB + 5], known=False)
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, sample)
        await peer.say(1, *short.block(1))
        await peer.wait_acked(1)
        await peer.say(1, *sample.block(2))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        await _alive(peer)


@quick
async def test_a_commit_with_more_blocks_than_the_short_one_allows_does_not_wait() -> None:
    sample = Sample(bytes_of(MIB + 5), known=False)
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, sample)
        for blockno in range(2):
            await peer.say(1, *sample.block(blockno))
        await peer.say(1, sample.commit(filesize=2 * MIB + 5, blocknum=3))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        await _alive(peer)


@quick
async def test_a_commit_of_another_size_than_the_blocks_show() -> None:
    sample = Sample(bytes_of(MIB + 5), known=False)
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, sample)
        for blockno in range(2):
            await peer.say(1, *sample.block(blockno))
        await peer.wait_acked(0, 1)
        await peer.say(1, sample.commit(filesize=2 * MIB))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        assert names_in(served.store) == []


@quick
async def test_an_empty_file_with_open_and_without_a_block() -> None:
    empty = Sample(b"")
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, empty)
        assert (await _commit(peer, empty)).root == EMPTY_DIGEST
        assert content_of(served.store, "sample.bin") == b""


def _nothing(sample: Sample, **changes: Any) -> Block:
    """The BLOCK that may be sent for an empty file."""
    return Block(
        sample.sourceid, 0, 0, 0, 0, sample.filename, sample.filetype, **{"digest": EMPTY_DIGEST, **changes}
    )


@quick
async def test_an_empty_file_with_open_and_its_block_of_nothing() -> None:
    empty = Sample(b"")
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, empty)
        await peer.say(1, _nothing(empty))
        await _commit(peer, empty)
        assert content_of(served.store, "sample.bin") == b""


@quick
async def test_a_block_of_nothing_with_another_digest() -> None:
    empty = Sample(b"")
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, empty)
        await peer.say(1, _nothing(empty, digest=bytes(32)))
        await peer.expect_error(Code.DIGEST_MISMATCH, Scope.BLOCK, 1)
        await peer.say(1, _nothing(empty, digest=None))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)


@quick
async def test_no_other_block_is_without_bytes() -> None:
    sample = Sample(bytes_of(10), known=False)
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, sample)
        head, _ = sample.block(0, digest=EMPTY_DIGEST)
        await peer.say(1, head)
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        assert uploads_in(served.store) == []


@quick
async def test_a_folder_with_open() -> None:
    folder = Sample(b"", "a/b", FOLDER_FILETYPE)
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, folder)
        await _commit(peer, folder)
        assert names_in(served.store) == ["a", "a/b"]


@quick
async def test_a_brief_folder() -> None:
    folder = Sample(b"", "a/b", FOLDER_FILETYPE)
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, _nothing(folder, commit=True))
        assert (await peer.expect(Committed)).stored_as == "a/b"
        assert names_in(served.store) == ["a", "a/b"]


@quick
async def test_a_folder_has_no_bytes() -> None:
    for sample in (
        Sample(b"x", filetype=FOLDER_FILETYPE),
        Sample(b"", filetype=FOLDER_FILETYPE, known=False),
    ):
        async with serving() as served:
            peer = await served.peer()
            await peer.say(1, sample.open())
            await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
            assert_untouched(served.store)


# ---- damage ---------------------------------------------------------------------------------------------------


@quick
async def test_a_damaged_block_is_refused_and_accepted_when_sent_again() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        head, part = THREE.block(1)
        await peer.say(1, head, bytes(len(part)))
        error = await peer.expect_error(Code.DIGEST_MISMATCH, Scope.BLOCK, 1)
        assert (error.blockno, error.retryable) == (1, True)
        for blockno in (0, 1, 2):
            await peer.say(1, *THREE.block(blockno))
        await _commit(peer, THREE)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_a_wrong_digest_counts_nothing() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0, digest=bytes(32)))
        await peer.expect_error(Code.DIGEST_MISMATCH, Scope.BLOCK, 1)
        await _alive(peer)
        assert peer.acked == set()
        assert uploads_in(served.store) == []


@quick
async def test_a_commit_that_came_with_a_damaged_block_waits_for_the_good_one() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0))
        await peer.say(1, *THREE.block(1, digest=bytes(32)))
        await peer.say(1, *THREE.block(2))
        await peer.say(1, THREE.commit())
        await peer.expect_error(Code.DIGEST_MISMATCH, Scope.BLOCK, 1)
        await peer.say(1, *THREE.block(1))
        await peer.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_a_held_block_sent_again_is_acknowledged_again_and_not_written() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0))
        await peer.wait_acked(0)
        peer.acked.clear()
        await peer.say(1, *THREE.block(0, 0, 7, end=False))
        await peer.say(1, *THREE.piece(0, 7))
        await peer.wait_acked(0)
        assert isinstance(served.store, WatchedStore)
        assert served.store.durable == [("sample.bin", 0)]


@quick
async def test_a_held_block_sent_again_from_its_middle_is_judged_by_its_digest() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0))
        await peer.wait_acked(0)
        peer.acked.clear()
        await peer.say(1, *THREE.block(0, 500_000))
        await peer.wait_acked(0)
        await peer.say(1, *THREE.block(0, 500_000, digest=bytes(32)))
        await peer.expect_error(Code.SOURCE_CHANGED, Scope.STREAM, 1)
        (entry,) = uploads_in(served.store)
        assert entry.held_count == 1


@quick
async def test_a_block_sent_again_before_it_is_durable_is_acknowledged_when_it_is() -> None:
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0))
        await gate.waits.wait()
        await peer.say(1, *THREE.block(0))
        await _alive(peer)
        assert peer.acked == set()
        gate.open()
        await peer.wait_acked(0)


@quick
@pytest.mark.parametrize("durable", [True, False])
async def test_another_content_for_a_held_block_is_a_changed_source(durable: bool) -> None:
    """The held block stays as it is, whether it is durable already or only verified."""
    other = Sample(bytes_of(2 * MIB + 5, 7))
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0))
        if durable:
            gate.open()
            await peer.wait_acked(0)
        await peer.say(1, *other.block(0))
        await peer.expect_error(Code.SOURCE_CHANGED, Scope.STREAM, 1)
        gate.open()
        opened = await _opened(peer, THREE, 3)
        for blockno in range(3):
            if (blockno, 1) not in opened.held:
                await peer.say(3, *THREE.block(blockno))
        await _commit(peer, THREE, 3)
        assert content_of(served.store, "sample.bin") == THREE.content


# ---- facts that do not fit: each refused, nothing left behind ---------------------------------------------------


def _raw(message: Message, payload: bytes, **fields: object) -> bytes:
    """The frame of ``message`` with fields that our own classes would refuse to hold."""
    for name, value in fields.items():
        object.__setattr__(message, name, value)
    return encode_frame(1, message, len(payload)) + payload


@quick
@pytest.mark.parametrize(
    "fields",
    [
        {"blocknum": 2},
        {"blocknum": 4},
        {"blockno": 3},
        {"blockno": 0xFFFFFFF0},
        {"position": MIB},
        {"position": 3 * MIB},
        {"position": (1 << 62)},
        {"filesize": 5},
    ],
    ids=str,
)
async def test_block_facts_that_do_not_fit_leave_nothing_behind(fields: dict[str, int]) -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        head, part = THREE.block(0)
        await peer.send_bytes(_raw(head, part, **fields))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        await _alive(peer)
        assert_untouched(served.store)


@quick
async def test_a_payload_that_runs_past_its_block_leaves_nothing_behind() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        head, _ = THREE.block(2)
        await peer.say(1, head, bytes(6))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        assert_untouched(served.store)


@quick
async def test_a_block_that_ends_too_early() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0, 0, 1000))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        assert uploads_in(served.store) == []


@quick
async def test_a_piece_that_is_not_the_next() -> None:
    for first in (900, 1100):
        async with serving() as served:
            peer = await served.peer()
            await _opened(peer, THREE)
            await peer.say(1, *THREE.block(0, 0, 1000, end=False))
            await peer.say(1, *THREE.piece(0, first))
            await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
            await _alive(peer)


@quick
async def test_a_piece_without_a_block() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.piece(0, 0))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        assert_untouched(served.store)


@quick
@pytest.mark.parametrize(
    "changes",
    [{"filename": "other"}, {"filetype": "text/x"}, {"sourceid": bytes(range(16))}],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_block_that_does_not_agree_with_open(changes: dict[str, Any]) -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0, **changes))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        assert_untouched(served.store)


@quick
async def test_a_commit_that_does_not_agree_with_open() -> None:
    commits: list[Commit] = [
        THREE.commit(filesize=2 * MIB + 6),
        THREE.commit(sourceid=bytes(range(16))),
        THREE.commit(filesize=MIB, blocknum=1),
    ]
    for commit in commits:
        async with serving() as served:
            peer = await served.peer()
            await _opened(peer, THREE)
            await peer.say(1, commit)
            await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)


@quick
@pytest.mark.parametrize(
    "filetype", ["text/plain\n", "é", "x" * 256, "\x7f"], ids=["newline", "é", "long", "del"]
)
async def test_a_filetype_that_cannot_be(filetype: str) -> None:
    sample = Sample(b"x")
    async with serving() as served:
        peer = await served.peer()
        await peer.send_bytes(_raw(sample.open(), b"", filetype=filetype))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        assert_untouched(served.store)
    async with serving() as served:
        peer = await served.peer()
        head, part = sample.block(0, commit=True)
        await peer.send_bytes(_raw(head, part, filetype=filetype))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        assert_untouched(served.store)


@quick
@pytest.mark.parametrize("name", ["", "..", "../x", "/x", "a//b", ".blockproto/ledger", "a\0b", "x" * 256])
async def test_a_name_that_breaks_a_rule(name: str) -> None:
    async with serving() as served:
        peer = await served.peer()
        sample = Sample(b"x", name)
        await peer.say(1, sample.open())
        error = await peer.expect_error(Code.NAME_REFUSED, Scope.STREAM, 1)
        assert "rule " in error.text
        await peer.say(3, *sample.block(0, commit=True))
        await peer.expect_error(Code.NAME_REFUSED, Scope.STREAM, 3)
        await _alive(peer)
        assert_untouched(served.store)


# ---- files without OPEN ---------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("size", [1, 65_536, MIB - 1, MIB])
async def test_a_brief_file_in_one_frame(size: int) -> None:
    sample = Sample(bytes_of(size))
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, *sample.block(0, commit=True))
        committed = await peer.expect(Committed)
        assert (committed.sourceid, committed.root, committed.filesize) == (
            sample.sourceid,
            digest_of(sample.content),
            size,
        )
        assert content_of(served.store, "sample.bin") == sample.content
        assert uploads_in(served.store) == []


@quick
async def test_an_empty_brief_file() -> None:
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, _nothing(Sample(b""), commit=True))
        assert (await peer.expect(Committed)).root == EMPTY_DIGEST
        assert content_of(served.store, "sample.bin") == b""


@quick
async def test_a_brief_file_in_pieces() -> None:
    sample = Sample(bytes_of(200_000))
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, *sample.block(0, 0, 65_536, end=False))
        await peer.say(1, *sample.piece(0, 65_536, 131_072, end=False))
        await peer.say(1, *sample.piece(0, 131_072, commit=True))
        await peer.expect(Committed)
        assert content_of(served.store, "sample.bin") == sample.content


@quick
async def test_a_brief_file_that_ends_without_payload() -> None:
    sample = Sample(bytes_of(1000))
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, *sample.block(0, end=False))
        await peer.say(1, *sample.piece(0, 1000, commit=True))
        await peer.expect(Committed)
        assert content_of(served.store, "sample.bin") == sample.content


@quick
async def test_the_facts_of_a_brief_file() -> None:
    sample = Sample(b"content", "folder/photo.jpg", "image/jpeg")
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, *sample.block(0, commit=True, mtime_ns=123_456_789, mode=0o640))
        await peer.expect(Committed)
        (_, entry) = served.store.files("", True, "", 10)[0]
        assert (entry.filename.text, entry.filetype) == ("folder/photo.jpg", "image/jpeg")
        assert (entry.mtime_ns, entry.mode) == (123_456_789, 0o640)


@quick
async def test_the_same_brief_file_again_gets_the_same_answer() -> None:
    sample = Sample(b"content")
    async with serving() as served:
        peer = await served.peer()
        answers = []
        for stream in (1, 3):
            await peer.say(stream, *sample.block(0, commit=True))
            answers.append(await peer.expect(Committed, stream))
        assert answers[0] == answers[1]
        assert names_in(served.store) == ["sample.bin"]


@quick
async def test_other_content_under_a_brief_files_sourceid() -> None:
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, *Sample(b"content").block(0, commit=True))
        await peer.expect(Committed)
        await peer.say(3, *Sample(b"CONTENT").block(0, commit=True))
        await peer.expect_error(Code.SOURCE_CHANGED, Scope.STREAM, 3)
        assert content_of(served.store, "sample.bin") == b"content"


@quick
async def test_brief_files_without_a_sourceid_are_different_files() -> None:
    async with serving() as served:
        peer = await served.peer()
        given = set()
        for stream in (1, 3):
            sample = Sample(b"content%d" % stream, sourceid=bytes(16))
            await peer.say(stream, *sample.block(0, commit=True))
            given.add((await peer.expect(Committed, stream)).sourceid)
        assert len(given) == 2
        assert bytes(16) not in given
        assert names_in(served.store) == ["sample (1).bin", "sample.bin"]


@quick
async def test_a_damaged_brief_file_leaves_nothing_behind() -> None:
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, *Sample(b"content").block(0, commit=True, digest=bytes(32)))
        await peer.expect_error(Code.DIGEST_MISMATCH, Scope.STREAM, 1)
        await _alive(peer)
        assert_untouched(served.store)


@pytest.mark.clause("BP1-BLK-018")
@quick
@pytest.mark.parametrize("ended", ["close", "cancel", "error"])
async def test_of_a_brief_file_that_stops_nothing_stays(ended: str) -> None:
    sample = Sample(bytes_of(1000))
    async with serving() as served:
        closed = _count_closes(served)
        peer = await served.peer()
        await peer.say(1, *sample.block(0, 0, 500, end=False))
        await wait_all_tasks_blocked()
        if ended == "close":
            await peer.stream.aclose()
        elif ended == "cancel":
            await peer.say(1, Cancel(Code.CANCELLED))
            await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        else:
            await peer.say(1, Error(Code.CANCELLED, Scope.STREAM, False))
            await _alive(peer)
        await wait_all_tasks_blocked()
        assert_untouched(served.store)
        assert closed == [True]


def _count_closes(served: Served) -> list[bool]:
    """Grows whenever a brief upload is let go of."""
    closed: list[bool] = []
    begin = served.store.begin_brief

    def watched(*args: object) -> object:
        upload = begin(*args)  # type: ignore[arg-type]
        close = upload.close
        upload.close = lambda: (closed.append(True), close())[1]  # type: ignore[method-assign, func-returns-value]
        return upload

    served.store.begin_brief = watched  # type: ignore[method-assign, assignment]
    return closed


@quick
@pytest.mark.parametrize(
    "case", ["two blocks", "no commit", "unknown size", "not the first", "not the start"]
)
async def test_what_is_no_brief_file(case: str) -> None:
    small = Sample(bytes_of(1000))
    async with serving() as served:
        peer = await served.peer()
        if case == "two blocks":
            await peer.say(1, *small.block(0, 0, 10, end=False))
            await peer.say(1, *small.block(0, commit=True))
        elif case == "no commit":
            await peer.say(1, *small.block(0))
        elif case == "unknown size":
            await peer.say(1, *Sample(small.content, known=False).block(0, commit=True))
        elif case == "not the first":
            await peer.say(1, *THREE.block(1, commit=True))
        else:
            await peer.say(1, *small.block(0, 10, commit=True))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        await _alive(peer)
        assert_untouched(served.store)


@quick
async def test_a_second_block_after_a_brief_files_end() -> None:
    """The file was complete; what follows on its stream is refused, and nothing of it is kept."""
    sample = Sample(b"content")
    async with serving() as served:
        closed = _count_closes(served)
        gate = Gate(served.server)
        peer = await served.peer()
        await peer.say(1, *sample.block(0, commit=True))
        await peer.say(1, *sample.block(0, 0, 3, end=False))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        gate.open()
        await _alive(peer)
        assert closed == [True]
        assert names_in(served.store) == ["sample.bin"]


@quick
async def test_cancelling_a_brief_file_too_late_is_answered_by_committed() -> None:
    sample = Sample(b"content")
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer()
        await peer.say(1, *sample.block(0, commit=True))
        await peer.say(1, Cancel(Code.CANCELLED, discard=True))
        await gate.waits.wait()
        gate.open()
        await peer.expect(Committed)


@quick
async def test_a_name_that_is_taken_refuses_a_brief_file() -> None:
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, *Sample(b"first").block(0, commit=True))
        await peer.expect(Committed)
        second = Sample(b"second", sourceid=b"another sourceid")
        await peer.say(3, *second.block(0, commit=True, if_exists=1))
        await peer.expect_error(Code.FILE_EXISTS, Scope.STREAM, 3)
        await peer.say(5, *second.block(0, commit=True, if_exists=2))
        await peer.expect(Committed, 5)
        assert content_of(served.store, "sample.bin") == b"second"


@quick
async def test_a_brief_file_ends_the_unfinished_upload_of_its_sourceid() -> None:
    sample = Sample(bytes_of(MIB))
    async with serving() as served:
        uploading, brief = await served.peer(), await served.peer()
        await _opened(uploading, sample)
        await uploading.say(1, *sample.block(0, 0, 1000, end=False))
        await wait_all_tasks_blocked()
        await brief.say(1, *sample.block(0, commit=True))
        assert await brief.expect(Committed) == await uploading.expect(Committed, 1)
        await _alive(uploading)
        assert uploads_in(served.store) == []
        assert names_in(served.store) == ["sample.bin"]


# ---- prefixes -------------------------------------------------------------------------------------------------


async def _lose_in_the_middle(served: Served, length: int, sample: Sample = THREE) -> None:
    """A connection that ends after block 0 and ``length`` bytes of block 1."""
    peer = await served.peer()
    await _opened(peer, sample)
    await peer.say(1, *sample.block(0))
    await peer.wait_acked(0)
    if length:
        await peer.say(1, *sample.block(1, 0, length, end=False))
    await wait_all_tasks_blocked()
    await peer.stream.aclose()
    await wait_all_tasks_blocked()


@quick
@pytest.mark.parametrize("length", [1, 70_000, BLOCK_LENGTH - 1])
async def test_an_unfinished_block_goes_on_where_it_stopped(length: int) -> None:
    async with serving() as served:
        await _lose_in_the_middle(served, length)
        peer = await served.peer()
        opened = await _opened(peer, THREE, attempt=2)
        assert (opened.held, opened.prefixes, opened.position) == (((0, 1),), ((1, length),), MIB)
        await peer.say(1, *THREE.block(1, length))
        await peer.say(1, *THREE.block(2))
        await _commit(peer, THREE)
        assert content_of(served.store, "sample.bin") == THREE.content


@pytest.mark.clause("BP1-RES-014")
@quick
async def test_a_prefix_survives_a_restart_of_the_server() -> None:
    store = WatchedStore()
    async with serving(store) as served:
        await _lose_in_the_middle(served, 70_000)
    async with serving(store.survivor()) as served:
        peer = await served.peer()
        assert (await _opened(peer, THREE, attempt=2)).prefixes == ((1, 70_000),)
        await peer.say(1, *THREE.block(1, 70_000))
        await peer.say(1, *THREE.block(2))
        await _commit(peer, THREE)
        assert content_of(served.store, "sample.bin") == THREE.content


@pytest.mark.clause("BP1-RES-014")
@quick
async def test_a_prefix_that_is_not_what_came_drops_its_block_and_nothing_else() -> None:
    store = WatchedStore()
    async with serving(store) as served:
        await _lose_in_the_middle(served, 70_000)
        (written,) = store._written.values()
        written[MIB + 100] ^= 1  # the medium changed a byte that was never acknowledged
        peer = await served.peer()
        opened = await _opened(peer, THREE, attempt=2)
        assert opened.prefixes == ((1, 70_000),)
        await peer.say(1, *THREE.block(1, 70_000))
        assert (await peer.expect_error(Code.DIGEST_MISMATCH, Scope.BLOCK, 1)).blockno == 1
        await peer.say(1, *THREE.block(1))
        await peer.say(1, *THREE.block(2))
        await _commit(peer, THREE)
        assert content_of(store, "sample.bin") == THREE.content


@quick
@pytest.mark.parametrize("position", [69_999, 70_001, 5])
async def test_a_block_that_goes_on_elsewhere_is_sent_again_from_its_start(position: int) -> None:
    async with serving() as served:
        await _lose_in_the_middle(served, 70_000)
        peer = await served.peer()
        await _opened(peer, THREE, attempt=2)
        await peer.say(1, *THREE.block(1, position))
        await peer.expect_error(Code.DIGEST_MISMATCH, Scope.BLOCK, 1)
        await peer.say(1, *THREE.block(1))
        await peer.say(1, *THREE.block(2))
        await _commit(peer, THREE)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_a_block_begun_anew_gives_its_prefix_up() -> None:
    async with serving() as served:
        await _lose_in_the_middle(served, 70_000)
        peer = await served.peer()
        await _opened(peer, THREE, attempt=2)
        await peer.say(1, *THREE.block(1, 0, 10, end=False))
        await wait_all_tasks_blocked()
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        again = await served.peer()
        assert (await _opened(again, THREE, attempt=3)).prefixes == ((1, 10),)


@quick
async def test_another_block_abandons_the_unfinished_one_and_its_prefix_stays() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0, 0, 1000, end=False))
        await peer.say(1, *THREE.block(1))
        await peer.wait_acked(1)
        other = await served.peer()
        assert (await _opened(other, THREE)).prefixes == ((0, 1000),)
        await peer.say(1, *THREE.block(0, 1000))
        await peer.say(1, *THREE.block(2))
        await _commit(peer, THREE)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_a_block_that_is_being_sent_is_not_offered_as_a_prefix() -> None:
    async with serving() as served:
        peer, other = await served.peer(), await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0, 0, 1000, end=False))
        await wait_all_tasks_blocked()
        assert (await _opened(other, THREE)).prefixes == ()


@quick
async def test_nor_is_one_that_goes_on_behind_its_prefix() -> None:
    async with serving() as served:
        await _lose_in_the_middle(served, 70_000)
        peer, other = await served.peer(), await served.peer()
        await _opened(peer, THREE, attempt=2)
        await peer.say(1, *THREE.block(1, 70_000, 80_000, end=False))
        await wait_all_tasks_blocked()
        assert (await _opened(other, THREE, attempt=2)).prefixes == ()


@quick
async def test_no_more_prefixes_are_kept_than_are_ever_told() -> None:
    """A peer that begins block after block and ends none of them costs no more memory than sixty-four."""
    sample = Sample(bytes_of(100 * MIB // 100) * 100)
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, sample)
        for blockno in range(100):
            await peer.say(1, *sample.block(blockno, 0, 5, end=False))
        await _alive(peer)
        other = await served.peer()
        opened = await _opened(other, sample)
        assert opened.prefixes == tuple((blockno, 5) for blockno in range(35, 99))  # the last is being sent


@pytest.mark.clause("BP1-RES-014")
@quick
async def test_prefixes_are_recorded_once_when_the_last_stream_ends() -> None:
    async with serving() as served:
        await _lose_in_the_middle(served, 70_000)
        assert isinstance(served.store, WatchedStore)
        recorded = [work for work in served.store.works if isinstance(work, KeepPrefixes)]
        assert [list(work.prefixes) for work in recorded] == [[1]]


@quick
async def test_a_stream_without_an_unfinished_block_records_nothing() -> None:
    async with serving() as served:
        await _lose_in_the_middle(served, 0)
        assert isinstance(served.store, WatchedStore)
        assert not any(isinstance(work, KeepPrefixes) for work in served.store.works)


# ---- the end of a stream --------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-RES-021", "BP1-END-012")
@quick
async def test_the_end_of_the_connection_is_never_the_end_of_the_file() -> None:
    """All bytes came, and no COMMIT: the upload stays, the name does not appear."""
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        for blockno in range(3):
            await peer.say(1, *THREE.block(blockno))
        await peer.wait_acked(0, 1, 2)
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert names_in(served.store) == []
        with pytest.raises(UnknownFile):
            content_of(served.store, "sample.bin")
        (entry,) = uploads_in(served.store)
        assert (entry.held_count, entry.position) == (3, len(THREE.content))


@quick
async def test_a_sender_may_give_up_with_error() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.block(0))
        await peer.wait_acked(0)
        await peer.say(1, Error(Code.SOURCE_CHANGED, Scope.STREAM, False, "my file changed"))
        await _alive(peer)
        assert (await _opened(peer, THREE, 3, attempt=1)).held == ((0, 1),)


@quick
async def test_what_still_comes_on_a_closed_stream_is_dropped_and_credited() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, THREE)
        await peer.say(1, *THREE.piece(0, 0))
        await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        await peer.say(1, *THREE.block(1))
        await peer.say(1, THREE.commit())
        await peer.wait_credited(2 * MIB)
        await _alive(peer)
        assert uploads_in(served.store) == []


@quick
async def test_a_removed_file_is_taken_anew() -> None:
    """The receipt of a file that is gone answers nothing."""
    sample = Sample(bytes_of(100))
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, *sample.block(0, commit=True))
        await peer.expect(Committed)
        await peer.say(3, Remove(RemoveKind.FILE, filename="sample.bin"))
        await peer.expect(Result)
        await peer.say(5, sample.open())
        assert (await peer.expect(Opened, 5)).held == ()


@quick
async def test_what_is_committed_is_what_was_verified() -> None:
    """Finish carries the root that the sender stated and the blocks' own digest, for a brief file."""
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, *Sample(b"content").block(0, commit=True))
        await peer.expect(Committed)
        assert isinstance(served.store, WatchedStore)
        (work,) = [work for work in served.store.works if isinstance(work, Finish)]
        assert work.root == digest_of(b"content")
        assert [block.digest for block in work.blocks] == [work.root]
