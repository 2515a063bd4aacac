"""Observer: what a running server tells whoever looks after it. The plain one does nothing; metrics and logs are others.

Each thing is told where it happens, so nothing is told twice: connections and messages by the server, takeovers by the
uploads, what became durable by the committer. What stands somewhere already (how many uploads are open, how long the queue
is) nobody counts a second time: an observer asks for it with ``Load`` when it is asked itself.

``CURRENT_CONNECTION`` says for which connection the present task works; a log record finds it there, whoever writes it.

Rules:
    1. An observer decides nothing, waits for nothing and raises nothing.
    2. A server that nobody observes pays a call of an empty function for an upload or a batch, and none for a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..protocol.session import Event
from ..store import Upload, Work
from ..wire import Message

Entered = Literal["begun", "resumed", "joined", "taken over"]
"""How a stream comes to an upload: nobody had it, it is known, others send it too, others sent it until now."""


class Load(NamedTuple):
    """What a server has to do at this moment.

    Attributes:
        connections: how many, by kind: "native", "tls", or the name of a dialect.
        uploads: how many are open.
        works: how many wait to be made durable.
        disk_slow: whether store calls leave the Trio thread because the disk is slow.
        used: of principals that have a quota, by their 16 bytes: how many bytes they have.
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
        principal: the name of who came, as far as that was said.
    """

    number: int
    peer: str
    principal: str = ""


CURRENT_CONNECTION: ContextVar[ConnectionLabel | None] = ContextVar("connection_label", default=None)
"""The connection for which the present task works."""


class Hook:
    """Hears what is said and heard on connections, a connection's or those of a whole server, and does nothing with it.

    Attributes:
        counts_bytes: whether to tell it also what the endpoint does: ``receiving`` and all below it.
    """

    counts_bytes = False

    def said(
        self, connection_label: ConnectionLabel | None, stream: int, message: Message, payload_length: int
    ) -> None:
        """A message was said to ``connection_label`` (a server's), with a payload of so many bytes."""

    def heard(self, event: Event) -> None:
        """Something came that keeps to the protocol."""

    def receiving(self) -> None:
        """All that came has been handled, and more is waited for."""

    def received(self, length: int) -> None:
        """Bytes came; 0: none, and they are not waited for any more."""

    def sending(self) -> None:
        """Bytes are being written."""

    def sent(self, length: int) -> None:
        """All bytes were written; 0: that failed."""


class Observer:
    """Hears what a server does, on the Trio thread, and does nothing with it."""

    def serving(self, load: Callable[[], Load]) -> None:
        """The server runs; ``load`` may be called on the Trio thread until it has ended."""

    def hooks(self) -> tuple[Hook, ...]:
        """What is to hear each connection; asked once. None of it costs anything where this is empty."""
        return ()

    def came(self, kind: str) -> None:
        """The connection of this task speaks: "native", "tls", or the name of a dialect."""

    def entered(self, upload: Upload, how: Entered) -> None:
        """A stream sends an upload from now on."""

    def committed(self, works: Sequence[Work], elapsed_s: float) -> None:
        """A batch is durable; the works have their outcomes."""


NULL_OBSERVER = Observer()
"""For a server that nobody observes."""


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

    def committed(self, works: Sequence[Work], elapsed_s: float) -> None:
        """See Observer."""
        for observer in self._both:
            observer.committed(works, elapsed_s)
