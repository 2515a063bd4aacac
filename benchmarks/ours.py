"""Ours: the real commands ``blockproto serve``, ``put`` and ``get`` of this environment, as real processes.

Their ``--json`` tells ``elapsed_s`` and how many bytes of content were put on the wire; a timed run that did not send
all of them is an error, not a fast run.
"""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

from blockproto.identity.certificates import own_certificate, pin_of_file

from .pairs import Timing
from .processes import HOST, CommandFailed, Ran, Server, timed

NAME = "blockproto"

COMMAND = str(Path(sysconfig.get_path("scripts")) / "blockproto")
"""The installed command, beside the running interpreter."""

OLD = "old"
"""What the tables call the command of another checkout."""


class Ours:
    """A ``blockproto serve`` on a folder of its own, and commands for it; the secret stays in the same place.

    Args:
        place: where its folder is made, as ``blockproto-served``.
        tls: whether it answers TLS, with a certificate of its own to which the commands are pinned.
        name: what the tables call it.
        command: the installed command to be measured.
    """

    scheme = "bp"
    _serving: tuple[str, ...] = ()
    _trusting: tuple[str, ...] = ()

    def __init__(self, place: Path, *, tls: bool = False, name: str = NAME, command: str = COMMAND) -> None:
        self.name = name
        self.command = command
        self.served = place / f"{name}-served"
        self.served.mkdir(exist_ok=True)
        self.work = place / f"{name}-work"
        self.work.mkdir(exist_ok=True)
        self.env = {"BLOCKPROTO_CONFIG": str(self.work / "config")}
        if tls:
            self.certificate, self.key = own_certificate(self.work / "certificate")
            self.scheme = "bps"
            self._serving = ("--cert", str(self.certificate), "--key", str(self.key))
            self._trusting = ("--pin", pin_of_file(self.certificate).hex())
        self.server = self._start()

    def _start(self, *options: str) -> Server:
        command = [self.command, "serve", str(self.served), "--listen", f"{HOST}:0", *self._serving, *options]
        return Server(command, self.work / "server.log", env=self.env)

    def restart(self, *options: str) -> None:
        """Start it again after it ended."""
        self.server = self._start(*options)

    def explain(self, error: Exception) -> str:
        """Why something of ours failed, with the server's last words if it ended."""
        words = self.server.ended()
        return f"{error}; the server ended: {words}" if words else str(error)

    def put(self, path: Path, *options: str, port: int | None = None) -> list[str]:
        """The command that sends ``path``; through ``port`` instead of the server's own, if given."""
        where = f"{self.scheme}://{HOST}:{port or self.server.port}/"
        return [self.command, "put", *self._trusting, *options, str(path), where]

    def get(self, name: str, dest: Path, *options: str) -> list[str]:
        """The command that fetches ``name`` to ``dest``."""
        where = f"{self.scheme}://{HOST}:{self.server.port}/{name}"
        return [self.command, "get", *self._trusting, *options, where, str(dest)]

    def timed_put(self, path: Path, *options: str) -> Timing:
        """Send one file, all of it; raises CommandFailed."""
        return timing_of(timed(self.put(path, "--json", *options), self.env), path.stat().st_size)

    def timed_get(self, name: str, dest: Path) -> Timing:
        """Fetch one file; raises CommandFailed."""
        return timing_of(timed(self.get(name, dest, "--json"), self.env), None)


def receipts_of(out: str) -> list[dict[str, Any]]:
    """The objects that ``--json`` printed, one a line."""
    return [json.loads(line) for line in out.splitlines()]


def timing_of(ran: Ran, payload_bytes: int | None) -> Timing:
    """The timing of a command that moved one file.

    Args:
        ran: the command.
        payload_bytes: how many bytes it must have put on the wire; None for any.

    Raises:
        CommandFailed: it told of another number of files or bytes.
    """
    receipts = receipts_of(ran.out)
    if len(receipts) != 1:
        raise CommandFailed(f"{NAME} told of {len(receipts)} files instead of one")
    sent = receipts[0]["payload_bytes_sent"]
    if payload_bytes is not None and sent != payload_bytes:
        raise CommandFailed(f"{NAME} sent {sent} bytes of {payload_bytes}")
    return Timing(ran.wall_s, receipts[0]["elapsed_s"])
