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

from ..connection.endpoint import Endpoint
from ..protocol.session import Limits, Session, Side
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


class Observer:
    """Hears what a server does, on the Trio thread, and does nothing with it."""

    def serving(self, load: Callable[[], Load]) -> None:
        """The server runs; ``load`` may be called on the Trio thread until it has ended."""

    def endpoint(self, endpoint: Endpoint) -> Endpoint:
        """A connection came; what is to be used for it."""
        return endpoint

    def session(self, limits: Limits) -> Session:
        """The session of a connection that may become a native one."""
        return Session(Side.SERVER, limits)

    def came(self, kind: str) -> None:
        """The connection of this task speaks: "native", "tls", or the name of a dialect."""

    def said(self, connection_label: ConnectionLabel | None, stream: int, message: Message) -> None:
        """A message was said to ``connection_label``; only with an ``ObservedSession``."""

    def entered(self, upload: Upload, how: Entered) -> None:
        """A stream sends an upload from now on."""

    def committed(self, works: Sequence[Work], elapsed_s: float) -> None:
        """A batch is durable; the works have their outcomes."""


NULL_OBSERVER = Observer()
"""For a server that nobody observes."""


class ObservedSession(Session):
    """A server's session that tells of each message it says."""

    def __init__(self, limits: Limits, observer: Observer) -> None:
        super().__init__(Side.SERVER, limits)
        self._observer = observer
        self._visitor = CURRENT_CONNECTION.get()

    def send(self, stream: int, message: Message, payload_length: int = 0) -> bytes:
        """See Session."""
        frame = super().send(stream, message, payload_length)
        self._observer.said(self._visitor, stream, message)
        return frame


class ObserverPair(Observer):
    """Two observers as one."""

    def __init__(self, first: Observer, second: Observer) -> None:
        self._both = (first, second)

    def serving(self, load: Callable[[], Load]) -> None:
        """See Observer."""
        for observer in self._both:
            observer.serving(load)

    def endpoint(self, endpoint: Endpoint) -> Endpoint:
        """See Observer."""
        for observer in self._both:
            endpoint = observer.endpoint(endpoint)
        return endpoint

    def session(self, limits: Limits) -> Session:
        """See Observer."""
        return ObservedSession(limits, self)

    def came(self, kind: str) -> None:
        """See Observer."""
        for observer in self._both:
            observer.came(kind)

    def said(self, connection_label: ConnectionLabel | None, stream: int, message: Message) -> None:
        """See Observer."""
        for observer in self._both:
            observer.said(connection_label, stream, message)

    def entered(self, upload: Upload, how: Entered) -> None:
        """See Observer."""
        for observer in self._both:
            observer.entered(upload, how)

    def committed(self, works: Sequence[Work], elapsed_s: float) -> None:
        """See Observer."""
        for observer in self._both:
            observer.committed(works, elapsed_s)
