"""Histories of the dialect ``struct82``: the transcripts of the spec, and random ones with breaks, kills and any order.

The property: what was acknowledged is named by every later answer and never has to be sent again, whatever came in between,
and in the end the file is the one that was sent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import bytes_of, content_of, names_in, run
from struct82_peers import LAYOUTS, MIB, Answering, Reply, Sender, Sent, answering
from test_vectors import joined

from blockproto.testing.memory_store import MemoryStore

quick = pytest.mark.trio(run=run)
VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "dialects.json"
TRANSCRIPTS = [
    row for row in json.loads(VECTORS.read_text("utf-8"))["vectors"] if row["dialect"] == "struct82"
]


@quick
@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in TRANSCRIPTS])
async def test_a_transcript_goes_as_its_vector_says(row: dict[str, Any]) -> None:
    async with answering() as answers:
        senders: dict[int, Sender] = {}
        for step in row["steps"]:
            number = step["connection"]
            if number not in senders:
                senders[number] = await answers.dial()
            sender = senders[number]
            if step.get("closes"):
                await sender.stream.send_eof()
                assert await sender.rest() == b""
            elif step["from"] == "client":
                await sender.send(joined(step["bytes"]))
            else:
                expected = joined(step["bytes"])
                assert await sender.receive(len(expected)) == expected
        stored = {file["filename"]: joined(file["content"]) for file in row["stored"]}
        assert isinstance(answers.store, MemoryStore)
        assert {name: content_of(answers.store, name) for name in names_in(answers.store)} == stored


FILES = st.builds(
    Sent,
    content=st.sampled_from([1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 5, 4 * MIB]).map(bytes_of),
    layout=st.sampled_from(list(LAYOUTS.values())),
    first=st.sampled_from([0, 1]),
    one_more=st.booleans(),
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4), st.integers(0, 4)),
        st.tuples(st.just("cut"), st.integers(0, 4), st.integers(1, MIB)),
        st.tuples(st.just("silent"), st.integers(0, 4), st.integers(0, 4)),
        st.tuples(st.just("kill"), st.just(0), st.just(0)),
    ),
    max_size=12,
)


class History:
    """One file, its sender's connections, and what was acknowledged so far."""

    def __init__(self, file: Sent, store: MemoryStore) -> None:
        self.file = file
        self.store = store
        self.acknowledged: set[int] = set()

    async def follow(self, actions: list[tuple[str, int, int]]) -> None:
        """Do ``actions`` up to a kill, which ends this server; the rest is left in ``actions``."""
        async with answering(self.store) as answers:
            await self._check(answers)
            while actions:
                what, which, more = actions.pop(0)
                if what == "kill":
                    break
                number = self.file.numbers[which % self.file.blocknum]
                if what == "put":
                    await self._put(answers, number)
                elif what == "cut":
                    sender = await answers.dial()
                    await sender.send(self.file.block(number)[:more])
                    await sender.stream.aclose()
                else:
                    await self._put_silently(answers, [number, self.file.numbers[more % self.file.blocknum]])
                await self._check(answers)
            self.store = self.store.survivor()

    async def finish(self) -> None:
        """Send what is missing, the first block first."""
        async with answering(self.store) as answers:
            sender = await answers.dial()
            held = (await sender.ask(self.file)).bits
            for number in self.file.numbers:
                if number not in held:
                    assert (await sender.put(self.file, number)).code == 0
            answer = await sender.ask(self.file)
            assert answer.reply == (0, -1, -(-len(self.file.content) // MIB), 1, self.file.root)
            await sender.stream.aclose()
            assert names_in(self.store) == ["film.bin"]
            assert content_of(self.store, "film.bin") == self.file.content

    async def _put(self, answers: Answering, number: int) -> None:
        sender = await answers.dial()
        await sender.ask(self.file)
        await sender.send(self.file.block(number))
        await sender.stream.send_eof()
        raw = await sender.rest()
        if raw:
            reply: Reply = self.file.layout.reply(raw)
            assert reply.blockno == number
            if reply.code == 0:
                self.acknowledged.add(number)

    async def _put_silently(self, answers: Answering, numbers: list[int]) -> None:
        sender = await answers.dial()
        for number in numbers:
            await sender.send(self.file.block(number))
        await sender.stream.aclose()
        await answers.settle()

    async def _check(self, answers: Answering) -> None:
        sender = await answers.dial()
        assert (await sender.ask(self.file)).bits >= self.acknowledged
        await sender.stream.aclose()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.sampled_from([-1, 0, 1, 2, 3]).map(Sent(bytes(2 * MIB + 3)).header),
            st.sampled_from([-1, 0, 1]).map(Sent(b"other", name=b"other").block),
            st.integers(1, MIB).map(bytes),
        ),
        max_size=8,
    ),
    st.booleans(),
)
def test_whatever_is_said_the_server_stays_and_serves_others(said: list[bytes], asks: bool) -> None:
    async def talk() -> None:
        file = Sent(bytes_of(MIB + 1))
        async with answering() as answers:
            pending = await answers.dial("10.9.9.9")
            await pending.send(b"".join([file.header(-1)] * asks + said))
            await pending.stream.send_eof()
            await pending.rest()
            sender = await answers.dial()
            await sender.ask(file)
            await sender.put(file, 0)
            assert (await sender.put(file, 1)).complete == 1
            await sender.stream.aclose()

    run(talk)


@settings(max_examples=40, deadline=None)
@given(FILES, ACTIONS)
@pytest.mark.clause("BP1-S82-017", "BP1-S82-021")
def test_whatever_happens_what_was_acknowledged_stays_and_the_file_is_the_one_that_was_sent(
    file: Sent, actions: list[tuple[str, int, int]]
) -> None:
    async def history() -> None:
        with trio.fail_after(100_000):
            left, told = list(actions), History(file, MemoryStore())
            while left:
                await told.follow(left)
            await told.finish()

    run(history)
