"""What the contract asks of the place where a store under test stands."""

from __future__ import annotations

import threading
from typing import Protocol

from ...store import FileStore, UploadStore


class Place(Protocol):
    """Where a store under test stands, and what can be done to it from outside."""

    store: UploadStore
    now_ms: int

    def pass_time(self, ms: int) -> None:
        """Let time go by, so that what has had its time expires."""

    def reopen(self) -> None:
        """Close the store in good order and open it again as ``store``."""

    def crash(self) -> None:
        """Let the process die and open what is left as ``store``."""

    def content(self, name: str) -> bytes | None:
        """The bytes of a finished file, past the store; None if there is none."""

    def put_there(self, name: str, content: bytes) -> None:
        """Somebody else puts a file under a name."""

    def leftovers(self) -> int:
        """How many files there are that are not finished ones (locks and ledger of a server aside)."""

    def fill_disk(self) -> None:
        """From now on there is no free space."""

    def break_medium(self) -> None:
        """From now on what makes things durable fails, as with EIO."""

    def stop_writes(self, entered: threading.Event, go_on: threading.Event) -> None:
        """From now on each write of bytes sets ``entered`` when it has begun, and ends after ``go_on`` is set."""


class FilePlace(Place, Protocol):
    """Where a store with finished files stands."""

    @property
    def files(self) -> FileStore:
        """The store."""
