"""Each blind mutant is a mutant: in one exchange it does something else than the healthy server, and what was meant.

A probe plays a client and returns what it saw. It is asked twice, of a healthy server and of the mutant.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio
from blind_mutants.mistakes import SERVERS
from peers import MIB, Heard, RawPeer, Sample, bytes_of, run, serving
from processes import TIMEOUT_S, Process, wait_for_line
from trio.testing import wait_all_tasks_blocked

from blockproto.errors import Code, Scope
from blockproto.wire import (
    PREFACE,
    Ack,
    Cancel,
    Commit,
    Committed,
    Credit,
    Error,
    Fetch,
    Have,
    Hello,
    List,
    ListKind,
    Message,
    Opened,
    Ping,
    Remove,
    RemoveKind,
    Result,
    Type,
    encode_frame,
    frame_bytes,
)

ROOT = Path(__file__).resolve().parent.parent
THREE = Sample(bytes_of(2 * MIB + 5))
SMALL = Sample(bytes_of(1000))
PONG = Ping(b"are you?", 0, answer=True)


class Place(Protocol):
    """Where a server is."""

    async def peer(self, hello: Hello | None = None) -> RawPeer: ...

    def connect(self) -> trio.abc.Stream: ...


@dataclass(frozen=True, slots=True)
class Probe:
    """What to do, and what is then seen of a healthy server and of the mutant."""

    ask: Callable[[Place], Awaitable[Any]]
    healthy: Any
    mutated: Any


PROBES: dict[str, Probe] = {}


def probe(healthy: Any, mutated: Any) -> Callable[[Callable[[Place], Awaitable[Any]]], None]:
    """Register the decorated probe for the mutant of its name."""

    def register(ask: Callable[[Place], Awaitable[Any]]) -> None:
        PROBES[ask.__name__.replace("_", "-")] = Probe(ask, healthy, mutated)

    return register


# ---- what a probe says and sees ---------------------------------------------------------------------------------


def told(message: Message) -> str:
    """A message in a word or two."""
    if isinstance(message, Error):
        return f"{Code(message.code).name} {Scope(message.scope).name.lower()}"
    return message.TYPE.name


async def heard_so_far(peer: RawPeer) -> list[Heard]:
    """Everything but CREDIT that the server says until it has nothing more to say and answers a PING."""
    await wait_all_tasks_blocked()
    await peer.say(0, replace(PONG, answer=False))
    heard = []
    while (one := await peer.hear()).message != PONG:
        heard.append(one)
    return [one for one in heard if not isinstance(one.message, Credit)]


async def told_so_far(peer: RawPeer) -> list[str]:
    """The same in words."""
    return [told(one.message) for one in await heard_so_far(peer)]


async def answer(peer: RawPeer) -> str:
    """The next frame that is no CREDIT and no ACK."""
    while isinstance(message := (await peer.hear()).message, Credit | Ack):
        pass
    return told(message)


async def opened(peer: RawPeer, stream: int = 1, attempt: int = 1, sample: Sample = THREE) -> Opened:
    await peer.say(stream, sample.open(attempt))
    return await peer.expect(Opened, stream)


async def held(peer: RawPeer, *blocknos: int) -> None:
    """Open THREE on stream 1 and make these blocks durable."""
    await opened(peer)
    for blockno in blocknos:
        await peer.say(1, *THREE.block(blockno))
    await peer.wait_acked(*blocknos)


async def stored(peer: RawPeer) -> None:
    """Store THREE with stream 1."""
    await held(peer, 0, 1, 2)
    await peer.say(1, THREE.commit())
    await peer.expect(Committed)


async def brief(peer: RawPeer, stream: int, sample: Sample = SMALL) -> Committed:
    await peer.say(stream, *sample.block(0, commit=True))
    return await peer.expect(Committed, stream)


async def listed(peer: RawPeer, stream: int, cursor: str) -> tuple[list[str], str]:
    await peer.say(stream, List(ListKind.FILES, limit=2, cursor=cursor))
    result = await peer.expect(Result, stream)
    return [item.filename for item in result.items], result.cursor  # type: ignore[union-attr]


# ---- the probes -------------------------------------------------------------------------------------------------


@probe("BAD_CHECK connection", "COMMITTED")
async def payload_frames_unchecked(place: Place) -> str:
    peer = await place.peer()
    message, payload = SMALL.block(0, commit=True)
    frame = bytearray(encode_frame(1, message, len(payload)))
    frame[15] ^= 1
    await peer.send_bytes(bytes(frame) + payload)
    return await answer(peer)


@probe("UNSUPPORTED stream", "RESULT")
async def must_understand_tlv_skipped(place: Place) -> str:
    peer = await place.peer()
    flags, head = List.LAYOUT.encode(List(ListKind.FILES))
    await peer.send_bytes(frame_bytes(1, Type.LIST, flags, head + struct.pack(">HH", 0x8001, 0)))
    return await answer(peer)


@probe("greeted", "silent")
async def greets_after_hello(place: Place) -> str:
    peer = RawPeer(place.connect())
    await peer.send_bytes(PREFACE)
    with trio.move_on_after(1):
        await peer.hear_greeting()
        return "greeted"
    return "silent"


@probe("PING", "UNSUPPORTED_VERSION connection")
async def version_must_be_equal(place: Place) -> str:
    peer = await place.peer(Hello(version_highest=2))
    await peer.say(0, replace(PONG, answer=False))
    return await answer(peer)


@probe([], ["RESULT"])
async def passed_over_id_opens(place: Place) -> list[str]:
    peer = await place.peer()
    await listed(peer, 3, "")
    await peer.say(1, List(ListKind.FILES))
    return await told_so_far(peer)


@probe("credited", "nothing")
async def credit_at_the_end_of_the_block(place: Place) -> str:
    peer = await place.peer()
    await opened(peer)
    await peer.say(1, *THREE.block(0, 0, 600_000, end=False))
    with trio.move_on_after(1):
        await peer.wait_credited(600_000)
        return "credited"
    return "nothing"


@probe("all of it", "not all")
async def the_last_credit_counts(place: Place) -> str:
    peer = await place.peer(Hello(stream_allowance=262_144))
    await stored(peer)
    await peer.say(3, Fetch(THREE.filename))
    raised, late = Credit(4 * MIB, 0), Credit(300_000, 0)
    await peer.send_bytes(encode_frame(3, raised) + encode_frame(3, late))
    with trio.move_on_after(5):  # nobody says what came: the server waits for that at first
        while not isinstance((await peer.hear()).message, Commit):
            pass
        return "all of it"
    return "not all"


@probe(["SOURCE_CHANGED stream"], ["ACK"])
async def repeated_block_not_compared(place: Place) -> list[str]:
    peer = await place.peer()
    await held(peer, 0)
    await peer.say(1, *replace(THREE, content=bytes_of(2 * MIB + 5, seed=2)).block(0))
    return await told_so_far(peer)


@probe(["BAD_FACTS stream"], ["ACK"])
async def facts_of_block_unread(place: Place) -> list[str]:
    peer = await place.peer()
    await opened(peer)
    await peer.say(1, *THREE.block(0, filename="another.bin"))
    return await told_so_far(peer)


@probe([], ["SUPERSEDED stream"])
async def equal_attempt_takes_over(place: Place) -> list[str]:
    first, second = await place.peer(), await place.peer()
    await opened(first)
    await opened(second)
    return await told_so_far(first)


@probe(MIB, 2 * MIB)
async def position_counts_held_blocks(place: Place) -> int:
    peer = await place.peer()
    await opened(peer)
    await peer.say(1, *THREE.block(0))
    await peer.say(1, *THREE.block(2))
    await peer.wait_acked(0, 2)
    return (await opened(peer, 3, attempt=1)).position


@probe({1, 3}, {1})
async def ack_only_where_the_block_came(place: Place) -> set[int]:
    peer = await place.peer()
    await opened(peer, 1)
    await opened(peer, 3)
    await peer.say(1, *THREE.block(0))
    return {one.stream for one in await heard_so_far(peer) if isinstance(one.message, Ack)}


@probe(((0, 3),), ((0, 1),))
async def have_forgets_what_it_does_not_name(place: Place) -> tuple[tuple[int, int], ...]:
    peer = await place.peer()
    await held(peer, 0, 1, 2)
    digest = THREE.block(0)[0].digest
    assert digest is not None
    await peer.say(1, Have(((0, digest),)))
    return (await peer.expect(Opened)).held


@probe([], ["BAD_FACTS stream"])
async def early_commit_refused(place: Place) -> list[str]:
    peer = await place.peer()
    await held(peer, 0)
    await peer.say(1, THREE.commit())
    return await told_so_far(peer)


@probe(["sample.bin", "sample.bin"], ["sample.bin", "sample (1).bin"])
async def brief_file_without_receipt(place: Place) -> list[str]:
    peer = await place.peer()
    return [(await brief(peer, stream)).stored_as for stream in (1, 3)]


@probe(MIB, 0)
async def cancel_always_discards(place: Place) -> int:
    peer = await place.peer()
    await held(peer, 0)
    await peer.say(1, Cancel(Code.CANCELLED))
    await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)
    return (await opened(peer, 3, attempt=2)).position


@probe(False, True)
async def range_with_the_root_of_the_file(place: Place) -> bool:
    peer = await place.peer()
    await stored(peer)
    await peer.say(3, Fetch(THREE.filename, first=10, length=20))
    while not isinstance(message := (await peer.hear()).message, Commit):
        pass
    return message.root == THREE.root


@probe(["c", "d"], ["d"])
async def cursor_is_an_index(place: Place) -> list[str]:
    peer = await place.peer()
    for number, name in enumerate("abcd"):
        await brief(peer, 2 * number + 1, replace(SMALL, filename=name, sourceid=name.encode() * 16))
    names, cursor = await listed(peer, 9, "")
    assert names == ["a", "b"]
    await peer.say(11, Remove(RemoveKind.FILE, filename="a"))
    await peer.expect(Result, 11)
    return (await listed(peer, 13, cursor))[0]


@probe("reads on", "closed")
async def closes_with_its_error(place: Place) -> str:
    peer = await place.peer()
    await peer.say(1, replace(PONG, answer=False))
    await peer.expect_error(Code.UNEXPECTED, Scope.CONNECTION)
    with trio.move_on_after(1):
        assert await peer.stream.receive_some() == b""
        return "closed"
    return "reads on"


@probe("NAME_REFUSED stream", "OPENED")
async def component_length_in_characters(place: Place) -> str:
    peer = await place.peer()
    await peer.say(1, replace(THREE, filename="é" * 128).open())
    return await answer(peer)


# ---- the tests --------------------------------------------------------------------------------------------------


def test_there_are_twenty_and_each_has_its_probe() -> None:
    assert len(SERVERS) == 20
    assert set(PROBES) == set(SERVERS)
    text = (ROOT / "spec" / "protocol.md").read_text(encoding="utf-8")
    assert not [mutant.name for mutant in SERVERS.values() if f"[{mutant.clause} " not in text]


@pytest.mark.trio(run=run)
@pytest.mark.parametrize("name", SERVERS)
async def test_a_mutant_does_something_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = PROBES[name]
    async with serving() as served:
        assert await one.ask(served) == one.healthy
    SERVERS[name].apply(monkeypatch.setattr)
    async with serving() as served:
        assert await one.ask(served) == one.mutated


@pytest.mark.trio(run=run)
@pytest.mark.parametrize("name", SERVERS)
async def test_a_friendly_client_notices_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A mistake that stops every transfer would be found by its author, and is none of those that hide."""
    SERVERS[name].apply(monkeypatch.setattr)
    source = tmp_path / THREE.filename
    source.write_bytes(THREE.content)
    async with serving() as served, served.client() as client:
        receipt = await client.upload(source)
        assert receipt.root == THREE.root.hex()
        await client.download(THREE.filename, tmp_path / "copy")
        assert served.downloaded(tmp_path / "copy") == THREE.content
        assert [entry.filename async for entry in client.listing()] == [THREE.filename]


def test_the_command_serves_with_a_mistake(tmp_path: Path) -> None:
    name = "must-understand-tlv-skipped"
    command = [sys.executable, "-m", "tests.blind_mutants.server", "--mutant", name]
    process = Process([*command, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        line = wait_for_line(process, timeout_s=TIMEOUT_S)
        assert line.startswith("listening on 127.0.0.1:"), line
        place = Listening(int(line.rpartition(":")[2]))
        assert trio.run(ask_over_tcp, name, place) == PROBES[name].mutated
    finally:
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
        assert process.stdout is not None
        process.stdout.close()


class Listening:
    """A server on a port of this machine, and the connections that were made to it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: list[trio.abc.Stream] = []

    def connect(self) -> trio.abc.Stream:
        sock = socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)
        self.streams.append(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
        return self.streams[-1]

    async def peer(self, hello: Hello | None = None) -> RawPeer:
        peer = RawPeer(self.connect())
        await peer.greet(hello)
        return peer


async def ask_over_tcp(name: str, place: Listening) -> Any:
    """What a server on a port answers to the probe of a mutant."""
    with trio.fail_after(TIMEOUT_S):
        try:
            return await PROBES[name].ask(place)
        finally:
            for stream in place.streams:
                await stream.aclose()


def test_an_unknown_mutant_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.blind_mutants.server", "--mutant", "nonesuch", tmp_path]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ran.returncode == 2
    assert "nonesuch" in ran.stderr
