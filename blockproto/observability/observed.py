"""A session and an endpoint that tell hooks what is sent and received.

A connection without hooks has the plain ones, and pays nothing for each frame.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..connection.endpoint import Deadline, Endpoint, Part, never
from ..protocol.session import Event, Limits, Session, Side
from ..wire import Message
from .observer import CURRENT_CONNECTION, Hook

Hooks = tuple[Hook, ...]


def observed_session(side: Side, limits: Limits, hooks: Hooks) -> Session:
    """A fresh session of ``side`` that tells ``hooks`` of messages."""
    return ObservedSession(side, limits, hooks) if hooks else Session(side, limits)


def observed_endpoint(endpoint: Endpoint, hooks: Hooks) -> Endpoint:
    """``endpoint``, owned from now on, telling those ``hooks`` that count bytes."""
    hooks = tuple(hook for hook in hooks if hook.counts_bytes)
    return ObservedEndpoint(endpoint, hooks) if hooks else endpoint


class ObservedSession(Session):
    """A session that tells of each message."""

    # Beside the attributes of Session: a dictionary of 30 is not shared any more, over a KiB in every idle connection.
    __slots__ = ("_hooks", "_label")

    def __init__(self, side: Side, limits: Limits, hooks: Hooks) -> None:
        super().__init__(side, limits)
        self._hooks = hooks
        self._label = CURRENT_CONNECTION.get()

    def send(self, stream: int, message: Message, payload_length: int = 0) -> bytes:
        """See Session."""
        frame = super().send(stream, message, payload_length)
        for hook in self._hooks:
            hook.said(self._label, stream, message, payload_length)
        return frame

    def next_event(self) -> Event | None:
        """See Session."""
        event = super().next_event()
        if event is not None:
            for hook in self._hooks:
                hook.heard(event)
        return event


class ObservedEndpoint:
    """An endpoint that tells what it does."""

    __slots__ = ("_hooks", "_inner", "host", "peer")

    def __init__(self, inner: Endpoint, hooks: Hooks) -> None:
        self.peer, self.host = inner.peer, inner.host
        self._inner = inner
        self._hooks = hooks

    async def receive_into(self, view: memoryview, deadline: Deadline = never) -> int | None:
        """See Endpoint."""
        received: int | None = None
        for hook in self._hooks:
            hook.receiving()
        try:
            received = await self._inner.receive_into(view, deadline)
        finally:
            for hook in self._hooks:
                hook.received(received or 0)
        return received

    async def send(self, parts: Sequence[Part]) -> None:
        """See Endpoint."""
        length = 0
        for hook in self._hooks:
            hook.sending()
        try:
            await self._inner.send(parts)
            length = sum(map(len, parts))
        finally:
            for hook in self._hooks:
                hook.sent(length)

    def limit_unsent(self, limited: bool) -> None:
        """See Endpoint."""
        self._inner.limit_unsent(limited)

    async def end_sending(self) -> None:
        """See Endpoint."""
        await self._inner.end_sending()

    async def aclose(self) -> None:
        """See Endpoint."""
        await self._inner.aclose()
