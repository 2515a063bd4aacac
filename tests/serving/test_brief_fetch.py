"""Small files that are fetched whole: the answers of ``serving.handlers.brief_fetch``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import trio
from peers import Served, bytes_of, run, serving
from test_requests import PHOTO, Fetcher, _asker, _named, _watch_readers
from trio.testing import wait_all_tasks_blocked

from blockproto.common.blocks import BRIEF_LENGTH_MAX, EMPTY_DIGEST, digest_of
from blockproto.common.names import SafeName
from blockproto.connection.pace import Pace
from blockproto.errors import Code, Scope
from blockproto.serving.handlers.brief_fetch import BATCH_FILES, READERS, is_brief
from blockproto.transfer.send_plan import AGAIN_MAX
from blockproto.transfer.slow_disk import Disk
from blockproto.wire import Block, Commit, Credit, Error, Fetch, Have, Open, Opened, Piece, Priority

T = TypeVar("T")
quick = pytest.mark.trio(run=run)

NOTE = _named("folder/note.txt", bytes_of(1500))
WHOLE = Fetch(NOTE.filename, length=len(NOTE.content))


async def _note(served: Served) -> Fetcher:
    asker = await _asker(served)
    await asker.put(NOTE)
    return Fetcher(asker)


def _damage(code: Code) -> Error:
    return Error(code, Scope.BLOCK, True, blockno=0 if code == Code.DIGEST_MISMATCH else None)


@pytest.mark.parametrize(
    "message",
    [
        Fetch("name"),
        Fetch("name", length=BRIEF_LENGTH_MAX + 1),
        Fetch("name", first=1, length=1),
        Fetch("name", length=1, priority=Priority.INTERACTIVE),
        Fetch("", file_id=b"x" * 16, length=1),
        Fetch("name", version=b"v" * 16, length=1, held=((0, 1),)),
        Fetch("name", version=b"v" * 16, length=2, prefixes=((0, 1),)),
    ],
)
def test_what_is_not_answered_here(message: Fetch) -> None:
    assert not is_brief(message)
    assert is_brief(WHOLE)


@quick
async def test_a_small_file_comes_with_its_facts_in_one_block() -> None:
    async with serving() as served:
        fetcher = await _note(served)
        readers = _watch_readers(served)
        commit = await fetcher.fetch(WHOLE)
        entry = served.store.stat(SafeName.parse(NOTE.filename))
        opened = fetcher.opened
        assert opened is not None
        assert (opened.filename, opened.filetype, opened.filesize) == (NOTE.filename, "text/plain", 1500)
        assert (opened.version, opened.file_id, opened.mtime_ns) == (
            entry.version,
            entry.file_id,
            entry.mtime_ns,
        )
        assert fetcher.content == NOTE.content
        assert (commit.root, commit.filesize, commit.blocknum) == (digest_of(NOTE.content), 1500, 1)
        await fetcher.finish()
        assert [reader.closed for reader in readers] == [True]


@quick
@pytest.mark.parametrize(("length", "digests"), [(0, []), (700, [digest_of(PHOTO.content[:700])])])
async def test_the_beginning_of_a_big_file(length: int, digests: list[bytes]) -> None:
    async with serving() as served:
        asker = await _asker(served)
        await asker.put(PHOTO)
        fetcher = Fetcher(asker)
        commit = await fetcher.fetch(Fetch(PHOTO.filename, length=length))
        assert list(fetcher.digests.values()) == digests
        assert fetcher.content == PHOTO.content[:length]
        assert commit.root == (digests[0] if digests else EMPTY_DIGEST)
        assert (commit.filesize, commit.blocknum) == (len(PHOTO.content), 3)


@quick
async def test_many_are_answered_in_the_order_in_which_they_were_asked_for() -> None:
    async with serving() as served:
        asker = await _asker(served)
        samples = [_named(f"n{number}", bytes_of(100, number)) for number in range(3 * BATCH_FILES + 1)]
        await asker.put(*samples)
        streams = [await asker.say(Fetch(sample.filename, length=100)) for sample in samples]
        payloads: dict[int, bytes] = {}
        commits: list[int] = []
        while len(commits) < len(streams):
            heard = await asker.peer.hear()
            if isinstance(heard.message, Block):
                payloads[heard.stream] = bytes(heard.payload)
            elif isinstance(heard.message, Commit):
                commits.append(heard.stream)
        assert commits == streams
        assert [payloads[stream] for stream in streams] == [sample.content for sample in samples]


@quick
async def test_what_cannot_be_fetched_ends_its_own_stream_only() -> None:
    async with serving() as served:
        fetcher = await _note(served)
        asker = fetcher.asker
        await asker.refused(Fetch("absent", length=1), Code.UNKNOWN_FILE)
        await asker.refused(Fetch("folder", length=1), Code.NOT_PERMITTED)
        await asker.refused(Fetch("../up", length=1), Code.NAME_REFUSED)
        await asker.refused(Fetch(NOTE.filename, version=b"another version!", length=1), Code.SOURCE_CHANGED)
        await fetcher.fetch(WHOLE)
        assert fetcher.content == NOTE.content


@pytest.mark.clause("BP1-FET-011")
@quick
async def test_a_file_that_changes_while_it_is_read_ends_the_stream() -> None:
    async with serving() as served:
        fetcher = await _note(served)
        readers = _watch_readers(served, changed=True)
        await fetcher.asker.refused(WHOLE, Code.SOURCE_CHANGED)
        assert [reader.closed for reader in readers] == [True]


@quick
async def test_a_file_that_became_shorter_ends_the_stream() -> None:
    async with serving() as served:
        fetcher = await _note(served)
        served.store._files[NOTE.filename].content = NOTE.content[:10]
        await fetcher.asker.refused(WHOLE, Code.SOURCE_CHANGED)


@quick
async def test_a_damaged_file_is_sent_again_a_few_times() -> None:
    async with serving() as served:
        fetcher = await _note(served)
        await fetcher.fetch(WHOLE)
        for _ in range(AGAIN_MAX):
            await fetcher.peer.say(fetcher.stream, _damage(Code.DIGEST_MISMATCH))
            heard = await fetcher.peer.hear()
            assert isinstance(heard.message, Block)
            assert bytes(heard.payload) == NOTE.content
        await fetcher.peer.say(fetcher.stream, _damage(Code.DIGEST_MISMATCH))
        await fetcher.peer.expect_error(Code.DIGEST_MISMATCH, Scope.STREAM, fetcher.stream)


@pytest.mark.clause("BP1-FET-011")
@quick
async def test_another_file_is_not_sent_in_place_of_the_damaged_one() -> None:
    async with serving() as served:
        fetcher = await _note(served)
        await fetcher.fetch(Fetch(NOTE.filename, length=len(NOTE.content)))
        kept = served.store._files[NOTE.filename]
        kept.entry = replace(kept.entry, version=b"the newer one...")
        await fetcher.peer.say(fetcher.stream, _damage(Code.DIGEST_MISMATCH))
        await fetcher.peer.expect_error(Code.SOURCE_CHANGED, Scope.STREAM, fetcher.stream)


@quick
@pytest.mark.parametrize("held", [(), ((0, 1),)])
async def test_a_root_that_differs_is_answered_by_digests(held: tuple[tuple[int, int], ...]) -> None:
    async with serving() as served:
        fetcher = await _note(served)
        await fetcher.fetch(WHOLE)
        fetcher.blocks.clear()
        assert fetcher.opened is not None
        opened = Opened(fetcher.opened.sourceid, bytes(16), 0, 0, 1, None, held=held)
        await fetcher.peer.say(fetcher.stream, _damage(Code.DIGESTS_DIFFER))
        have = await fetcher.peer.expect(Have, fetcher.stream)
        assert have.digests == ((0, digest_of(NOTE.content)),)
        await fetcher.peer.say(fetcher.stream, opened)
        await fetcher.take()
        assert fetcher.content == (b"" if held else NOTE.content)
        await fetcher.peer.say(fetcher.stream, opened)  # once more, unasked: it changes nothing
        await fetcher.finish()
        assert (await fetcher.fetch(WHOLE)).root == digest_of(NOTE.content)


@quick
async def test_a_slow_line_gets_a_small_file_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:
        asker = await _asker(served)
        sample = _named("sixty", bytes_of(BRIEF_LENGTH_MAX))
        await asker.put(sample)
        monkeypatch.setattr(Pace, "piece_length", lambda self, longest: 20_000)
        fetcher = Fetcher(asker)
        kinds = []
        fetcher.stream = await asker.say(Fetch("sixty", length=BRIEF_LENGTH_MAX))
        fetcher.opened = await asker.peer.expect(Open, fetcher.stream)
        content = b""
        while not isinstance(message := (heard := await asker.peer.hear()).message, Commit):
            if not isinstance(message, Credit):
                kinds.append(type(message))
                content += heard.payload
        assert kinds == [Block, Piece, Piece, Piece]
        assert content == sample.content
        assert message.root == digest_of(content)


@quick
@pytest.mark.parametrize("how", ["stream", "connection"])
async def test_who_has_gone_is_sent_nothing(how: str) -> None:
    async with serving() as served:
        disk = served.server.engine.uploads.disk = HeldDisk()
        fetcher = await _note(served)
        readers = _watch_readers(served)
        streams = [await fetcher.asker.say(WHOLE) for _ in range(2 * BATCH_FILES)]
        await wait_all_tasks_blocked()
        if how == "connection":
            await fetcher.peer.stream.aclose()
        else:
            await fetcher.peer.say(streams[0], Error(Code.CANCELLED, Scope.STREAM, False))
        await wait_all_tasks_blocked()
        disk.go.set()
        await wait_all_tasks_blocked()
        assert (len(readers), disk.together) == ((1, 1) if how == "connection" else (len(streams), READERS))
        if how == "stream":
            heard = await fetcher.peer.hear()
            assert (heard.stream, type(heard.message)) == (streams[1], Open)


class HeldDisk(Disk):
    """A slow disk whose reads wait until they may go.

    Attributes:
        go: set when they may.
        together: the most of them at once.
    """

    slow = True

    def __init__(self) -> None:
        super().__init__()
        self.go = trio.Event()
        self.together = self._waiting = 0

    async def run(self, work: Callable[[], T]) -> T:
        self._waiting += 1
        self.together = max(self.together, self._waiting)
        await self.go.wait()
        self._waiting -= 1
        return work()
