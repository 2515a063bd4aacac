"""The receipts of transfers that ended well."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from ..common.blocks import blocknum_of
from ..errors import BlockprotoError
from ..results import Outcome, Receipt, b3sum_hex
from ..store import FOLDER_FILETYPE, Facts
from ..wire import Committed


@dataclass(slots=True)
class Arrived:
    """A file that is there as it is here: what its receipt is made of, for the few whose receipt somebody wants to see.

    Attributes:
        facts: what was said of it.
        sourceid: of the upload.
        root: digest of its block digests.
        stored_as: its name there.
        outcome: ``sent``, whole and at once; or ``there`` already, so that nothing was sent.
        b3sum: its BLAKE3, where it is known and not the root.
        elapsed_s: seconds that it was on its way.
    """

    facts: Facts
    sourceid: bytes
    root: bytes
    stored_as: str
    outcome: Literal["sent", "there"]
    b3sum: bytes | None = None
    elapsed_s: float = 0.0

    @property
    def filename(self) -> str:
        """The name that was asked for."""
        return self.facts.filename.text

    @property
    def filetype(self) -> str:
        """MIME type."""
        return self.facts.filetype

    @property
    def filesize(self) -> int:
        """Bytes."""
        return self.facts.filesize or 0

    @property
    def payload_bytes_sent(self) -> int:
        """Bytes of it that travelled."""
        return self.filesize if self.outcome == "sent" else 0

    def receipt(self) -> Receipt:
        """Its receipt."""
        sent = self.outcome == "sent"
        return receipt_of(
            self.filename,
            self.filetype,
            self.filesize,
            sourceid=self.sourceid.hex(),
            root=self.root,
            b3sum=self.b3sum,
            stored_as=self.stored_as,
            resumed=not sent,
            blocks_sent=blocknum_of(self.filesize) if sent else 0,
            payload=self.payload_bytes_sent,
            elapsed_s=self.elapsed_s,
            outcome=self.outcome,
        )


def receipt_or_error(outcome: Arrived | Receipt | BlockprotoError) -> Receipt | BlockprotoError:
    """The outcome of a file as it is told to programs."""
    return outcome.receipt() if isinstance(outcome, Arrived) else outcome


def receipt_of(
    filename: str,
    filetype: str,
    filesize: int,
    *,
    sourceid: str,
    root: bytes | None,
    b3sum: bytes | None = None,
    stored_as: str,
    resumed: bool,
    blocknum: int | None = None,
    blocks_sent: int = 0,
    payload: int = 0,
    connections: int = 1,
    elapsed_s: float = 0.0,
    outcome: Outcome = "sent",
) -> Receipt:
    """A receipt; ``blocknum`` is given only for a part of a file, ``b3sum`` where it is known."""
    blocknum = blocknum_of(filesize) if blocknum is None else blocknum
    known = None if root is None or filetype == FOLDER_FILETYPE else b3sum_hex(root, b3sum, blocknum)
    return Receipt(
        filename=filename,
        filetype=filetype,
        filesize=filesize,
        blocknum=blocknum,
        sourceid=sourceid,
        root=None if root is None else root.hex(),
        b3sum=known,
        stored_as=stored_as,
        resumed=resumed,
        blocks_sent=blocks_sent,
        blocks_skipped=blocknum - blocks_sent,
        payload_bytes_sent=payload,
        connections=connections,
        elapsed_s=elapsed_s,
        outcome=outcome,
    )


def sent_receipt(
    facts: Facts,
    committed: Committed,
    *,
    blocks_sent: int,
    payload: int,
    connections: int,
    elapsed_s: float,
    at_once: bool = False,
) -> Receipt:
    """The receipt of an upload that was answered with COMMITTED (``at_once``: to OPEN)."""
    if committed.left:
        return left_receipt(facts, committed, payload=payload, elapsed_s=elapsed_s)
    there = committed.there or at_once
    return receipt_of(
        facts.filename.text,
        facts.filetype,
        committed.filesize,
        sourceid=committed.sourceid.hex(),
        root=committed.root,
        b3sum=committed.b3sum,
        stored_as=committed.stored_as,
        resumed=blocks_sent < blocknum_of(committed.filesize) or there,
        blocks_sent=blocks_sent,
        payload=payload,
        connections=connections,
        elapsed_s=elapsed_s,
        outcome="there" if there else "sent",
    )


def brief_receipt(facts: Facts, committed: Committed, begun: float) -> Receipt:
    """The receipt of a file of at most one block that was sent whole; ``begun``: the ``perf_counter`` (s) before that."""
    size = facts.filesize or 0
    elapsed_s = time.perf_counter() - begun
    return sent_receipt(
        facts, committed, blocks_sent=blocknum_of(size), payload=size, connections=1, elapsed_s=elapsed_s
    )


def left_receipt(
    facts: Facts, there: Committed | None, *, payload: int = 0, elapsed_s: float = 0.0
) -> Receipt:
    """The receipt of a file that was not stored, because another of its name is to be kept; None: that one is not known."""
    return receipt_of(
        facts.filename.text,
        facts.filetype,
        0 if there is None else there.filesize,
        sourceid="" if there is None else there.sourceid.hex(),
        root=None if there is None or not any(there.root) else there.root,
        b3sum=None if there is None else there.b3sum,
        stored_as=facts.filename.text if there is None else there.stored_as,
        resumed=False,
        payload=payload,
        elapsed_s=elapsed_s,
        outcome="left",
    )
