"""Observer: hears what a running server does. The base class does nothing; metrics and logs are observers.

Each event is reported where it happens, and once: connections and messages by the server, takeovers by the uploads, what
became durable by the committer. What can be counted at any time (open uploads, queue length) is not reported: an observer
gets it as a ``Load`` when it needs it.

``CURRENT_CONNECTION`` is the connection for which the present task works; log records find it there.

Rules:
    1. An observer decides nothing, waits for nothing and raises nothing.
    2. Without an observer, an upload or a batch costs a call of an empty function, and a piece nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..protocol.session import Event
from ..store import Decided, Upload
from ..wire import Message

Entered = Literal["begun", "resumed", "joined", "taken over"]
"""How a stream enters an upload: it is new, was known, other streams send it too, or other streams sent it until now."""


class Load(NamedTuple):
    """The load of a server at this moment.

    Attributes:
        connections: how many, by kind: "native", "tls", or the name of a dialect.
        uploads: how many are open.
        works: how many wait to be made durable.
        disk_slow: whether store calls leave the Trio thread because the disk is slow.
        used: bytes of each principal with a quota, by its 16 bytes.
    """

    connections: Mapping[str, int]
    uploads: int
    works: int
    disk_slow: bool
    used: Mapping[bytes, int]


@dataclass(slots=True)
class ConnectionLabel:
    """One connection, as logs name it.

    Attributes:
        number: counted from 1 since the server started.
        peer: its address.
        principal: the principal's name; empty before AUTH.
    """

    number: int
    peer: str
    principal: str = ""


CURRENT_CONNECTION: ContextVar[ConnectionLabel | None] = ContextVar("connection_label", default=None)
"""The connection for which the present task works."""


class Hook:
    """Hears what is sent and received on one connection or on all connections of a server; does nothing.

    Attributes:
        counts_bytes: whether it hears of the endpoint too: ``receiving`` and all below it.
    """

    counts_bytes = False

    def said(
        self, connection_label: ConnectionLabel | None, stream: int, message: Message, payload_length: int
    ) -> None:
        """A message was sent, with ``payload_length`` bytes; a server gives the label of the connection."""

    def heard(self, event: Event) -> None:
        """A valid message or payload came."""

    def receiving(self) -> None:
        """Everything that came has been handled; the endpoint waits for more."""

    def received(self, length: int) -> None:
        """Bytes came; 0: none, and the endpoint does not wait any more."""

    def sending(self) -> None:
        """Bytes are being written."""

    def sent(self, length: int) -> None:
        """The bytes were written; 0: that failed."""


class Observer:
    """Hears what a server does, on the Trio thread; does nothing."""

    def serving(self, load: Callable[[], Load]) -> None:
        """The server runs; ``load`` may be called on the Trio thread until it has ended."""

    def hooks(self) -> tuple[Hook, ...]:
        """The hooks for each connection; called once. Without any, connections cost nothing more."""
        return ()

    def came(self, kind: str) -> None:
        """The protocol of this task's connection is known: "native", "tls", or the name of a dialect."""

    def entered(self, upload: Upload, how: Entered) -> None:
        """A stream begins to send an upload."""

    def committed(self, decided: Sequence[Decided], elapsed_s: float) -> None:
        """A batch is durable: its works, each with what became of it."""


NULL_OBSERVER = Observer()
"""The observer of a server without one."""


class ObserverPair(Observer):
    """Two observers as one."""

    def __init__(self, first: Observer, second: Observer) -> None:
        self._both = (first, second)

    def serving(self, load: Callable[[], Load]) -> None:
        """See Observer."""
        for observer in self._both:
            observer.serving(load)

    def hooks(self) -> tuple[Hook, ...]:
        """See Observer."""
        return tuple(hook for observer in self._both for hook in observer.hooks())

    def came(self, kind: str) -> None:
        """See Observer."""
        for observer in self._both:
            observer.came(kind)

    def entered(self, upload: Upload, how: Entered) -> None:
        """See Observer."""
        for observer in self._both:
            observer.entered(upload, how)

    def committed(self, decided: Sequence[Decided], elapsed_s: float) -> None:
        """See Observer."""
        for observer in self._both:
            observer.committed(decided, elapsed_s)
