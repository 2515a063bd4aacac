"""Memory that is wanting ends the connection whose work met it, and nothing else."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from peers import RawPeer, Served, run, serving
from test_handshake_slots import is_gone
from trio.testing import wait_all_tasks_blocked

from blockproto.serving import server as servers
from blockproto.serving.handlers.brief_fetch import BriefFetches
from blockproto.serving.handlers.fetch import ServedFetch
from blockproto.serving.handlers.requests import RequestHandler
from blockproto.serving.server import Server
from blockproto.wire import PREFACE, Fetch, Hello, List, ListKind, Message, Ping, encode_frame

quick = pytest.mark.trio(run=run)
ASKED = List(kind=ListKind.FILES)


async def is_answered(served: Served) -> bool:
    """Whether somebody who comes now is answered."""
    peer = await served.peer()
    await peer.say(0, Ping(bytes(8), 0))
    await peer.expect(Ping)
    return True


@quick
@pytest.mark.clause("BP1-LIM-006")
@pytest.mark.parametrize(
    ("where", "what", "asked"),
    [
        (RequestHandler, "_answer", ASKED),
        (RequestHandler, "received", ASKED),
        (ServedFetch, "received", Fetch(filename="a.bin")),
        (BriefFetches, "_work_off", Fetch(filename="a.txt", length=10)),
        (Server, "_see_in", None),
        (servers, "detect", None),
    ],
)
async def test_memory_that_is_wanting_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: object,
    what: str,
    asked: Message | None,
) -> None:
    async def no_memory(*_: Any, **__: Any) -> NoReturn:
        raise MemoryError

    async with serving() as served:
        other = await served.peer()
        if asked is None:
            with monkeypatch.context() as patch:
                patch.setattr(where, what, no_memory)
                unlucky = RawPeer(served.connect())
                await unlucky.send_bytes(PREFACE + encode_frame(0, Hello(agent="unlucky")))
                await wait_all_tasks_blocked()
        else:
            unlucky = await served.peer()
            monkeypatch.setattr(where, what, no_memory)
            await unlucky.say(1, asked)
            await wait_all_tasks_blocked()
        assert await is_gone(unlucky.stream)
        await other.say(0, Ping(bytes(8), 0))
        await other.expect(Ping)
        assert await is_answered(served)
        assert not served.server._connection_auths.keys() - served.server._connections.keys()
    assert [record.getMessage()[:18] for record in caplog.records] == ["no memory was left"]
