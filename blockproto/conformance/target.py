"""A server by its address: dialling it, and the world in which one case runs.

``Trial`` is what a case of the server's side gets: new connections, files under names and sourceids of its own, and the
adapter where there is one. It closes what it dialled.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from .. import wire
from .adapter import Adapter
from .case import Case
from .cast import Cast, Player
from .peer import Peer
from .sample import Sample
from .timing import Patience
from .transcript import Transcript
from .tunnel import plain_end, shake
from .verdicts import Closed, Failed, Unsupported


@dataclass(frozen=True)
class Target:
    """Where the server is.

    Attributes:
        host, port: its address.
        patience: how long to wait.
        small_segments: whether everything is sent in segments of one byte.
        adapter: the process that can kill and inspect it, or None.
        folder: a name in the served folder under which everything of this run goes.
        tls: whether every connection is TLS.
        pin: what the certificate's SHA-256 must be, or None.
        cast: whose tokens there are.
    """

    host: str
    port: int
    patience: Patience = field(default_factory=Patience)
    small_segments: bool = False
    adapter: Adapter | None = None
    folder: str = ""
    tls: bool = False
    pin: bytes | None = None
    cast: Cast = field(default_factory=Cast)

    def with_(self, **changes: Any) -> Target:
        """The same server, examined otherwise."""
        return replace(self, **changes)

    def connect(self) -> socket.socket:
        """A new connection; OSError if there is none to be had."""
        return plain_end(shake(self.reach(), pin=self.pin)) if self.tls else self.reach()

    def reach(self) -> socket.socket:
        """A new TCP connection on which nothing was said."""
        return socket.create_connection((self.host, self.port), timeout=self.patience.answer_s)

    def answers(self) -> bool:
        """Whether it accepts a connection and greets."""
        try:
            with Peer(self.connect(), 0, Transcript(), self.patience, _ignore) as peer:
                peer.greet()
                peer.ping()
        except (OSError, Failed):
            return False
        return True


class Trial:
    """The world of one run of one case.

    Args:
        target: whom to dial.
        case: what is run.

    Attributes:
        transcript: everything that was said and heard.
        notes: sentences about what is allowed and not strict.
    """

    def __init__(self, target: Target, case: Case) -> None:
        self.target = target
        self.patience = target.patience
        self.transcript = Transcript()
        self.notes: list[str] = []
        self._case = case
        self._peers: list[Peer] = []
        self._names = 0

    def dial(self, *, greet: bool = True, hello: wire.Hello | None = None) -> Peer:
        """A new connection, greeted unless the case does it itself."""
        try:
            sock = self.target.connect()
        except OSError as error:
            raise Closed("the target accepts no connection", got=str(error)) from error
        peer = self.take(sock)
        if greet:
            peer.greet(hello)
        return peer

    def take(self, sock: socket.socket) -> Peer:
        """A peer on a connection that the case made itself."""
        number = len(self._peers) + 1
        peer = Peer(sock, number, self.transcript, self.patience, self.lenient, self.target.small_segments)
        self._peers.append(peer)
        return peer

    def come_in(self, player: Player) -> Peer:
        """A new connection on which ``player`` has said who it is, on stream 1."""
        peer = self.dial()
        peer.say(1, wire.Auth(player.token))
        peer.expect(wire.Result, 1, kind=wire.PRINCIPAL_KIND)
        return peer

    def comes_in(self) -> Peer:
        """A new connection that may make requests, from stream 3 on: the first owner's, if the server wants AUTH."""
        peer = self.dial()
        assert peer.hello is not None
        if not peer.hello.features & wire.FEATURE_AUTH_REQUIRED:
            return peer
        peer.close()
        (player,) = self.owners()
        return self.come_in(player)

    def owners(self, count: int = 1) -> list[Player]:
        """So many different principals that may read and write."""
        return self.target.cast.owners(self.dial, count)

    def lenient(self, note: str) -> None:
        """Note that something is allowed and not strict: the verdict becomes NON_STRICT."""
        self.notes.append(note)

    def name(self, suffix: str = ".bin") -> str:
        """A filename that nobody has used, in a folder of this run."""
        self._names += 1
        slug = self._case.name.rpartition("/")[2][:40]
        return f"{self.target.folder}/{slug}-{secrets.token_hex(4)}-{self._names}{suffix}"

    def sourceid(self) -> bytes:
        """A sourceid that nobody has used."""
        return os.urandom(16)

    def sample(self, filesize: int = 1_000, **facts: Any) -> Sample:
        """A new file: its own name, sourceid and bytes."""
        facts = {
            "filename": self.name(),
            "sourceid": self.sourceid(),
            "seed": random.getrandbits(32),
            **facts,
        }
        return Sample(filesize=filesize, **facts)

    @property
    def adapter(self) -> Adapter:
        """The adapter; Unsupported if there is none."""
        if self.target.adapter is None:
            raise Unsupported("needs an adapter")
        return self.target.adapter

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self._peers:
            peer.close()


def _ignore(note: str) -> None:
    """A note about a probe that is no case."""
