"""The role of decisions: which uploads there are, what is durable of them, and what becomes of each work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ..common.names import SafeName
from .facts import Facts, IfExists, StoredFile, UploadEntry, UploadKey
from .port_bytes import Upload
from .works import Outcome, WholeFile, Work


class UploadStore(Protocol):
    """A place that takes uploads.

    Attributes:
        decisions_at_once: how many calls of ``decide`` may run at the same time.
    """

    decisions_at_once: int

    @property
    def incarnation(self) -> int:
        """Raised whenever something that was durable is not any more, and never otherwise."""

    def open_upload(
        self, key: UploadKey, facts: Facts, attempt: int, reader: bool = False
    ) -> Upload | StoredFile:
        """Find or begin an upload; nothing is created before its first byte.

        Args:
            key: what it belongs to.
            facts: what its sender says of it.
            attempt: which attempt asks.
            reader: its principal may read: a file of its size under the name may be its own (BP1-COM-021).

        Returns:
            The receipt if that key was committed with the same ``if_exists`` and its file is still what was committed
            (BP1-COM-027); what was ``left``, where that is known already (BP1-COM-026); else the upload, with the facts
            it was begun with (the caller compares them) and ``attempt`` as recorded (0 if new).

        Raises:
            StoreFull: not enough free space for what is missing.
            FileExists: the name is taken, and ``facts`` ask to be refused then (BP1-COM-020).
            NotPermitted: something has the name that ``facts`` cannot replace.
        """

    def check_parent(self, name: SafeName) -> None:
        """Refuse at once a name that could not be given at the end (BP1-COM-028).

        Raises:
            NotPermitted: it lies in something that is no folder, or in a folder that may not be entered.
        """

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> Upload:
        """Begin a file of at most one block that comes without OPEN; quick enough to be called inline.

        Nothing is looked up and nothing recorded: whether that key was committed before is found by the
        ``Finish`` that follows, which then answers the old receipt and drops the new bytes. Without a
        ``Finish`` that succeeded, ``close`` removes what was written.
        """

    def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        """Do the ``works`` durably, and say what became of each: one outcome per work, in their order.

        One work's error is its outcome and stops no other. Order is kept only among the works of one upload; each of those
        sees what was decided before it. Called from any thread, and from ``decisions_at_once`` of them at the same time; no
        two of these calls have works of the same upload. So a call that takes seconds holds up nobody else.

        A decision is whole or did not happen. What a ``Finish`` records (the receipt, its name, what counts for the quota,
        the attempt, events and jobs) is one: a receipt is never seen without its file under its name, nor a name that the
        store gave without its receipt, also after a crash. The times that are recorded are the store's, never the caller's.

        Raises:
            StoreFailed: nothing of the works may be acknowledged, whatever was done of them; the store is unusable.

        Durability: when this returns, every outcome that is no error survives a power cut.
        """

    def close(self) -> None:
        """Write what is still owed to the ledger and let go of everything; as ``Upload.close`` while a write runs."""


class Decisions(UploadStore, Protocol):
    """What a server asks of uploads besides: look-ups by key and by id, and what expired."""

    def prepare(self, files: Sequence[WholeFile], written: Callable[[], None]) -> object:
        """Begin with whole files of which ``decide`` will be asked soon; quick enough to be called inline.

        Nothing is to be seen of them before that, and nothing stays of what is never decided. Errors are told by ``decide``.

        Args:
            files: their contents are ``memoryview`` objects of their own.
            written: called in a thread of the store when it needs the bytes of none of them any more and has released all
                their contents; perhaps never.

        Returns:
            What goes with the files in ``StoreFiles.prepared``; None: nothing was begun.
        """

    def receipts(
        self, principal: bytes, sourceids: Iterable[bytes], if_exists: IfExists | None = None
    ) -> list[StoredFile]:
        """The receipts among ``sourceids`` whose files are still what was committed; of one rule, or of any (None)."""

    def uploads(self, principal: bytes, cursor: str, limit: int) -> tuple[list[UploadEntry], str]:
        """Unfinished uploads of a principal, as ``files`` pages them. Raises NotPermitted for a cursor of somebody else."""

    def upload_of(self, principal: bytes, file_id: bytes) -> UploadEntry | None:
        """The unfinished upload of a principal that will be the file of that id, or None.

        The work does not grow with the number of uploads, and is the same for an id of somebody else's.
        """

    def sweep(self) -> Sequence[Work]:
        """The works that remove what has expired by now, for the next ``decide``; few at once, call it again for more.

        Each call looks at the next part of the ledger and begins again after the last.
        """

    def expiry_now_ms(self) -> int:
        """The time by which uploads expire (Unix ms): the store's, or 0 while that is doubted and nothing expires."""
