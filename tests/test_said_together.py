"""A live server and messages that come in one segment: every pair on a stream, and refusals that overtake answers.

Whatever it is, the server answers a good upload afterwards, and nothing is logged that nobody expected.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import Gate, RawPeer, Served, run, serving
from said_together import FIRST, GOOD, HELD, SMALL, vocabulary
from trio.testing import wait_all_tasks_blocked

from blockproto.wire import PREFACE, Committed, Hello, encode_frame

quick = pytest.mark.trio(run=run)
GREETING = PREFACE + encode_frame(0, Hello(agent="together"))
WORDS = sorted(vocabulary(1))


async def run_slowly(work: Callable[..., Any], *args: Any, **_: Any) -> Any:
    """Stand in for ``trio.to_thread.run_sync``, with threads that come to it late: what follows is read before."""
    for _ in range(5):
        await trio.lowlevel.checkpoint()
    return work(*args)


@asynccontextmanager
async def filled() -> AsyncIterator[Served]:
    """A server that has ``HELD`` and ``SMALL``."""
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, HELD.open())
        for blockno in range(HELD.blocknum):
            await peer.say(1, *HELD.block(blockno))
        await peer.say(1, HELD.commit())
        await peer.say(3, *SMALL.block(0, commit=True))
        for _ in range(2):
            while not isinstance((await peer.hear()).message, Committed):
                pass
        await peer.stream.aclose()
        yield served


async def say(served: Served, segments: Sequence[bytes], *, reads: bool = True) -> None:
    """Say it all on a connection of its own, let everything happen that follows, and hang up."""
    stream = served.connect()
    async with trio.open_nursery() as nursery:
        if reads:
            nursery.start_soon(_read, stream)
        for segment in (GREETING, *segments):
            try:
                await stream.send_all(segment)
            except trio.BrokenResourceError:
                break
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)
    await wait_all_tasks_blocked()


async def _read(stream: trio.abc.Stream) -> None:
    while await stream.receive_some(1 << 20):
        pass


async def answers_a_good_upload(served: Served) -> bool:
    peer: RawPeer = await served.peer()
    await peer.say(1, *GOOD.block(0, commit=True))
    stored = await peer.expect(Committed, 1)
    await peer.stream.aclose()
    return stored.stored_as == GOOD.filename


def nothing_unexpected(caplog: pytest.LogCaptureFixture) -> None:
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


@quick
@pytest.mark.parametrize(
    "together",
    [
        ("fetch", "error-stream"),
        ("open", "block-past"),
        ("fetch", "fetch-critical"),
        ("list", "error-stream"),
        ("open", "open-critical"),
        ("tiny", "error-stream"),
        ("fetch-brief", "error-stream"),
    ],
)
async def test_a_refusal_that_overtakes_an_answer_ends_one_stream(
    together: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    words = vocabulary(1)
    with mock.patch.object(trio.to_thread, "run_sync", run_slowly):
        await _overtaken(b"".join(words[name] for name in together))
    nothing_unexpected(caplog)


async def _overtaken(segment: bytes) -> None:
    async with filled() as served:
        peer = await served.peer()
        await peer.send_bytes(segment)
        await wait_all_tasks_blocked()
        await peer.say(3, *GOOD.block(0, commit=True))
        while (heard := await peer.hear()).stream != 3:
            pass
        assert isinstance(heard.message, Committed)
        assert await answers_a_good_upload(served)


@quick
@pytest.mark.parametrize(
    ("first", "threads"), [*((word, "late") for word in FIRST), ("fetch", "soon"), ("open", "soon")]
)
async def test_every_pair_in_one_segment(first: str, threads: str, caplog: pytest.LogCaptureFixture) -> None:
    """The pairs that begin with what is answered; ``make odd`` tries all of them, and three together."""
    words = vocabulary(1)
    with mock.patch.object(
        trio.to_thread, "run_sync", run_slowly if threads == "late" else trio.to_thread.run_sync
    ):
        async with filled() as served:
            for second in WORDS:
                await say(served, [words[first] + words[second]])
            assert await answers_a_good_upload(served)
    nothing_unexpected(caplog)


def _sequences(count: int, seed: int) -> list[list[tuple[int, str]]]:
    """Random conversations: several streams, words in any order, most of them beginning with one that is answered late."""
    chosen = random.Random(seed)
    return [
        [
            (2 * chosen.randrange(3) + 1, chosen.choice(FIRST if at == 0 or chosen.random() < 0.2 else WORDS))
            for at in range(chosen.randrange(2, 9))
        ]
        for _ in range(count)
    ]


@quick
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("seed", range(2))
async def test_random_conversations_in_one_segment(
    seed: int, gated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With a gate before the disk commits end after what overtook them; and some do not read what they are told."""
    words = {stream: vocabulary(stream) for stream in (1, 3, 5)}
    async with filled() as served:
        for number, said in enumerate(_sequences(30, seed)):
            gate = Gate(served.server) if gated else None
            await say(served, [b"".join(words[stream][name] for stream, name in said)], reads=number % 5 != 0)
            if gate is not None:
                gate.open()
                await wait_all_tasks_blocked()
        assert await answers_a_good_upload(served)
    nothing_unexpected(caplog)


@quick
@settings(max_examples=30)
@given(data=st.data())
async def test_any_conversation_cut_anywhere(data: st.DataObject) -> None:
    words = vocabulary(1)
    said = b"".join(
        words[name] for name in data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
    )
    cut = data.draw(st.integers(0, len(said)))
    async with filled() as served:
        await say(served, [said[:cut], said[cut:]] if data.draw(st.booleans()) else [said[:cut]])
        assert await answers_a_good_upload(served)
