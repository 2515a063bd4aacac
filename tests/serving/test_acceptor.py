"""The doorway: who has said too little waits outside any task, who has said enough goes in, and nobody is forgotten."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from peers import run
from test_handshake_slots import Crowd, wait_some

from blockproto.connection.liveness import GREETING_S
from blockproto.dialects import Dialect
from blockproto.dialects.sourceid import Sourceid
from blockproto.serving import acceptor as doorways
from blockproto.serving.acceptor import PAUSE_S, Acceptor, PendingSocket
from blockproto.serving.handshake_slots import HandshakeSlots
from blockproto.wire import PREFACE

quick = pytest.mark.trio(run=run)
TLS_RECORD = b"\x16\x03\x01\x00\x0a0123456789"
LINE = b"Content-Length=5;filename=a;sourceid=\r\n"


class Entry:
    """A doorway on a real port, who was let in, and how often it looked at somebody."""

    def __init__(self, places: int, dialects: tuple[Dialect, ...]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.slots = HandshakeSlots(places)
        self.inside: list[PendingSocket] = []
        self.fails: list[BaseException] = []
        self.looks = 0
        self.doorway = Acceptor(self.listener, self.slots, dialects, self._let_in)

    def _let_in(self, pending: PendingSocket) -> None:
        if self.fails:
            raise self.fails.pop()
        self.inside.append(pending)

    async def come(self, said: bytes = b"") -> socket.socket:
        """A client that has said something; the doorway has seen it."""
        client = socket.create_connection(self.listener.getsockname())
        client.settimeout(5)
        await self.settle()
        await self.say(client, said)
        return client

    async def say(self, client: socket.socket, said: bytes) -> None:
        """``client`` says more; the doorway has seen it."""
        if said:
            client.sendall(said)
            await self.settle()

    async def settle(self) -> None:
        """Loopback delivers at once: a few passes, and what came was looked at."""
        for _ in range(5):
            await trio.lowlevel.checkpoint()

    def heard(self, index: int = -1) -> bytes:
        """What whoever took that one can read."""
        return self.inside[index].sock.recv(1000)


@asynccontextmanager
async def entry(
    monkeypatch: pytest.MonkeyPatch, places: int = 1000, dialects: tuple[Dialect, ...] = ()
) -> AsyncIterator[Entry]:
    made = Entry(places, dialects)
    look = PendingSocket.has_said_enough

    def counted(self: PendingSocket, *args: Any) -> bool:
        made.looks += 1
        return look(self, *args)

    monkeypatch.setattr(PendingSocket, "has_said_enough", counted)
    with made.listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.doorway.run)
            yield made
            nursery.cancel_scope.cancel()
        for pending in made.inside:
            pending.sock.close()


@quick
@pytest.mark.parametrize(
    ("said", "enough"),
    [(PREFACE + b"more", 8), (b"\xff" + bytes(7), 8), (b"GET / HTTP/1.1", 1), (TLS_RECORD, len(TLS_RECORD))],
)
async def test_who_dribbles_goes_in_when_somebody_can_answer_and_no_byte_is_lost(
    monkeypatch: pytest.MonkeyPatch, said: bytes, enough: int
) -> None:
    async with entry(monkeypatch) as policy:
        with await policy.come() as client:
            for at in range(len(said)):
                assert len(policy.inside) == (at >= enough), at
                await policy.say(client, said[at : at + 1])
            assert policy.heard() == said


@quick
async def test_a_dialect_is_waited_for_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch, dialects=(Sourceid(),)) as policy:
        with await policy.come(LINE[:3]) as client:
            assert not policy.inside
            await policy.say(client, LINE[3:])
            assert policy.heard() == LINE


@quick
@pytest.mark.skipif(not hasattr(socket, "SO_RCVLOWAT"), reason="this system has no SO_RCVLOWAT")
async def test_bytes_that_cannot_be_enough_wake_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch) as policy:
        with await policy.come(PREFACE[:1]) as client:
            looks = policy.looks
            for at in range(1, 7):
                await policy.say(client, PREFACE[at : at + 1])
            assert (policy.looks, policy.inside) == (looks, [])
            await policy.say(client, PREFACE[7:])
            pending = policy.inside[0]
            assert pending.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


@quick
@pytest.mark.clause("BP1-HEL-014")
async def test_who_says_too_little_is_closed_in_time_however_it_dribbles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with entry(monkeypatch) as policy:
        with await policy.come() as silent, await policy.come(PREFACE[:1]) as dribbling:
            await wait_some(GREETING_S - 1)
            await policy.say(dribbling, PREFACE[1:2])
            for client in (silent, dribbling):
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
            await wait_some(1)
            await policy.settle()
            assert (silent.recv(1), dribbling.recv(1)) == (b"", b"")
            assert (len(policy.slots), policy.inside) == (0, [])


@quick
@pytest.mark.clause("BP1-LIM-004")
async def test_who_waits_longest_loses_its_place_to_who_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch, places=8) as policy:
        with await policy.come() as first, await policy.come() as second, await policy.come():
            assert first.recv(1) == b""
            await policy.say(second, PREFACE)
            assert len(policy.inside) == 1


@quick
async def test_who_ends_before_it_said_enough_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch) as policy:
        with await policy.come(PREFACE[:3]) as client:
            client.shutdown(socket.SHUT_WR)
            await policy.settle()
            assert policy.heard() == PREFACE[:3]  # whoever takes it finds the end
            assert policy.heard() == b""


class Bare:
    """A listener whose next ``accept`` fails."""

    def __init__(self, sock: socket.socket, *errors: BaseException) -> None:
        self._sock = sock
        self.errors = list(errors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            raise self.errors.pop(0)
        return self._sock.accept()


@quick
@pytest.mark.clause("BP1-LIM-006")
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
async def test_without_a_descriptor_or_memory_a_stranger_makes_room_and_later_ones_are_accepted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    async with entry(monkeypatch) as policy:
        with await policy.come() as oldest:
            policy.doorway._listener = Bare(policy.listener, error, error)  # type: ignore[assignment]
            with await policy.come() as client:
                assert oldest.recv(1) == b""
                assert len(policy.slots) == 0
                await wait_some(2 * PAUSE_S + 0.01)
                await policy.settle()
                await policy.say(client, PREFACE)
                assert len(policy.inside) == 1
    assert [record.getMessage()[:26] for record in caplog.records] == ["new connections wait until"]


@quick
async def test_a_connection_that_was_gone_before_it_was_accepted_harms_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with entry(monkeypatch) as policy:
        policy.doorway._listener = Bare(policy.listener, OSError(errno.ECONNABORTED, "gone"))  # type: ignore[assignment]
        with await policy.come(PREFACE):
            assert len(policy.inside) == 1


@quick
async def test_a_listener_that_is_broken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        broken = Bare(listener, OSError(errno.EINVAL, "broken"))
        doorway = Acceptor(broken, HandshakeSlots(8), (), lambda _: None)  # type: ignore[arg-type]
        with socket.create_connection(listener.getsockname()), pytest.raises(OSError, match="broken"):
            await doorway.run()


@quick
@pytest.mark.clause("BP1-LIM-006")
async def test_memory_that_is_wanting_for_one_ends_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch) as policy:
        policy.fails.append(MemoryError())
        with await policy.come(PREFACE) as first:
            assert first.recv(1) == b""
            await wait_some(2 * PAUSE_S)
            with await policy.come(PREFACE):
                assert len(policy.inside) == 1


@quick
async def test_a_crowd_at_the_door_waits_in_the_kernels_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that all say enough at once take no place from one another, though they are more than there are places."""
    monkeypatch.setattr(doorways, "LET_IN_PER_PASS", 1)
    async with entry(monkeypatch, places=16) as policy:
        clients = [socket.create_connection(policy.listener.getsockname()) for _ in range(40)]
        for client in clients:
            client.sendall(PREFACE)
        with trio.move_on_after(1):
            while len(policy.inside) < len(clients):
                await trio.lowlevel.checkpoint()
                for pending in policy.inside:
                    assert pending.place is not None
                    pending.place.leave()  # seen in
        assert len(policy.inside) == len(clients)
        for client in clients:
            client.close()


@quick
async def test_nobody_is_left_when_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch) as policy:
        client = await policy.come(PREFACE[:1])
    with client:
        assert client.recv(1) == b""
    assert len(policy.slots) == 0


def test_the_address_that_has_most_is_known_whatever_comes_and_goes() -> None:
    crowd = Crowd(12)
    places = [crowd.come(f"192.0.2.{1 + number % 3}", str(number)) for number in range(8)]
    places[0].leave()  # of .1, which had three as .2 has: 1, 4, 7
    assert crowd.slots.make_room()
    assert crowd.gone == ["1"]
    for place in places:
        place.leave()
    assert not crowd.slots.make_room()
    assert crowd.gone == ["1"]
