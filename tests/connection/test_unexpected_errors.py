"""Errors that nobody expected end what they belong to, are logged once with their traceback, and the server lives on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NoReturn

import pytest
import trio
from ends import Recorder, connected
from peers import MIB, RawPeer, Sample, WatchedStore, bytes_of, names_in, run, serving
from trio.testing import wait_all_tasks_blocked

from blockproto.common.blocks import digest_of
from blockproto.common.names import SafeName
from blockproto.connection.connection import Connection
from blockproto.connection.credit import CreditPolicy
from blockproto.connection.unexpected_errors import is_expected, wants_memory
from blockproto.connection.writer import Writer
from blockproto.dialects.sourceid import Sourceid
from blockproto.dialects.struct82 import Struct82
from blockproto.errors import Code, InternalError, LocalProtocolError, NotPermitted, Scope, StoreFailed
from blockproto.observability.observer import Observer
from blockproto.protocol.session import Session, Side
from blockproto.serving import server as servers
from blockproto.serving.acceptor import Acceptor
from blockproto.serving.detect import DetectedConnection
from blockproto.serving.handlers.brief_fetch import BriefFetches, ServedBrief
from blockproto.serving.handlers.fetch import ServedFetch
from blockproto.serving.handlers.requests import RequestHandler
from blockproto.serving.server import ACCEPT_AGAIN_S, Server
from blockproto.store import BlockDone, Decided, Facts, Finish, Outcome, UploadKey, Work
from blockproto.testing.memory_store import MemoryUpload
from blockproto.transfer.brief_receiver import BriefReceiver
from blockproto.transfer.committer import Committer
from blockproto.transfer.engine import SWEEP_EVERY_S
from blockproto.transfer.file_service import FileReader
from blockproto.transfer.live_uploads import LiveUploads
from blockproto.transfer.receiver import UploadReceiver
from blockproto.transfer.sender import Sender
from blockproto.transfer.threads import run_anyhow, run_in_thread
from blockproto.wire import (
    PREFACE,
    Committed,
    Error,
    Fetch,
    Hello,
    List,
    ListKind,
    Message,
    Opened,
    Ping,
    Remove,
    RemoveKind,
    Result,
    encode_frame,
)

quick = pytest.mark.trio(run=run)
BRIEF = Sample(b"brief", "a.txt", sourceid=b"a brief file id.")
BIG = Sample(bytes_of(2 * MIB + 5))
LISTED = List(kind=ListKind.FILES)


async def is_answered(peer: RawPeer, stream: int) -> bool:
    """Whether the server takes a file and gives its name, on a connection that was there before."""
    await peer.say(stream, *Sample(b"good", "good.txt", sourceid=b"the good file id").block(0, commit=True))
    return (await peer.expect(Committed, stream)).stored_as == "good.txt"


def broken(error: BaseException) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fails


def broken_task(error: BaseException) -> Callable[..., Any]:
    async def fails(*_: Any, **__: Any) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise error

    return fails


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    """How many tracebacks were logged."""
    return sum(record.exc_info is not None for record in caplog.records)


REQUESTS: list[tuple[type, str, Sequence[tuple[Message, bytes]]]] = [
    (RequestHandler, "_list", [(LISTED, b"")]),
    (RequestHandler, "_remove", [(Remove(RemoveKind.FILE, filename="a.txt"), b"")]),
    (RequestHandler, "received", [(LISTED, b"")]),
    (ServedFetch, "received", [(Fetch("a.txt"), b"")]),
    (ServedFetch, "_begin", [(Fetch("a.txt"), b"")]),
    (FileReader, "open", [(Fetch("a.txt"), b"")]),
    (ServedFetch, "_send", [(Fetch("a.txt"), b"")]),
    (Sender, "_send_missing", [(Fetch("a.txt"), b"")]),
    (ServedBrief, "received", [(Fetch("a.txt", length=10), b"")]),
    (ServedBrief, "_read", [(Fetch("a.txt", length=10), b"")]),
    (ServedBrief, "_answer", [(Fetch("a.txt", length=10), b"")]),
    (LiveUploads, "open", [(BIG.open(), b"")]),
    (UploadReceiver, "received", [(BIG.open(), b"")]),
    (UploadReceiver, "_begin_block", [(BIG.open(), b""), BIG.block(0)]),
    (UploadReceiver, "payload", [(BIG.open(), b""), BIG.block(0)]),
    (UploadReceiver, "say_durable", [(BIG.open(), b""), BIG.block(0)]),
    (UploadReceiver, "_end_block", [(BIG.open(), b""), BIG.block(0)]),
    (BriefReceiver, "received", [Sample(b"x", "b.txt", sourceid=b"another brief id").block(0, commit=True)]),
    (BriefReceiver, "payload", [Sample(b"x", "b.txt", sourceid=b"another brief id").block(0, commit=True)]),
    (BriefReceiver, "_answer", [Sample(b"x", "b.txt", sourceid=b"another brief id").block(0, commit=True)]),
    (MemoryUpload, "write", [(BIG.open(), b""), BIG.block(0)]),
]


@quick
@pytest.mark.clause("BP1-ERR-010")
@pytest.mark.parametrize(
    "error", [ValueError("a bug"), LocalProtocolError("a bug"), ExceptionGroup("", [OSError()])]
)
@pytest.mark.parametrize(("where", "what", "said"), REQUESTS)
async def test_in_a_handler_its_stream_ends(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    where: type,
    what: str,
    said: Sequence[tuple[Message, bytes]],
) -> None:
    is_task = getattr(where, what).__code__.co_flags & 0x80
    async with serving() as served:
        peer, other = await served.peer(), await served.peer()
        await peer.say(1, *BRIEF.block(0, commit=True))
        await peer.expect(Committed)
        with monkeypatch.context() as patch:
            patch.setattr(where, what, (broken_task if is_task else broken)(error))
            for message, payload in said:
                await peer.say(3, message, payload)
            await wait_all_tasks_blocked()
        while not isinstance((heard := await peer.hear()).message, Error):
            pass
        assert heard.message.code == Code.INTERNAL
        assert (heard.stream, heard.message.scope) == (3, Scope.STREAM)
        assert "a bug" not in heard.message.text
        assert await is_answered(peer, 5)
        assert await is_answered(other, 1)
    assert tracebacks(caplog) == 1


@quick
@pytest.mark.clause("BP1-ERR-010")
@pytest.mark.parametrize(
    ("where", "what"),
    [
        (CreditPolicy, "received"),
        (Session, "next_event"),
        (Connection, "_handle"),
        (Writer, "take_control_frames"),
        (BriefFetches, "_work_off"),
        (Server, "_see_in"),
        (servers, "detect"),
        (servers, "ConnectionAuth"),
    ],
)
async def test_in_a_connection_the_connection_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: Any, what: str
) -> None:
    is_task = getattr(where, what).__code__.co_flags & 0x80 if where is not servers else what == "detect"
    async with serving() as served:
        other, unlucky = await served.peer(), RawPeer(served.connect())
        with monkeypatch.context() as patch:
            patch.setattr(where, what, (broken_task if is_task else broken)(ValueError("a bug")))
            await unlucky.send_bytes(PREFACE + encode_frame(0, Hello(agent="unlucky")))
            await unlucky.say(1, Fetch("a.txt", length=10))
            await wait_all_tasks_blocked()
            with trio.fail_after(60):
                while await unlucky.stream.receive_some(1 << 16):
                    pass
        assert await is_answered(other, 1)
        assert not served.server._connection_auths.keys() - served.server._connections.keys()
    assert tracebacks(caplog) == 1


@quick
@pytest.mark.clause("BP1-ERR-010")
async def test_the_peer_hears_why_its_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:
        peer = await served.peer()
        with monkeypatch.context() as patch:
            patch.setattr(CreditPolicy, "received", broken(ValueError("a bug")))
            await peer.say(0, Ping(bytes(8), 0))
            await peer.expect(Ping)
            await peer.expect_error(Code.INTERNAL, Scope.CONNECTION, 0)


@quick
@pytest.mark.parametrize(
    ("dialect", "first"),
    [(Sourceid(), b"sourceid=a;filename=b;filetype=c;filesize=5\n"), (Struct82(), bytes(82))],
)
async def test_in_a_dialect_its_connection_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dialect: Any, first: bytes
) -> None:
    monkeypatch.setattr(servers, "detect", _received_by(dialect))
    monkeypatch.setattr(type(dialect), "serve", broken_task(ValueError("a bug")))
    async with serving(dialects=[dialect]) as served:
        unlucky = served.connect()
        await unlucky.send_all(first)
        await wait_all_tasks_blocked()
        assert await unlucky.receive_some() == b""
        monkeypatch.undo()
        assert await is_answered(await served.peer(), 1)
    assert tracebacks(caplog) == 1


def _received_by(dialect: Any) -> Callable[..., Any]:
    async def receive(endpoint: Any, new_session: Callable[[], Session], *_: Any) -> DetectedConnection:
        session = new_session()
        count = await endpoint.receive_into(session.receive_buffer())
        return DetectedConnection(endpoint, session, count, dialect, secured=False)

    return receive


@quick
async def test_one_stream_of_an_upload_that_breaks_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        first, second = await served.peer(), await served.peer()
        for peer in (first, second):
            await peer.say(1, BIG.open())
            await wait_all_tasks_blocked()
        durable = UploadReceiver.say_durable

        [live] = served.server.engine.uploads._live.values()
        unlucky = live.feeds[0]

        def breaks_for_one(self: UploadReceiver, position: int, runs: list[tuple[int, int]]) -> None:
            if self is unlucky:
                raise ValueError("a bug")
            durable(self, position, runs)

        monkeypatch.setattr(UploadReceiver, "say_durable", breaks_for_one)
        await first.expect(Opened)
        await second.expect(Opened)
        for blockno in range(3):
            await second.say(1, *BIG.block(blockno))
        await first.expect_error(Code.INTERNAL, Scope.STREAM, 1)
        await second.wait_acked(0, 1, 2)
        await second.say(1, BIG.commit())
        await second.expect(Committed, 1)
        assert names_in(served.store) == [BIG.filename]
    assert tracebacks(caplog) == 1


# ---- the store ------------------------------------------------------------------------------------------------


@quick
@pytest.mark.clause("BP1-ERR-010")
@pytest.mark.clause("BP1-ERR-008")
async def test_in_the_committer_the_store_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    store = WatchedStore()
    store.before_commit = broken(ValueError("a bug"))
    async with serving(store, fails=StoreFailed) as served:
        peer = await served.peer()
        await peer.say(1, *BRIEF.block(0, commit=True))
        await peer.expect_error(Code.STORE_FAILED, Scope.CONNECTION, 0)
    assert tracebacks(caplog) == 1


@quick
@pytest.mark.clause("BP1-ERR-010")
async def test_what_waits_for_a_work_does_not_fail_the_store(caplog: pytest.LogCaptureFixture) -> None:
    store = WatchedStore()
    committer = Committer(store, observer=_BrokenWatch())
    outcomes: list[Outcome] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        for number in range(3):
            upload = store.begin_brief(*_brief_of(number))
            done = broken(ValueError("a bug")) if number == 1 else outcomes.append
            committer.submit(_finish_of(upload), done, principal=bytes(16))
        await committer.drain()
        nursery.cancel_scope.cancel()
    assert len(outcomes) == 2
    assert len(names_in(store)) == 3
    assert tracebacks(caplog) == 2


class _BrokenWatch(Observer):
    def committed(self, decided: Sequence[Decided], elapsed_s: float) -> None:
        raise ValueError("a bug")


def _brief_of(number: int) -> tuple[Any, Any, int]:
    facts = Facts(SafeName(f"{number}.txt"), "text/plain", 1)
    return UploadKey(bytes(16), bytes([number]) * 16), facts, 0


def _finish_of(upload: Any) -> Any:
    upload.write(0, memoryview(b"x"))
    done = BlockDone(upload, 0, 0, 1, digest_of(b"x"))
    return Finish(upload, 0, digest_of(b"x"), 1, upload.facts, (done,))


@quick
@pytest.mark.parametrize("error", [ValueError("a bug"), NotPermitted("not now")])
async def test_sweeping_is_tried_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    store = WatchedStore()
    swept = count(1)

    def sweep() -> Sequence[Work]:
        if next(swept) == 1:
            raise error
        return ()

    store.sweep = sweep  # type: ignore[method-assign]
    async with serving(store) as served:
        await trio.sleep_until(trio.current_time() + SWEEP_EVERY_S + 1)
        assert next(swept) == 3
        assert await is_answered(await served.peer(), 1)
    assert tracebacks(caplog) == isinstance(error, ValueError)


# ---- threads that cannot be started ---------------------------------------------------------------------------


async def _no_threads(*_: Any, **__: Any) -> NoReturn:
    await trio.lowlevel.checkpoint()
    raise RuntimeError("can't start new thread")


@quick
@pytest.mark.parametrize("said", [LISTED, Fetch("a.txt"), BIG.open()])
async def test_a_request_that_finds_no_thread_is_busy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: Message
) -> None:
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, *BRIEF.block(0, commit=True))
        await peer.expect(Committed)
        with monkeypatch.context() as patch:
            patch.setattr(trio.to_thread, "run_sync", _no_threads)
            await peer.say(3, said)
            refused = await peer.expect_error(Code.BUSY, Scope.STREAM, 3)
            assert refused.retryable
            assert refused.retry_after_ms
            await peer.say(5, *Sample(b"more", "b.txt", sourceid=b"another sourceid").block(0, commit=True))
            await peer.expect(Committed, 5)
        assert await is_answered(peer, 7)
    assert tracebacks(caplog) == 0


@pytest.mark.trio
async def test_what_the_work_itself_raises_is_no_want_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for runs in (run_in_thread, run_anyhow):
        with pytest.raises(RuntimeError, match="my own"):
            await runs(broken(RuntimeError("my own")))  # type: ignore[operator]
    calls: list[int] = []
    monkeypatch.setattr(trio.to_thread, "run_sync", _no_threads)
    await run_anyhow(lambda: calls.append(1))
    assert calls == [1]


# ---- what is no such error ------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_an_interrupt_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted: list[BaseException] = []

    def on_message(message: Message) -> None:
        raise KeyboardInterrupt

    try:
        async with connected(Side.SERVER, handler=lambda: Recorder(on_message=on_message)) as ends:
            await ends.peer.say(1, LISTED)
            await trio.sleep_forever()
    except* KeyboardInterrupt as group:
        interrupted.append(group)
    assert interrupted


def test_what_is_expected_and_what_is_not() -> None:
    assert is_expected(NotPermitted())
    assert not is_expected(LocalProtocolError())
    assert not is_expected(ValueError())
    assert wants_memory(MemoryError())
    assert wants_memory(ExceptionGroup("", [ValueError(), ExceptionGroup("", [MemoryError()])]))
    assert not wants_memory(ExceptionGroup("", [ValueError()]))
    assert InternalError().code is Code.INTERNAL
    assert not InternalError().retryable


# ---- accepting ------------------------------------------------------------------------------------------------


@pytest.mark.trio
@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(9, "Bad file descriptor")])
async def test_a_listener_that_breaks_is_used_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    assert ACCEPT_AGAIN_S < 5
    look, looks = Acceptor._look, 0

    def breaks_once(self: Acceptor, now: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise error
        look(self, now)

    monkeypatch.setattr(Acceptor, "_look", breaks_once)
    listener, *_ = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Server(WatchedStore())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, [listener])
            stream = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            peer = RawPeer(stream)
            await peer.greet()
            assert await is_answered(peer, 1)
            await stream.aclose()
            server.stop()
    assert tracebacks(caplog) == 1


@quick
@pytest.mark.clause("BP1-ERR-010")
async def test_the_stream_ends_that_asked_and_not_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, LISTED)
        await peer.expect(Result, 1)
        with monkeypatch.context() as patch:
            patch.setattr(RequestHandler, "_list", broken_task(ValueError("a bug")))
            await peer.say(3, LISTED)
            error = await peer.expect_error(Code.INTERNAL, Scope.STREAM, 3)
        assert "a bug" not in error.text
        assert await is_answered(peer, 5)
