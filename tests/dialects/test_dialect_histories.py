"""Random histories of an upload in the dialect sourceid: cuts, takeovers, full disks, stops and kills, in any order."""

from __future__ import annotations

import contextlib
import random

import pytest
import trio
from peers import MIB, Served, bytes_of, content_of, names_in, run, serving
from trio.testing import wait_all_tasks_blocked

from blockproto.dialects.sourceid import Sourceid
from blockproto.errors import StoreFull
from blockproto.store import BlockDone, Outcome, Work
from blockproto.testing.memory_store import MemoryStore

CONTENT = bytes_of(3 * MIB + 200_000)
LINE = b"Content-Length=%d;filename=a.bin;sourceid=77;durable=\r\n" % len(CONTENT)
HISTORIES = 40


class Crowded(MemoryStore):
    """A store that has no room for some blocks."""

    no_room: frozenset[int] = frozenset()

    @classmethod
    def of(cls, survivor: MemoryStore) -> Crowded:
        """What survived, as a store of this kind."""
        survivor.__class__ = cls
        assert isinstance(survivor, cls)
        return survivor

    def _do(self, work: Work) -> Outcome:
        if isinstance(work, BlockDone) and work.blockno in self.no_room:
            raise StoreFull("no room")
        return super()._do(work)


class Client:
    """Somebody who comes back with the same id, and knows only what it was told.

    Attributes:
        sure: the position that must be there still.
    """

    def __init__(self, rng: random.Random) -> None:
        self.sure = 0
        self._rng = rng
        self._open: list[trio.abc.Stream] = []

    async def come(self, served: Served, *, to_the_end: bool = False) -> None:
        """Ask, send something or everything from there, and close now or later."""
        stream = served.connect()
        await stream.send_all(LINE)
        answer = await stream.receive_some(200)
        if answer.startswith(b"error=29;") and not to_the_end:
            await stream.aclose()
            return
        durable = int(answer.rpartition(b"durable=")[2])
        assert durable >= self.sure, "what was durable is not there any more"
        self.sure = durable
        room = len(CONTENT) - durable
        length = (
            room if to_the_end else self._rng.choice((0, 1, self._rng.randint(0, room), min(room, 2 * MIB)))
        )
        await _send(stream, CONTENT[durable : durable + length])
        if to_the_end or self._rng.random() < 0.6:
            await stream.aclose()
        else:
            self._open.append(stream)
        if self._rng.random() < 0.7:
            await wait_all_tasks_blocked()

    def expect(self, no_room: frozenset[int]) -> None:
        """A begun block for which there is no room when it is complete is sent again from its beginning (BP1-DIA-008)."""
        if no_room:
            self.sure -= self.sure % MIB

    async def go(self) -> None:
        for stream in self._open:
            await stream.aclose()
        self._open.clear()


async def _send(stream: trio.abc.Stream, raw: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):  # a newer connection has it, or the disk is full
        await stream.send_all(raw)


async def history(rng: random.Random) -> None:
    """A few servers one after another on what the one before left."""
    client = Client(rng)
    store = Crowded()
    for _ in range(rng.randint(1, 3)):
        async with serving(store, dialects=[Sourceid()]) as served:
            for _ in range(rng.randint(1, 4)):
                store.no_room = frozenset(no for no in range(4) if rng.random() < 0.15)
                client.expect(store.no_room)
                await client.come(served)
                client.expect(store.no_room)
            if rng.random() < 0.5:
                await client.go()
                await wait_all_tasks_blocked()
            killed = store.survivor() if rng.random() < 0.5 else None
            await client.go()
        store = Crowded.of(killed or store.survivor())
    async with serving(store, dialects=[Sourceid()]) as served:
        for _ in range(2):
            await client.come(served, to_the_end=True)
            await wait_all_tasks_blocked()
        assert names_in(store) == ["a.bin"]
        assert content_of(store, "a.bin") == CONTENT


@pytest.mark.clause("BP1-SID-009", "BP1-SID-014", "BP1-DIA-008", "BP1-DIA-012")
def test_whatever_happens_what_was_told_stays_and_the_file_is_the_one_that_was_sent() -> None:
    for seed in range(HISTORIES):
        try:
            run(history, random.Random(seed))
        except BaseException as error:
            raise AssertionError(f"history {seed}: {error!r}") from error
