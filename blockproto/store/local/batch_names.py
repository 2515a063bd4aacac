"""BatchNames: the names of one batch: which file gets which, which files are there already, and which folders are made.

One object for all works of a batch, however their bytes come, so that each sees what the others are to get.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from ...common.names import SafeName
from ...common.times import ctime_of, mtime_of, set_mtime
from ...errors import BlockprotoError, StoreFailed, StoreFull
from .. import Facts, IfExists, StoredFile, Undecided, Verdict
from ..folder_io import Folders, open_to_read
from ..name_rules import Kind, decide_name, kind_of
from ..os_errors import refusal
from ..rules import RECEIPT_GRACE_MS, check_receipt
from .context import LocalContext, Owed
from .ledger_view import View
from .name_choice import NameChoice, NameChooser, Planned, Wanted, left_as, must_be_asked
from .name_collisions import NameCollisions
from .records import Finalising, Identity, ReceiptRecord

FURTHER_LOOKED_AT = 8
"""Of the further receipts of a file, how many are looked at when one more comes: old ones go, so few are ever kept."""


class NewName(Protocol):
    """A file that is to get its name.

    Attributes:
        former: the file id that the name had before.
        error: why it did not get its name.
    """

    former: bytes | None
    error: BlockprotoError | None

    @property
    def receipt(self) -> ReceiptRecord:
        """What is recorded before the name is there."""

    def take(self, name: str, former: bytes | None, *, over: bool) -> None:
        """It gets another name than was planned; ``former`` is the file id that this one had, ``over`` replaces it."""

    @property
    def wanted(self) -> Wanted:
        """What it is to be."""

    @property
    def finalising(self) -> Finalising | None:
        """What recovery needs to finish it."""


class BatchNames:
    """The names of one batch.

    Args:
        context: the store's.
        folders: the folders the batch has open; those changed here are added to its ``changed``.

    Attributes:
        now_ms: when the batch is committed, Unix ms.
        unsettled: the names of folders that could not be given their mtime, with why.
    """

    def __init__(self, context: LocalContext, folders: Folders) -> None:
        self._context = context
        self._folders = folders
        self._collisions = NameCollisions(folders) if context.portable else None
        self._chooser = NameChooser(context.finished, folders, self._collisions)
        self.now_ms = context.now_ms()
        self._times: dict[str, int] = {}
        self.unsettled: dict[str, BlockprotoError] = {}

    # -- choosing

    def changed(self, name: str | None = None) -> None:
        """A work of the batch changed what has a name, or what is known of it; None: perhaps of many names."""
        self._chooser.forget(name)

    def check_portable(self, filename: SafeName) -> None:
        """Raise NameRefused if names are to be portable, and this one is not beside those that are there."""
        if self._collisions is not None:
            self._collisions.check(filename)

    def is_new(self, view: View, name: str) -> bool:
        """Whether nobody is known to have had the name: it is free, but for what came past the store."""
        return view.file_id_of(name) is None and not self._chooser.is_planned(name)

    def choose(self, view: View, wanted: Wanted) -> NameChoice:
        """What becomes of a file; the errors are those of ``NameChooser.choose``."""
        return self._chooser.choose(view, wanted)

    def is_planned(self, name: str) -> bool:
        """Whether a file of the batch gets that name."""
        return self._chooser.is_planned(name)

    def plan(self, name: str, planned: Planned) -> None:
        """A file of the batch gets that name."""
        self._chooser.plan(name, planned)
        if self._collisions is not None:
            self._collisions.add(SafeName(name))

    def look(self, name: str) -> os.stat_result | None:
        """What has a name now."""
        return self._chooser.look(name)

    def receipt(self, wanted: Wanted, name: str, identity: Identity) -> ReceiptRecord:
        """The receipt of a file that gets a name."""
        return ReceiptRecord(
            key=wanted.key,
            file_id=wanted.file_id,
            root=wanted.root,
            filesize=identity.size,
            identity=identity,
            committed_ms=self.now_ms,
            stored_as=name,
            filetype=wanted.facts.filetype,
            if_exists=wanted.facts.if_exists,
        )

    def answered(
        self, view: View, own: ReceiptRecord, if_exists: IfExists, root: bytes, filesize: int
    ) -> tuple[StoredFile | None, ReceiptRecord | None]:
        """What answers an upload that was committed before, and its receipt, if that counts.

        No answer and a receipt: it is of another rule, so that the upload begins anew (BP1-COM-027).

        Raises:
            SourceChanged: it was committed with other bytes.
        """
        stored = self._context.finished.stored(view, own, self._folders)
        if stored is None:
            view.drop_receipt(own)
            return None, None
        return (check_receipt(stored, root, filesize) if own.if_exists is if_exists else None), own

    def forget(self, view: View, own: ReceiptRecord | None) -> None:
        """An upload that begins anew has a receipt of another rule, perhaps under another name (BP1-COM-027)."""
        if own is not None:
            view.drop_receipt(own)
            self._context.finished.sealed.pop(own.file_id, None)

    # -- files that are there already

    def settled(self, view: View, wanted: Wanted, choice: NameChoice) -> StoredFile | None:
        """The outcome where what has the name is the file, or is left; None: there is a file to publish.

        Raises:
            AskFirst: the hooks have to agree first that it is.
            OSError: as the system reports it.
        """
        if choice.left is not None:
            return left_as(self._context.finished, view, wanted.key, choice.name, choice.left, wanted.reader)
        if choice.there is not None:
            must_be_asked(wanted)
            return self._joined(view, wanted, choice.name, choice.there)
        return None

    def _joined(self, view: View, wanted: Wanted, name: str, found: os.stat_result) -> StoredFile:
        """The file has one more receipt (BP1-COM-023); where it was to be replaced it gets mtime and mode."""
        finished, context = self._context.finished, self._context
        before = [receipt for receipt in self._receipts_of(view, name) if finished.is_of(receipt, found)]
        if wanted.facts.if_exists in (IfExists.REPLACE, IfExists.UPDATE):
            found = self._touch(name, wanted.facts)
            for receipt in before:
                receipt.identity, receipt.ctime_bound = finished.identity(found), ctime_of(found)
                view.change_receipt(receipt)
        receipt = self.receipt(wanted, name, finished.identity(found))
        receipt.ctime_bound = ctime_of(found)
        self.forget(view, view.receipt(receipt.file_id))
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

    # -- folders

    def make_folder(self, view: View, wanted: Wanted) -> ReceiptRecord | StoredFile:
        """Make a folder with its mode and mtime; one that is there already takes them on.

        Its owner always keeps the right to change it, or its files could not follow.

        Returns:
            The receipt to be recorded; or the outcome, where what is there is left.

        Raises:
            FileExists: a file has the name, or is to get it in this batch (BP1-COM-013).
            AskFirst: the hooks have to agree first.
            NameRefused: as for ``check_portable``.
            OSError: as the system reports it.
        """
        name, facts = wanted.facts.filename.text, wanted.facts
        if self._collisions is not None:
            self._collisions.check(facts.filename)
        found = self._chooser.look(name)
        planned = self._chooser.is_planned(name)
        if planned or found is not None:
            there = Kind.FILE if planned or found is None else kind_of(found.st_mode)
            verdict = decide_name(facts.if_exists, there, folder=True, equal=False, newer=False)
            if verdict is Verdict.LEAVE and found is not None:
                return left_as(self._context.finished, view, wanted.key, name, found, wanted.reader)
        must_be_asked(wanted)
        if self._collisions is not None:
            self._collisions.add(facts.filename)
        self.forget(view, view.receipt(wanted.file_id))
        fd = self._folders.make(name)
        self._chooser.forget(name)
        if facts.mode is not None:
            os.fchmod(fd, facts.mode | 0o700)
        if facts.mtime_ns is not None:
            set_mtime(fd, facts.mtime_ns)
        self.keep_time(facts)
        self._folders.changed.add(name)
        return self.receipt(wanted, name, self._context.finished.identity(os.fstat(fd)))

    def keep_time(self, facts: Facts) -> None:
        """A folder is to have its stated mtime at the end of the batch, whatever gets its name in it."""
        if facts.mtime_ns is not None:
            self._times[facts.filename.text] = facts.mtime_ns

    def settle_folders(self) -> None:
        """Give folders the mtime they are to have: each name in them changes it.

        Raises:
            StoreFailed: the medium reported an error; any other is that folder's in ``unsettled``.
        """
        for name, mtime_ns in self._times.items():
            try:
                fd = self._folders.open(name)
                if mtime_of(os.fstat(fd)) != mtime_ns:
                    set_mtime(fd, mtime_ns)
                    self._folders.changed.add(name)
            except OSError as exc:
                error = self.unsettled[name] = refusal(exc)
                if isinstance(error, StoreFailed):
                    raise error from exc

    # -- names that somebody else took

    def choose_again(self, collided: Iterable[NewName]) -> None:
        """Choose and record other names for files whose names were taken by somebody unknown to the ledger."""
        try:
            with self._context.ledger.write() as view:
                for one in collided:
                    self._choose_one_again(view, one)
        except StoreFull as exc:
            for one in collided:
                one.error = one.error or exc

    def _choose_one_again(self, view: View, one: NewName) -> None:
        Owed(one.receipt, undo=True, former=one.former).pay(view)
        self._chooser.unplan(one.receipt.stored_as)
        try:
            choice = self._chooser.choose(view, one.wanted)
            if choice.there is not None or choice.left is not None:
                raise Undecided
        except OSError as exc:
            one.error = refusal(exc)
            return
        except BlockprotoError as exc:
            one.error = exc
            return
        one.take(choice.name, view.file_id_of(choice.name), over=choice.over)
        self.plan(choice.name, one.receipt)
        view.put_receipt(one.receipt, one.finalising)
