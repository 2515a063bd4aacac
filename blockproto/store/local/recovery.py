"""Recovery: what a store does at start, before anybody is served.

It trusts the ledger and reads no content: an upload stays if its partial exists and is long enough. What the medium
lost raises the incarnation, and only then may a position go down. Commits under way are finished: the target has the
partial's inode (done), the partial is there (renamed now), or neither (lost, and said so).

Partials the ledger does not know are removed after a grace time.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field

from ...common.blocks import BLOCK_LENGTH, BlockSet
from ...common.names import SafeName, show_name
from ...errors import NameRefused, StoreFailed
from .. import IfExists, UploadKey
from ..folder_io import Folders, look, move_new, move_over, remove_file, syncfs
from ..os_errors import refusal
from .context import LocalContext
from .foreign_partials import is_partial
from .ledger_view import View
from .records import Finalising, Loss, ReceiptRecord, State, UploadRecord

ORPHAN_GRACE_S = 3600
"""How long a partial the ledger does not know is left alone, counted from its last change."""


@dataclass(slots=True)
class Recovered:
    """What a recovery found.

    Attributes:
        state: the ledger's state as it is now.
        recorded: by file id, the unfinished uploads that are there.
        findings: what had to be done, a sentence each.
    """

    state: State
    recorded: dict[bytes, UploadKey] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def recover(context: LocalContext) -> Recovered:
    """Bring ledger and disk together.

    Raises:
        StoreFailed: the medium reported an error.
    """
    try:
        with context.ledger.write() as view:
            recovery = Recovery(context, view)
            recovery.run()
    except OSError as exc:
        raise StoreFailed(f"the medium reported: {exc.strerror}") from exc
    return recovery.found


class Recovery:
    """One recovery, inside one transaction.

    Args:
        context: that of the store being opened; nothing of it is changed.
        view: the transaction.

    Attributes:
        found: what is known so far.
    """

    def __init__(self, context: LocalContext, view: View) -> None:
        self._context = context
        self._view = view
        self.found = Recovered(context.state)
        self._lost = False

    def run(self) -> None:
        """Everything.

        Durability: names that recovery gave or found are synced before the ledger calls them done, because the process
        before may have been killed between its rename and its sync.
        """
        under_way = list(self._view.all_finalising())
        for file_id, finalising in under_way:
            self._finish(file_id, finalising)
        unfinished = self._view.unsynced()
        self._forget_unfinished(unfinished or [])
        if under_way or unfinished is not None:
            syncfs(self._context.root_fd)
        known = self._check_uploads()
        self._view.trim()
        now_ms = self._context.now_ms()
        if self._lost:
            self.found.state = self.found.state.raised(now_ms)
            self._view.put_state(self.found.state)
        if self.found.findings:
            self._view.add_losses(Loss(now_ms, finding) for finding in self.found.findings)
        if not self._context.clock.held:
            remove_orphans(self._context.partials_fd, known)

    # -- commits under way

    def _finish(self, file_id: bytes, finalising: Finalising) -> None:
        receipt = self._view.receipt(file_id)
        self._view.drop_finalising(file_id)
        if receipt is None:
            return
        shown = show_name(receipt.stored_as)
        try:
            SafeName.parse(receipt.stored_as)
            done = self._done(receipt, finalising) or self._again(receipt, finalising)
        except FileExistsError:
            self._view.drop_receipt(receipt)
            return
        except NameRefused:
            done = False
        except OSError as exc:
            if isinstance(refusal(exc), StoreFailed):
                raise
            done = False
        if not done:
            self._view.drop_receipt(receipt)
            self.found.findings.append(f"the commit of {shown} was under way and could not be finished")
        else:
            self._view.drop_upload(receipt.key, finalising.storage_id)

    def _done(self, receipt: ReceiptRecord, finalising: Finalising) -> bool:
        finished = self._context.finished
        found = finished.look(receipt.stored_as)
        if found is None or finished.identity(found)[:2] != receipt.identity[:2]:
            return False
        remove_file(self._context.partials_fd, finalising.storage_id.hex().encode())
        return True

    def _again(self, receipt: ReceiptRecord, finalising: Finalising) -> bool:
        """Give the partial its name. Where that is taken now the upload stays, for the client to commit again."""
        partial = finalising.storage_id.hex().encode()
        found = look(self._context.partials_fd, partial)
        if found is None or self._context.finished.identity(found) != receipt.identity:
            return False
        folder, _, last = receipt.stored_as.rpartition("/")
        move = move_over if finalising.if_exists is IfExists.REPLACE else move_new
        with Folders(self._context.root_fd) as folders:
            move(self._context.partials_fd, partial, folders.make(folder), last.encode())
        return True

    def _forget_unfinished(self, file_ids: list[bytes]) -> None:
        """Drop the receipts of files that did not get their names: they went with the process, and nobody was promised them.

        Their inodes are free: the next file could have the same one, and be taken for what it is not. Those of folders go,
        too: who asks for one again gives it its mtime, which names in it may have changed.
        """
        for file_id in file_ids:
            receipt = self._view.receipt(file_id)
            if receipt is None:
                continue
            if receipt.is_folder or not self._context.finished.is_true(receipt):
                self._view.drop_receipt(receipt)

    # -- unfinished uploads

    def _check_uploads(self) -> set[bytes]:
        """Drop what the disk does not have; returns the storage ids that stay."""
        known: set[bytes] = set()
        for key, record in list(self._view.all_uploads()):
            if isinstance(record, NameRefused):
                self._view.drop_upload(*key)
                self._lose(f"an unfinished upload was dropped: {record}")
                continue
            found = look(self._context.partials_fd, record.storage_id.hex().encode())
            held = self._view.held(record.storage_id)
            if found is None or not stat.S_ISREG(found.st_mode):
                self._view.drop_upload(record.key, record.storage_id)
                shown = show_name(record.facts.filename.text)
                self._lose(f"the bytes of the unfinished {shown} are gone ({len(held)} blocks)")
                continue
            known.add(record.storage_id)
            self.found.recorded[record.file_id] = record.key
            self._cut(record, held, found.st_size)
        return known

    def _cut(self, record: UploadRecord, held: BlockSet, size: int) -> None:
        runs = held.runs()
        shown = show_name(record.facts.filename.text)
        lost = f"the partial of the unfinished {shown} is too short:"
        beyond: list[int] = []
        if runs and record.shape.held_end(sum(runs[-1]) - 1) > size:
            beyond = [blockno for blockno in held if record.shape.held_end(blockno) > size]
            self._view.drop_blocks(record.storage_id, beyond)
            self._lose(f"{lost} {len(beyond)} blocks are gone")
        gone = self._cut_prefixes(record, size)
        if gone and not beyond:
            self.found.findings.append(f"{lost} the beginnings of {gone} blocks are gone")

    def _cut_prefixes(self, record: UploadRecord, size: int) -> int:
        """Forget those that are not there, and how many; no position goes down by that, for a prefix counts for none."""
        prefixes = self._view.prefixes(record.storage_id)
        there = {
            blockno: prefix
            for blockno, prefix in prefixes.items()
            if blockno * BLOCK_LENGTH + prefix.length <= size
        }
        if there != prefixes:
            self._view.put_prefixes(record.storage_id, there)
        return len(prefixes) - len(there)

    def _lose(self, finding: str) -> None:
        self.found.findings.append(finding)
        self._lost = True


def remove_orphans(partials_fd: int, known: set[bytes]) -> int:
    """Remove partials that are not ``known`` and that nobody changed for ``ORPHAN_GRACE_S``; returns how many."""
    before_s = time.time() - ORPHAN_GRACE_S
    removed = 0
    with os.scandir(partials_fd) as entries:
        names = [os.fsencode(entry.name) for entry in entries]
    kept = {storage_id.hex().encode() for storage_id in known}
    for name in names:
        found = None if name in kept or not is_partial(partials_fd, name) else look(partials_fd, name)
        if found is not None and found.st_ctime < before_s:
            removed += remove_file(partials_fd, name)
    return removed
