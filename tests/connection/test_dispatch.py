"""Streams that have to wait: the rest of their connection goes on, and nothing of theirs is lost or out of order."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import trio
from ends import Ends, Recorder, connected
from peers import MIB, Sample, bytes_of, run
from trio.testing import wait_all_tasks_blocked

from blockproto.client import connect
from blockproto.connection.connection import DISCARD_S
from blockproto.connection.dispatch import BACKLOGS_AT_ONCE
from blockproto.connection.stream_handler import NotYet, Wait
from blockproto.errors import BadFacts, Code, ConnectionLost, Scope, StoreFailed, UnexpectedMessage
from blockproto.protocol.session import Limits
from blockproto.serving.server import Server
from blockproto.store.local.store import LocalStore
from blockproto.store.local.upload import LocalUpload
from blockproto.transfer import slow_disk
from blockproto.wire import Block, Cancel, Commit, Credit, Error, Hello, Message, Open, Ping

quick = pytest.mark.trio(run=run)

LIMITS = Limits(stream_allowance=2 * MIB, connection_allowance=8 * MIB)


@dataclass
class Waiting(Recorder):
    """A handler whose payload waits for a gate."""

    waits: int = True
    gate: trio.Event = field(default_factory=trio.Event)
    order: list[str] = field(default_factory=list)

    async def received(self, message: Message, payload_length: int) -> None:
        self.order.append(type(message).__name__)
        await super().received(message, payload_length)

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        await self.gate.wait()
        if self.order[-1] != "payload":  # one frame's payload may come in several views
            self.order.append("payload")
        await super().payload(position, view, last)


def first_waits() -> tuple[Waiting, list[Recorder]]:
    """A handler that waits, and the handlers in the order in which streams get them: that one, then common ones."""
    waiting = Waiting()
    return waiting, [waiting, *(Recorder() for _ in range(9))]


async def ping(ends: Ends) -> None:
    """PING, and its answer as the next thing but for CREDIT."""
    await ends.peer.say(0, Ping(bytes(8), 0))
    assert (await ends.peer.expect(Ping)).answer


async def granted(ends: Ends, stream: int, allowance: int) -> None:
    """Hear CREDIT until so much is granted."""
    while not any(at == stream and credit.allowance >= allowance for at, credit in ends.peer.credits):
        heard = await ends.peer.hear()
        assert isinstance(heard.message, Credit), heard


@pytest.mark.clause("BP1-STR-018")
@quick
async def test_a_stream_that_waits_holds_back_neither_a_ping_nor_another_stream() -> None:
    sample = Sample(bytes_of(100_000))
    waiting, handlers = first_waits()
    async with connected(handler=lambda: handlers.pop(0)) as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(1, *sample.block(0))
        await ends.peer.say(3, *sample.block(0, commit=True))
        await ping(ends)
        assert ends.handlers[1].payload_bytes == sample.content
        assert waiting.payload_bytes == b""
        waiting.gate.set()
        await wait_all_tasks_blocked()
        assert waiting.payload_bytes == sample.content


@pytest.mark.clause("BP1-STR-010")
@quick
async def test_what_waits_is_handed_over_in_order() -> None:
    """Also what came after the handler stopped waiting: the rest of its stream is still before it."""
    sample = Sample(bytes_of(3000))
    waiting, handlers = first_waits()
    async with connected(handler=lambda: handlers.pop(0)) as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(1, *sample.block(0, 0, 1000, end=False))
        await ping(ends)
        waiting.waits = False
        await ends.peer.say(1, *sample.piece(0, 1000, 3000))
        await ends.peer.say(1, sample.commit())
        await ping(ends)
        assert waiting.order == ["Open", "Block"]
        waiting.gate.set()
        await wait_all_tasks_blocked()
        assert waiting.order == ["Open", "Block", "payload", "Piece", "payload", "Commit"]
        assert waiting.payload_bytes == sample.content
        assert isinstance(waiting.messages[-1], Commit)


@pytest.mark.clause("BP1-STR-018")
@pytest.mark.clause("BP1-CRD-006")
@quick
async def test_what_waits_is_not_credited_and_takes_no_credit_of_others() -> None:
    """The waiting stream has come to its allowance; another moves five times as much as the connection's."""
    sample = Sample(bytes_of(40 * MIB))
    waiting, handlers = first_waits()
    async with connected(limits=LIMITS, handler=lambda: handlers.pop(0)) as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(1, *sample.block(0))
        await ends.peer.say(1, *sample.block(1))
        await ends.peer.say(3, sample.open())
        for blockno in range(40):
            if blockno >= 2:
                await granted(ends, 3, (blockno + 1) * MIB)
            await ends.peer.say(3, *sample.block(blockno))
        assert all(stream != 1 for stream, _ in ends.peer.credits)
        waiting.gate.set()
        await granted(ends, 1, 3 * MIB)


@quick
async def test_the_last_of_a_backlog_is_granted_anew_though_it_is_little() -> None:
    """The connection's credit too: whoever has none left sends nothing that could remind the reader of it."""
    sample = Sample(bytes_of(100_000))
    waiting, handlers = first_waits()
    async with connected(limits=LIMITS, handler=lambda: handlers.pop(0)) as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(1, *sample.block(0))
        await ping(ends)
        waiting.gate.set()
        with trio.fail_after(0.001):
            await granted(ends, 0, 8 * MIB + 100_000)


@dataclass
class Working(Recorder):
    """A handler that waits for a gate with each message, and counts how many do."""

    gate: ClassVar[trio.Event]
    inside: ClassVar[int] = 0
    most: ClassVar[int] = 0

    waits: int = True

    async def received(self, message: Message, payload_length: int) -> None:
        Working.inside += 1
        Working.most = max(Working.most, Working.inside)
        await Working.gate.wait()
        Working.inside -= 1
        await super().received(message, payload_length)


@quick
async def test_thousands_of_streams_that_wait_are_worked_off_by_a_few_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that have more to hand over do not keep the others from theirs."""
    monkeypatch.setattr(Working, "gate", trio.Event(), raising=False)
    monkeypatch.setattr(Working, "most", 0)
    streams = range(1, 4 * BACKLOGS_AT_ONCE, 2)
    sample = Sample(bytes_of(1000))
    async with connected(handler=Working) as ends:
        for stream in streams:
            await ends.peer.say(stream, sample.open())
            await ends.peer.say(stream, Cancel(Code.CANCELLED))
        await ping(ends)
        assert Working.inside == Working.most == BACKLOGS_AT_ONCE
        Working.gate.set()
        await wait_all_tasks_blocked()
        assert Working.most == BACKLOGS_AT_ONCE
        heard = [[type(message) for message in handler.messages] for handler in ends.handlers]
        assert heard == [[Open, Cancel]] * len(streams)


@quick
async def test_what_waits_long_keeps_no_other_that_waits_from_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Working, "gate", trio.Event(), raising=False)
    monkeypatch.setattr(Working, "inside", 0)
    monkeypatch.setattr(Working, "most", 0)
    sample = Sample(bytes_of(1000))
    handlers: list[Recorder] = [Working(waits=Wait.LONG) for _ in range(2 * BACKLOGS_AT_ONCE)]
    handlers.append(Recorder(waits=Wait.SHORT))
    async with connected(handler=lambda: handlers[len(ends.handlers)]) as ends:
        for at in range(len(handlers)):
            await ends.peer.say(2 * at + 1, sample.open())
            await ends.peer.say(2 * at + 1, *sample.block(0))
        await ping(ends)
        assert handlers[-1].payload_bytes == sample.content
        assert Working.most == BACKLOGS_AT_ONCE
        for handler in handlers[:-1]:
            handler.waits = Wait.NOT  # as of an OPEN that is answered
        Working.gate.set()
        await wait_all_tasks_blocked()
        assert [handler.payload_bytes for handler in handlers] == [sample.content] * len(handlers)


@dataclass
class Unready(Recorder):
    """A handler that is ready for no message until told."""

    ready: bool = False
    asked: int = 0

    async def received(self, message: Message, payload_length: int) -> None:
        self.asked += 1
        if not self.ready:
            raise NotYet
        await super().received(message, payload_length)


@pytest.mark.parametrize("waits", [True, False])
@quick
async def test_streams_that_are_not_ready_take_no_task_and_go_on_in_order(waits: bool) -> None:
    sample = Sample(bytes_of(1000))
    count = BACKLOGS_AT_ONCE + 16
    handlers: list[Recorder] = [Unready(waits=waits) for _ in range(count)]
    handlers.append(Recorder(waits=True))
    async with connected(handler=lambda: handlers[len(ends.handlers)]) as ends:
        for at in range(count + 1):
            await ends.peer.say(2 * at + 1, sample.open())
            await ends.peer.say(2 * at + 1, *sample.block(0))
            await ends.peer.say(2 * at + 1, Cancel(Code.CANCELLED))
        await ping(ends)
        assert [type(message) for message in handlers[-1].messages] == [Open, Block, Cancel]
        first = handlers[0]
        assert isinstance(first, Unready)
        assert first.asked == 1
        ends.connection.resume(1)
        await wait_all_tasks_blocked()
        assert (first.asked, first.messages) == (2, [])
        first.ready = True
        ends.connection.resume(1)
        ends.connection.resume(1)
        await wait_all_tasks_blocked()
        assert [type(message) for message in first.messages] == [Open, Block, Cancel]
        assert first.payload_bytes == sample.content


@quick
async def test_what_a_stream_was_not_ready_for_is_dropped_when_it_is_forgotten() -> None:
    """It is credited, and nobody waits for it."""
    sample = Sample(bytes_of(100_000))
    handler = Unready()
    async with connected(handler=lambda: handler) as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(1, *sample.block(0))
        await ping(ends)
        ends.connection.refuse(1, BadFacts("no"))
        await ends.peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        await ends.peer.wait_credited(100_000)
        await ends.peer.stream.aclose()
        await ends.ended()
        assert trio.current_time() < DISCARD_S
        assert handler.messages == []


@quick
async def test_a_stream_that_is_never_ready_keeps_no_closed_connection() -> None:
    handler = Unready()
    async with connected(handler=lambda: handler) as ends:
        await ends.peer.say(1, Sample(b"x").open())
        await ends.peer.stream.aclose()
        await ends.ended()
        assert trio.current_time() == pytest.approx(DISCARD_S)
        assert [type(error) for error in handler.ends] == [ConnectionLost]
        handler.ready = True
        ends.connection.resume(1)  # too late, and harmless
        await wait_all_tasks_blocked()
        assert handler.messages == []


@quick
async def test_an_end_of_the_peer_comes_in_its_turn() -> None:
    sample = Sample(bytes_of(1000))
    waiting, handlers = first_waits()
    async with connected(handler=lambda: handlers.pop(0)) as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(1, *sample.block(0))
        await ends.peer.say(1, Error(Code.CANCELLED, Scope.STREAM, False, "enough"))
        await ping(ends)
        assert waiting.order == ["Open", "Block"]
        assert not ends.connection.quiet
        waiting.gate.set()
        await wait_all_tasks_blocked()
        assert waiting.order == ["Open", "Block", "payload", "Error"]
        assert ends.connection.quiet


@quick
async def test_a_refusal_in_a_backlog_ends_that_stream_and_the_rest_of_it_is_dropped() -> None:
    def refuse(message: Message) -> None:
        if not isinstance(message, Open):
            raise BadFacts("no")

    sample = Sample(bytes_of(2 * MIB))
    waiting = Waiting(on_message=refuse)
    waiting.gate.set()
    async with connected(handler=lambda: waiting) as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(1, *sample.block(0))
        await ends.peer.say(1, *sample.block(1))
        await ends.peer.expect_error(Code.BAD_FACTS, Scope.STREAM, 1)
        await ends.peer.wait_credited(2 * MIB)
        assert waiting.order == ["Open", "Block"]
        assert [type(error) for error in waiting.ends] == [BadFacts]
        assert waiting.payload_bytes == b""
        await ping(ends)


@pytest.mark.parametrize("failure", [StoreFailed("the disk"), UnexpectedMessage("no")])
@quick
async def test_what_ends_the_connection_does_so_from_a_backlog_too(
    failure: StoreFailed | UnexpectedMessage,
) -> None:
    def fail(message: Message) -> None:
        raise failure

    async with connected(handler=lambda: Waiting(on_message=fail)) as ends:
        await ends.peer.say(1, Sample(b"x").open())
        await ends.peer.expect_error(failure.code, Scope.CONNECTION, 0)
        await ends.peer.stream.aclose()
        assert await ends.ended() is failure


@quick
async def test_what_came_before_the_peer_closed_is_kept() -> None:
    sample = Sample(bytes_of(5000))
    waiting, handlers = first_waits()
    async with connected(handler=lambda: handlers.pop(0)) as ends:
        await ends.peer.say(1, sample.open())
        await ends.peer.say(1, *sample.block(0))
        await ends.peer.stream.aclose()
        await trio.sleep_until(DISCARD_S - 1)
        waiting.gate.set()
        assert isinstance(await ends.ended(), ConnectionLost)
        assert waiting.payload_bytes == sample.content
        assert [type(error) for error in waiting.ends] == [ConnectionLost]


@quick
async def test_a_stream_that_waits_for_ever_keeps_no_closed_connection() -> None:
    sample = Sample(bytes_of(5000))
    waiting, handlers = first_waits()
    async with connected(handler=lambda: handlers.pop(0)) as ends:
        await ends.peer.say(1, *sample.block(0))
        await ends.peer.stream.aclose()
        await ends.ended()
        assert trio.current_time() == pytest.approx(DISCARD_S)
        assert [type(error) for error in waiting.ends] == [ConnectionLost]


@pytest.mark.clause("BP1-STR-018")
async def test_a_disk_that_hangs_in_one_upload_stops_that_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real files, a real socket, one connection: a small file and a question pass a video whose writes hang."""
    go_on, arrived = threading.Event(), trio.Event()
    write, token = LocalUpload.write, trio.lowlevel.current_trio_token()

    def hang(self: LocalUpload, position: int, piece: memoryview) -> None:
        token.run_sync_soon(arrived.set, idempotent=True)
        assert go_on.wait(60)
        write(self, position, piece)

    monkeypatch.setattr(
        slow_disk, "QUICK_S", -1.0
    )  # no write is quick: after the first two, all are in threads
    (tmp_path / "root").mkdir()
    for name, length in (("before", 2 * MIB), ("video", 3 * MIB), ("picture", 60_000)):
        (tmp_path / name).write_bytes(bytes_of(length))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            server = Server(LocalStore.open(tmp_path / "root"))
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(server.run, listeners)
            url = f"bp://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            async with connect(url) as client, trio.open_nursery() as uploads:
                await client.upload(tmp_path / "before")
                monkeypatch.setattr(LocalUpload, "write", hang)
                uploads.start_soon(client.upload, tmp_path / "video")
                await arrived.wait()
                await client.upload(tmp_path / "picture")
                assert [entry.filename async for entry in client.listing()] == ["before", "picture"]
                go_on.set()
            server.stop()
    assert (tmp_path / "root" / "video").read_bytes() == bytes_of(3 * MIB)


@pytest.mark.clause("BP1-CRD-012")
def test_a_stream_may_hold_a_quarter_of_the_connections_allowance() -> None:
    for limits in (Limits(), Hello()):
        assert 4 * limits.stream_allowance <= limits.connection_allowance
