"""Quotas: what fits, what does not, and what makes room again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from peers import MIB, RawPeer, Sample, Served, bytes_of, run, serving

from blockproto.errors import Code, Scope
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.principals import Register
from blockproto.identity.realm import EVERYTHING
from blockproto.store import UploadKey
from blockproto.transfer.quota import Quotas
from blockproto.wire import (
    Ack,
    Auth,
    Cancel,
    Committed,
    Error,
    Message,
    Opened,
    Ping,
    Remove,
    RemoveKind,
    Result,
)

pytestmark = pytest.mark.clause("BP1-PRN-005")
quick = pytest.mark.trio(run=run)
QUOTA = 3 * MIB
STUCK_S = 60
"""What has to come at once has not come after this time."""
ONE = Sample(bytes_of(MIB), "one", sourceid=b"1" * 16)
TWO = Sample(bytes_of(2 * MIB, 2), "two", sourceid=b"2" * 16)
BIG = Sample(bytes_of(2 * MIB + 1, 3), "big", sourceid=b"3" * 16)
STREAMED = Sample(bytes_of(4 * MIB, 4), "streamed", sourceid=b"4" * 16, known=False)


@asynccontextmanager
async def two_peers() -> AsyncIterator[tuple[Served, RawPeer, RawPeer]]:
    """A server with a principal of 3 MiB, and two connections of it."""
    register, token = Register({}).with_token(
        "alice", folder="alice", quota=QUOTA, scopes=EVERYTHING, now_ms=0, expires_ms=None
    )
    async with serving(policy=AuthPolicy(register, None)) as served:
        peers = []
        for _ in range(2):
            peer = await served.peer()
            await peer.say(1, Auth(token))
            await peer.expect(Result, 1)
            peers.append(peer)
        yield served, peers[0], peers[1]


async def upload(peer: RawPeer, stream: int, sample: Sample) -> Committed:
    await peer.say(stream, sample.open())
    await peer.expect(Opened, stream)
    for blockno in range(sample.blocknum):
        await peer.say(stream, *sample.block(blockno))
    await peer.say(stream, sample.commit())
    return await peer.expect(Committed, stream)


async def refused(peer: RawPeer, stream: int, message: Message, left: int, payload: bytes = b"") -> None:
    await peer.say(stream, message, payload)
    error = await peer.expect_error(Code.QUOTA, Scope.STREAM, stream)
    assert error.current == left


@quick
async def test_what_does_not_fit_is_refused_when_its_size_is_known() -> None:
    async with two_peers() as (_, peer, _other):
        await refused(peer, 3, Sample(bytes_of(3 * MIB + 1), "x", sourceid=b"x" * 16).open(), QUOTA)
        await upload(peer, 5, ONE)
        await refused(peer, 7, BIG.open(), 2 * MIB)
        await upload(peer, 9, TWO)
        await refused(peer, 11, Sample(b"x", "note", sourceid=b"n" * 16).open(), 0)


@quick
async def test_a_file_without_open_counts_too() -> None:
    async with two_peers() as (_, peer, _other):
        brief = Sample(bytes_of(MIB, 7), "brief", sourceid=b"b" * 16)
        await upload(peer, 3, TWO)
        await peer.say(5, *brief.block(0, commit=True))
        stored = await peer.expect(Committed, 5)
        other = Sample(b"x", "other", sourceid=b"o" * 16)
        message, payload = other.block(0, commit=True)
        await refused(peer, 7, message, 0, payload)
        await peer.say(9, *brief.block(0, commit=True))
        assert await peer.expect(Committed, 9) == stored


@pytest.mark.clause("BP1-STR-018")
@quick
async def test_a_ping_is_answered_while_a_quota_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, reserve = trio.Event(), Quotas.reserve

    async def slow(self: Quotas, key: UploadKey, length: int) -> None:
        await go_on.wait()
        await reserve(self, key, length)

    monkeypatch.setattr(Quotas, "reserve", slow)
    async with two_peers() as (_, peer, _):
        await peer.say(3, *ONE.block(0, commit=True))
        await peer.say(0, Ping(b"alive???", 0))
        try:
            with trio.fail_after(STUCK_S):
                await peer.expect(Ping)
        finally:
            go_on.set()
        await peer.expect(Committed, 3)


@quick
async def test_uploads_begun_at_once_have_no_more_together_than_one_after_another() -> None:
    async with two_peers() as (_, peer, other):
        await peer.say(3, TWO.open())
        await peer.expect(Opened, 3)
        await refused(other, 3, BIG.open(), MIB)
        await other.say(5, TWO.open())
        await other.expect(Opened, 5)  # the same upload joined: it is reserved for once
        await other.say(7, ONE.open())
        await other.expect(Opened, 7)


@quick
async def test_one_of_unknown_size_is_refused_when_it_grows_beyond() -> None:
    async with two_peers() as (_, peer, _other):
        await peer.say(3, STREAMED.open())
        await peer.expect(Opened, 3)
        for blockno in range(3):
            await peer.say(3, *STREAMED.block(blockno))
        await peer.wait_acked(0, 1, 2)
        await peer.say(3, *STREAMED.block(3))
        await peer.expect_error(Code.QUOTA, Scope.STREAM, 3)
        await peer.say(5, STREAMED.open())
        again = await peer.expect(Opened, 5)
        assert again.position == 3 * MIB


@quick
async def test_what_was_removed_or_discarded_makes_room() -> None:
    async with two_peers() as (_, peer, _other):
        stored = await upload(peer, 3, TWO)
        await refused(peer, 5, BIG.open(), MIB)
        await peer.say(7, Remove(RemoveKind.FILE, stored.file_id))
        await peer.expect(Result, 7)
        await peer.say(9, BIG.open())
        await peer.expect(Opened, 9)
        await peer.say(9, *BIG.block(0))
        await peer.wait_acked(0)
        await refused(peer, 11, TWO.open(attempt=2), QUOTA - len(BIG.content))
        await peer.say(9, Cancel(0, discard=True))
        await peer.expect(Error, 9)
        await peer.say(13, TWO.open(attempt=3))
        await peer.expect(Opened, 13)


@quick
async def test_an_upload_that_was_begun_counts_until_it_is_gone() -> None:
    async with two_peers() as (_, peer, other):
        await peer.say(3, TWO.open())
        await peer.expect(Opened, 3)
        await peer.say(3, *TWO.block(0))
        await peer.expect(Ack, 3)
        await peer.stream.aclose()
        await refused(other, 3, BIG.open(), MIB)
        await other.say(5, TWO.open(attempt=2))
        assert (await other.expect(Opened, 5)).position == MIB
