"""Who was fenced off stays so, seen from the clients' ends of the lines (BP1-RES-011, BP1-RES-027).

A process that was told SUPERSEDED does not take the upload over again, but once, if it was its very first OPEN that was
refused: two devices would take one upload from each other for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blockproto.errors import Code
from blockproto.wire import Cancel, Error, Message, Open, Opened

Stream = tuple[int, int]
"""Which connection of a client, and which stream of it."""


@dataclass(slots=True)
class _Claim:
    """What one process did to have one upload.

    Attributes:
        attempt: the greatest that it said.
        opened: whether it was let in.
        told: whether it has been told since that somebody else has the upload.
        passed_by: whether it took over all the same.
    """

    attempt: int = 0
    opened: bool = False
    told: bool = False
    passed_by: bool = False


class Fences:
    """Watches every attempt of every process.

    Args:
        broken: called with what is wrong.
    """

    def __init__(self, broken: Callable[[str], None]) -> None:
        self._broken = broken
        self._claims: dict[tuple[int, bytes], _Claim] = {}
        self._streams: dict[Stream, tuple[_Claim, int]] = {}

    def on_said(self, process: int, stream: Stream, message: Message) -> None:
        """A client says something."""
        if isinstance(message, Cancel):
            self._streams.pop(stream, None)  # it does not listen there any more
        elif isinstance(message, Open):
            claim = self._claims.setdefault((process, message.sourceid), _Claim())
            self._streams[stream] = claim, message.attempt
            if message.attempt > claim.attempt:
                self._check(process, message, claim)
                claim.attempt = message.attempt

    def on_heard(self, stream: Stream, message: Message) -> None:
        """A client takes a message up."""
        if stream not in self._streams:
            return
        claim, attempt = self._streams[stream]
        if isinstance(message, Opened):
            claim.opened = True
        elif isinstance(message, Error) and message.code == Code.SUPERSEDED and attempt == claim.attempt:
            claim.told = True

    def _check(self, process: int, message: Open, claim: _Claim) -> None:
        if claim.told and (claim.opened or claim.passed_by):
            self._broken(
                f"process {process} was told SUPERSEDED and takes {message.sourceid.hex()[:8]} over again"
            )
        claim.passed_by |= claim.told
        claim.told = False
