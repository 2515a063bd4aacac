"""The runner: begins what is next, some at a time, and stops what another process has paused or cancelled.

A transfer begins while fewer than ``at_once`` of its priority, or of more urgent ones, run with the same server. A small
interactive one therefore never waits for big bulk ones, and no transfer waits for a server that cannot be reached by
another one. Transfers that run together share the connection by priority.

Spec: BP1-STR-012 (priorities).
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from functools import partial

import trio

from ..client import Client
from ..errors import BlockprotoError, NotPermitted, is_of_this_machine
from ..results import LeftOut
from ..transfer.send_source import Progress
from ..transfer.threads import run_in_thread
from .entry import PRIORITIES, Direction, QueuedTransfer, TransferState
from .journal import Journal
from .run_transfer import Contents, carry, tidy

ConnectTo = Callable[[str], AbstractAsyncContextManager[Client]]
"""Makes a client of ``bp://HOST:PORT``."""

OnLeftOut = Callable[[QueuedTransfer, Sequence[LeftOut]], None]
"""Called with a folder whose turn has come, and with what was left out of it."""

LINGER_S = 10.0
"""How long (s) the connection to a server is kept when no transfer with it runs."""
WRITE_EVERY_S = 0.5
"""How often (s) the positions of transfers are written to the journal."""
TIDY_S = 10.0
"""How long (s) a server may take to remove a cancelled upload; after that it is asked again in the next run."""
_PASSES = {errno.ENOSPC, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBUSY}
"""Errors of this machine that can pass without a change of the transfer."""


@dataclass(slots=True)
class _Server:
    """A server with which transfers run."""

    client: Client
    scope: trio.CancelScope
    users: int = 0
    gone: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Running:
    """A transfer that runs."""

    server: str
    priority: int
    begun: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Runner:
    """Runs a journal's transfers; one for a journal at a time.

    Args:
        journal: of the queue.
        connect: makes clients.
        at_once: how many transfers of one priority run together with one server.
        server: run only transfers with this server; None: all.
        on_left_out: called with what is left out of folders, or None.
    """

    def __init__(
        self,
        journal: Journal,
        connect: ConnectTo,
        at_once: int,
        server: str | None,
        on_left_out: OnLeftOut | None = None,
    ) -> None:
        self._on_left_out = on_left_out
        self._journal = journal
        self._connect = connect
        self._at_once = at_once
        self._only = server
        self._running: dict[int, _Running] = {}
        self._tidying: set[int] = set()
        self._tidied: set[int] = set()
        self._servers: dict[str, _Server] = {}
        self._opening = trio.Lock()
        self._positions: dict[int, int] = {}
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None

    def look(self, changed: list[QueuedTransfer]) -> None:
        """Follow a change of the journal: stop what is not to run any more, and begin what can."""
        for one in changed:
            running = self._running.get(one.id)
            if running is not None:
                running.priority = PRIORITIES.index(one.priority)
                unwanted = one.state in (TransferState.PAUSED, TransferState.CANCELLED)
                if unwanted or (one.state is TransferState.WAITING and running.begun):
                    running.scope.cancel()  # one that waits begins again: it was resumed, or has another priority
        self._news.set()

    async def run(self, *, until_empty: bool) -> None:
        """Run until cancelled, or with ``until_empty`` until no transfer waits or runs.

        Cancellation: what was running waits again, and the next run resumes it.
        """
        await run_in_thread(self._journal.recover)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._write_positions)
                while True:
                    self._news = trio.Event()
                    await self._begin()
                    if until_empty and not self._running and not self._tidying and not self._next():
                        break
                    await self._news.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await run_in_thread(self._put_back)

    def _put_back(self) -> None:
        self._journal.advance(self._positions)
        left = [one.id for one in self._journal.all() if one.state is TransferState.RUNNING]
        self._journal.put_back(left)

    async def _begin(self) -> None:
        """Begin what ``at_once`` allows."""
        nursery = self._nursery
        assert nursery is not None
        for one in self._journal.untidy():
            if one.id not in self._running and one.id not in self._tidied and self._ours(one):
                self._tidied.add(one.id)
                self._tidying.add(one.id)
                nursery.start_soon(self._tidy, one)
        begun = self._next()
        if begun:
            ids = [one.id for one in begun]
            for one in begun:
                self._running[one.id] = _Running(one.server, PRIORITIES.index(one.priority))
            for one in await run_in_thread(lambda: self._journal.begin(ids)):
                running = self._running[one.id]
                running.priority, running.begun = PRIORITIES.index(one.priority), True
                nursery.start_soon(self._run_one, one)
            for id_ in ids:
                if not self._running[id_].begun:  # another process stopped it in this instant
                    del self._running[id_]

    def _next(self) -> list[QueuedTransfer]:
        """What can begin now."""
        servers = self._journal.servers() if self._only is None else [self._only]
        return [one for server in servers for one in self._next_with(server)]

    def _next_with(self, server: str) -> list[QueuedTransfer]:
        """What can begin now with a server, the most urgent first."""
        chosen: list[QueuedTransfer] = []
        there = [running.priority for running in self._running.values() if running.server == server]
        for priority in range(len(PRIORITIES)):
            room = self._at_once - len(chosen) - sum(other <= priority for other in there)
            if room > 0:
                waiting = self._journal.next(server, priority, room + len(there))
                chosen += [one for one in waiting if one.id not in self._running][:room]
        return chosen

    def _ours(self, one: QueuedTransfer) -> bool:
        return self._only in (None, one.server)

    # ---- one transfer -----------------------------------------------------------------------------------------

    async def _run_one(self, one: QueuedTransfer) -> None:
        try:
            with self._running[one.id].scope as scope:
                await self._carry(one)
            if scope.cancelled_caught:  # unless it is paused or cancelled, it waits
                await run_in_thread(lambda: self._journal.put_back([one.id]))
        finally:
            del self._running[one.id]
            self._news.set()

    async def _carry(self, one: QueuedTransfer) -> None:
        journal = self._journal

        async def on_found(filesize: int, sourceid: str | None) -> None:
            await run_in_thread(lambda: journal.found(one.id, filesize, sourceid))

        try:
            client = await self._client(one.server)
            try:
                outcome = await carry(client, one, on_found, partial(self._progressed, one.id))
            finally:
                self._leave(one.server)
        except (BlockprotoError, OSError, ValueError) as error:
            await self._failed(one, error)
        else:
            self._positions.pop(one.id, None)
            with trio.CancelScope(shield=True):  # it is done: a cancellation in this instant came too late
                if isinstance(outcome, Contents):
                    await run_in_thread(lambda: journal.expand(one, outcome.entries, outcome.missed))
                    if outcome.left_out and self._on_left_out is not None:
                        self._on_left_out(one, outcome.left_out)
                else:
                    await run_in_thread(lambda: journal.done(one.id, *outcome))

    async def _failed(self, one: QueuedTransfer, error: BlockprotoError | OSError | ValueError) -> None:
        if isinstance(error, OSError):
            code, retryable = None, error.errno in _PASSES
            text = f"{one.path}: {error.strerror or error}"
        elif isinstance(error, BlockprotoError):
            code, retryable, text = int(error.code), error.retryable, str(error)
            if isinstance(error, NotPermitted) and one.direction is Direction.UPLOAD:
                text = f"on {one.server}: {text}"  # not of the file here, which the sentence begins with
            elif one.direction is Direction.DOWNLOAD and is_of_this_machine(error):
                text = f"{one.path}: {text}"
        else:
            code, retryable, text = None, False, str(error)
        await run_in_thread(lambda: self._journal.failed(one.id, text, code, retryable))

    def _progressed(self, id_: int, progress: Progress) -> None:
        self._positions[id_] = progress.position_bytes_done

    async def _write_positions(self) -> None:
        while True:
            await trio.sleep(WRITE_EVERY_S)
            if self._positions:
                positions, self._positions = self._positions, {}
                await run_in_thread(partial(self._journal.advance, positions))

    async def _tidy(self, one: QueuedTransfer) -> None:
        """Remove what a cancelled transfer has left; if that fails, the next run tries again."""
        try:
            with trio.move_on_after(TIDY_S), suppress(BlockprotoError, OSError, ValueError):
                client = await self._client(one.server)
                try:
                    await tidy(client, one)
                finally:
                    self._leave(one.server)
                await run_in_thread(lambda: self._journal.tidied(one.id))
        finally:
            self._tidying.discard(one.id)
            self._news.set()

    # ---- servers ----------------------------------------------------------------------------------------------

    async def _client(self, server: str) -> Client:
        """The client of ``server``; call ``_leave`` when it is not needed any more. Raises what connecting raises."""
        assert self._nursery is not None
        async with self._opening:
            while (found := self._servers.get(server)) is None or found.scope.cancel_called:
                if found is None:
                    await self._nursery.start(self._keep_client, server)
                else:
                    await found.gone.wait()
        found.users += 1
        found.scope.deadline = math.inf
        return found.client

    def _leave(self, server: str) -> None:
        found = self._servers.get(server)
        if found is not None:
            found.users -= 1
            if not found.users:
                found.scope.deadline = trio.current_time() + LINGER_S

    async def _keep_client(
        self, server: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.CancelScope() as scope:
            async with self._connect(server) as client:
                kept = self._servers[server] = _Server(client, scope)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    del self._servers[server]
                    kept.gone.set()
