"""Reading what is still being uploaded: block by block as it becomes durable, until it is committed or gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from peers import MIB, RawPeer, Sample, Served, WatchedStore, bytes_of, run, serving
from processes import COMMAND, TIMEOUT_S, Chaos, Process, Server, wait_until_held
from test_connection_auth import Town, enter

from blockproto import UploadInfo
from blockproto.cli import main
from blockproto.cli.get_upload import WAIT_S, _tell_of_waiting
from blockproto.cli.output import Status
from blockproto.cli.progress import Meter
from blockproto.client import Client
from blockproto.common.blocks import digest_of
from blockproto.common.tasks import background_tasks
from blockproto.errors import Cancelled, Code, Scope
from blockproto.store.rules import EXPIRY_MS
from blockproto.transfer.send_plan import SendPlan
from blockproto.transfer.send_source import Progress
from blockproto.wire import (
    Ack,
    Block,
    Cancel,
    Commit,
    Committed,
    Credit,
    Error,
    Fetch,
    Have,
    Hello,
    Open,
    Opened,
    Piece,
)

quick = pytest.mark.trio(run=run)
FILM = Sample(bytes_of(2 * MIB + 5), "a/film.mkv", "video/x-matroska")
LIVE = Sample(bytes_of(2 * MIB + 5), "voice.ogg", known=False)


async def begun(served: Served, sample: Sample = FILM, blocks: int = 1) -> tuple[RawPeer, bytes]:
    """An uploader on stream 1 whose first blocks are durable, and the file id."""
    peer = await served.peer()
    await peer.say(1, sample.open(mtime_ns=1_700_000_000_000_000_000, mode=0o640))
    opened = await peer.expect(Opened)
    for blockno in range(blocks):
        await peer.say(1, *sample.block(blockno))
    await peer.wait_acked(*range(blocks))
    return peer, opened.file_id


async def finish(peer: RawPeer, sample: Sample = FILM, first: int = 1, stream: int = 1) -> None:
    for blockno in range(first, sample.blocknum):
        await peer.say(stream, *sample.block(blockno))
    await peer.say(stream, sample.commit())
    await peer.expect(Committed, stream)


def fetch_of(file_id: bytes, **changes: object) -> Fetch:
    return replace(Fetch("", file_id=file_id, version=file_id), **changes)  # type: ignore[arg-type]


class Reader:
    """Somebody who fetches an upload on stream 1 of a connection of his own."""

    def __init__(self, peer: RawPeer) -> None:
        self.peer = peer
        self.blocks: dict[int, bytearray] = {}
        self._at = -1

    @classmethod
    async def of(cls, served: Served, message: Fetch) -> Reader:
        reader = cls(await served.peer())
        await reader.peer.say(1, message)
        return reader

    async def hear(self) -> Open | Commit | Error | int:
        """What comes next: a blockno that is whole now, or another message."""
        while True:
            heard = await self.peer.hear()
            if isinstance(heard.message, Block):
                self._at = heard.message.blockno
                self.blocks[self._at] = bytearray()
            if isinstance(heard.message, Block | Piece):
                self.blocks[self._at] += heard.payload
                if heard.message.digest is not None:
                    assert digest_of(self.blocks[self._at]) == heard.message.digest
                    await self.peer.say(1, Ack(0, ((self._at, 1),)))
                    return self._at
            elif not isinstance(heard.message, Credit):
                assert isinstance(heard.message, Open | Commit | Error), heard
                return heard.message

    async def silent(self) -> bool:
        """Whether nothing comes for two minutes."""
        with trio.move_on_after(120):
            await self.hear()
            return False
        return True


@quick
@pytest.mark.clause("BP1-FET-015", "BP1-FET-016", "BP1-FET-017", "BP1-FET-018", "BP1-FET-019")
async def test_blocks_come_when_they_are_durable_and_commit_at_the_end() -> None:
    async with serving() as served:
        uploader, file_id = await begun(served)
        reader = await Reader.of(served, fetch_of(file_id))
        opening = await reader.hear()
        assert isinstance(opening, Open)
        facts = opening.filename, opening.filesize, opening.blocknum, opening.filetype, opening.mode
        assert facts == (FILM.filename, 2 * MIB + 5, 3, FILM.filetype, 0o640)
        assert (opening.version, opening.file_id, opening.root) == (file_id, file_id, None)
        assert await reader.hear() == 0
        assert await reader.silent()
        await uploader.say(1, *FILM.block(2))
        assert await reader.silent()  # in order: block 1 first
        await uploader.say(1, *FILM.block(1))
        assert [await reader.hear(), await reader.hear()] == [1, 2]
        assert await reader.silent()  # all is here, nothing is committed
        await uploader.say(1, FILM.commit())
        commit = await reader.hear()
        assert commit == Commit(bytes(16), FILM.root, len(FILM.content), 3)
        assert b"".join(reader.blocks.values()) == FILM.content
        await reader.peer.say(1, Committed(bytes(16), file_id, FILM.root, len(FILM.content), ""))


@quick
async def test_a_lost_uploader_and_a_takeover_do_not_disturb_who_reads() -> None:
    async with serving() as served:
        uploader, file_id = await begun(served)
        reader = await Reader.of(served, fetch_of(file_id))
        assert isinstance(await reader.hear(), Open)
        assert await reader.hear() == 0
        await uploader.stream.aclose()
        assert await reader.silent()
        second = await served.peer()
        await second.say(1, FILM.open(2))
        assert (await second.expect(Opened)).held == ((0, 1),)
        await second.say(1, *FILM.block(1))
        assert await reader.hear() == 1
        third = await served.peer()
        await third.say(1, FILM.open(3))
        await third.expect(Opened)
        await finish(third, first=2)
        assert await reader.hear() == 2
        assert isinstance(await reader.hear(), Commit)
        assert b"".join(reader.blocks.values()) == FILM.content


@quick
async def test_it_is_found_though_nobody_sends_it_now() -> None:
    async with serving() as served:
        uploader, file_id = await begun(served, blocks=2)
        await uploader.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        reader = await Reader.of(served, fetch_of(file_id, held=((0, 1),)))
        assert isinstance(await reader.hear(), Open)
        assert await reader.hear() == 1
        again = await served.peer()
        await again.say(1, FILM.open(2))
        await again.expect(Opened)
        await finish(again, first=2)
        assert await reader.hear() == 2
        commit = await reader.hear()
        assert isinstance(commit, Commit)
        assert commit.root == FILM.root  # over the block that was held, too


@quick
async def test_what_was_interrupted_goes_on_when_the_upload_is_a_file() -> None:
    async with serving() as served:
        uploader, file_id = await begun(served)
        await finish(uploader)
        reader = await Reader.of(served, fetch_of(file_id, held=((0, 2),)))
        opening = await reader.hear()
        assert isinstance(opening, Open)
        assert opening.version == file_id
        assert await reader.hear() == 2
        commit = await reader.hear()
        assert isinstance(commit, Commit)
        assert commit.root == FILM.root


@quick
async def test_who_reads_slowly_holds_nobody_up_and_gets_it_all() -> None:
    async with serving() as served:
        uploader, file_id = await begun(served)
        slow = await served.peer(Hello(agent="slow", stream_allowance=262_144, connection_allowance=1 << 20))
        await slow.say(1, fetch_of(file_id))
        await finish(uploader)  # the reader has read nothing yet
        assert served.server.engine.uploads._live == {}
        reader = Reader(slow)
        await slow.say(1, Credit(64 * MIB, 0))
        await slow.say(0, Credit(64 * MIB, 0))
        assert isinstance(await reader.hear(), Open)
        assert [await reader.hear() for _ in range(3)] == [0, 1, 2]
        assert isinstance(await reader.hear(), Commit)
        assert b"".join(reader.blocks.values()) == FILM.content


@quick
async def test_a_range_of_it() -> None:
    async with serving() as served:
        uploader, file_id = await begun(served)
        reader = await Reader.of(served, fetch_of(file_id, first=MIB - 3, length=7))
        assert isinstance(await reader.hear(), Open)
        assert await reader.hear() == 0
        await finish(uploader)
        assert await reader.hear() == 1
        commit = await reader.hear()
        assert isinstance(commit, Commit)
        assert (commit.filesize, commit.blocknum) == (len(FILM.content), 3)
        assert b"".join(reader.blocks.values()) == FILM.content[MIB - 3 : MIB + 4]


@quick
async def test_of_unknown_size_the_last_block_is_sent_when_it_is_known_to_be_the_last() -> None:
    async with serving() as served:
        uploader, file_id = await begun(served, LIVE)
        reader = await Reader.of(served, fetch_of(file_id))
        opening = await reader.hear()
        assert isinstance(opening, Open)
        assert (opening.filesize, opening.blocknum) == (None, None)
        assert await reader.hear() == 0
        await finish(uploader, LIVE)
        assert [await reader.hear(), await reader.hear()] == [1, 2]
        assert await reader.hear() == Commit(bytes(16), LIVE.root, len(LIVE.content), 3)
        assert b"".join(reader.blocks.values()) == LIVE.content
        refused = await Reader.of(served, fetch_of(file_id, first=1))
        assert isinstance(await refused.hear(), Open)  # a file by now: any range will do


@quick
async def test_of_unknown_size_only_the_whole_can_be_had() -> None:
    async with serving() as served:
        uploader, file_id = await begun(served, LIVE)
        for changes in ({"first": 1}, {"length": 5}):
            peer = await served.peer()
            await peer.say(1, fetch_of(file_id, **changes))
            await peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        await uploader.stream.aclose()


@quick
async def test_what_is_cancelled_ends_it() -> None:
    async with serving() as served:
        uploader, file_id = await begun(served)
        readers = [await Reader.of(served, fetch_of(file_id)) for _ in range(2)]
        for reader in readers:
            assert isinstance(await reader.hear(), Open)
            assert await reader.hear() == 0
        await uploader.say(1, Cancel(Code.CANCELLED, "", discard=True))
        for reader in readers:
            error = await reader.hear()
            assert isinstance(error, Error)
            assert (error.code, error.scope) == (Code.CANCELLED, Scope.STREAM)
        again = await served.peer()
        await again.say(1, fetch_of(file_id))
        await again.expect_error(Code.UNKNOWN_FILE, Scope.STREAM)


@quick
@pytest.mark.parametrize("sample", [FILM, LIVE])
async def test_what_was_read_is_compared_with_what_was_committed(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as served:
        uploader, file_id = await begun(served, sample)
        reader = await Reader.of(served, fetch_of(file_id))
        assert isinstance(await reader.hear(), Open)
        monkeypatch.setattr(SendPlan, "compute_root", lambda _: bytes(32))
        await finish(uploader, sample)
        assert [await reader.hear() for _ in range(3)] == [0, 1, 2]
        error = await reader.hear()
        assert isinstance(error, Error)
        assert (error.code, error.scope, error.retryable) == (Code.BUSY, Scope.STREAM, True)


@quick
async def test_blocks_that_are_withdrawn_are_found_by_the_root() -> None:
    """The reader has block 0 as it was; the sender repairs it; the next FETCH ends with the new file, never a splice."""
    changed = Sample(bytes_of(MIB, 9) + FILM.content[MIB:], FILM.filename, FILM.filetype)
    async with serving() as served:
        uploader, file_id = await begun(served)
        reader = await Reader.of(served, fetch_of(file_id))
        assert isinstance(await reader.hear(), Open)
        assert await reader.hear() == 0
        await uploader.say(1, Have(((0, digest_of(changed.bytes_of(0))),)))
        assert (await uploader.expect(Opened)).held == ()
        error = await reader.hear()
        assert isinstance(error, Error)
        assert (error.code, error.scope, error.retryable) == (Code.BUSY, Scope.STREAM, True)
        second = await Reader.of(served, fetch_of(file_id, held=((0, 1),)))
        assert isinstance(await second.hear(), Open)
        await finish(uploader, changed, first=0)
        heard = [await second.hear() for _ in range(4)]
        assert heard[:3] == [0, 1, 2]  # block 0 too: the upload did not hold it when the reader asked
        assert isinstance(heard[3], Commit)
        assert heard[3].root == changed.root


@quick
async def test_who_reads_does_not_keep_it_from_expiring() -> None:
    clock = [0]
    async with serving(WatchedStore(now_ms=lambda: clock[0])) as served:
        uploader, file_id = await begun(served)
        clock[0] = 2 * EXPIRY_MS
        reader = await Reader.of(served, fetch_of(file_id))
        assert isinstance(await reader.hear(), Open)
        assert await reader.hear() == 0
        assert await reader.silent()  # while it is being sent it stays
        await uploader.stream.aclose()
        error = await reader.hear()
        assert isinstance(error, Error)
        assert error.code == Code.UNKNOWN_UPLOAD


@quick
async def test_who_reads_is_not_told_that_it_expired_while_the_clock_is_doubted() -> None:
    clock = [0]
    store = WatchedStore(now_ms=lambda: clock[0])
    store.expiry_now_ms = lambda: 0  # type: ignore[method-assign]
    async with serving(store) as served:
        uploader, file_id = await begun(served)
        clock[0] = 2 * EXPIRY_MS
        reader = await Reader.of(served, fetch_of(file_id))
        assert isinstance(await reader.hear(), Open)
        assert await reader.hear() == 0
        await uploader.stream.aclose()
        assert await reader.silent()


@quick
async def test_who_stops_reading_leaves_nothing_behind() -> None:
    async with serving() as served:
        uploader, file_id = await begun(served)
        gone, polite = [await Reader.of(served, fetch_of(file_id)) for _ in range(2)]
        for reader in (gone, polite):
            assert isinstance(await reader.hear(), Open)
            assert await reader.hear() == 0
        await gone.peer.stream.aclose()
        await polite.peer.say(1, Error(Code.CANCELLED, Scope.STREAM, False, text="enough"))
        await uploader.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert served.server.engine.uploads._live == {}


@quick
@pytest.mark.parametrize("unknown", ["another id", "another version", "no id"])
async def test_what_is_not_there_is_unknown(unknown: str) -> None:
    async with serving() as served:
        uploader, file_id = await begun(served)
        peer = await served.peer()
        if unknown == "another id":
            await peer.say(1, fetch_of(bytes(15) + b"x"))
        elif unknown == "another version":
            await peer.say(1, fetch_of(file_id, version=bytes(15) + b"x"))
        else:
            await peer.say(1, Fetch(FILM.filename))
        code = Code.SOURCE_CHANGED if unknown == "another version" else Code.UNKNOWN_FILE
        await peer.expect_error(code, Scope.STREAM, 1)
        await uploader.stream.aclose()


@quick
@pytest.mark.clause("BP1-FET-015")
async def test_uploads_of_another_principal_are_unknown() -> None:
    town = Town()
    async with town.serving() as served:
        alice, bob = await enter(served, town.tokens["alice"]), await enter(served, town.tokens["bob"])
        await alice.say(3, FILM.open())
        file_id = (await alice.expect(Opened)).file_id
        await alice.say(3, *FILM.block(0))
        await alice.wait_acked(0)
        await bob.say(3, fetch_of(file_id))
        await bob.expect_error(Code.UNKNOWN_FILE, Scope.STREAM, 3)
        await alice.say(5, fetch_of(file_id))
        assert (await alice.expect(Open, 5)).filename == FILM.filename


# ---- our own client


async def listed(client: Client) -> UploadInfo:
    async with aclosing(client.uploads()) as unfinished:
        async for upload in unfinished:
            return upload
    raise AssertionError("nothing is unfinished")


@quick
@pytest.mark.parametrize("sample", [FILM, LIVE], ids=["known", "unknown"])
@pytest.mark.parametrize("cut", [None, MIB + MIB // 2], ids=["steady", "cut"])
async def test_the_client_reads_along_and_comes_back(sample: Sample, cut: int | None) -> None:
    async with serving() as served:
        uploader, _ = await begun(served, sample, blocks=2)
        async with served.client() as asking:
            upload = await listed(asking)
        served.line_options = [{} if cut is None else {"cut_received": cut}]
        async with served.client() as client, trio.open_nursery() as nursery:
            receipts = []
            seen = trio.Event()

            def progress(state: object) -> None:
                if getattr(state, "position_bytes_done", 0) >= 2 * MIB:
                    seen.set()

            async def read() -> None:
                receipts.append(await client.download_upload(upload, "copy", progress=progress))

            nursery.start_soon(read)
            await seen.wait()
            await finish(uploader, sample, first=2)
        (receipt,) = receipts
        assert served.downloaded("copy") == sample.content
        assert (receipt.root, receipt.filesize) == (sample.root.hex(), len(sample.content))
        again = MIB // 2 if cut else 0
        assert receipt.payload_bytes_sent <= len(sample.content) + again


@quick
async def test_the_client_says_that_it_was_cancelled() -> None:
    async with serving() as served:
        uploader, _ = await begun(served)
        async with served.client() as client, trio.open_nursery() as nursery:
            upload = await listed(client)
            failed = trio.Event()

            async def read() -> None:
                with pytest.raises(Cancelled):
                    await client.download_upload(upload, "copy")
                failed.set()

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await client.cancel_upload(upload.sourceid)
            await failed.wait()
        await uploader.expect_error(Code.CANCELLED, Scope.STREAM)


# ---- the command


@contextmanager
def slow_line(server: Server) -> Iterator[Chaos]:
    line = Chaos(server.port, "--rate", "32mbit")
    try:
        yield line
    finally:
        line.kill()


def test_the_command_reads_a_file_that_is_being_sent(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = os.urandom(6 * MIB + 1)
    (tmp_path / "电影 film.mkv").write_bytes(content)
    with slow_line(server) as line:
        sender = Process([*COMMAND, "put", str(tmp_path / "电影 film.mkv"), line.address])
        upload = trio.run(wait_until_held, server.address, 1)
        dest = tmp_path / "copy.mkv"
        status = main(["get", "--upload", upload.sourceid, server.address, str(dest)])
        assert sender.wait(TIMEOUT_S) == Status.DONE
    assert (status, dest.read_bytes()) == (Status.DONE, content)
    assert "电影 film.mkv: complete" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.mkv", "served", "电影 film.mkv"]
    assert main(["get", "--upload", upload.file_id, server.address, str(dest)]) == Status.FAILED
    assert "no unfinished upload" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--upload", "film", "bp://localhost"], "'film' is neither a sourceid nor a file id"),
        (["--upload", "0" * 32, "bp://localhost/a"], "give bp://HOST:PORT"),
        (["--upload", "0" * 32, "--range", "0-1", "bp://localhost"], "no --range"),
    ],
)
def test_what_cannot_be_meant(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", *words]) == Status.USAGE
    assert what in capsys.readouterr().err


async def wait_on_the_clock(seconds: float) -> None:
    """The clock jumps: nothing else happens meanwhile."""
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


@quick
async def test_who_reads_along_is_told_that_the_sender_stands_still(
    capsys: pytest.CaptureFixture[str],
) -> None:
    upload = UploadInfo("1" * 32, "2" * 32, "film", "", 10 * MIB, 10, 0, 0, None)
    meter = Meter(10 * MIB, shown=False)
    async with background_tasks() as nursery:
        nursery.start_soon(_tell_of_waiting, meter, upload)
        meter.update(Progress("film", 10 * MIB, 2 * MIB))
        await wait_on_the_clock(WAIT_S * 1.5)
        assert capsys.readouterr().err == ""
        await wait_on_the_clock(WAIT_S * 3)
        line = "film: 2.0 MiB of 10.0 MiB are here; waiting for its sender to go on\n"
        assert capsys.readouterr().err == line
        meter.update(Progress("film", 10 * MIB, 3 * MIB))
        await wait_on_the_clock(WAIT_S * 4)
        assert capsys.readouterr().err == line.replace("2.0", "3.0")
