"""Sweeping: finding what expired, a part of the ledger at a time."""

from __future__ import annotations

from . import Discard, Tidy, Work
from .finished import FinishedFiles
from .ledger import Ledger
from .records import upload_key
from .rules import RECEIPT_GRACE_MS

PART = 1024
"""Records of a kind one sweep looks at."""


class Sweeper:
    """Walks the ledger round and round.

    Args:
        ledger: the ledger.
        finished: the store's files.
    """

    def __init__(self, ledger: Ledger, finished: FinishedFiles) -> None:
        self._ledger = ledger
        self._finished = finished
        self._upload_after = b"u"
        self._receipt_after = b"i"

    def next_works(self, now_ms: int, *, owed: bool) -> list[Work]:
        """The works that remove what expired in the next part."""
        works: list[Work] = [*self._expired(now_ms)]
        stale = self._stale(now_ms)
        with self._ledger.read() as view:
            garbage = any(True for _ in view.items(b"g"))
        if stale or owed or garbage:
            works.append(Tidy(tuple(stale)))
        return works

    def _expired(self, now_ms: int) -> list[Discard]:
        expired: list[Discard] = []
        seen = 0
        with self._ledger.read() as view:
            for record in view.uploads(self._upload_after):
                if seen == PART:
                    self._upload_after = upload_key(record.key)
                    return expired
                seen += 1
                if record.expires_ms <= now_ms:
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
                if receipt.committed_ms + RECEIPT_GRACE_MS <= now_ms and not self._finished.is_true(receipt):
                    stale.append(receipt.file_id)
        self._receipt_after = b"i"
        return stale
