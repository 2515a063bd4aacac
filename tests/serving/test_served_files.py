"""FILES with WANTED at a server: what one connection may ask for, and who may ask."""

from __future__ import annotations

import pytest
import trio
from peers import RawPeer, Sample, run, serving

from blockproto.common.file_table import MODE_UNSAID, MTIME_UNSAID, FileTable
from blockproto.errors import Code, Scope
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.principals import Register
from blockproto.identity.realm import EVERYTHING
from blockproto.serving.handlers.served_files import ServedFiles
from blockproto.wire import (
    FEATURE_FILES,
    FEATURE_WANTED,
    WANTED_MAX,
    Auth,
    Committed,
    Error,
    Files,
    Hello,
    Ping,
    Result,
    Scopes,
    Stored,
)

quick = pytest.mark.trio(run=run)
HELLO = Hello(features=FEATURE_FILES | FEATURE_WANTED, agent="raw")


def wanted(*names: str, filesize: int = 4) -> Files:
    """These files in any version, all in the served folder or in a folder with a name of its own."""
    parts = [name.rpartition("/") for name in names]
    folders = tuple(dict.fromkeys(folder for folder, _, _ in parts))
    records = tuple(
        (
            bytes(16), bytes(32), filesize, MTIME_UNSAID, MODE_UNSAID, folders.index(folder), 0, len(name),
        )
        for folder, _, name in parts
    )  # fmt: skip
    table = FileTable(records, tuple(name for _, _, name in parts))
    return Files(0, folders, ("",), table, last=True, wanted=True)


async def put(peer: RawPeer, stream: int, name: str) -> None:
    sample = Sample(b"1234", name, sourceid=name.encode().ljust(16, b".")[:16])
    await peer.say(stream, *sample.block(0, commit=True))
    await peer.expect(Committed, stream)


def held_back(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Nothing is answered until the event is set."""
    go_on, real = trio.Event(), ServedFiles._answer

    async def slow(served: ServedFiles, asked: Files) -> None:
        await go_on.wait()
        await real(served, asked)

    monkeypatch.setattr(ServedFiles, "_answer", slow)
    return go_on


@pytest.mark.clause("BP1-FIL-023")
@quick
async def test_more_streams_than_are_answered_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = held_back(monkeypatch)
    async with serving() as served:
        peer = await served.peer(HELLO)
        await put(peer, 1, "a")
        for number in range(WANTED_MAX + 1):
            await peer.say(2 * number + 3, wanted("a"))
        await peer.expect_error(Code.BUSY, Scope.STREAM, 2 * WANTED_MAX + 3)
        go_on.set()
        for number in range(WANTED_MAX):
            assert (await peer.expect(Files, 2 * number + 3)).table.names == ("a",)


@quick
async def test_answers_that_never_come_stop_one_stream_only() -> None:
    """Nothing is said of what was sent: others are answered, and the connection goes on."""
    async with serving() as served:
        peer = await served.peer(HELLO)
        await put(peer, 1, "a")
        for number in range(3 * WANTED_MAX):
            await peer.say(2 * number + 3, wanted("a"))
            await peer.expect(Files, 2 * number + 3)
        await peer.say(0, Ping(b"alive???", 0))
        await peer.expect(Ping)


@quick
async def test_whoever_gives_up_while_it_waits_for_its_turn_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = held_back(monkeypatch)
    async with serving() as served:
        peer = await served.peer(HELLO)
        await put(peer, 1, "a")
        await peer.say(3, wanted("a"))
        await peer.say(3, Error(Code.CANCELLED, Scope.STREAM, False))
        await peer.say(5, wanted("a", "gone"))
        await peer.say(0, Ping(b"so far??", 0))
        await peer.expect(Ping)
        go_on.set()
        assert (await peer.expect(Files, 5)).table.names == ("a",)
        await peer.say(5, Stored(0, b"\0", last=True))
        await peer.say(0, Ping(b"alive???", 0))
        await peer.expect(Ping)


@pytest.mark.clause("BP1-PRN-003")
@quick
async def test_only_files_of_the_realm_come_and_only_to_those_who_may_read() -> None:
    register, ann = Register({}).with_token(
        "ann", folder="ann", quota=None, scopes=EVERYTHING, now_ms=0, expires_ms=None
    )
    register, bob = register.with_token(
        "bob", folder="bob", quota=None, scopes=EVERYTHING, now_ms=0, expires_ms=None
    )
    register, box = register.with_token(
        "box", folder="ann", quota=None, scopes=Scopes.WRITE, now_ms=0, expires_ms=None
    )
    async with serving(policy=AuthPolicy(register, None)) as served:
        peers = []
        for token in (ann, bob, box):
            peer = await served.peer(HELLO)
            await peer.say(1, Auth(token))
            await peer.expect(Result, 1)
            peers.append(peer)
        await put(peers[0], 3, "a")
        await put(peers[1], 3, "b")
        await peers[0].say(5, wanted("b", "../bob/b", "bob/b", "/b", "a"))
        came = await peers[0].expect(Files, 5)
        assert (came.table.names, came.folders, came.last) == (("a",), ("",), True)
        await peers[2].say(3, wanted("a"))
        await peers[2].expect_error(Code.FORBIDDEN, Scope.STREAM, 3)
