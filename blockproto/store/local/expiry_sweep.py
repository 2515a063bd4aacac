"""Sweeping: finding what expired, a part of the ledger at a time."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import BlockprotoError
from .. import Discard, Tidy, UploadKey, Work
from ..rules import RECEIPT_GRACE_MS
from .finished_files import FinishedFiles
from .ledger import Ledger
from .records import ReceiptRecord, upload_key

PART = 1024
"""Records of a kind one sweep looks at."""


class Sweeper:
    """Walks the ledger round and round.

    Args:
        ledger: the ledger.
        finished: the store's files.
        is_open: whether somebody has an upload open; such a one does not expire.
    """

    def __init__(self, ledger: Ledger, finished: FinishedFiles, is_open: Callable[[UploadKey], bool]) -> None:
        self._ledger = ledger
        self._finished = finished
        self._is_open = is_open
        self._last: list[object] = []
        self._upload_after = b"u"
        self._receipt_after = b"i"

    def next_works(self, now_ms: int, *, owed: bool, due: bool = False) -> list[Work]:
        """The works that remove what expired in the next part.

        Args:
            now_ms: Unix ms.
            owed: whether the ledger is owed something that it is to be told now.
            due: whether there is something that it is told with whatever else it is told.

        None, where that would be the same as the last time: they did not work then, on a full disk for instance.
        """
        works: list[Work] = [*self._expired(now_ms)]
        stale = self._stale(now_ms)
        with self._ledger.read() as view:
            garbage = any(True for _ in view.items(b"g"))
        if stale or owed or garbage or (due and not works):
            works.append(Tidy(tuple(stale)))
        last, self._last = self._last, [_what(work) for work in works]
        if self._last == last:
            self._last = []
            return []
        return works

    def _expired(self, now_ms: int) -> list[Discard]:
        expired: list[Discard] = []
        seen = 0
        with self._ledger.read() as view:
            for record in view.uploads(after=self._upload_after):
                if seen == PART:
                    self._upload_after = upload_key(record.key)
                    return expired
                seen += 1
                if record.expires_ms <= now_ms and not self._is_open(record.key):
                    expired.append(Discard(record.key, now_ms))
        self._upload_after = b"u"
        return expired

    def _stale(self, now_ms: int) -> list[bytes]:
        stale: list[bytes] = []
        seen = 0
        with self._ledger.read() as view:
            for receipt in view.receipts(self._receipt_after):
                if seen == PART:
                    self._receipt_after = b"i" + receipt.file_id
                    return stale
                seen += 1
                if receipt.committed_ms + RECEIPT_GRACE_MS <= now_ms and self._is_stale(receipt):
                    stale.append(receipt.file_id)
        self._receipt_after = b"i"
        return stale

    def _is_stale(self, receipt: ReceiptRecord) -> bool:
        """Whether its file is another one or gone; not where it cannot be looked at now."""
        try:
            return not self._finished.is_true(receipt)
        except BlockprotoError:
            return False


def _what(work: Work) -> object:
    if isinstance(work, Discard):
        return work.key
    return work.receipts if isinstance(work, Tidy) else work
