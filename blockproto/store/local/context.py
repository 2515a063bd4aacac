"""LocalContext: what all parts of a local store work with: folders, ledger, descriptors, live partials, clock, sync threads.

It lies below publishing, recovery and commits and knows none of them. It also keeps what the ledger is owed: that a commit
is done on disk is told to the ledger with the next batch (``Owed``), not in a transaction of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from ...errors import StoreFailed, StoreFull
from .. import UploadKey
from ..folder_io import SYNC_EACH_MAX
from ..open_file import Descriptors
from .descriptors import resting_max
from .expiry_clock import ClockRecord, ExpiryClock, boot_ms
from .finished_files import SEALS_MAX, SEALS_PAID, FinishedFiles
from .free_space import FreeSpace
from .ledger import Ledger
from .ledger_view import View
from .live_partials import LivePartials
from .opening import Opened
from .records import ReceiptRecord, State
from .threads import Threads

CARRIED_LENGTH_MAX = 32 << 20
"""Bytes of brief files that are carried in memory at most until they are committed; more are written as they come."""


def unix_ms() -> int:
    """The time, Unix ms."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Owed:
    """What the ledger has to be told with the next batch.

    Attributes:
        receipt: of the commit it is about.
        upload: (key, storage_id) of the upload record that goes with it, or None.
        undo: the commit did not happen: forget the receipt.
        former: the file id that the name had before: ``undo`` restores it, else its receipts go.
    """

    receipt: ReceiptRecord
    upload: tuple[UploadKey, bytes] | None = None
    undo: bool = False
    former: bytes | None = None

    def pay(self, view: View) -> None:
        """Tell it."""
        if self.undo:
            view.undo_receipt(self.receipt, self.former)
            return
        view.drop_finalising(self.receipt.file_id)
        if self.upload is not None:
            view.drop_upload(*self.upload)
        if self.former is not None:
            view.drop_former(self.receipt, self.former)


class Paid(NamedTuple):
    """What a transaction tells the ledger besides its works.

    Attributes:
        owed: how many of the things it was owed.
        seals: the file ids whose seals it was told.
        clock: what it was told of the clock, or None.
    """

    owed: int
    seals: list[bytes]
    clock: ClockRecord | None


class LocalContext:
    """What the parts of one local store share.

    Args:
        opened: the store's folders and ledger; ``close`` closes them.
        wall_ms: the clock, Unix ms.
        portable: take only names of the profile portable (BP1-NAM-005).
        boot_ms: a clock that nobody sets, ms.

    Attributes:
        root_fd: the served folder.
        partials_fd: the folder of partials.
        live: the partials of uploads that somebody has open.
        finished: the finished files.
        state: the ledger's.
        recorded: by file id, the unfinished uploads that the ledger knows.
        owed: what the ledger has to be told.
        makes_unnamed: whether files without a name can be made, as far as that is known.
    """

    def __init__(
        self,
        opened: Opened,
        wall_ms: Callable[[], int] = unix_ms,
        portable: bool = False,
        boot_ms: Callable[[], int] = boot_ms,
    ) -> None:
        self.opened = opened
        self.root_fd = opened.root_fd
        self.partials_fd = opened.partials_fd
        self.ledger: Ledger = opened.ledger
        self.portable = portable
        self.descriptors = Descriptors(resting_max())
        self.free_space = FreeSpace(opened.partials_fd)
        self.live = LivePartials(opened.partials_fd, self.descriptors, self.free_space)
        self.finished = FinishedFiles(opened.root_fd, opened.ledger, self.descriptors)
        self.recorded: dict[bytes, UploadKey] = {}
        self.owed: list[Owed] = []
        self.makes_unnamed = True
        with self.ledger.read() as view:
            self.state: State = view.state()
            self.clock = ExpiryClock(view.clock() or ClockRecord(0, 0), wall_ms, boot_ms)
        self.clock.look()
        self._wall_ms = wall_ms
        self._carried = 0
        self._carried_lock = threading.Lock()
        self._unsynced: list[bytes | None] = []
        self._failed: StoreFailed | None = None
        self._syncers = Threads(SYNC_EACH_MAX + 1, "blockproto-sync")

    def close(self) -> None:
        """Write what is owed to the ledger and let go of everything; harmless when repeated."""
        if self.opened.closed:
            return
        try:
            sealed = bool(self.finished.sealed)
            if self._failed is None and (
                self.owed or sealed or self._unsynced != [None] or self.clock.at_close() is not None
            ):
                self.pay_now()
        finally:
            self.fail(StoreFailed("the store is closed"))
            self._syncers.close()
            self.opened.close()

    def now_ms(self) -> int:
        """The wall time, Unix ms; a clock that is before 1970 is at its beginning."""
        return max(0, self._wall_ms())

    def expiry_now_ms(self) -> int:
        """The time by which uploads expire, Unix ms; 0 while the clock is doubted and nothing expires."""
        now_ms = self.clock.look()
        return 0 if self.clock.held else now_ms

    # -- trouble

    def check_there(self, *, all_of_it: bool = True) -> None:
        """Raise StoreFailed if what was acknowledged is not where the next start would look for it; see ``Opened``."""
        self.opened.check_there(all_of_it=all_of_it)

    def check_usable(self) -> None:
        """Raise StoreFailed once the medium reported an error."""
        if self._failed is not None:
            raise StoreFailed(str(self._failed))

    def fail(self, error: StoreFailed) -> StoreFailed:
        """Refuse everything from now on; returns ``error``."""
        if self._failed is None:
            self._failed = error
        return error

    # -- memory and threads

    def carry(self, length: int) -> int:
        """Take ``length`` bytes of memory for a brief file, or give ``-length`` back; returns what was taken, all or 0."""
        with self._carried_lock:
            if length > 0 and self._carried + length > CARRIED_LENGTH_MAX:
                return 0
            self._carried += length
            return length

    def in_threads(self, tasks: Sequence[Callable[[], None]]) -> list[Future[None]]:
        """Run syncs beside each other."""
        return self._syncers.run(tasks)

    # -- what the ledger is owed

    def ended_keys(self) -> set[UploadKey]:
        """The uploads that ended since the ledger was told last."""
        return {owed.upload[0] for owed in list(self.owed) if owed.upload is not None}

    def pay(self, view: View, seals: int = SEALS_PAID, clock: ClockRecord | None = None) -> Paid:
        """Tell the ledger what it is owed, up to ``seals`` of the seals, and ``clock``, or the time when that is due."""
        clock = clock or self.clock.due()
        if clock is not None:
            view.put_clock(clock)
        for owed in self.owed:
            owed.pay(view)
        sealed = self.finished.sealed
        paid = list(islice(sealed, max(seals, len(sealed) - SEALS_MAX)))
        if paid:
            view.seal_receipts({file_id: sealed[file_id] for file_id in paid})
        return Paid(len(self.owed), paid, clock)

    def paid(self, paid: Paid) -> None:
        """The ledger has heard of that, durably."""
        del self.owed[: paid.owed]
        for file_id in paid.seals:
            self.finished.sealed.pop(file_id, None)
        if paid.clock is not None:
            self.clock.noted(paid.clock)

    def mark_unsynced(self, view: View, file_ids: bytes | None) -> None:
        """Note whether this transaction is followed by names whose folders are synced after it only.

        Args:
            view: the transaction.
            file_ids: None, or the ids of what is not complete before, one behind the other (``FileBatch``).
        """
        if self._unsynced != [file_ids]:
            view.put_unsynced(file_ids)
        self._unsynced = [file_ids]

    def transaction_undone(self) -> None:
        """What the last transaction was to note was not noted."""
        self._unsynced = []

    def pay_now(self) -> None:
        """Tell the ledger what it is owed, without waiting for the next batch; on a full disk it stays owed."""
        with suppress(StoreFull):
            with self.ledger.write() as view:
                paid = self.pay(view, SEALS_MAX, self.clock.at_close())
                self.mark_unsynced(view, None)
            self.paid(paid)
