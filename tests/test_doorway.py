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
from test_arrivals import Crowd, wait_some

from blockproto.dialects import Dialect
from blockproto.dialects.sourceid import Sourceid
from blockproto.link.life import GREETING_S
from blockproto.serving import doorway as doorways
from blockproto.serving.arrivals import Arrivals
from blockproto.serving.doorway import PAUSE_S, Doorway, Stranger
from blockproto.wire import PREFACE

quick = pytest.mark.trio(run=run)
TLS_RECORD = b"\x16\x03\x01\x00\x0a0123456789"
LINE = b"Content-Length=5;filename=a;sourceid=\r\n"


class Entry:
    """A doorway on a real port, who was let in, and how often it looked at somebody."""

    def __init__(self, places: int, dialects: tuple[Dialect, ...]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.arrivals = Arrivals(places)
        self.inside: list[Stranger] = []
        self.fails: list[BaseException] = []
        self.looks = 0
        self.doorway = Doorway(self.listener, self.arrivals, dialects, self._let_in)

    def _let_in(self, stranger: Stranger) -> None:
        if self.fails:
            raise self.fails.pop()
        self.inside.append(stranger)

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
    look = Stranger.has_said_enough

    def counted(self: Stranger, *args: Any) -> bool:
        made.looks += 1
        return look(self, *args)

    monkeypatch.setattr(Stranger, "has_said_enough", counted)
    with made.listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.doorway.run)
            yield made
            nursery.cancel_scope.cancel()
        for stranger in made.inside:
            stranger.sock.close()


@quick
@pytest.mark.parametrize(
    ("said", "enough"),
    [(PREFACE + b"more", 8), (b"\xff" + bytes(7), 8), (b"GET / HTTP/1.1", 1), (TLS_RECORD, len(TLS_RECORD))],
)
async def test_who_dribbles_goes_in_when_somebody_can_answer_and_no_byte_is_lost(
    monkeypatch: pytest.MonkeyPatch, said: bytes, enough: int
) -> None:
    async with entry(monkeypatch) as door:
        with await door.come() as client:
            for at in range(len(said)):
                assert len(door.inside) == (at >= enough), at
                await door.say(client, said[at : at + 1])
            assert door.heard() == said


@quick
async def test_a_dialect_is_waited_for_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch, dialects=(Sourceid(),)) as door:
        with await door.come(LINE[:3]) as client:
            assert not door.inside
            await door.say(client, LINE[3:])
            assert door.heard() == LINE


@quick
@pytest.mark.skipif(not hasattr(socket, "SO_RCVLOWAT"), reason="this system has no SO_RCVLOWAT")
async def test_bytes_that_cannot_be_enough_wake_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch) as door:
        with await door.come(PREFACE[:1]) as client:
            looks = door.looks
            for at in range(1, 7):
                await door.say(client, PREFACE[at : at + 1])
            assert (door.looks, door.inside) == (looks, [])
            await door.say(client, PREFACE[7:])
            stranger = door.inside[0]
            assert stranger.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


@quick
@pytest.mark.clause("BP1-HEL-014")
async def test_who_says_too_little_is_closed_in_time_however_it_dribbles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with entry(monkeypatch) as door:
        with await door.come() as silent, await door.come(PREFACE[:1]) as dribbling:
            await wait_some(GREETING_S - 1)
            await door.say(dribbling, PREFACE[1:2])
            for client in (silent, dribbling):
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
            await wait_some(1)
            await door.settle()
            assert (silent.recv(1), dribbling.recv(1)) == (b"", b"")
            assert (len(door.arrivals), door.inside) == (0, [])


@quick
@pytest.mark.clause("BP1-LIM-004")
async def test_who_waits_longest_loses_its_place_to_who_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch, places=8) as door:
        with await door.come() as first, await door.come() as second, await door.come():
            assert first.recv(1) == b""
            await door.say(second, PREFACE)
            assert len(door.inside) == 1


@quick
async def test_who_ends_before_it_said_enough_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch) as door:
        with await door.come(PREFACE[:3]) as client:
            client.shutdown(socket.SHUT_WR)
            await door.settle()
            assert door.heard() == PREFACE[:3]  # whoever takes it finds the end
            assert door.heard() == b""


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
    async with entry(monkeypatch) as door:
        with await door.come() as oldest:
            door.doorway._listener = Bare(door.listener, error, error)  # type: ignore[assignment]
            with await door.come() as client:
                assert oldest.recv(1) == b""
                assert len(door.arrivals) == 0
                await wait_some(2 * PAUSE_S + 0.01)
                await door.settle()
                await door.say(client, PREFACE)
                assert len(door.inside) == 1
    assert [record.getMessage()[:26] for record in caplog.records] == ["new connections wait until"]


@quick
async def test_a_connection_that_was_gone_before_it_was_accepted_harms_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with entry(monkeypatch) as door:
        door.doorway._listener = Bare(door.listener, OSError(errno.ECONNABORTED, "gone"))  # type: ignore[assignment]
        with await door.come(PREFACE):
            assert len(door.inside) == 1


@quick
async def test_a_listener_that_is_broken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        broken = Bare(listener, OSError(errno.EINVAL, "broken"))
        doorway = Doorway(broken, Arrivals(8), (), lambda _: None)  # type: ignore[arg-type]
        with socket.create_connection(listener.getsockname()), pytest.raises(OSError, match="broken"):
            await doorway.run()


@quick
@pytest.mark.clause("BP1-LIM-006")
async def test_memory_that_is_wanting_for_one_ends_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch) as door:
        door.fails.append(MemoryError())
        with await door.come(PREFACE) as first:
            assert first.recv(1) == b""
            await wait_some(2 * PAUSE_S)
            with await door.come(PREFACE):
                assert len(door.inside) == 1


@quick
async def test_a_crowd_at_the_door_waits_in_the_kernels_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that all say enough at once take no place from one another, though they are more than there are places."""
    monkeypatch.setattr(doorways, "LET_IN_PER_PASS", 1)
    async with entry(monkeypatch, places=16) as door:
        clients = [socket.create_connection(door.listener.getsockname()) for _ in range(40)]
        for client in clients:
            client.sendall(PREFACE)
        with trio.move_on_after(1):
            while len(door.inside) < len(clients):
                await trio.lowlevel.checkpoint()
                for stranger in door.inside:
                    assert stranger.place is not None
                    stranger.place.leave()  # seen in
        assert len(door.inside) == len(clients)
        for client in clients:
            client.close()


@quick
async def test_nobody_is_left_when_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with entry(monkeypatch) as door:
        client = await door.come(PREFACE[:1])
    with client:
        assert client.recv(1) == b""
    assert len(door.arrivals) == 0


def test_the_address_that_has_most_is_known_whatever_comes_and_goes() -> None:
    crowd = Crowd(12)
    places = [crowd.come(f"192.0.2.{1 + number % 3}", str(number)) for number in range(8)]
    places[0].leave()  # of .1, which had three as .2 has: 1, 4, 7
    assert crowd.arrivals.make_room()
    assert crowd.gone == ["1"]
    for place in places:
        place.leave()
    assert not crowd.arrivals.make_room()
    assert crowd.gone == ["1"]
