"""Limits hold whatever a connection speaks: quota and number of connections, in the native protocol and in both dialects."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from old_clients import OldClient, rest_of
from peers import MIB, RawPeer, Sample, Served, bytes_of, names_in, run, serving
from processes import Ran, Server
from struct82_peers import Sender, Sent
from trio.testing import MockClock

from blockproto.cli.output import Status
from blockproto.common.names import SafeName
from blockproto.dialects.registry import dialects_of
from blockproto.errors import Code, Scope
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.realm import ANONYMOUS
from blockproto.serving.connection_limits import ConnectionLimits
from blockproto.wire import Committed, Error, List, ListKind, Message, Opened, Result, Scopes

quick = pytest.mark.trio(run=run)
QUOTA = 3 * MIB
BOTH = dialects_of(["sourceid", "struct82"])


@asynccontextmanager
async def limited() -> AsyncIterator[Served]:
    """A server where those without a token may fill 3 MiB."""
    async with serving(policy=AuthPolicy(None, replace(ANONYMOUS, quota=QUOTA)), dialects=BOTH) as served:
        yield served


async def say_line(
    served: Served, name: str, content: bytes, sent: int | None = None
) -> tuple[trio.abc.Stream, bytes]:
    """Bring a file in the dialect sourceid, or its first bytes; the connection and what was answered."""
    stream = served.connect()
    await stream.send_all(b"Content-Length=%d;filename=%s;sourceid=\r\n" % (len(content), name.encode()))
    answer = bytes(await stream.receive_some())
    if answer.startswith(b"sourceid="):
        await stream.send_all(content[:sent])
    return stream, answer


async def bring(served: Served, name: str, content: bytes) -> bytes:
    """Bring a whole file in the dialect sourceid; what was answered."""
    stream, answer = await say_line(served, name, content)
    assert isinstance(stream, trio.StapledStream)
    await stream.send_eof()
    while await stream.receive_some():
        pass
    return answer


async def ask(served: Served, file: Sent) -> int:
    """Ask in the dialect struct82 what is held of a file; the code of the reply."""
    sender = Sender(served.connect())  # type: ignore[arg-type]
    code = (await sender.ask(file)).reply.code
    await sender.stream.aclose()
    return code


# ---- quota


@quick
@pytest.mark.clause("BP1-DIA-020", "BP1-PRN-005")
async def test_files_of_every_door_share_one_quota() -> None:
    async with limited() as served:
        assert (await bring(served, "one", bytes_of(2 * MIB))).startswith(b"sourceid=")
        assert b"name=QUOTA" in await bring(served, "two", bytes_of(MIB + 1))
        assert await ask(served, Sent(bytes_of(MIB + 1))) == Code.QUOTA
        peer = await served.peer()
        await peer.say(1, Sample(bytes_of(MIB + 1)).open())
        assert (await peer.expect_error(Code.QUOTA, Scope.STREAM, 1)).current == MIB
        last = Sample(bytes_of(MIB), "last")
        await peer.say(3, *last.block(0, commit=True))
        await peer.expect(Committed, 3)
        assert b"name=QUOTA" in await bring(served, "one byte", b"1")
        assert names_in(served.store) == ["last", "one"]


@quick
@pytest.mark.clause("BP1-PRN-005")
async def test_what_is_begun_at_one_door_is_reserved_at_the_others() -> None:
    async with limited() as served:
        stream, _ = await say_line(served, "half", bytes_of(2 * MIB), MIB + 5)
        peer = await served.peer()
        await peer.say(1, Sample(bytes_of(MIB + 1)).open())
        await peer.expect_error(Code.QUOTA, Scope.STREAM, 1)
        assert await ask(served, Sent(bytes_of(MIB + 1))) == Code.QUOTA
        assert await ask(served, Sent(bytes_of(MIB))) == 0
        await stream.aclose()
        await peer.say(3, Sample(bytes_of(MIB + 1)).open())  # what came of it is there still
        await peer.expect_error(Code.QUOTA, Scope.STREAM, 3)


@quick
@pytest.mark.parametrize("first", [0, 1])
async def test_a_file_whose_numbering_is_not_known_yet_needs_its_room_once(first: int) -> None:
    """Blocks in the middle come first: two uploads stand for the file until one of its ends comes."""
    file = Sent(bytes_of(QUOTA), first=first)
    async with limited() as served:
        sender = Sender(served.connect())  # type: ignore[arg-type]
        assert (await sender.ask(file)).reply.code == 0
        for number in (*file.numbers[1:2], *file.numbers[2:], *file.numbers[:1]):
            assert (await sender.put(file, number)).code == 0
        await sender.stream.aclose()
        assert names_in(served.store) == ["film.bin"]
        assert await ask(served, Sent(b"1", name=b"more")) == Code.QUOTA


@quick
async def test_a_server_without_a_quota_takes_everything() -> None:
    async with serving(dialects=BOTH) as served:
        assert (await bring(served, "one", bytes_of(QUOTA + 1))).startswith(b"sourceid=")
        assert await ask(served, Sent(bytes_of(QUOTA + 1))) == 0


# ---- what is decided once


async def opened(served: Served, name: str, content: bytes) -> str:
    """Begin an upload in the native protocol; the code of its refusal, or nothing."""
    peer = await served.peer()
    await peer.say(1, Sample(content, name).open())
    return await _refusal(peer, Opened)


async def sent_briefly(served: Served, name: str, content: bytes) -> str:
    """Send a brief file in the native protocol; likewise."""
    peer = await served.peer()
    sample = Sample(content[:1000], name)
    await peer.say(1, *sample.block(0, commit=True))
    return await _refusal(peer, Committed)


async def _refusal(peer: RawPeer, wanted: type[Message]) -> str:
    while True:
        message = (await peer.hear()).message
        if isinstance(message, Error):
            return Code(message.code).name
        if isinstance(message, wanted):
            return ""


async def said_in_a_line(served: Served, name: str, content: bytes) -> str:
    """Bring a file in the dialect sourceid; likewise."""
    answer = await bring(served, name, content)
    return (
        "" if answer.startswith(b"sourceid=") else answer.partition(b"name=")[2].partition(b";")[0].decode()
    )


async def asked_about(served: Served, name: str, content: bytes) -> str:
    """Ask for a file in the dialect struct82; likewise."""
    code = await ask(served, Sent(content, name=name.encode()))
    return Code(code).name if code else ""


DEEP = SafeName.parse("/".join(["f" * 250] * 4))
"""A folder in which only a short name fits."""

LIMITS = {
    "QUOTA": (replace(ANONYMOUS, quota=999), "a", 1000),
    "FORBIDDEN": (replace(ANONYMOUS, scopes=Scopes.READ), "a", 1000),
    "NAME_REFUSED": (replace(ANONYMOUS, folder=DEEP), "a-long-name-of-a-file", 1000),
    "": (replace(ANONYMOUS, folder=DEEP, quota=1000), "short", 1000),
}


@quick
@pytest.mark.clause("BP1-DIA-020", "BP1-PRN-004", "BP1-PRN-005")
@pytest.mark.parametrize("send", [opened, sent_briefly, said_in_a_line, asked_about])
@pytest.mark.parametrize("refusal", LIMITS)
async def test_every_way_in_is_refused_alike(
    refusal: str, send: Callable[[Served, str, bytes], Awaitable[str]]
) -> None:
    """Scope, quota and the names of a realm do not depend on the protocol."""
    realm, name, length = LIMITS[refusal]
    async with serving(policy=AuthPolicy(None, realm), dialects=BOTH) as served:
        assert await send(served, name, bytes_of(length)) == refusal
        if not refusal and send in {sent_briefly, said_in_a_line}:  # the others have sent no byte of it
            (entry,) = served.store.files(DEEP.text, False, "", 9)[0]
            assert entry.filename.text == f"{DEEP.text}/{name}"


# ---- connections


async def native(served: Served) -> RawPeer:
    peer = await served.peer()
    await peer.say(1, List(ListKind.FILES))
    await peer.expect(Result, 1)
    return peer


async def later(clock: MockClock) -> None:
    """A second after everything that was said has been heard."""
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(1)


@quick
@pytest.mark.clause("BP1-PRN-009", "BP1-DIA-020")
async def test_connections_of_every_door_are_counted_together(autojump_clock: MockClock) -> None:
    """Whoever was silent longest goes, whatever it speaks; what it had brought is kept."""
    async with serving(dialects=BOTH) as served:
        served.server._connection_limits = ConnectionLimits(2)
        begun, _ = await say_line(served, "a", bytes_of(2 * MIB), MIB)
        await later(autojump_clock)
        peer = await native(served)
        await later(autojump_clock)
        sender = Sender(served.connect())  # type: ignore[arg-type]
        file = Sent(bytes_of(2 * MIB))
        assert (await sender.ask(file)).reply.code == 0
        assert await begun.receive_some() == b""
        held = served.store.uploads(ANONYMOUS.principal, "", 10)[0]
        assert [upload.held_count for upload in held] == [1]
        await later(autojump_clock)
        await sender.put(file, 0)
        late, _ = await say_line(served, "b", bytes_of(MIB), 0)
        await peer.expect_error(Code.TIMEOUT, Scope.CONNECTION, 0)
        assert (await sender.put(file, 1)).complete
        await late.aclose()


@quick
async def test_who_has_gone_is_counted_no_more() -> None:
    async with serving(dialects=BOTH) as served:
        served.server._connection_limits = ConnectionLimits(1)
        for _ in range(3):
            assert (await bring(served, "a", b"1")).startswith(b"sourceid=")
            await (await native(served)).stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert not served.server._connection_limits._members


# ---- a real server, real sockets


@pytest.mark.clause("BP1-DIA-020", "BP1-PRN-005", "BP1-PRN-009")
def test_the_command_holds_every_door_to_its_limits(
    start_server: Callable[..., Server], tmp_path: Path, run: Callable[..., Ran]
) -> None:
    options = [
        "--dialect",
        "sourceid",
        "--dialect",
        "struct82",
        "--anonymous-quota",
        "2MiB",
        "--connections-each",
        "2",
    ]
    server = start_server(None, *options)
    OldClient(server.port, b"old.bin", os.urandom(MIB)).send()
    (tmp_path / "big").write_bytes(os.urandom(MIB + 1))
    ran = run("put", tmp_path / "big", server.address + "/")
    assert ran.status == Status.FAILED
    assert "quota" in ran.err
    with socket.create_connection(("127.0.0.1", server.port), 30) as late:
        late.sendall(b"Content-Length=%d;filename=late;sourceid=\r\n" % (MIB + 1))
        assert b"name=QUOTA" in rest_of(late)
    kept = [OldClient(server.port, b"kept%d" % number, b"12").ask() for number in range(2)]
    with closing(kept[0]), closing(kept[1]), OldClient(server.port, b"more", b"12").ask():
        assert rest_of(kept[0]) == b"", "one more than there may be did not end the oldest"


def test_a_quota_for_nobody_is_said_to_be_one(tmp_path: Path, run: Callable[..., Ran]) -> None:
    ran = run("serve", tmp_path, "--anonymous", "read", "--anonymous-quota", "1GB")
    assert ran.status == Status.USAGE
    assert "--anonymous write" in ran.err
