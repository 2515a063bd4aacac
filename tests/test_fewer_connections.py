"""A file over several connections: one that does not come, or that is refused, is one fewer and nothing worse."""

from __future__ import annotations

import os
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from peers import MIB, RawPeer, Served, bytes_of, content_of, run, serving
from processes import Ran, Server
from trio.testing import memory_stream_pair

from blockproto.cli.output import Status
from blockproto.client import connect_with
from blockproto.client_side.config import ClientConfig
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.errors import Code, ConnectionLost, Scope
from blockproto.results import Receipt
from blockproto.wire import Error, Open

quick = pytest.mark.trio(run=run)
CONNECTIONS = 16
Extra = Callable[[Served], Awaitable[trio.abc.Stream]]


async def silent(served: Served) -> trio.abc.Stream:
    """It stands, and nobody answers."""
    return memory_stream_pair()[0]


async def unreachable(served: Served) -> trio.abc.Stream:
    raise ConnectionLost("cannot reach memory: Too many open files")


async def dead(served: Served) -> trio.abc.Stream:
    """It ends before anything was said."""
    near, far = memory_stream_pair()
    await far.aclose()
    return near


def refusing(code: Code, scope: Scope) -> Extra:
    async def dial(served: Served) -> trio.abc.Stream:
        """It greets and refuses to carry a file."""
        near, far = memory_stream_pair()
        served.nursery.start_soon(refuse, RawPeer(far))
        return near

    async def refuse(peer: RawPeer) -> None:
        await peer.greet()
        heard = await peer.hear()
        assert isinstance(heard.message, Open)
        stream = heard.stream if scope == Scope.STREAM else 0
        await peer.say(stream, Error(code, scope, "there are too few files"))

    return dial


async def upload(path: Path, served: Served, extra: Extra) -> Receipt:
    """Send a file where only the first connection comes to the server."""
    dialled: list[trio.abc.Stream] = []

    async def dial() -> Endpoint:
        dialled.append(served.connect() if not dialled else await extra(served))
        return StreamEndpoint(dialled[-1], "memory")

    async with connect_with(
        dial, "memory", served.open_part_file, ClientConfig(connections=CONNECTIONS, retry_for_s=3.0)
    ) as client:
        return await client.upload(path)


@quick
@pytest.mark.parametrize(
    "extra",
    [
        silent,
        unreachable,
        dead,
        refusing(Code.BUSY, Scope.STREAM),
        refusing(Code.BUSY, Scope.CONNECTION),
        refusing(Code.NOT_PERMITTED, Scope.STREAM),
    ],
)
async def test_a_connection_that_does_not_come_is_one_fewer(tmp_path: Path, extra: Extra) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes_of(3 * MIB + 5))
    async with serving() as served:
        begun = trio.current_time()
        receipt = await upload(path, served, extra)
        assert trio.current_time() - begun < 1.0, "it was waited for"
        assert receipt.connections == 1
        assert content_of(served.store, "file") == path.read_bytes()


def test_a_server_with_few_descriptors_takes_a_file_over_as_many_as_it_has(
    start_server: Callable[..., Server], tmp_path: Path, run: Callable[..., Ran]
) -> None:
    server = start_server()
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (24, 24))
    content = os.urandom(20 * MIB)
    (tmp_path / "big").write_bytes(content)
    ran = run(
        "put", tmp_path / "big", server.address + "/", "--connections", CONNECTIONS, "--retry-for", "3s"
    )
    assert ran.status == Status.DONE, ran.err
    assert (server.folder / "big").read_bytes() == content
