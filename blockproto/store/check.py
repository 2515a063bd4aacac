"""The invariants of a local store, against ledger and disk: behind ``blockproto check`` and after every crash test.

    1. The ledger is a sound LMDB file.
    2. Ledger within disk: every held block of an unfinished upload lies in its partial.
    3. A block is held iff it has a digest; no record belongs to nobody.
    4. A commit under way can be finished: its partial is there, or its name is.
    5. With ``read``: every held block, every recorded prefix and every finished file the ledger has a root of, has the
       bytes its digest says.

What a crash leaves on purpose is no finding: partials the ledger does not know (they go after a grace time), receipts
whose file somebody changed or removed (they do not count), a commit under way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3

from ..blocks import BLOCK_LENGTH, BlockSet, block_span, blocknum_of, digest_of, root_of
from ..errors import BlockprotoError
from ..names import RESERVED, show_name
from .descriptors import Descriptors
from .disk import look, open_file, read_into
from .finished import FinishedFiles
from .ledger import View
from .opening import Opened, open_places
from .records import ReceiptRecord, UploadRecord


def check_store(folder: Path, state: Path | None = None, read: bool = False) -> list[str]:
    """Check a store that nobody has open; changes nothing but locks it meanwhile.

    Args:
        folder: the served folder.
        state: where its ledger is; default ``folder/.blockproto``.
        read: also read every held block and finished file and compare them with their digests.

    Returns:
        What is wrong, a sentence each; empty when all is well, also for a folder that was never served.

    Raises:
        StoreInUse: somebody has it open.
        NotPermitted: the folder cannot be used.
    """
    ledger_folder = (folder / RESERVED if state is None else state) / "ledger"
    if not (ledger_folder / "data.mdb").exists():
        return []
    findings = _damage(ledger_folder)
    try:
        opened = open_places(folder, state, 0)
    except BlockprotoError as exc:
        if not findings:
            raise
        return [*findings, f"the ledger cannot be opened: {exc}"]
    try:
        with opened.ledger.read() as view:
            return findings + list(Checker(opened, view, read).findings())
    finally:
        opened.close()


def _damage(ledger_folder: Path) -> list[str]:
    """What LMDB's own structural check finds."""
    try:
        from lmdb import verify
    except ImportError:
        return []
    try:
        return [f"the ledger is damaged: {problem}" for problem in verify.verify(str(ledger_folder))]  # type: ignore[no-untyped-call]
    except verify.VerifyError as exc:
        return [f"the ledger is damaged: {exc}"]


class Checker:
    """One check of one store.

    Args:
        opened: the store's places.
        view: a read transaction on its ledger.
        read: whether to read file content.
    """

    def __init__(self, opened: Opened, view: View, read: bool) -> None:
        self._partials_fd = opened.partials_fd
        self._view = view
        self._read = read
        self._finished = FinishedFiles(opened.root_fd, opened.ledger, Descriptors())
        self._under_way = dict(view.all_finalising())
        self._known: set[bytes] = set()

    def findings(self) -> Iterator[str]:
        """Everything that is wrong."""
        for record in self._view.uploads():
            self._known.add(record.storage_id)
            if record.file_id not in self._under_way:
                yield from self._check_upload(record)
        yield from self._check_under_way()
        yield from self._check_owners()
        yield from self._check_names()
        for receipt in self._view.receipts():
            if self._read and self._finished.is_true(receipt):
                yield from self._read_file(receipt)

    # -- unfinished uploads

    def _check_upload(self, record: UploadRecord) -> Iterator[str]:
        shown = show_name(record.facts.filename.text)
        held = self._view.held(record.storage_id)
        digests = dict(self._view.digests(record.storage_id))
        if held != BlockSet((blockno, 1) for blockno in sorted(digests)):
            yield f"unfinished {shown}: the bitmap and the digests tell of different blocks"
        found = look(self._partials_fd, record.storage_id.hex().encode())
        if found is None or not stat.S_ISREG(found.st_mode):
            yield f"unfinished {shown}: its partial is gone, with {len(digests)} held blocks"
            return
        beyond = [blockno for blockno in digests if record.shape.held_end(blockno) > found.st_size]
        if beyond:
            yield f"unfinished {shown}: {len(beyond)} held blocks lie behind the end of its partial"
        filesize = record.facts.filesize
        if filesize is not None and digests and max(digests) >= blocknum_of(filesize):
            yield f"unfinished {shown}: block {max(digests)} is held of a file of {filesize} bytes"
        if self._read:
            yield from self._read_partial(record, digests, shown)

    def _read_partial(self, record: UploadRecord, digests: dict[int, bytes], shown: str) -> Iterator[str]:
        fd = open_file(self._partials_fd, record.storage_id.hex().encode())
        try:
            for blockno, digest in digests.items():
                position, length = block_span(blockno, 0, record.shape.held_end(blockno))
                if _digest_at(fd, position, length) != digest:
                    yield f"unfinished {shown}: block {blockno} is not what was acknowledged"
            for blockno, prefix in self._view.prefixes(record.storage_id).items():
                there = _digest_at(fd, blockno * BLOCK_LENGTH, prefix.length)
                if blockno not in digests and there != prefix.digest:
                    yield f"unfinished {shown}: the beginning of block {blockno} is not what was recorded"
        finally:
            os.close(fd)

    # -- commits under way, records of nobody

    def _check_under_way(self) -> Iterator[str]:
        for file_id, finalising in self._under_way.items():
            receipt = self._view.receipt(file_id)
            if receipt is None:
                yield f"a commit of file id {file_id.hex()} is under way without a receipt"
                continue
            partial = look(self._partials_fd, finalising.storage_id.hex().encode())
            there = partial is not None and self._finished.identity(partial) == receipt.identity
            if not there and not self._finished.is_true(receipt):
                yield f"the commit of {show_name(receipt.stored_as)} was under way and its bytes are gone"

    def _check_owners(self) -> Iterator[str]:
        garbage = {key[1:] for key, _ in self._view.items(b"g")}
        for kind, what in ((b"d", "digests"), (b"b", "bitmaps"), (b"p", "prefixes")):
            owners = {key[1:17] for key, _ in self._view.items(kind)}
            for storage_id in sorted(owners - self._known - garbage):
                yield f"{what} of storage id {storage_id.hex()} belong to no upload"

    def _check_names(self) -> Iterator[str]:
        receipts = {receipt.file_id for receipt in self._view.receipts()}
        for _, file_id in self._view.items(b"n"):
            if file_id not in receipts:
                yield f"a name has the file id {file_id.hex()}, of which there is no receipt"

    # -- finished files

    def _read_file(self, receipt: ReceiptRecord) -> Iterator[str]:
        if receipt.is_folder:
            return
        shown = show_name(receipt.stored_as)
        try:
            reader = self._finished.open_file(None, receipt.file_id)
        except BlockprotoError as exc:
            yield f"{shown}: cannot be read: {exc}"
            return
        try:
            root, b3sum = _digests_of(reader.read_into, receipt.filesize)
            if root != receipt.root:
                yield f"{shown}: its bytes are not those that were committed"
            elif reader.entry.b3sum is not None and reader.entry.b3sum != b3sum:
                yield f"{shown}: its BLAKE3 is not the one recorded"
        finally:
            reader.close()


def _digest_at(fd: int, position: int, length: int) -> bytes | None:
    view = memoryview(bytearray(length))
    return digest_of(view) if read_into(fd, position, view) == length else None


def _digests_of(read_at: Callable[[int, memoryview], int], filesize: int) -> tuple[bytes | None, bytes]:
    """The root and the BLAKE3 of a finished file; no root if it is shorter than it should be."""
    view = memoryview(bytearray(BLOCK_LENGTH))
    whole = blake3()
    digests: list[bytes] = []
    for blockno in range(blocknum_of(filesize)):
        position, length = block_span(blockno, 0, filesize)
        if read_at(position, view[:length]) < length:
            return None, whole.digest()
        whole.update(view[:length])
        digests.append(digest_of(view[:length]))
    return root_of(digests, len(digests)), whole.digest()
