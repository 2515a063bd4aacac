"""A crowd of clients in one process that stay connected: ``python -m benchmarks.crowd PORT CLIENTS``.

Prints ``up`` when everybody is connected, then waits for a line on stdin (the server was killed), and when everybody is
back prints one JSON object: the seconds each took, and how often each connected.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import NoReturn

import trio

from blockproto.calling.dialling import tcp_dial
from blockproto.calling.lines import LineEvent, Reconnected
from blockproto.client import Client, connect_with
from blockproto.errors import BlockprotoError
from blockproto.link.endpoint import Endpoint

from .processes import HOST

AT_ONCE = 50
GIVE_UP_S = 90.0


class Member:
    """One client that stays connected, and what it counts."""

    def __init__(self, port: int, crowd: Crowd) -> None:
        self._dial, self._server = tcp_dial(f"bp://{HOST}:{port}")
        self._crowd = crowd
        self._nursery: trio.Nursery | None = None
        self._client: Client | None = None
        self.up = trio.Event()
        self.connects = 0
        self.back_at: float | None = None

    async def run(self) -> None:
        """Stay connected until cancelled."""
        async with (
            trio.open_nursery() as self._nursery,
            connect_with(
                self._counted, self._server, _no_sidecar, retry_for_s=GIVE_UP_S, on_line=self._on_line
            ) as client,
        ):
            self._client = client
            connection = await client.connection()
            await connection.greeted.wait()
            self.up.set()
            await client.keep_connected()

    async def _counted(self) -> Endpoint:
        self.connects += 1
        return await self._dial()

    def _on_line(self, event: LineEvent) -> None:
        if isinstance(event, Reconnected) and self._nursery is not None:
            self._nursery.start_soon(self._note_return)

    async def _note_return(self) -> None:
        assert self._client is not None
        try:
            connection = await self._client.connection()
            await connection.greeted.wait()
        except BlockprotoError:
            return
        if connection.lost is None and self.back_at is None:
            self.back_at = time.monotonic()
            self._crowd.returned()


class Crowd:
    """All of them.

    Args:
        port: of the server.
        number: how many.
    """

    def __init__(self, port: int, number: int) -> None:
        self._members = [Member(port, self) for _ in range(number)]
        self._missing = number
        self._all_back = trio.Event()

    def returned(self) -> None:
        """One more is back."""
        self._missing -= 1
        if not self._missing:
            self._all_back.set()

    async def run(self) -> None:
        """Connect, wait for the word, see everybody come back."""
        async with trio.open_nursery() as nursery:
            for at in range(0, len(self._members), AT_ONCE):
                for member in self._members[at : at + AT_ONCE]:
                    nursery.start_soon(member.run)
                for member in self._members[at : at + AT_ONCE]:
                    await member.up.wait()
            print("up", flush=True)
            before = [member.connects for member in self._members]
            await trio.to_thread.run_sync(sys.stdin.readline)
            begun = time.monotonic()
            with trio.move_on_after(GIVE_UP_S):
                await self._all_back.wait()
            told = {
                "back_s": [None if one.back_at is None else one.back_at - begun for one in self._members],
                "connects": [one.connects - was for one, was in zip(self._members, before, strict=True)],
            }
            print(json.dumps(told), flush=True)
            nursery.cancel_scope.cancel()


def _no_sidecar(_dest: Path, _first: int) -> NoReturn:
    raise AssertionError("nothing is downloaded here")


if __name__ == "__main__":
    trio.run(Crowd(int(sys.argv[1]), int(sys.argv[2])).run)
