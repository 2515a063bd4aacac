"""Quotas against a model: whatever a principal does in whatever order, what is durable never exceeds its quota."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from hypothesis import example, given
from hypothesis import strategies as st
from peers import MIB, EndOfStream, RawPeer, Sample, Served, bytes_of, run, serving
from trio.testing import wait_all_tasks_blocked

from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.principals import Register
from blockproto.identity.realm import EVERYTHING
from blockproto.testing.memory_store import MemoryStore
from blockproto.wire import Auth, Cancel, Committed, Error, Message, Remove, RemoveKind, Result

QUOTA = 3 * MIB
FILES = {
    "small": Sample(bytes_of(MIB // 2), "small", sourceid=b"s" * 16),
    "one": Sample(bytes_of(MIB, 2), "one", sourceid=b"1" * 16),
    "three": Sample(bytes_of(3 * MIB, 3), "three", sourceid=b"3" * 16),
    "long": Sample(bytes_of(5 * MIB, 4), "long", sourceid=b"l" * 16, known=False),
    "other": Sample(bytes_of(2 * MIB + 1, 5), "other", sourceid=b"o" * 16, known=False),
}
BRIEF = ("small", "one")
Step = tuple[Any, ...]


class Greedy:
    """One connection of the principal: says what it is told on streams of its own, and hears everything."""

    def __init__(self, served: Served, token: str) -> None:
        self._served = served
        self._token = token
        self._peer: RawPeer | None = None
        self._stream = 1
        self._streams: dict[str, int] = {}
        self._begun: dict[str, int] = {}

    async def do(self, step: Step) -> None:
        """One step; what may not be said any more because its stream has ended is not said."""
        what, name, *rest = step
        sample = FILES.get(name, FILES["one"])
        match what:
            case "open":
                self._streams[name] = await self._say(sample.open(attempt=rest[0], if_exists=rest[1]))
            case "block" if name in self._streams and rest[0] < sample.blocknum:
                await self._say(*sample.block(rest[0]), stream=self._streams[name])
            case "part" if name in self._streams and rest[0] < sample.blocknum:
                message, content = sample.block(rest[0], 0, MIB // 2 - 1, end=False)
                await self._say(message, content, stream=self._streams[name])
            case "commit" if name in self._streams:
                await self._say(sample.commit(), stream=self._streams[name])
            case "discard" if name in self._streams:
                await self._say(Cancel(0, discard=True), stream=self._streams.pop(name))
            case "brief" if name in BRIEF:
                await self._say(*sample.block(0, commit=True, if_exists=rest[1]))
            case "begin" if name in BRIEF:
                self._begun[name] = await self._say(
                    *sample.block(0, 0, 1000, end=False, commit=False, if_exists=rest[1])
                )
            case "finish" if name in self._begun:
                await self._say(*sample.piece(0, 1000, commit=True), stream=self._begun.pop(name))
            case "remove":
                await self._say(Remove(RemoveKind.FILE, bytes(16), sample.filename))
            case "remove_upload":
                await self._say(Remove(RemoveKind.UPLOAD, sample.sourceid))
            case "leave":
                await self.leave()

    async def leave(self) -> None:
        """End the connection."""
        peer, self._peer = self._peer, None
        self._streams.clear()
        self._begun.clear()
        if peer is not None:
            await peer.stream.aclose()

    async def _say(self, message: Message, payload: bytes = b"", stream: int | None = None) -> int:
        if self._peer is None:
            self._peer = await self._served.peer()
            await self._peer.say(1, Auth(self._token))
            await self._peer.expect(Result, 1)
            self._stream = 1
            self._served.nursery.start_soon(self._hear, self._peer)
        if stream is None:
            self._stream += 2
            stream = self._stream
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._peer.say(stream, message, payload)
        return stream

    async def _hear(self, peer: RawPeer) -> None:
        with suppress(EndOfStream, trio.ClosedResourceError, trio.BrokenResourceError):
            while True:
                heard = await peer.hear()
                if isinstance(heard.message, Error) and heard.message.scope == 3 and peer is self._peer:
                    await self.leave()
                ended = isinstance(heard.message, Committed | Result) or (
                    isinstance(heard.message, Error) and heard.message.scope == 2
                )
                if ended:
                    for names in (self._streams, self._begun):
                        for name in [name for name, stream in names.items() if stream == heard.stream]:
                            del names[name]


def durable(store: MemoryStore, principal: bytes) -> int:
    """What the principal has: files, and blocks that are held."""
    files = sum(entry.filesize for entry in store.files("", True, "", 1000)[0])
    held = 0
    for upload in store.uploads(principal, "", 1000)[0]:
        most = upload.held_count * MIB
        held += most if upload.filesize is None else min(most, upload.filesize)
    return files + held


@asynccontextmanager
async def two_of_alice() -> AsyncIterator[tuple[Served, list[Greedy]]]:
    register, token = Register({}).with_token(
        "alice", folder="alice", quota=QUOTA, scopes=EVERYTHING, now_ms=0, expires_ms=None
    )
    async with serving(policy=AuthPolicy(register, None)) as served:
        yield served, [Greedy(served, token), Greedy(served, token)]


STEPS = st.tuples(
    st.sampled_from(
        ("open", "block", "block", "block", "part", "commit", "discard", "brief", "begin", "finish", "remove",
         "remove_upload", "leave")
    ),
    st.sampled_from(sorted(FILES)),
    st.integers(0, 4),
    st.sampled_from((0, 2)),
)  # fmt: skip
PLAN = st.lists(st.tuples(st.integers(0, 1), STEPS, st.booleans()), max_size=25)


@example(
    # a brief upload begun under a sourceid that is there, its file removed and the room filled, then finished
    [
        (0, ("brief", "one", 0, 0), True),
        (0, ("begin", "one", 0, 0), True),
        (1, ("remove", "one", 0, 0), True),
        (1, ("open", "three", 1, 0), True),
        *[(1, ("block", "three", no, 0), True) for no in range(3)],
        (1, ("commit", "three", 0, 0), True),
        (0, ("finish", "one", 0, 0), True),
    ]
)
@example(
    # unknown size in descending order, twice
    [
        (0, ("open", "long", 1, 0), True),
        *[(0, ("block", "long", no, 0), True) for no in (2, 1, 0)],
        (0, ("leave", "long", 0, 0), True),
        (1, ("open", "other", 1, 0), True),
        *[(1, ("block", "other", no, 0), True) for no in (1, 0)],
    ]
)
@given(PLAN)
def test_what_is_durable_never_exceeds_the_quota(plan: Sequence[tuple[int, Step, bool]]) -> None:
    async def main() -> None:
        async with two_of_alice() as (served, alices):
            principals: set[bytes] = set()
            for who, step, wait in plan:
                await alices[who].do(step)
                if wait:
                    await wait_all_tasks_blocked()
                principals |= set(served.server.engine.quotas._quotas)
                for principal in principals:
                    assert durable(served.store, principal) <= QUOTA, step
            await wait_all_tasks_blocked()
            for principal in principals:
                assert durable(served.store, principal) <= QUOTA
            for alice in alices:
                await alice.leave()

    run(main)


def test_the_model_can_fill_the_quota() -> None:
    """The steps above do store something: else nothing would be proved."""

    async def main() -> None:
        async with two_of_alice() as (served, (alice, _)):
            await alice.do(("open", "three", 1, 0))
            await wait_all_tasks_blocked()
            for blockno in range(3):
                await alice.do(("block", "three", blockno, 0))
            await alice.do(("commit", "three", 0, 0))
            await wait_all_tasks_blocked()
            assert durable(served.store, b"") == QUOTA
            await alice.do(("remove", "three", 0, 0))
            await wait_all_tasks_blocked()
            await alice.do(("brief", "one", 0, 0))
            await wait_all_tasks_blocked()
            assert durable(served.store, b"") == MIB
            await alice.leave()

    run(main)
