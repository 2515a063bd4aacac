"""Publishing: from a complete, durable partial to a file under its final name.

The receipt names the target and the partial's inode before the rename, so recovery can tell what a crash left: the
target has that inode (done), the partial is still there (rename again), or neither (the upload is lost, and said so).

A final name never shows anything incomplete: it appears by one rename of a file whose bytes are synced.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ...common.names import SafeName
from ...common.times import ctime_of, mtime_of, set_mtime
from ...errors import BlockprotoError, SourceChanged, StoreFailed, StoreFull
from .. import (
    Adopt,
    AskFirst,
    Facts,
    Finish,
    IfExists,
    Outcome,
    StoredFile,
    Undecided,
    UploadKey,
    Verdict,
    Work,
)
from ..folder_io import Folders, move_new, move_over, open_to_read
from ..name_rules import Kind, decide_name, kind_of
from ..os_errors import refusal
from ..rules import RECEIPT_GRACE_MS, outcome_of
from .brief_upload import BriefUpload
from .context import LocalContext, Owed
from .ledger import View
from .name_choice import NameChoice, NameChooser, left_as
from .name_collisions import NameCollisions
from .records import Finalising, Identity, ReceiptRecord, UploadRecord
from .upload import LocalUpload

FURTHER_LOOKED_AT = 8
"""Of the further receipts of a file, how many are looked at when one more comes: old ones go, so few are ever kept."""


@dataclass(slots=True, eq=False)
class Publication:
    """One file on the way to its name.

    Attributes:
        work: what asks for it.
        upload: whose bytes.
        receipt: what is recorded before the name is there.
        record: the upload record that goes with it, or None.
        former: the file_id the name had before.
        over: it replaces what has the name.
        twins: works of the batch that repeat ``work``.
        error: why it did not get its name.
    """

    work: Finish
    upload: LocalUpload | BriefUpload
    receipt: ReceiptRecord
    record: UploadRecord | None
    former: bytes | None
    over: bool = False
    twins: list[Finish] = field(default_factory=list)
    error: BlockprotoError | None = None

    @property
    def finalising(self) -> Finalising | None:
        """What recovery needs to finish it; a brief file is sent again instead."""
        if self.record is None or isinstance(self.upload, BriefUpload):
            return None
        return Finalising(self.record.storage_id, IfExists.REPLACE if self.over else IfExists.KEEP)


class Publisher:
    """The publications of one batch.

    Args:
        context: the store's.
        folders: the folders the batch has open; those changed here are added to its ``changed``.
        outcomes: of the works; those of files are set in ``end``.
    """

    def __init__(self, context: LocalContext, folders: Folders, outcomes: dict[Work, Outcome]) -> None:
        self._context = context
        self._folders = folders
        self._outcomes = outcomes
        self._publications: dict[bytes, Publication] = {}
        self._made: list[tuple[Finish, ReceiptRecord]] = []
        self._decided: dict[bytes, tuple[Finish | Adopt, StoredFile, list[Finish]]] = {}
        self._collisions = NameCollisions(folders) if context.portable else None
        self._chooser = NameChooser(context.finished, folders, self._collisions)
        self._now_ms = context.now_ms()
        self._ctime_ns: int | None = None

    def changed(self, name: str | None = None) -> None:
        """A work of the batch changed what has a name, or what is known of it; None: perhaps of many names."""
        self._chooser.forget(name)

    def has(self, file_id: bytes) -> bool:
        """Whether an upload's file is being published."""
        return file_id in self._publications

    def join(self, work: Finish) -> bool:
        """Whether ``work`` repeats one of this batch, and then gets the same outcome."""
        file_id = work.upload.file_id
        decided = self._decided.get(file_id)
        publication = self._publications.get(file_id)
        if publication is not None:
            first: Finish | Adopt = publication.work
            twins = publication.twins
        elif decided is not None:
            first, _, twins = decided
        else:
            return False
        if first.root != work.root:
            raise SourceChanged("this sourceid is being committed with other bytes")
        if first.facts.if_exists is not work.facts.if_exists:
            raise Undecided
        twins.append(work)
        return True

    # -- plan

    def plan(
        self,
        view: View,
        work: Finish,
        upload: LocalUpload | BriefUpload,
        record: UploadRecord | None,
        own: ReceiptRecord | None,
    ) -> bool:
        """Choose a name and settle the partial; False if the file is there already, or what is there is left.

        Args:
            view: the batch's transaction.
            work: what to publish; its blocks and root are checked.
            upload: its upload.
            record: its upload record; of a brief file one of the same key that is superfluous now.
            own: its receipt of another rule.

        Raises:
            FileExists: the name is taken and the work wants to be refused then.
            NameRefused: names are to be portable, and this one is not.
            Undecided: whether the file is there already has to be found out first.
            AskFirst: the hooks have to agree first.
            BlockprotoError: the veto of ``work``.
            OSError: as the system reports it.
        """
        if self._collisions is not None:
            self._collisions.check(work.facts.filename)
        name = work.facts.filename.text
        former = view.file_id_of(name)
        choice = NameChoice(name)
        known = former is not None or self._chooser.is_planned(name) or work.rounds
        if known or work.facts.if_exists is not IfExists.KEEP:
            choice = self._chooser.choose(view, work)
            if self.decide(view, work, choice):
                return False
            former = view.file_id_of(choice.name)
        if work.veto is not None:
            raise work.veto
        self._must_be_asked(work, upload.file_id)
        found = upload.settle(work.facts, work.filesize)
        receipt = self._receipt(work, choice.name, self._context.finished.identity(found))
        self._forget(view, own)
        self._plan_name(choice.name, receipt)
        over = choice.over
        self._publications[upload.file_id] = Publication(work, upload, receipt, record, former, over)
        return True

    def adopt(self, view: View, work: Adopt) -> bool:
        """Whether an upload is a file that is there, or is to be left, before its bytes have come."""
        if self._collisions is not None:
            self._collisions.check(work.facts.filename)
        return self.decide(view, work, self._chooser.choose(view, work))

    def _plan_name(self, name: str, receipt: ReceiptRecord | None) -> None:
        self._chooser.plan(name, receipt)
        if self._collisions is not None:
            self._collisions.add(SafeName(name))

    def _forget(self, view: View, own: ReceiptRecord | None) -> None:
        """An upload that begins anew has a receipt of another rule, perhaps under another name (BP1-COM-027)."""
        if own is not None:
            view.drop_receipt(own)
            self._context.finished.sealed.pop(own.file_id, None)

    def _receipt(self, work: Finish, name: str, identity: Identity) -> ReceiptRecord:
        return ReceiptRecord(
            key=work.upload.key,
            file_id=work.upload.file_id,
            root=work.root,
            filesize=work.filesize,
            identity=identity,
            committed_ms=self._now_ms,
            stored_as=name,
            filetype=work.facts.filetype,
            if_exists=work.facts.if_exists,
        )

    def decide(self, view: View, work: Finish | Adopt, choice: NameChoice) -> bool:
        """Whether what has the name is the file, or is left: then there is nothing to publish.

        Raises:
            AskFirst: the hooks have to agree first that it is.
            OSError: as the system reports it.
        """
        key = work.key if isinstance(work, Adopt) else work.upload.key
        file_id = self._context.state.file_id(key)
        if choice.left is not None:
            stored = left_as(self._context.finished, view, key, choice.name, choice.left, work.reader)
        elif choice.there is not None:
            self._must_be_asked(work, file_id)
            stored = self._joined(view, work, key, choice.name, choice.there)
        else:
            return False
        self._decided[file_id] = work, stored, []
        return True

    @staticmethod
    def _must_be_asked(work: Finish | Adopt, file_id: bytes) -> None:
        if work.unasked:
            raise AskFirst(file_id)

    def _joined(
        self, view: View, work: Finish | Adopt, key: UploadKey, name: str, found: os.stat_result
    ) -> StoredFile:
        """The file has one more receipt (BP1-COM-023); where it was to be replaced it gets mtime and mode."""
        finished, context = self._context.finished, self._context
        before = [receipt for receipt in self._receipts_of(view, name) if finished.is_of(receipt, found)]
        if work.facts.if_exists in (IfExists.REPLACE, IfExists.UPDATE):
            found = self._touch(name, work.facts)
            for receipt in before:
                receipt.identity, receipt.ctime_bound = finished.identity(found), ctime_of(found)
                view.change_receipt(receipt)
        receipt = ReceiptRecord(
            key=key,
            file_id=context.state.file_id(key),
            root=work.root,
            filesize=found.st_size,
            identity=finished.identity(found),
            committed_ms=self._now_ms,
            stored_as=name,
            filetype=work.facts.filetype,
            if_exists=work.facts.if_exists,
            ctime_bound=ctime_of(found),
        )
        self._forget(view, view.receipt(receipt.file_id))
        others = [one for one in before if one.file_id != receipt.file_id]
        before_ms = context.expiry_now_ms() - RECEIPT_GRACE_MS
        for old in [one for one in others[1:] if one.committed_ms <= before_ms]:
            view.drop_receipt(old)
        if others:
            view.put_further(receipt)
        else:
            view.put_receipt(receipt, None)
        return receipt.stored(view.digests_of(name, finished.stamp(found))[0], there=True)

    def _receipts_of(self, view: View, name: str) -> list[ReceiptRecord]:
        """The receipts of a name: the first, and some of the further ones."""
        first = view.file_id_of(name)
        ids = [] if first is None else [first, *view.further(name, FURTHER_LOOKED_AT)]
        return [receipt for receipt in map(view.receipt, ids) if receipt is not None]

    def _touch(self, name: str, facts: Facts) -> os.stat_result:
        """Give a file that is there mtime and mode, durably; returns what it is then."""
        folder, _, last = name.rpartition("/")
        fd, found = open_to_read(self._folders.open(folder), last.encode())
        try:
            wanted_mode = stat.S_IMODE(found.st_mode) if facts.mode is None else facts.mode & 0o777
            wanted_mtime = mtime_of(found) if facts.mtime_ns is None else facts.mtime_ns
            if (stat.S_IMODE(found.st_mode), mtime_of(found)) == (wanted_mode, wanted_mtime):
                return found
            with suppress(PermissionError):
                os.fchmod(fd, wanted_mode)
            set_mtime(fd, wanted_mtime)
            os.fsync(fd)
            self._chooser.forget(name)
            return os.fstat(fd)
        finally:
            os.close(fd)

    def make_folder(self, view: View, work: Finish) -> None:
        """Make a folder with its mode and mtime; one that is there already takes them on.

        Its owner always keeps the right to change it, or its files could not follow.

        Raises:
            FileExists: a file has the name, or is to get it in this batch (BP1-COM-013).
            AskFirst: the hooks have to agree first.
            NameRefused: as for ``plan``.
            OSError: as the system reports it.
        """
        name, facts = work.facts.filename.text, work.facts
        if self._collisions is not None:
            self._collisions.check(facts.filename)
        found = self._chooser.look(name)
        planned = self._chooser.is_planned(name)
        if planned or found is not None:
            there = Kind.FILE if planned or found is None else kind_of(found.st_mode)
            verdict = decide_name(facts.if_exists, there, folder=True, equal=False, newer=False)
            if verdict is Verdict.LEAVE:
                self.decide(view, work, NameChoice(name, left=found))
                return
        self._must_be_asked(work, work.upload.file_id)
        if self._collisions is not None:
            self._collisions.add(facts.filename)
        self._forget(view, view.receipt(work.upload.file_id))
        fd = self._folders.make(name)
        self._chooser.forget(name)
        if facts.mode is not None:
            os.fchmod(fd, facts.mode | 0o700)
        if facts.mtime_ns is not None:
            set_mtime(fd, facts.mtime_ns)
        self._folders.changed.add(name)
        receipt = self._receipt(work, name, self._context.finished.identity(os.fstat(fd)))
        self._made.append((work, receipt))

    # -- record

    def record(self, view: View) -> None:
        """Write receipts and FINALISING."""
        self._context.finished.hide(self._publications)
        for publication in self._publications.values():
            view.put_receipt(publication.receipt, publication.finalising)
        for _, receipt in self._made:
            view.put_receipt(receipt, None)
        self._context.mark_unsynced(view, bool(self._publications))

    def forget(self) -> None:
        """The transaction did not happen."""
        self._context.finished.show(self._publications)
        self._publications.clear()
        self._made.clear()
        self._decided.clear()

    # -- publish

    def publish(self) -> None:
        """Give every file its name; what goes wrong for one is its own ``error``."""
        collided = [one for one in self._publications.values() if not self._publish(one)]
        while collided:
            self._choose_again(collided)
            collided = [one for one in collided if one.error is None and not self._publish(one)]
        self._ctime_ns = self._last_ctime()

    def _last_ctime(self) -> int | None:
        """The ctime (ns) of the file that got its name last: that of no other is later, as long as nobody touches it."""
        for publication in reversed(self._publications.values()):
            if publication.error is None:
                found = self._chooser.look(publication.receipt.stored_as)
                return None if found is None else ctime_of(found)
        return None

    def _publish(self, publication: Publication) -> bool:
        """Give a file its name; False if somebody else has it."""
        try:
            folder, _, last = publication.receipt.stored_as.rpartition("/")
            folder_fd = self._folders.make(folder)
            partial = publication.upload.partial_name
            move = move_over if publication.over else move_new
            move(self._context.partials_fd, partial, folder_fd, last.encode())
            self._folders.changed.add(folder)
            return True
        except FileExistsError:
            return False
        except OSError as exc:
            publication.error = refusal(exc)
            if isinstance(publication.error, StoreFailed):
                raise publication.error from exc
            return True

    def _choose_again(self, collided: list[Publication]) -> None:
        """Choose and record other names for files whose names were taken by somebody unknown to the ledger."""
        try:
            with self._context.ledger.write() as view:
                for publication in collided:
                    self._choose_one_again(view, publication)
        except StoreFull as exc:
            for publication in collided:
                publication.error = publication.error or exc

    def _choose_one_again(self, view: View, publication: Publication) -> None:
        Owed(publication.receipt, undo=True, former=publication.former).pay(view)
        self._chooser.unplan(publication.receipt.stored_as)
        try:
            choice = self._chooser.choose(view, publication.work)
            if choice.there is not None or choice.left is not None:
                raise Undecided
        except OSError as exc:
            publication.error = refusal(exc)
            return
        except BlockprotoError as exc:
            publication.error = exc
            return
        publication.receipt.stored_as, publication.over = choice.name, choice.over
        self._plan_name(choice.name, publication.receipt)
        publication.former = view.file_id_of(choice.name)
        view.put_receipt(publication.receipt, publication.finalising)

    def end(self) -> None:
        """Set the outcomes and note what the ledger is owed; the folders are synced.

        A receipt of a file that did not get its name is taken back at once: recovery would believe it.
        """
        for work, receipt in self._made:
            self._outcomes[work] = replace(receipt.stored(), new=True)
        for first, stored, twins in self._decided.values():
            self._outcomes.update(dict.fromkeys(twins, stored))
            self._outcomes[first] = replace(stored, new=not stored.left)
        self._context.finished.show(self._publications)
        failed = False
        for publication in self._publications.values():
            failed |= publication.error is not None
            self._end(publication)
        if failed:
            self._context.pay_now()

    def _end(self, publication: Publication) -> None:
        receipt, record = publication.receipt, publication.record
        works = publication.work, *publication.twins
        if publication.error is not None:
            self._context.owed.append(Owed(receipt, undo=True, former=publication.former))
            self._outcomes.update(dict.fromkeys(works, outcome_of(publication.error)))
            return
        if self._ctime_ns is not None:
            self._context.finished.seal(receipt.file_id, self._ctime_ns)
        stored = receipt.stored()
        self._outcomes.update(dict.fromkeys(publication.twins, stored))
        self._outcomes[publication.work] = replace(stored, new=True)
        publication.upload.leave()
        if record is not None:
            if isinstance(publication.upload, BriefUpload):
                self._context.live.discard(record.key, record.storage_id)
            self._context.recorded.pop(record.file_id, None)
            self._context.owed.append(Owed(receipt, (record.key, record.storage_id)))
