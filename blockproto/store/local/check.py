"""The invariants of a local store, against ledger and disk: behind ``blockproto check`` and after every crash test.

    1. The ledger is a sound LMDB file.
    2. Ledger within disk: every held block of an unfinished upload lies in its partial.
    3. A block is held iff it has a digest; no record belongs to nobody.
    4. A commit under way can be finished: its partial is there, or its name is.
    5. With ``read``: every held block, every recorded prefix and every finished file the ledger has a root of, has the
       bytes its digest says. Which files it has none of, or not any more, the report names.

What a crash leaves on purpose is no finding: partials the ledger does not know (they go after a grace time), receipts
whose file somebody changed or removed (they do not count), a commit under way. Nor are the partials of other states, which
are listed apart. What earlier starts found lost is remembered, until somebody says that it may be forgotten.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from ...common.blocks import BLOCK_LENGTH, BlockSet, block_span, blocknum_of, digest_of, root_of
from ...common.names import RESERVED, show_name
from ...errors import BlockprotoError, NameRefused, NotPermitted, StoreInUse
from ..folder_io import look, open_file, read_into
from ..open_file import Descriptors
from .descriptors import resting_max
from .finished_files import FinishedFiles
from .foreign_partials import Foreign, foreign_in, remove_foreign
from .ledger_soundness import damage_of
from .ledger_view import View
from .opening import Opened, open_places
from .records import Loss, ReceiptRecord, UploadRecord

_PAGE = 1000
"""Files that are listed at a time."""


@dataclass(slots=True)
class NotCompared:
    """The names of finished files that a check has not read.

    Attributes:
        changed: what was committed under these names has been changed or replaced since.
        gone: what was committed under these is not there.
        never_recorded: these did not come through the server.
    """

    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    never_recorded: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What a check found.

    Attributes:
        served: whether the folder was ever served, with that state.
        findings: what is wrong, a sentence each.
        losses: what earlier starts found lost, the earliest first.
        foreign: partials that are not this state's.
        not_compared: the files that were not read, because nothing is recorded of the bytes they have.
    """

    served: bool
    findings: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    foreign: list[Foreign] = field(default_factory=list)
    not_compared: NotCompared = field(default_factory=NotCompared)


def check_store(folder: Path, state: Path | None = None, read: bool = False) -> list[str]:
    """What is wrong with a store, a sentence each; see ``inspect_store``."""
    return inspect_store(folder, state, read).findings


def inspect_store(
    folder: Path,
    state: Path | None = None,
    read: bool = False,
    *,
    drop_foreign: bool = False,
    forget_losses: bool = False,
) -> Report:
    """Check a store that nobody has open; changes nothing but what it is told to, and locks it meanwhile.

    Args:
        folder: the served folder.
        state: where its ledger is; default ``folder/.blockproto``.
        read: also read every held block and finished file and compare them with their digests.
        drop_foreign: remove the partials that are not this state's; they are in the report.
        forget_losses: forget what earlier starts found lost; it is in the report.

    Raises:
        StoreInUse: somebody has the folder or the state open.
        NotPermitted: the folder cannot be used, or what is foreign cannot be removed.
        StoreFailed, StoreFull: losses cannot be forgotten.
    """
    ledger_folder = (folder / RESERVED if state is None else state) / "ledger"
    if not (ledger_folder / "data.mdb").exists():
        return Report(False, foreign=_foreign_without_ledger(folder, drop_foreign))
    report = Report(True, damage_of(ledger_folder))
    try:
        opened = open_places(folder, state, 0, upgrade=False)
    except (NotPermitted, StoreInUse):
        raise
    except BlockprotoError as exc:
        if not report.findings:
            raise
        report.findings.append(f"the ledger cannot be opened: {exc}")
        return report
    try:
        with opened.ledger.read() as view:
            checker = Checker(opened, view, read)
            report.findings += checker.findings()
            report.not_compared = checker.not_compared
            report.losses = view.losses()
            report.foreign = _foreign(opened, view)
        if drop_foreign:
            _remove(opened.above_fd, report.foreign)
        if forget_losses and report.losses:
            with opened.ledger.write() as view:
                view.drop_losses()
    finally:
        opened.close()
    return report


def _foreign(opened: Opened, view: View) -> list[Foreign]:
    state_id = view.state_id()
    own = None if state_id is None else state_id.hex().encode()
    return foreign_in(opened.above_fd, own, {storage_id.hex().encode() for storage_id in view.storage_ids()})


def _foreign_without_ledger(folder: Path, drop: bool) -> list[Foreign]:
    """What lies beside a folder that this state never served; nothing of it is removed on the word of that state."""
    try:
        above_fd = os.open(folder / RESERVED / "partials", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        found = foreign_in(above_fd, None, set())
    finally:
        os.close(above_fd)
    if found and drop:
        raise NotPermitted(
            "there is no ledger here that could say what is foreign: name the state that the folder is served with"
        )
    return found


def _remove(above_fd: int, foreign: list[Foreign]) -> None:
    try:
        remove_foreign(above_fd, foreign)
    except OSError as exc:
        raise NotPermitted(f"what is foreign cannot be removed: {exc.strerror}") from exc


class Checker:
    """One check of one store.

    Args:
        opened: the store's places.
        view: a read transaction on its ledger.
        read: whether to read file content.

    Attributes:
        not_compared: with ``read``, what ``findings`` has not read.
    """

    def __init__(self, opened: Opened, view: View, read: bool) -> None:
        self._folders = opened.partials_fd, opened.above_fd
        self._view = view
        self._read = read
        self._finished = FinishedFiles(opened.root_fd, opened.ledger, Descriptors(resting_max()))
        self._under_way = dict(view.all_finalising())
        self._known: set[bytes] = set()
        self.not_compared = NotCompared()

    def findings(self) -> Iterator[str]:
        """Everything that is wrong."""
        for (_, storage_id), record in self._view.all_uploads():
            self._known.add(storage_id)
            if isinstance(record, NameRefused):
                yield f"the next start drops an unfinished upload: {record}"
            elif record.file_id not in self._under_way:
                yield from self._check_upload(record)
        yield from self._check_under_way()
        yield from self._check_owners()
        yield from self._check_names()
        if self._read:
            yield from self._read_files()

    # -- unfinished uploads

    def _find(self, storage_id: bytes) -> tuple[int, os.stat_result | None]:
        """The folder in which a partial is, and what it is: its own, or before an upgrade the one above."""
        for folder_fd in self._folders:
            found = look(folder_fd, storage_id.hex().encode())
            if found is not None:
                return folder_fd, found
        return self._folders[0], None

    def _check_upload(self, record: UploadRecord) -> Iterator[str]:
        shown = show_name(record.facts.filename.text)
        held = self._view.held(record.storage_id)
        digests = dict(self._view.digests(record.storage_id))
        if held != BlockSet((blockno, 1) for blockno in sorted(digests)):
            yield f"unfinished {shown}: the bitmap and the digests tell of different blocks"
        folder_fd, found = self._find(record.storage_id)
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
            yield from self._read_partial(folder_fd, record, digests, shown)

    def _read_partial(
        self, folder_fd: int, record: UploadRecord, digests: dict[int, bytes], shown: str
    ) -> Iterator[str]:
        fd = open_file(folder_fd, record.storage_id.hex().encode())
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
            _, partial = self._find(finalising.storage_id)
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
        names = [file_id for _, file_id in self._view.items(b"n")]
        names += [key[17:] for key, _ in self._view.items(b"e")]
        for file_id in names:
            if file_id not in receipts:
                yield f"a name has the file id {file_id.hex()}, of which there is no receipt"

    # -- finished files

    def _read_files(self) -> Iterator[str]:
        committed: set[str] = set()
        read: dict[str, bytes] = {}
        for receipt in self._view.receipts():
            if receipt.is_folder:
                continue
            committed.add(receipt.stored_as)
            if read.get(receipt.stored_as) != receipt.root and self._finished.is_true(receipt):
                read[receipt.stored_as] = receipt.root
                yield from self._read_file(receipt)
        unread = committed - read.keys()
        cursor, more = "", True
        while more:
            entries, cursor = self._finished.files("", True, cursor, _PAGE)
            more = bool(cursor)
            for name in (entry.filename.text for entry in entries if not entry.folder):
                if name in unread:
                    self.not_compared.changed.append(name)
                    unread.remove(name)
                elif name not in read:
                    self.not_compared.never_recorded.append(name)
        self.not_compared.gone.extend(sorted(unread))

    def _read_file(self, receipt: ReceiptRecord) -> Iterator[str]:
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
