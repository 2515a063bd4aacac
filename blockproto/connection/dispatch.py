"""Dispatch: hand each event to the handler of its stream, at once or through a backlog.

    handler                       its event
    never waits                   is handed over at once; the connection reads on when the handler returns
    may have to wait (``waits``)  goes to the stream's backlog; a task hands it over while the connection reads on
    waits for others (``NotYet``) stays first in the stream's backlog, without a task, until ``resume``

The first way costs nothing and suffices for a fast disk. Without the second, a slow disk would hold up every stream of the
connection and the answer to a PING. Payload in a backlog is not consumed: it returns no credit, so a blocked stream uses up
its own allowance and leaves the rest of the connection's to the others. There are few tasks for that, in two lanes: what may
wait long does not occupy those in which a disk is waited for; and what peers do, which can take for ever, occupies none.

Rules:
    1. A handler gets the events of its stream one at a time and in order; there is no order between streams.
    2. After ``forget`` nothing is handed over; payload without a handler is consumed.

Spec: BP1-STR-002, BP1-STR-010, BP1-STR-018, BP1-CRD-006.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

import trio

from ..errors import BlockprotoError, StoreError, StoreFailed, TransferError
from ..protocol.session import Payload, Received, Rejected
from ..wire import Message
from .stream_handler import NotYet, StreamHandler, Wait
from .unexpected_errors import is_expected, wants_memory

StreamEvent = Received | Payload | Rejected

BACKLOGS_AT_ONCE = 32
"""Backlogs of a lane that are worked off at a time; a task for each of 2,048 streams took 16 MiB."""


class Owner(Protocol):
    """The connection, as far as its streams need it."""

    def accept(self, stream: int, message: Message) -> StreamHandler | None:
        """The handler of a stream that the peer begins with ``message``; None if it was refused or is closed."""

    def refuse(self, stream: int, error: BlockprotoError) -> None:
        """Answer ``stream`` with ERROR and forget it."""

    def broke(self, stream: int, error: Exception) -> BlockprotoError:
        """Log an unexpected error and ``refuse`` the stream; returns the error to tell its handler."""

    def consumed(self, stream: int, count: int) -> None:
        """Hear that ``count`` bytes of payload were handed over or dropped."""

    def handed_over(self, stream: int) -> None:
        """Hear that a message was handed over and the stream's backlog is empty."""

    def caught_up(self, stream: int) -> None:
        """Hear that the backlog of ``stream`` became shorter: credit for it can be granted again."""

    def end_with(self, error: BlockprotoError) -> None:
        """End the connection with ERROR(connection) for ``error``."""


class _Lane:
    """Backlogs that are worked off by tasks of their own.

    Attributes:
        waiting: the streams whose turn comes.
        working: how many tasks there are.
    """

    __slots__ = ("waiting", "working")

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()
        self.working = 0


class Dispatch:
    """The streams of one connection that have a handler.

    Args:
        owner: the connection.
    """

    __slots__ = ("_aside", "_backlogs", "_empty", "_handlers", "_lanes", "_nursery", "_owner")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._handlers: dict[int, StreamHandler] = {}
        self._backlogs: dict[int, deque[StreamEvent]] = {}
        self._lanes: dict[
            bool, _Lane
        ] = {}  # while there are backlogs: a lane takes 900 bytes in every idle connection
        self._aside: tuple[int, ...] = ()
        self._nursery: trio.Nursery | None = None
        self._empty: trio.Event | None = None

    def start(self, nursery: trio.Nursery) -> None:
        """Run the tasks that hand over backlogs in ``nursery``."""
        self._nursery = nursery

    def stop(self) -> None:
        """Start no more tasks: the nursery is about to end."""
        self._nursery = None

    @property
    def idle(self) -> bool:
        """Whether no stream has a handler."""
        return not self._handlers

    @property
    def streams(self) -> Collection[int]:
        """The streams that have a handler."""
        return self._handlers.keys()

    def add(self, stream: int, handler: StreamHandler) -> None:
        """Hand the events of ``stream`` to ``handler`` from now on."""
        self._handlers[stream] = handler

    def forget(self, stream: int) -> None:
        """Stop handing over events of ``stream``. Harmless when repeated."""
        self._handlers.pop(stream, None)
        self.resume(stream)

    def resume(self, stream: int) -> None:
        """Hand the message over again at which the handler of ``stream`` raised NotYet. Harmless if there is none."""
        if stream in self._aside and self._nursery is not None:
            self._aside = tuple(one for one in self._aside if one != stream)
            self._put_in_line(stream)

    def waits(self, stream: int) -> bool:
        """Whether ``stream`` has a backlog."""
        return bool(self._backlogs.get(stream))

    def end(self, error: BlockprotoError) -> None:
        """Tell every handler that its stream has ended."""
        handlers, self._handlers = self._handlers, {}
        for stream, handler in handlers.items():
            self._tell_ended(stream, handler, error)

    async def caught_up(self) -> None:
        """Wait until no stream has a backlog. Cancellation: no effect."""
        while self._backlogs:
            if self._empty is None:
                self._empty = trio.Event()
            await self._empty.wait()

    async def handle(self, event: StreamEvent) -> None:
        """Hand ``event`` over, now or when its turn in the backlog comes.

        Raises:
            BlockprotoError: the connection has to end. (For an event in a backlog ``Owner.end_with`` is called instead.)

        Cancellation: the event may have been handled in part; the connection has to end.
        """
        stream = event.stream
        backlog = self._backlogs.get(stream)
        if backlog is not None:
            backlog.append(_kept(event))
            return
        handler = self._handlers.get(stream)
        if handler is None and isinstance(event, Received):
            handler = self._owner.accept(stream, event.message)
        if handler is not None and handler.waits:
            self._begin_backlog(event)
            return
        try:
            await self._hand_over(event, handler)
        except NotYet:
            self._backlogs[stream] = deque([event])
            self._aside = (*self._aside, stream)
            return
        if isinstance(event, Received):
            self._owner.handed_over(stream)

    def _begin_backlog(self, event: StreamEvent) -> None:
        self._backlogs[event.stream] = deque([_kept(event)])
        self._put_in_line(event.stream)

    def _put_in_line(self, stream: int, worked: _Lane | None = None) -> None:
        """Let ``stream`` have its turn; ``worked``: the lane whose task does this, and looks there next."""
        handler = self._handlers.get(stream)
        long = handler is not None and handler.waits == Wait.LONG
        lane = self._lanes.setdefault(long, _Lane())
        lane.waiting.append(stream)
        if lane is not worked and lane.working < BACKLOGS_AT_ONCE and self._nursery is not None:
            lane.working += 1
            self._nursery.start_soon(self._work_off, lane)

    async def _work_off(self, lane: _Lane) -> None:
        try:
            while lane.waiting:
                await self._work_off_one(lane.waiting.popleft(), lane)
        finally:
            lane.working -= 1
            if not self._backlogs:
                self._lanes = {}

    async def _work_off_one(self, stream: int, lane: _Lane) -> None:
        """Hand over the next event of the backlog of ``stream``; then the other backlogs have their turn."""
        backlog = self._backlogs[stream]
        event = backlog.popleft()
        try:
            await self._hand_over(event, self._handlers.get(stream))
            self._owner.caught_up(stream)
        except NotYet:
            backlog.appendleft(event)
            self._aside = (*self._aside, stream)
            return
        except BlockprotoError as exc:
            self._end_backlog(stream)
            self._owner.end_with(exc)
            return
        if backlog:
            self._put_in_line(stream, lane)
        else:
            self._end_backlog(stream)
            self._owner.handed_over(stream)

    def _end_backlog(self, stream: int) -> None:
        del self._backlogs[stream]
        if self._empty is not None and not self._backlogs:
            self._empty.set()
            self._empty = None

    async def _hand_over(self, event: StreamEvent, handler: StreamHandler | None) -> None:
        try:
            if isinstance(event, Rejected):
                self._reject(event.stream, event.error)
            elif handler is None:
                pass  # forgotten: what comes is dropped
            elif isinstance(event, Payload):
                await handler.payload(event.position, event.view, event.last)
            else:
                await handler.received(event.message, event.payload_length)
        except NotYet:
            raise
        except (TransferError, StoreError) as exc:
            self._reject(event.stream, exc)
        except Exception as exc:
            if is_expected(exc) or wants_memory(exc):
                raise
            if handler is not None:
                self._tell_ended(event.stream, handler, self._owner.broke(event.stream, exc))
        if isinstance(event, Payload):
            self._owner.consumed(event.stream, len(event.view))

    def _reject(self, stream: int, error: BlockprotoError) -> None:
        if isinstance(error, StoreFailed):
            raise error
        handler = self._handlers.get(stream)
        self._owner.refuse(stream, error)
        if handler is not None:
            self._tell_ended(stream, handler, error)

    def _tell_ended(self, stream: int, handler: StreamHandler, error: BlockprotoError) -> None:
        try:
            handler.ended(error)
        except Exception as exc:
            if wants_memory(exc):
                raise
            self._owner.broke(stream, exc)


def _kept(event: StreamEvent) -> StreamEvent:
    """The event with its own copy of the payload, which is part of the receive buffer."""
    return replace(event, view=memoryview(bytes(event.view))) if isinstance(event, Payload) else event
