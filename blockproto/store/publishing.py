"""Publishing: from a complete, durable partial to a file under its final name.

The receipt names the target and the partial's inode before the rename, so recovery can tell what a crash left: the
target has that inode (done), the partial is still there (rename again), or neither (the upload is lost, and said so).

A final name never shows anything incomplete: it appears by one rename of a file whose bytes are synced.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import (
    BlockprotoError,
    FileExists,
    NameRefused,
    NotPermitted,
    SourceChanged,
    StoreFailed,
    StoreFull,
)
from ..names import SafeName
from ..times import set_mtime
from . import Facts, Finish, IfExists, UploadKey
from .brief import BriefUpload
from .disk import Folders, look, move_new, move_over
from .ledger import View
from .records import Finalising, Identity, ReceiptRecord, UploadRecord
from .refusals import refusal
from .rules import free_names, outcome_of
from .twins import Twins

if TYPE_CHECKING:
    from .local import LocalStore
    from .upload import LocalUpload


@dataclass(slots=True)
class Owed:
    """What the ledger has to be told with the next batch.

    Attributes:
        receipt: of the commit it is about.
        upload: (key, storage_id) of the upload record that goes with it, or None.
        undo: the commit did not happen: forget the receipt.
        former: the file_id that the name had before, to be restored by ``undo``.
    """

    receipt: ReceiptRecord
    upload: tuple[UploadKey, bytes] | None = None
    undo: bool = False
    former: bytes | None = None

    def pay(self, view: View) -> None:
        """Tell it."""
        if self.undo:
            view.drop_receipt(self.receipt)
            if self.former is not None:
                view.put_name(self.receipt.stored_as, self.former)
            return
        view.drop_finalising(self.receipt.file_id)
        if self.upload is not None:
            view.drop_upload(*self.upload)


@dataclass(slots=True, eq=False)
class Publication:
    """One file on the way to its name.

    Attributes:
        work: what asks for it.
        upload: whose bytes.
        receipt: what is recorded before the name is there.
        record: the upload record that goes with it, or None.
        former: the file_id the name had before.
        twins: works of the batch that repeat ``work``.
        error: why it did not get its name.
    """

    work: Finish
    upload: LocalUpload | BriefUpload
    receipt: ReceiptRecord
    record: UploadRecord | None
    former: bytes | None
    twins: list[Finish] = field(default_factory=list)
    error: BlockprotoError | None = None

    @property
    def finalising(self) -> Finalising | None:
        """What recovery needs to finish it; a brief file is sent again instead."""
        if self.record is None or isinstance(self.upload, BriefUpload):
            return None
        return Finalising(self.record.storage_id, self.work.facts.if_exists)


class Publisher:
    """The publications of one batch.

    Args:
        store: the store.
        folders: the folders the batch has open; those changed here are added to its ``changed``.
    """

    def __init__(self, store: LocalStore, folders: Folders) -> None:
        self._store = store
        self._folders = folders
        self._publications: dict[bytes, Publication] = {}
        self._made: list[tuple[Finish, ReceiptRecord]] = []
        self._names: set[str] = set()
        self._twins = Twins(folders) if store.portable else None
        self._now_ms = store.now_ms()

    def has(self, file_id: bytes) -> bool:
        """Whether an upload's file is being published."""
        return file_id in self._publications

    def join(self, work: Finish) -> bool:
        """Whether ``work`` repeats one of this batch, and then gets the same outcome."""
        first = self._publications.get(work.upload.file_id)
        if first is None:
            return False
        if (first.work.root, first.work.filesize) != (work.root, work.filesize):
            raise SourceChanged("this sourceid is being committed with other bytes")
        first.twins.append(work)
        return True

    # -- plan

    def plan(
        self, view: View, work: Finish, upload: LocalUpload | BriefUpload, record: UploadRecord | None
    ) -> None:
        """Settle the partial and choose its name.

        Args:
            view: the batch's transaction.
            work: what to publish; its blocks and root are checked.
            upload: its upload.
            record: its upload record; of a brief file one of the same key that is superfluous now.

        Raises:
            FileExists: the name is taken and the work wants to be refused then.
            NameRefused: names are to be portable, and this one is not.
            OSError: as the system reports it.
        """
        if self._twins is not None:
            self._twins.check(work.facts.filename)
        found = upload.settle(work.facts, work.filesize)
        name = work.facts.filename.text
        former = view.file_id_of(name)
        if former is not None or name in self._names or work.facts.if_exists is not IfExists.KEEP:
            name = self._choose(work.facts)
            former = view.file_id_of(name)
        self._names.add(name)
        if self._twins is not None:
            self._twins.add(SafeName(name))
        receipt = self._receipt(work, name, self._store.finished.identity(found))
        self._publications[upload.file_id] = Publication(work, upload, receipt, record, former)

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
        )

    def _choose(self, facts: Facts) -> str:
        """A name that is not taken, or is to be replaced."""
        name = facts.filename.text
        if not self._is_taken(name):
            return name
        if facts.if_exists is IfExists.REFUSE:
            raise FileExists
        if facts.if_exists is IfExists.REPLACE:
            self._check_replaceable(name)
            return name
        return next(free.text for free in free_names(facts.filename) if self._is_free(free))

    def _is_free(self, name: SafeName) -> bool:
        if self._twins is not None:
            try:
                self._twins.check(name)
            except NameRefused:
                return False
        return not self._is_taken(name.text)

    def _is_taken(self, name: str) -> bool:
        return name in self._names or self._look(name) is not None

    def _look(self, name: str) -> os.stat_result | None:
        folder, _, last = name.rpartition("/")
        try:
            return look(self._folders.open(folder), last.encode())
        except FileNotFoundError:
            return None

    def _check_replaceable(self, name: str) -> None:
        found = self._look(name)
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise NotPermitted("what has the name is no file")

    def make_folder(self, work: Finish) -> None:
        """Make a folder with its mode and mtime; one that is there already takes them on.

        Its owner always keeps the right to change it, or its files could not follow.

        Raises:
            FileExists: a file has the name, or is to get it in this batch (BP1-COM-013).
            NameRefused: as for ``plan``.
            OSError: as the system reports it.
        """
        name, facts = work.facts.filename.text, work.facts
        if self._twins is not None:
            self._twins.check(facts.filename)
            self._twins.add(facts.filename)
        found = self._look(name)
        if name in self._names or (found is not None and not stat.S_ISDIR(found.st_mode)):
            raise FileExists("a file has the name of the folder")
        fd = self._folders.make(name)
        if facts.mode is not None:
            os.fchmod(fd, facts.mode | 0o700)
        if facts.mtime_ns is not None:
            set_mtime(fd, facts.mtime_ns)
        self._folders.changed.add(name)
        receipt = self._receipt(work, name, self._store.finished.identity(os.fstat(fd)))
        self._made.append((work, receipt))

    # -- record

    def record(self, view: View) -> None:
        """Write receipts and FINALISING."""
        self._store.finished.hide(self._publications)
        for publication in self._publications.values():
            view.put_receipt(publication.receipt, publication.finalising)
        for _, receipt in self._made:
            view.put_receipt(receipt, None)
        self._store.mark_unsynced(view, bool(self._publications))

    def forget(self) -> None:
        """The transaction did not happen."""
        self._store.finished.show(self._publications)
        self._publications.clear()
        self._made.clear()

    # -- publish

    def publish(self) -> None:
        """Give every file its name; what goes wrong for one is its own ``error``."""
        collided = [one for one in self._publications.values() if not self._publish(one)]
        while collided:
            self._choose_again(collided)
            collided = [one for one in collided if one.error is None and not self._publish(one)]

    def _publish(self, publication: Publication) -> bool:
        """Give a file its name; False if somebody else has it."""
        try:
            folder, _, last = publication.receipt.stored_as.rpartition("/")
            folder_fd = self._folders.make(folder)
            partial = publication.upload.partial_name
            move = move_over if publication.work.facts.if_exists is IfExists.REPLACE else move_new
            move(self._store.partials_fd, partial, folder_fd, last.encode())
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
            with self._store.ledger.write() as view:
                for publication in collided:
                    self._choose_one_again(view, publication)
        except StoreFull as exc:
            for publication in collided:
                publication.error = publication.error or exc

    def _choose_one_again(self, view: View, publication: Publication) -> None:
        Owed(publication.receipt, undo=True, former=publication.former).pay(view)
        try:
            name = self._choose(publication.work.facts)
        except OSError as exc:
            publication.error = refusal(exc)
            return
        except BlockprotoError as exc:
            publication.error = exc
            return
        self._names.add(name)
        publication.receipt.stored_as = name
        publication.former = view.file_id_of(name)
        view.put_receipt(publication.receipt, publication.finalising)

    def end(self) -> None:
        """Set the outcomes and note what the ledger is owed; the folders are synced.

        A receipt of a file that did not get its name is taken back at once: recovery would believe it.
        """
        for work, receipt in self._made:
            work.outcome = receipt.stored()
        self._store.finished.show(self._publications)
        failed = False
        for publication in self._publications.values():
            failed |= publication.error is not None
            self._end(publication)
        if failed:
            self._store.pay_now()

    def _end(self, publication: Publication) -> None:
        receipt, record = publication.receipt, publication.record
        if publication.error is not None:
            self._store.owed.append(Owed(receipt, undo=True, former=publication.former))
            for work in (publication.work, *publication.twins):
                work.outcome = outcome_of(publication.error)
            return
        stored = receipt.stored()
        for work in (publication.work, *publication.twins):
            work.outcome = stored
        publication.upload.leave()
        if record is not None:
            if isinstance(publication.upload, BriefUpload):
                self._store.end_partial(record.key, record.storage_id)
            self._store.recorded.discard(record.file_id)
            self._store.owed.append(Owed(receipt, (record.key, record.storage_id)))
