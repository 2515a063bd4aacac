"""Configuration of a server: what it serves, where and to whom."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..identity.loopback import is_loopback
from ..identity.server_auth import AuthOptions, ServerAuth
from ..observability.observer import NULL_OBSERVER, Observer
from ..transfer.hooks import CommitHooks


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How a folder is served; ``blockproto.serve`` says more of each.

    Attributes:
        folder: what is served.
        listen: host and port; port 0 picks a free one.
        sockets: listening TCP sockets to use instead; owned from then on.
        state: where partials and ledger are; None: in ``.blockproto`` of the folder.
        auth: who may connect, and how.
        dialects: names of older wire formats to answer on the same port.
        portable_names: whether to take only names that Windows and macOS can keep.
        connections_each: how many connections one principal may have; None: the default.
        observer: hears what the server does.
        hooks: have to agree before a file gets its name, and hear of it afterwards; None: there are none.
        on_server_auth: called with who may connect and how, before anyone can.
        reloads: each item lets the server read tokens and certificate again.
    """

    folder: Path
    listen: tuple[str, int]
    sockets: Sequence[socket.socket] = ()
    state: Path | None = None
    auth: AuthOptions = field(default_factory=AuthOptions)
    dialects: Sequence[str] = ()
    portable_names: bool = False
    connections_each: int | None = None
    observer: Observer = NULL_OBSERVER
    hooks: CommitHooks | None = None
    on_server_auth: Callable[[ServerAuth], None] | None = None
    reloads: AsyncIterable[object] | None = None

    @property
    def host(self) -> str:
        """The address that decides who may connect: one that other machines can reach, if there is any."""
        hosts: list[str] = [sock.getsockname()[0] for sock in self.sockets] or [self.listen[0]]
        return next((host for host in hosts if not is_loopback(host)), hosts[0])
