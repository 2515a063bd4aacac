"""Sending a file to a server that speaks an older dialect only.

Common to all of them are the file, which must not change while it is sent; retries after a lost connection; and the result.
A dialect adds its ``DialectSender`` (see ``registry.SENDERS``).

    send_file → DialectSender.send
        → ConnectionLost → again, until there was no progress ``TRIES`` times, or for ``retry_for_s``
        → Unanswered     → raised at once: a server that never answers does not speak the dialect

Spec: BP1-DIA, BP1-SID-018 to 022.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from ..client_side.connections import OnLine, Reconnecting
from ..client_side.dial import Dial, tcp_dial
from ..client_side.regular_file import open_regular
from ..client_side.resume_id import derive_earlier_sourceid, installation_secret
from ..common.names import SafeName
from ..connection.endpoint import Endpoint
from ..errors import BadFacts, BlockprotoError, Code, ConnectionLost, NotPermitted, Refused, SourceChanged
from ..transfer.send_source import OnProgress, Progress

TRIES = 8
"""How often to try in a row without any progress."""
UNANSWERED_TRIES = 2
"""The same for a server that closes and has never answered: it may just have been stopped, but not twice."""
RETRY_S = 0.5
RETRY_MOST_S = 8.0
"""The first wait before a retry; it doubles each time, up to the most."""
_COMING_BACK = {Code.BUSY, Code.STORE_FULL}
"""Refusals after which a retry can succeed (BP1-S82-034)."""
PIECE_LENGTH = 1 << 20
"""Bytes that are read and sent at once."""


class Unanswered(ConnectionLost):
    """The server could be reached and has not answered: perhaps it does not speak this dialect.

    Attributes:
        silent: whether it did nothing for too long; otherwise it closed.
    """

    def __init__(self, text: str, *, silent: bool) -> None:
        super().__init__(text)
        self.silent = silent


@dataclass(frozen=True, slots=True)
class Sent:
    """The result for a file.

    Attributes:
        filename: the name that was asked for; ``stored_as``: the one it got, or None if the server cannot tell.
        sourceid: the server's id of the upload, or None if the dialect has none.
        resumed: whether something was there already.
        payload_bytes_sent: bytes of the file that this call has sent.
        confirmed: whether the server has confirmed that the file is complete and durable; otherwise all bytes were sent.
    """

    filename: str
    filesize: int
    sourceid: str | None
    stored_as: str | None
    resumed: bool
    payload_bytes_sent: int
    confirmed: bool
    elapsed_s: float


class Outgoing:
    """A file of this machine that is being sent.

    Args:
        path: of the file.
        name: its name on the server: one component.
        server: ``HOST:PORT``.
        progress: called as ``position`` rises, or None.

    Attributes:
        filesize: bytes, when it was opened.
        answered: whether the server has answered in the dialect; set by ``reached``.
        position: how far the server is, as it says; set by ``reached``.
        payload_bytes_sent: so far.

    Raises:
        OSError: it cannot be opened.
        NotPermitted: it is not a file.
        NameRefused, BadFacts: the dialect cannot carry the name.
    """

    def __init__(self, path: Path, name: str, server: str, progress: OnProgress | None = None) -> None:
        self.filename = SafeName.parse(name).text
        if "/" in self.filename:
            raise BadFacts(f"'{name}': this dialect knows no folders, only names of files")
        try:
            self._fd = open_regular(path)
        except Refused as exc:
            raise NotPermitted(f"{exc}: this dialect carries files only") from exc
        self._facts = os.fstat(self._fd)
        self.path = path
        self.server = server
        self.filesize = self._facts.st_size
        self.answered = False
        self.position = 0
        self.resumed = False
        self.payload_bytes_sent = 0
        self._progress = progress

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def decimal_sourceid(self) -> str:
        """A positive number of 63 bits that identifies this file as long as it does not change (BP1-SID-021)."""
        real = os.path.realpath(self.path)
        secret = installation_secret()
        derived = derive_earlier_sourceid(secret, self.server, self.filename, real, self._facts)
        return str(1 + int.from_bytes(derived, "big") % ((1 << 63) - 1))

    def reached(self, position: int) -> None:
        """The server says that it has everything up to ``position``."""
        self.answered = True
        self.resumed = self.resumed or (position > 0 and not self.payload_bytes_sent)
        self.position = max(self.position, position)
        self._report(position)

    def sent(self, count: int, position: int) -> None:
        """``count`` more bytes were sent, up to ``position``."""
        self.payload_bytes_sent += count
        self._report(position)

    async def read_into(self, position: int, view: memoryview) -> int:
        """Fill ``view`` from byte ``position`` on; returns how many bytes there are.

        Raises:
            SourceChanged: the file has changed; raised at the latest with its last byte.
        """
        return await trio.to_thread.run_sync(self._read_into, position, view)

    def _read_into(self, position: int, view: memoryview) -> int:
        view = view[: self.filesize - position]
        os.lseek(self._fd, position, os.SEEK_SET)
        filled = 0
        with open(self._fd, "rb", buffering=0, closefd=False) as file:
            while filled < len(view) and (count := file.readinto(view[filled:])):
                filled += count
        now = os.fstat(self._fd)
        before = self._facts
        if filled < len(view) or (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise SourceChanged(f"'{self.path}' changed while it was being sent: send it again")
        return filled

    def _report(self, position: int) -> None:
        if self._progress is not None:
            self._progress(Progress(self.filename, self.filesize, position, self.payload_bytes_sent))


@dataclass(frozen=True, slots=True)
class Ending:
    """The result of ``DialectSender.send``; see ``Sent`` for the fields."""

    sourceid: str | None
    confirmed: bool
    stored_as: str | None = None


class DialectSender(Protocol):
    """The client's side of a dialect."""

    async def send(self, dial: Dial, file: Outgoing) -> Ending:
        """Send what the server does not have, over one or several connections.

        Raises:
            Unanswered: the server did not answer at all.
            ConnectionLost: the line broke; trying again resumes.
            SourceChanged: see ``Outgoing.read_into``.
            BlockprotoError: the server refused.
        """


async def send_file(
    sender: DialectSender,
    url: str,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    progress: OnProgress | None = None,
    retry_for_s: float | None = None,
    on_line: OnLine | None = None,
) -> Sent:
    """Send a file in a dialect; the same call again resumes.

    Args:
        sender: the dialect.
        url: ``bp://HOST:PORT``.
        path: the file.
        name: its name on the server; None: its own name.
        progress: called with the bytes that are sent, or durable if the dialect can tell.
        retry_for_s: for how many seconds to retry without progress, also if the server cannot be reached yet; 0: not at all.
            None: ``TRIES`` times if the server could be reached; not at all if it could not, or is silent.
        on_line: hears when the connection is lost and when it is tried again.

    Raises:
        ValueError: ``url`` is not of that form.
        OSError, NotPermitted: the file cannot be opened.
        NameRefused, BadFacts: the dialect cannot carry the name.
        ConnectionLost: the server could not be reached, or the connection was lost too often without progress.
        BlockprotoError: the server refused.

    Cancellation: the connection is closed; the same call again goes on.
    """
    dial, server = tcp_dial(url)
    began = time.monotonic()
    file = Outgoing(Path(path), name if name is not None else Path(path).name, server, progress)
    try:
        ending = await _send_again_and_again(sender, dial, file, retry_for_s, on_line)
    finally:
        file.close()
    return Sent(
        filename=file.filename,
        filesize=file.filesize,
        sourceid=ending.sourceid,
        stored_as=ending.stored_as,
        resumed=file.resumed,
        payload_bytes_sent=file.payload_bytes_sent,
        confirmed=ending.confirmed,
        elapsed_s=time.monotonic() - began,
    )


async def _send_again_and_again(
    sender: DialectSender,
    dial: Dial,
    file: Outgoing,
    retry_for_s: float | None = None,
    on_line: OnLine | None = None,
) -> Ending:
    """Retry as long as there is progress; not if the server could not be reached at first: the address may be wrong."""
    met = False

    async def dial_and_note() -> Endpoint:
        nonlocal met
        endpoint = await dial()
        met = True
        return endpoint

    tries, since = 0, math.inf
    while True:
        reached = file.position
        began = trio.current_time()
        try:
            return await sender.send(dial_and_note, file)
        except BlockprotoError as exc:
            if not isinstance(exc, ConnectionLost) and exc.code not in _COMING_BACK:
                raise
            if file.position > reached:
                tries, since = 0, math.inf
            tries, since = tries + 1, min(since, began)
            if retry_for_s is None:
                spent = not met or tries >= _tries_of(exc, file)
            else:
                spent = trio.current_time() >= since + retry_for_s
            if spent:
                raise
            wait_s = max(min(RETRY_S * 2 ** (tries - 1), RETRY_MOST_S), exc.retry_after_ms / 1000)
            if retry_for_s is not None:
                wait_s = min(wait_s, since + retry_for_s - trio.current_time())
            if on_line is not None:
                on_line(Reconnecting(wait_s, exc))
        await trio.sleep(wait_s)


def _tries_of(error: BlockprotoError, file: Outgoing) -> int:
    """How often to try a server in a row without progress, after ``error``."""
    if file.answered or not isinstance(error, Unanswered):
        return TRIES
    return 1 if error.silent else UNANSWERED_TRIES
