"""The receipts of uploads that ended well."""

from __future__ import annotations

import time

from ..common.blocks import blocknum_of
from ..results import Receipt, b3sum_hex
from ..store import FOLDER_FILETYPE, Facts
from ..wire import Committed


def sent_receipt(
    facts: Facts,
    committed: Committed,
    *,
    blocks_sent: int,
    blocks_skipped: int,
    payload: int,
    connections: int,
    elapsed_s: float,
    at_once: bool = False,
) -> Receipt:
    """The receipt of an upload that was answered with COMMITTED (``at_once``: to OPEN)."""
    if committed.left:
        return left_receipt(facts, committed, payload=payload, elapsed_s=elapsed_s)
    there = committed.there or at_once
    return Receipt(
        filename=facts.filename.text,
        filetype=facts.filetype,
        filesize=committed.filesize,
        blocknum=blocknum_of(committed.filesize),
        sourceid=committed.sourceid.hex(),
        root=committed.root.hex(),
        b3sum=_b3sum(facts, committed.filesize, committed.root, committed.b3sum),
        stored_as=committed.stored_as,
        resumed=blocks_skipped > 0 or there,
        blocks_sent=blocks_sent,
        blocks_skipped=blocks_skipped,
        payload_bytes_sent=payload,
        connections=connections,
        elapsed_s=elapsed_s,
        outcome="there" if there else "sent",
    )


def brief_receipt(facts: Facts, committed: Committed, begun: float) -> Receipt:
    """The receipt of a file of at most one block that was sent whole; ``begun``: the ``perf_counter`` (s) before that."""
    size = facts.filesize or 0
    return sent_receipt(
        facts,
        committed,
        blocks_sent=blocknum_of(size),
        blocks_skipped=0,
        payload=size,
        connections=1,
        elapsed_s=time.perf_counter() - begun,
    )


def there_receipt(
    facts: Facts, sourceid: bytes, root: bytes, stored_as: str, b3sum: bytes | None = None
) -> Receipt:
    """The receipt of a file that is there already, so that nothing was sent."""
    filesize = facts.filesize or 0
    return Receipt(
        filename=facts.filename.text,
        filetype=facts.filetype,
        filesize=filesize,
        blocknum=blocknum_of(filesize),
        sourceid=sourceid.hex(),
        root=root.hex(),
        b3sum=_b3sum(facts, filesize, root, b3sum),
        stored_as=stored_as,
        resumed=True,
        blocks_sent=0,
        blocks_skipped=blocknum_of(filesize),
        payload_bytes_sent=0,
        connections=1,
        elapsed_s=0.0,
        outcome="there",
    )


def left_receipt(
    facts: Facts, there: Committed | None, *, payload: int = 0, elapsed_s: float = 0.0
) -> Receipt:
    """The receipt of a file that was not stored, because another of its name is to be kept; None: that one is not known."""
    filesize = 0 if there is None else there.filesize
    root = None if there is None or not any(there.root) else there.root
    return Receipt(
        filename=facts.filename.text,
        filetype=facts.filetype,
        filesize=filesize,
        blocknum=blocknum_of(filesize),
        sourceid="" if there is None else there.sourceid.hex(),
        root=None if root is None else root.hex(),
        b3sum=None if root is None else _b3sum(facts, filesize, root, None if there is None else there.b3sum),
        stored_as=facts.filename.text if there is None else there.stored_as,
        resumed=False,
        blocks_sent=0,
        blocks_skipped=blocknum_of(filesize),
        payload_bytes_sent=payload,
        connections=1,
        elapsed_s=elapsed_s,
        outcome="left",
    )


def _b3sum(facts: Facts, filesize: int, root: bytes, b3sum: bytes | None) -> str | None:
    return None if facts.filetype == FOLDER_FILETYPE else b3sum_hex(root, b3sum, blocknum_of(filesize))
