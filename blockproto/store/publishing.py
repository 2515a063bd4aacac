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

from ..errors import BlockprotoError, FileExists, NotPermitted, SourceChanged, StoreFailed
from ..names import SafeName
from . import Facts, Finish, IfExists, UploadKey
from .disk import Folders, look, move_new, move_over
from .ledger import View
from .records import Finalising, Identity, ReceiptRecord, UploadRecord
from .refusals import refusal
from .rules import free_names, outcome_of

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
    """One file on the way to its name."""

    work: Finish
    upload: LocalUpload
    receipt: ReceiptRecord
    left: UploadRecord | None
    former: bytes | None = None
    twins: list[Finish] = field(default_factory=list)
    error: BlockprotoError | None = None


class Publisher:
    """The publications of one batch.

    Args:
        store: the store.
        folders: the folders the batch has open; those changed here are added to its ``changed``.
    """

    def __init__(self, store: LocalStore, folders: Folders) -> None:
        self._store = store
        self._folders = folders
        self._publications: dict[UploadKey, Publication] = {}
        self._made: list[tuple[Finish, ReceiptRecord]] = []
        self._names: set[str] = set()

    def has(self, key: UploadKey) -> bool:
        """Whether an upload is being published."""
        return key in self._publications

    def join(self, work: Finish) -> bool:
        """Whether ``work`` repeats one of this batch, and then gets the same outcome."""
        first = self._publications.get(work.upload.key)
        if first is None:
            return False
        if (first.work.root, first.work.filesize) != (work.root, work.filesize):
            raise SourceChanged("this sourceid is being committed with other bytes")
        first.twins.append(work)
        return True

    # -- plan

    def plan(self, view: View, work: Finish, upload: LocalUpload, left: UploadRecord | None) -> None:
        """Settle the partial and choose its name.

        Args:
            view: the batch's transaction.
            work: what to publish; its blocks and root are checked.
            upload: its upload.
            left: an upload record of the same key that a brief file makes superfluous.

        Raises:
            FileExists: the name is taken and the work wants to be refused then.
            OSError: as the system reports it.
        """
        found = upload.partial.settle(work.facts, work.filesize)
        name = self._choose(work.facts)
        self._names.add(name.text)
        identity = self._store.finished.identity(found)
        receipt = self._receipt(work, upload, name.text, identity)
        self._publications[upload.key] = Publication(work, upload, receipt, left, view.file_id_of(name.text))

    def _receipt(self, work: Finish, upload: LocalUpload, name: str, identity: Identity) -> ReceiptRecord:
        return ReceiptRecord(
            key=upload.key,
            file_id=upload.file_id,
            root=work.root,
            filesize=work.filesize,
            identity=identity,
            committed_ms=self._store.now_ms(),
            stored_as=name,
            filetype=work.facts.filetype,
        )

    def _choose(self, facts: Facts) -> SafeName:
        if not self._is_taken(facts.filename):
            return facts.filename
        if facts.if_exists is IfExists.REFUSE:
            raise FileExists
        if facts.if_exists is IfExists.REPLACE:
            self._check_replaceable(facts.filename)
            return facts.filename
        return next(name for name in free_names(facts.filename) if not self._is_taken(name))

    def _is_taken(self, name: SafeName) -> bool:
        return name.text in self._names or self._look(name) is not None

    def _look(self, name: SafeName) -> os.stat_result | None:
        folder, _, last = name.text.rpartition("/")
        try:
            return look(self._folders.open(folder), last.encode())
        except FileNotFoundError:
            return None

    def _check_replaceable(self, name: SafeName) -> None:
        found = self._look(name)
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise NotPermitted("what has the name is no file")

    def make_folder(self, work: Finish, upload: LocalUpload) -> None:
        """Make a folder with its mode and mtime; one that is there already takes them on.

        Its owner always keeps the right to change it, or its files could not follow.
        """
        name, facts = work.facts.filename.text, work.facts
        fd = self._folders.make(name)
        if facts.mode is not None:
            os.fchmod(fd, facts.mode | 0o700)
        if facts.mtime_ns is not None:
            os.utime(fd, ns=(facts.mtime_ns, facts.mtime_ns))
        self._folders.changed.add(name)
        receipt = self._receipt(work, upload, name, self._store.finished.identity(os.fstat(fd)))
        self._made.append((work, receipt))

    # -- record

    def record(self, view: View) -> None:
        """Write receipts and FINALISING."""
        for publication in self._publications.values():
            upload = publication.upload
            self._store.finished.hide(upload.file_id)
            if_exists = publication.work.facts.if_exists
            view.put_receipt(
                publication.receipt, Finalising(upload.partial.storage_id, if_exists, upload.brief)
            )
        for _, receipt in self._made:
            view.put_receipt(receipt, None)

    def forget(self) -> None:
        """The transaction did not happen."""
        for publication in self._publications.values():
            self._store.finished.show(publication.upload.file_id)
        self._publications.clear()
        self._made.clear()

    # -- publish

    def publish(self) -> None:
        """Give every file its name; what goes wrong for one is its own ``error``."""
        for publication in self._publications.values():
            try:
                self._publish(publication)
            except OSError as exc:
                publication.error = refusal(exc)
            except BlockprotoError as exc:
                publication.error = exc
            if isinstance(publication.error, StoreFailed):
                raise publication.error

    def _publish(self, publication: Publication) -> None:
        folder, _, last = publication.receipt.stored_as.rpartition("/")
        folder_fd = self._folders.make(folder)
        partial = publication.upload.partial
        if publication.work.facts.if_exists is IfExists.REPLACE:
            move_over(self._store.partials_fd, partial.name, folder_fd, last.encode())
        else:
            try:
                move_new(self._store.partials_fd, partial.name, folder_fd, last.encode())
            except FileExistsError:
                self._publish_elsewhere(publication)
                return
        self._folders.changed.add(folder)

    def _publish_elsewhere(self, publication: Publication) -> None:
        """Somebody else took the name since it was chosen."""
        facts = publication.work.facts
        if facts.if_exists is IfExists.REFUSE:
            raise FileExists
        name = self._choose(facts).text
        upload = publication.upload
        with self._store.ledger.write() as view:
            Owed(publication.receipt, undo=True, former=publication.former).pay(view)
            publication.receipt.stored_as = name
            publication.former = view.file_id_of(name)
            view.put_receipt(
                publication.receipt, Finalising(upload.partial.storage_id, IfExists.KEEP, upload.brief)
            )
        self._publish(publication)

    def end(self) -> None:
        """Set the outcomes and note what the ledger is owed; the folders are synced.

        A receipt of a file that did not get its name is taken back at once: recovery would believe it.
        """
        for work, receipt in self._made:
            work.outcome = receipt.stored()
        failed = False
        for publication in self._publications.values():
            failed |= publication.error is not None
            self._end(publication)
        if failed:
            self._store.pay_now()

    def _end(self, publication: Publication) -> None:
        upload, receipt, left = publication.upload, publication.receipt, publication.left
        self._store.finished.show(upload.file_id)
        works = [publication.work, *publication.twins]
        if publication.error is not None:
            self._store.owed.append(Owed(receipt, undo=True, former=publication.former))
            for work in works:
                work.outcome = outcome_of(publication.error)
            return
        for work in works:
            work.outcome = receipt.stored()
        self._store.has_ended(upload)
        record = None if upload.brief else (upload.key, upload.partial.storage_id)
        if left is not None:
            record = left.key, left.storage_id
            self._store.end_partial(*record)
        self._store.owed.append(Owed(receipt, record))
