"""The model of a line, on a clock that jumps: every time is exact, every fate is repeatable."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from peers import bytes_of, run

from blockproto.testing.chaos import Amount, Conditions, Ending, How, Line, LineStream
from blockproto.testing.chaos.pipe import PACKET_LENGTH_MIN, PACKET_S, ROUNDING_S, WINDOW_BYTES

quick = pytest.mark.trio(run=run)
MBIT = 125_000
FAR = Conditions(up_bytes_s=8 * MBIT, down_bytes_s=8 * MBIT, round_trip_s=0.1)
SLOW = Conditions(up_bytes_s=256_000 / 8, down_bytes_s=256_000 / 8, round_trip_s=0.6)


def about(seconds: float) -> object:
    return pytest.approx(seconds, abs=100 * ROUNDING_S)


def line_of(conditions: Conditions, seed: int = 1) -> tuple[Line, LineStream, LineStream]:
    line = Line(conditions, random.Random(seed))
    return (line, *line.streams())


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    begun = trio.current_time()
    await work()
    return trio.current_time() - begun


async def drain(stream: LineStream) -> bytes:
    """Everything until the end, or until the line breaks."""
    content = bytearray()
    try:
        while some := await stream.receive_some():
            content += some
    except trio.BrokenResourceError:
        pass
    return bytes(content)


async def send(stream: LineStream, content: bytes) -> None:
    await stream.send_all(content)
    await stream.aclose()


@quick
@pytest.mark.parametrize(
    ("conditions", "length", "rate"), [(FAR, 1_000_000, 1_000_000), (SLOW, 320_000, 32_000)]
)
async def test_a_file_takes_its_line_time_and_the_way(conditions: Conditions, length: int, rate: int) -> None:
    _, near, far = line_of(conditions)
    content = bytes_of(length)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, near, content)
        got: list[bytes] = []

        async def receive() -> None:
            got.append(await drain(far))

        assert await timed(receive) == about(length / rate + conditions.round_trip_s / 2)
    assert got == [content]


@quick
@pytest.mark.parametrize(("conditions", "rate"), [(FAR, 1_000_000), (SLOW, 32_000)])
async def test_the_first_packet_arrives_after_its_line_time_and_the_way(
    conditions: Conditions, rate: int
) -> None:
    _, near, far = line_of(conditions)
    packet = max(PACKET_LENGTH_MIN, int(rate * PACKET_S))
    await near.send_all(bytes(packet))
    assert await timed(far.receive_some) == about(packet / rate + conditions.round_trip_s / 2)


@quick
async def test_both_directions_have_their_own_rate() -> None:
    _, near, far = line_of(Conditions(up_bytes_s=10_000, down_bytes_s=100_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, bytes(1000))
        nursery.start_soon(far.send_all, bytes(1000))
        assert await timed(near.receive_some) == about(0.01)
        assert await timed(far.receive_some) == about(0.09)


@quick
async def test_a_sender_waits_for_the_buffer_and_not_for_the_far_end() -> None:
    _, near, far = line_of(Conditions(up_bytes_s=100_000, round_trip_s=10.0, buffer_bytes=20_000))
    assert await timed(lambda: near.send_all(bytes(20_000))) == 0.0
    packet = 1448
    assert await timed(lambda: near.send_all(bytes(packet))) == about(packet / 100_000)
    assert await timed(far.receive_some) > 4.9


@quick
async def test_who_does_not_receive_stops_the_sender() -> None:
    _, near, far = line_of(FAR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, bytes(2_000_000))
        with trio.move_on_after(100):
            await trio.sleep_forever()
        held = WINDOW_BYTES + 100_000 + 50_000
        assert 0.97 * held < near._outgoing.taken <= held
        received = 0
        while received < 2_000_000:
            received += len(await far.receive_some())


@quick
async def test_slices() -> None:
    _, near, far = line_of(Conditions(slice_bytes=1))
    await near.send_all(b"abc")
    assert [await far.receive_some() for _ in "abc"] == [b"a", b"b", b"c"]


@quick
async def test_flipped_bits_are_one_each_and_the_same_for_the_same_seed() -> None:
    async def damage(seed: int) -> list[int]:
        line, near, far = line_of(Conditions(flip_every_bytes=1000), seed)
        content = bytes_of(100_000)
        await send(near, content)
        got = await drain(far)
        changed = [at for at, (one, other) in enumerate(zip(content, got, strict=True)) if one != other]
        assert all((content[at] ^ got[at]).bit_count() == 1 for at in changed)
        assert line.up.flipped == len(changed)
        return changed

    assert await damage(1) == await damage(1) != await damage(2)
    assert 50 < len(await damage(1)) < 200


@quick
async def test_a_reset_after_some_bytes_loses_what_is_under_way() -> None:
    ending = Ending(How.RESET, after_bytes=Amount.of(50_000))
    line, near, far = line_of(Conditions(up_bytes_s=1_000_000, round_trip_s=0.2, ending=ending))
    content = bytes_of(90_000)
    await near.send_all(content)
    assert await drain(far) == content[:50_000]
    assert line.ended is How.RESET
    with pytest.raises(trio.BrokenResourceError):
        await near.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await near.send_all(b"more")


@quick
async def test_bytes_of_both_directions_count() -> None:
    line, near, far = line_of(Conditions(ending=Ending(How.RESET, after_bytes=Amount.of(10))))
    await near.send_all(b"123456")
    assert await far.receive_some() == b"123456"
    await far.send_all(b"123456")
    assert await near.receive_some() == b"1234"
    assert line.broken


@quick
async def test_a_close_loses_nothing_that_was_sent() -> None:
    line, near, far = line_of(FAR)
    await near.send_all(b"before")
    line.end(How.CLOSED)
    assert await drain(far) == b"before"
    assert await near.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"after")


@quick
async def test_a_black_hole_holds_everything_and_heals() -> None:
    ending = Ending(How.BLACK_HOLE, after_s=Amount.of(0.5), heals_after_s=20.0)
    line, near, far = line_of(Conditions(up_bytes_s=1_000_000, round_trip_s=0.2, ending=ending))
    told: list[str] = []
    line.on_change = told.append
    content = bytes_of(1_000_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.run)
        nursery.start_soon(send, near, content)
        got = bytearray()
        with trio.move_on_after(10):
            while True:
                got += await far.receive_some()
        assert 395_000 <= len(got) <= 400_000
        rest_s = await timed(lambda: _drain_into(far, got))
    assert bytes(got) == content
    assert rest_s == about(20.5 + 0.6 - 10)
    assert told == ["black hole", "healed"]


async def _drain_into(stream: LineStream, got: bytearray) -> None:
    got += await drain(stream)


@quick
async def test_a_line_ends_by_time_too() -> None:
    line, near, _ = line_of(Conditions(ending=Ending(How.RESET, after_s=Amount(3.0, 5.0))))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.run)

        async def broken() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await near.receive_some()

        assert 3.0 <= await timed(broken) <= 5.0
        assert line.broken


@quick
async def test_who_closes_with_bytes_unread_resets_the_line() -> None:
    """As TCP does: the last words of somebody who does not listen any more may be lost."""
    _, near, far = line_of(FAR)
    await near.send_all(bytes(1000))
    with trio.move_on_after(1):
        await near.receive_some()
    await far.send_all(b"last words")
    await far.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await near.receive_some()


@quick
async def test_what_is_sent_to_somebody_who_left_breaks_the_line_a_round_trip_later() -> None:
    _, near, far = line_of(FAR)
    await far.aclose()
    await near.send_all(b"is anybody there?")
    assert await near.receive_some() == b""
    with trio.move_on_after(1):
        await trio.sleep_forever()
    with pytest.raises(trio.BrokenResourceError):
        await near.send_all(b"hello?")


@quick
async def test_an_end_that_was_closed_here_says_so() -> None:
    _, near, _far = line_of(FAR)
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_some()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await near.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"x")


@given(
    lengths=st.lists(st.integers(1, 50_000), min_size=1, max_size=12),
    rate=st.sampled_from([None, 32_000, 1_000_000, 40_000_000]),
    round_trip_s=st.sampled_from([0.0, 0.1, 0.6]),
    slice_bytes=st.sampled_from([None, 100, 5000]),
    buffer_bytes=st.sampled_from([None, 1, 30_000]),
)
def test_whatever_the_line_everything_arrives_once_in_order_and_never_too_early(
    lengths: list[int],
    rate: int | None,
    round_trip_s: float,
    slice_bytes: int | None,
    buffer_bytes: int | None,
) -> None:
    conditions = Conditions(rate, rate, round_trip_s, buffer_bytes, slice_bytes)
    parts = [bytes_of(length, length) for length in lengths]

    async def pass_on() -> None:
        _, near, far = line_of(conditions)
        async with trio.open_nursery() as nursery:

            async def send_parts() -> None:
                for part in parts:
                    await near.send_all(part)
                await near.aclose()

            nursery.start_soon(send_parts)
            begun = trio.current_time()
            received = 0
            content = bytearray()
            while some := await far.receive_some():
                content += some
                received += len(some)
                least_s = round_trip_s / 2 + (received / rate if rate else 0)
                assert trio.current_time() - begun >= least_s - 1e-6
            assert bytes(content) == b"".join(parts)

    run(pass_on)
