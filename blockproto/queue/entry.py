"""A transfer in the queue: what is wanted, and its state."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..results import IfExistsWord

PRIORITIES = ("interactive", "normal", "bulk")
"""The most urgent first."""


class Direction(Enum):
    """Which way the bytes go."""

    UPLOAD = "upload"
    DOWNLOAD = "download"


class TransferState(Enum):
    """What a transfer in the queue is doing.

    waiting → running → done; running → failed; on request: waiting, running → paused → waiting; failed, cancelled →
    waiting (retry); everything but done → cancelled.
    """

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether it is over, unless a retry is asked for."""
        return self in (TransferState.DONE, TransferState.FAILED, TransferState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A transfer that is to be added.

    Attributes:
        direction: which way.
        server: ``bp://HOST:PORT``.
        name: of the file or folder on the server, with "/" between components.
        path: of the file or folder here, absolute.
        if_exists: for a name that is taken, see ``UploadJob``.
        priority: an index of ``PRIORITIES``.
    """

    direction: Direction
    server: str
    name: str
    path: Path
    if_exists: IfExistsWord = "keep"
    priority: int = 1


@dataclass(frozen=True, slots=True)
class QueuedTransfer:
    """One transfer in the queue, as it was when it was read.

    Attributes:
        id: its number, never used again.
        folder_id: the transfer of the folder that it is part of, or None. A change of that one changes this one, too.
        direction, server, name, path, if_exists: what was wanted.
        priority: ``interactive``, ``normal`` or ``bulk``.
        place: its place among those of its priority; the smallest goes first.
        state: its state.
        position: bytes that are durable on the other side (here, for a download), as last written to the journal.
        filesize: bytes, or None while unknown.
        became: how many transfers a folder whose turn has come was replaced by; else None.
        sourceid: of an upload that was begun, 32 hex digits.
        stored_as: the name it got, once it is done.
        error: why it failed, in a sentence.
        code: the error's row in the error table of the spec; None for an error of this machine.
        retryable: whether the same again can help without changing anything.
        added_ms, changed_ms: when it was added, and changed at last; Unix milliseconds.
        revision: rises with every change in the queue.
    """

    id: int
    folder_id: int | None
    direction: Direction
    server: str
    name: str
    path: Path
    if_exists: IfExistsWord
    priority: str
    place: float
    state: TransferState
    position: int
    filesize: int | None
    became: int | None
    sourceid: str | None
    stored_as: str | None
    error: str | None
    code: int | None
    retryable: bool
    added_ms: int
    changed_ms: int
    revision: int
