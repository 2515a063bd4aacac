"""Each blind mutant of the client is one: a scripted server sees something else of it than of the healthy client.

A probe is the server: it answers the one connection of a client that does what the probe says, and returns what it saw.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from blind_mutants.client_mistakes import CLIENTS
from peers import MIB, RawPeer, Sample, bytes_of, run, serving
from processes import TIMEOUT_S, Server
from trio.testing import memory_stream_pair

from blockproto.client import Client, connect_with
from blockproto.common.blocks import digest_of
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.errors import BlockprotoError, Code, Superseded
from blockproto.protocol.events import stream_error
from blockproto.testing.memory_store import MemoryStore
from blockproto.wire import (
    Ack,
    Block,
    Commit,
    Credit,
    EntryKind,
    Error,
    Fetch,
    FileItem,
    Hello,
    List,
    ListKind,
    Message,
    Open,
    Opened,
    Piece,
    Ping,
    Result,
)

ROOT = Path(__file__).resolve().parent.parent
FILE = Sample(bytes_of(MIB + MIB // 2), filename="file.bin")
VERSION = b"the version: one"
Script = Callable[[RawPeer, trio.Event], Awaitable[Any]]
"""Given the server's end of the line, and what is set when the client's call has returned or raised."""
Doing = Callable[[Client, Path], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Probe:
    """What the client does, the server's script, and what that sees of the healthy client and of the mutant."""

    doing: Doing
    script: Script
    healthy: Any
    mutated: Any


PROBES: dict[str, Probe] = {}


def probe(doing: Doing, healthy: Any, mutated: Any) -> Callable[[Script], None]:
    """Register the decorated script for the mutant of its name."""

    def register(script: Script) -> None:
        PROBES[script.__name__.replace("_", "-")] = Probe(doing, script, healthy, mutated)

    return register


async def upload(client: Client, folder: Path) -> str:
    source = folder / FILE.filename
    source.write_bytes(FILE.content)
    return (await client.upload(source)).stored_as


async def download(client: Client, folder: Path) -> str:
    return (await client.download(FILE.filename, folder / "copy")).filename


async def look(client: Client, folder: Path) -> list[str]:
    return [entry.filename async for entry in client.listing()]


async def asked(server: RawPeer, kind: type[Any]) -> tuple[int, Any]:
    """The next message of this kind and its stream; everything before it is passed over."""
    while True:
        heard = await server.hear()
        if isinstance(heard.message, kind):
            return heard.stream, heard.message


def opened(message: Open, prefixes: tuple[tuple[int, int], ...] = ()) -> Opened:
    """The answer that nothing is held."""
    return Opened(message.sourceid, bytes(16), message.attempt, 0, 1, None, prefixes=prefixes)


async def open_upload(server: RawPeer, prefixes: tuple[tuple[int, int], ...] = ()) -> int:
    """Answer the client's questions up to OPEN, and OPEN; returns the upload's stream."""
    while True:
        heard = await server.hear()
        if isinstance(heard.message, List):
            await server.say(heard.stream, Result(heard.message.kind))
        elif isinstance(heard.message, Open):
            await server.say(heard.stream, opened(heard.message, prefixes))
            return heard.stream


# ---- the probes -------------------------------------------------------------------------------------------------


@probe(upload, healthy=True, mutated=False)
async def stream_allowance_overlooked(server: RawPeer, ended: trio.Event) -> bool:
    await server.greet(Hello(stream_allowance=262_144))
    await open_upload(server)
    sent = 0
    with trio.move_on_after(20):
        while True:
            sent += len((await server.hear()).payload)
    return sent <= 262_144


@probe(upload, healthy=True, mutated=False)
async def digest_of_what_was_sent(server: RawPeer, ended: trio.Event) -> bool:
    await server.greet()
    await open_upload(server, prefixes=((0, 1000),))
    while True:
        _, message = await asked(server, Block | Piece)
        if message.digest is not None and message.position < MIB:
            return bool(message.digest == digest_of(FILE.bytes_of(0)))


@probe(upload, healthy=1, mutated=2)
async def superseded_tries_again(server: RawPeer, ended: trio.Event) -> int:
    """In the middle of the upload, so that nobody can say that a person had just asked for it."""
    await server.greet()
    attempts = set()
    with trio.move_on_after(5):
        while len(attempts) < 2:
            heard = await server.hear()
            if isinstance(heard.message, List):
                await server.say(heard.stream, Result(heard.message.kind))
            elif isinstance(heard.message, Open):
                attempts.add(heard.message.attempt)
                await server.say(heard.stream, opened(heard.message))
            elif isinstance(heard.message, Block):
                taken = Superseded("taken over", current=max(attempts) + 1)
                await server.say(heard.stream, stream_error(taken))
    return len(attempts)


@probe(upload, healthy="waits", mutated="reports the end")
async def everything_acknowledged_is_success(server: RawPeer, ended: trio.Event) -> str:
    await server.greet(Hello())
    stream = await open_upload(server)
    await asked(server, Commit)
    await server.say(stream, Ack(len(FILE.content), ((0, FILE.blocknum),)))
    with trio.move_on_after(5):
        await ended.wait()
        return "reports the end"
    return "waits"


@probe(download, healthy="DIGESTS_DIFFER", mutated="COMMITTED")
async def root_of_a_download_not_compared(server: RawPeer, ended: trio.Event) -> str:
    await server.greet()
    fetched = Sample(FILE.content[:1000], filename=FILE.filename, sourceid=bytes(16))
    item = FileItem(EntryKind.FILE, 1000, 0, 0o644, bytes(16), VERSION, FILE.filename, "")
    while True:
        heard = await server.hear()
        if isinstance(heard.message, List):
            await server.say(heard.stream, Result(ListKind.FILES, (item,)))
        elif isinstance(heard.message, Fetch):
            break
    await server.say(heard.stream, fetched.open(attempt=0, version=VERSION))
    await server.say(heard.stream, *fetched.block(0))
    await server.say(heard.stream, fetched.commit(root=bytes(32)))
    while isinstance(message := (await server.hear()).message, Ack | Credit):
        pass
    return Code(message.code).name if isinstance(message, Error) else message.TYPE.name


@probe(look, healthy="answered", mutated="silent")
async def pings_unanswered(server: RawPeer, ended: trio.Event) -> str:
    await server.greet()
    await server.say(0, Ping(b"are you?", 0))
    answered: Message = Ping(b"are you?", 0, answer=True)
    with trio.move_on_after(5):
        while (await server.hear()).message != answered:
            pass
        return "answered"
    return "silent"


async def seen_of_a_client(one: Probe, folder: Path) -> Any:
    """What the script sees of a client that does what its probe says."""
    here, there = memory_stream_pair()
    ended = trio.Event()

    async def dial() -> Endpoint:
        return StreamEndpoint(here)

    async def do() -> None:
        with suppress(BlockprotoError):
            await one.doing(client, folder)
        ended.set()

    async with (
        connect_with(dial, "memory", lambda dest, first: MemoryStore()) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(do)
        seen = await one.script(RawPeer(there), ended)
        nursery.cancel_scope.cancel()
    return seen


# ---- the tests --------------------------------------------------------------------------------------------------


def test_each_has_its_probe_and_its_clause() -> None:
    assert set(PROBES) == set(CLIENTS)
    text = (ROOT / "spec" / "protocol.md").read_text(encoding="utf-8")
    assert not [mutant.name for mutant in CLIENTS.values() if f"[{mutant.clause} " not in text]


@pytest.mark.trio(run=run)
@pytest.mark.parametrize("name", CLIENTS)
async def test_a_mutant_does_something_else(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert await seen_of_a_client(PROBES[name], tmp_path) == PROBES[name].healthy
    CLIENTS[name].apply(monkeypatch.setattr)
    assert await seen_of_a_client(PROBES[name], tmp_path) == PROBES[name].mutated


@pytest.mark.trio(run=run)
@pytest.mark.parametrize("name", CLIENTS)
async def test_a_friendly_server_notices_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    CLIENTS[name].apply(monkeypatch.setattr)
    async with serving() as served, served.client() as client:
        assert await upload(client, tmp_path) == FILE.filename
        await download(client, tmp_path)
        assert served.downloaded(tmp_path / "copy") == FILE.content


def test_the_command_runs_with_a_mistake(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(FILE.content)
    command = [sys.executable, "-m", "tests.blind_mutants.client", "--mutant", "pings-unanswered"]
    ran = subprocess.run(
        [*command, "put", source, f"{server.address}/"], cwd=ROOT, env=os.environ.copy(), timeout=TIMEOUT_S
    )
    assert ran.returncode == 0
    assert (server.folder / "source").read_bytes() == FILE.content
