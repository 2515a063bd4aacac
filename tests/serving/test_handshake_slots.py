"""Strangers and their places: who comes is seen in, who has waited longest has to go; and blocks that hardly come."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from peers import MIB, Sample, Served, bytes_of, run, serving
from test_connection_auth import say_who
from trio.testing import wait_all_tasks_blocked

from blockproto.common.addresses import neighbourhood
from blockproto.common.blocks import digest_of
from blockproto.common.file_table import FileTable
from blockproto.connection.endpoint import StreamEndpoint
from blockproto.connection.minimum_rate import SPAN_BYTES_LEAST, SPAN_S, MinimumRate
from blockproto.errors import Code, Scope
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.principals import Register
from blockproto.identity.realm import EVERYTHING
from blockproto.serving.handshake_slots import HandshakeSlots, Slot, scarcity_of, slots_for
from blockproto.serving.server import Server
from blockproto.testing.memory_store import MemoryStore
from blockproto.wire import (
    FEATURE_FILES,
    PREFACE,
    Committed,
    Files,
    Hello,
    Opened,
    Piece,
    Ping,
    Stored,
    encode_frame,
)

quick = pytest.mark.trio(run=run)
TWO = Sample(bytes_of(2 * MIB))


class Crowd:
    """Places taken one after another, and who had to go."""

    def __init__(self, places: int) -> None:
        self.slots = HandshakeSlots(places)
        self.gone: list[str] = []

    def come(self, host: str, name: str) -> Slot:
        return self.slots.take(host, lambda: self.gone.append(name))


# ---- whose place it is


def test_an_address_has_a_quarter_and_its_own_oldest_makes_room() -> None:
    crowd = Crowd(8)
    crowd.come("192.0.2.9", "other")
    for name in "abcd":
        crowd.come("192.0.2.1", name)
    assert crowd.gone == ["a", "b"]
    assert len(crowd.slots) == 3


def test_when_all_are_taken_the_oldest_of_the_greediest_address_makes_room() -> None:
    crowd = Crowd(4)
    slots = crowd.slots = HandshakeSlots(16)
    for number in range(4):
        for host in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
            crowd.come(host, f"{host[-1]}{number}")
    for host in ("192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7"):
        crowd.come(host, host[-1])
    assert (len(slots), crowd.gone) == (16, [])
    crowd.come("192.0.2.8", "honest")
    assert crowd.gone == ["10"]
    assert len(slots) == 16


def test_a_place_is_free_when_it_was_left_and_leaving_twice_frees_one() -> None:
    crowd = Crowd(4)
    place = crowd.come("192.0.2.1", "a")
    place.leave()
    place.leave()
    crowd.come("192.0.2.1", "b")
    assert (len(crowd.slots), crowd.gone) == (1, [])


def test_nobody_stays_when_it_is_closed() -> None:
    crowd = Crowd(4)
    crowd.come("192.0.2.1", "a")
    crowd.slots.close()
    crowd.come("192.0.2.2", "b")
    assert (crowd.gone, len(crowd.slots)) == (["a", "b"], 0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "192.0.2.1", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (neighbourhood(one) == neighbourhood(other)) is same


@pytest.mark.clause("BP1-LIM-006")
def test_strangers_get_a_quarter_of_the_files() -> None:
    assert [slots_for(files) for files in (1, 64, 1024, 20_000, 1 << 62)] == [4, 16, 256, 4096, 4096]


def test_a_server_that_may_open_few_files_says_what_that_means() -> None:
    assert scarcity_of(4096) is None
    said = scarcity_of(1024)
    assert said is not None
    assert "1,024 files" in said
    assert "256 of them" in said


# ---- on a server


async def pending(served: Served, host: str, said: bytes = PREFACE[:1]) -> trio.abc.Stream:
    """A connection from ``host`` that has said a little and stopped."""
    here, there = trio.testing.memory_stream_pair()
    endpoint = StreamEndpoint(there, host)
    served.nursery.start_soon(served.server.serve_endpoint, endpoint)
    await here.send_all(said)
    await wait_all_tasks_blocked()
    return here


async def is_gone(stream: trio.abc.Stream) -> bool:
    """Whether the server has closed it."""
    with trio.move_on_after(0.001):
        while await stream.receive_some(1000):
            pass
        return True
    return False


@quick
@pytest.mark.clause("BP1-LIM-004")
@pytest.mark.parametrize("said", [PREFACE[:1], b"\x16\x03\x01", PREFACE])
async def test_strangers_send_away_one_another_and_never_who_was_seen_in(said: bytes) -> None:
    async with serving() as served:
        served.server._slots = HandshakeSlots(8)
        known = await served.peer()
        crowd = [await pending(served, "192.0.2.1", said) for _ in range(4)]
        assert [await is_gone(one) for one in crowd] == [True, True, False, False]
        honest = await served.peer()
        for peer in (known, honest):
            await peer.say(0, Ping(bytes(8), 0))
            await peer.expect(Ping)


@quick
@pytest.mark.clause("BP1-LIM-004", "BP1-AUT-010")
async def test_where_auth_is_wanted_one_is_a_stranger_until_it_succeeded() -> None:
    register, token = Register({}).with_token(
        "alice",
        folder=None,
        quota=None,
        scopes=EVERYTHING,
        now_ms=0,
        expires_ms=None,
    )
    async with serving(policy=AuthPolicy(register, None)) as served:
        peers = [await served.peer() for _ in range(3)]
        await wait_all_tasks_blocked()
        assert len(served.server._slots) == 3
        await say_who(peers[0], token)
        await peers[1].stream.aclose()
        await wait_all_tasks_blocked()
        assert len(served.server._slots) == 1
        await peers[2].expect_error(Code.TIMEOUT, Scope.CONNECTION, 0)
        await peers[2].stream.aclose()
        await peers[0].say(0, Ping(bytes(8), 0))
        await peers[0].expect(Ping)


@quick
async def test_leaving_does_not_wait_for_strangers() -> None:
    server = Server(MemoryStore())
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        here, there = trio.testing.memory_stream_pair()
        nursery.start_soon(server.serve_stream, there)
        await wait_all_tasks_blocked()
        begun = trio.current_time()
        server.stop()
        assert await here.receive_some(10) == b""
    assert trio.current_time() - begun < 1


# ---- the least rate


async def wait_some(timeout_s: float) -> None:
    """Let time pass on the clock that jumps."""
    await trio.sleep(timeout_s)


def test_only_a_block_that_was_begun_the_whole_span_and_has_credit_counts() -> None:
    begun: set[tuple[int, int]] = set()
    rate = MinimumRate(lambda: frozenset(begun))
    rate.began(0, 0)
    assert rate.until_s == float("inf")
    begun.add((1, 100))
    rate.began(0, 0)
    assert not rate.too_slow(SPAN_S - 1, 0)
    assert not rate.too_slow(SPAN_S, SPAN_BYTES_LEAST)
    begun.add((3, 100))
    begun.discard((1, 100))
    assert not rate.too_slow(2 * SPAN_S, SPAN_BYTES_LEAST)  # another block than at the beginning
    assert rate.too_slow(3 * SPAN_S, 2 * SPAN_BYTES_LEAST - 1)
    assert not rate.too_slow(5 * SPAN_S, 2 * SPAN_BYTES_LEAST)  # looked at late: the time was ours
    begun.clear()
    assert not rate.too_slow(6 * SPAN_S, 0)
    assert rate.until_s == float("inf")


@quick
@pytest.mark.clause("BP1-LIM-005")
async def test_a_block_that_hardly_comes_ends_the_connection_and_what_came_is_kept() -> None:
    async with serving() as served:
        slow, idle = await served.peer(), await served.peer()
        begun = trio.current_time()
        await slow.say(1, TWO.open())
        await slow.expect(Opened)
        await slow.say(1, *TWO.block(0, 0, 50_000, end=False))
        at = 50_000
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def dribble() -> None:
                nonlocal at
                while True:
                    await wait_some(5)
                    await slow.say(1, Piece(at), TWO.content[at : at + 100])
                    at += 100

            await slow.expect_error(Code.TIMEOUT, Scope.CONNECTION, 0)
            nursery.cancel_scope.cancel()
        assert SPAN_S <= trio.current_time() - begun <= 2 * SPAN_S + 1
        await slow.stream.aclose()
        await idle.say(1, TWO.open(2))
        assert dict((await idle.expect(Opened)).prefixes)[0] >= 50_000


def whole_block() -> bytes:
    """A frame that is a whole block, of which nothing is to be written by itself."""
    message, payload = Sample(bytes_of(200_000)).block(0, commit=True)
    return encode_frame(1, message, len(payload)) + payload


def frame_of_files(number: int = 1, length: int = 200_000) -> bytes:
    """A frame of one file."""
    content = bytes_of(length)
    record = (number.to_bytes(16, "big"), digest_of(content), length, 10**18, 0o644, 0, 0, 1)
    message = Files(number, ("",), ("text/plain",), FileTable((record,), (f"{number}",)))
    return encode_frame(1, message, length) + content


@quick
@pytest.mark.clause("BP1-LIM-005")
@pytest.mark.parametrize("frame_of", [whole_block, frame_of_files])
async def test_a_frame_that_hardly_comes_ends_the_connection(frame_of: Callable[[], bytes]) -> None:
    async with serving() as served:
        slow = await served.peer(Hello(features=FEATURE_FILES, agent="raw"))
        begun = trio.current_time()
        frame = frame_of()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def dribble() -> None:
                await slow.send_bytes(frame[:1000])
                for at in range(1000, len(frame)):
                    await wait_some(5)
                    await slow.send_bytes(frame[at : at + 1])

            await slow.expect_error(Code.TIMEOUT, Scope.CONNECTION, 0)
            nursery.cancel_scope.cancel()
        assert SPAN_S <= trio.current_time() - begun <= 2 * SPAN_S + 1
        await slow.stream.aclose()
        await wait_all_tasks_blocked()
        assert served.server.engine.frame_memory.held == 0


@quick
async def test_small_frames_that_come_slowly_and_end_are_served() -> None:
    """The least rate is for what does not end: each of these frames does, though fewer bytes come than the least."""
    async with serving() as served:
        peer = await served.peer(Hello(features=FEATURE_FILES, agent="raw"))
        for number in range(1, 6):
            frame = frame_of_files(number, 1000)
            await peer.send_bytes(frame[:-10])
            await wait_some(40)
            await peer.send_bytes(frame[-10:])
            assert (await peer.expect(Stored, 1)).number == number


@quick
async def test_who_keeps_the_least_rate_may_take_its_time() -> None:
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, TWO.open())
        await peer.expect(Opened)
        await peer.say(1, *TWO.block(0, 0, 1000, end=False))
        for at in range(1000, 40_000 * 10, 40_000):
            await wait_some(25)
            await peer.say(1, Piece(at), TWO.content[at : at + 40_000])
        await peer.say(3, *Sample(b"x", "x", sourceid=b"x" * 16).block(0, commit=True))
        await peer.expect(Committed, 3)
