"""Publishing: from a complete, durable partial to a file under its final name.

The receipt names the target and the partial's inode before the rename, so recovery can tell what a crash left: the
target has that inode (done), the partial is still there (rename again), or neither (the upload is lost, and said so).

A final name never shows anything incomplete: it appears by one rename of a file whose bytes are synced.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...common.times import ctime_of
from ...errors import BlockprotoError, SourceChanged, StoreFailed
from .. import Adopt, Finish, IfExists, Outcome, StoredFile, Undecided, Work
from ..folder_io import Folders, move_new, move_over
from ..os_errors import refusal
from ..rules import outcome_of
from .batch_names import BatchNames
from .brief_upload import BriefUpload
from .context import LocalContext, Owed
from .ledger_view import View
from .name_choice import NameChoice, Wanted, must_be_asked
from .records import Finalising, ReceiptRecord, UploadRecord
from .upload import LocalUpload


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
    def wanted(self) -> Wanted:
        """What it is to be."""
        return _wanted_by(self.work)

    def take(self, name: str, former: bytes | None, *, over: bool) -> None:
        """It gets another name than was planned."""
        self.receipt.stored_as, self.former, self.over = name, former, over

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
        names: those of the batch.
        outcomes: of the works; those of files are set in ``end``.
    """

    def __init__(
        self, context: LocalContext, folders: Folders, names: BatchNames, outcomes: dict[Work, Outcome]
    ) -> None:
        self._context = context
        self._folders = folders
        self._names = names
        self._outcomes = outcomes
        self._publications: dict[bytes, Publication] = {}
        self._made: list[tuple[Finish, ReceiptRecord]] = []
        self._decided: dict[bytes, tuple[Finish | Adopt, StoredFile, list[Finish]]] = {}
        self._ctime_ns: int | None = None

    def __len__(self) -> int:
        """How many files get their names."""
        return len(self._publications)

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
        self._names.check_portable(work.facts.filename)
        wanted = _wanted_by(work)
        name = work.facts.filename.text
        choice, former = NameChoice(name), None
        if work.facts.if_exists is not IfExists.KEEP or work.rounds or not self._names.is_new(view, name):
            choice = self._names.choose(view, wanted)
            if self._decide(view, work, wanted, choice):
                return False
            former = view.file_id_of(choice.name)
        if work.veto is not None:
            raise work.veto
        must_be_asked(wanted)
        identity = self._context.finished.identity(upload.settle(work.facts, work.filesize))
        receipt = self._names.receipt(wanted, choice.name, identity)
        self._names.forget(view, own)
        self._names.plan(choice.name, receipt)
        over = choice.over
        self._publications[upload.file_id] = Publication(work, upload, receipt, record, former, over)
        return True

    def adopt(self, view: View, work: Adopt) -> bool:
        """Whether an upload is a file that is there, or is to be left, before its bytes have come."""
        self._names.check_portable(work.facts.filename)
        file_id = self._context.state.file_id(work.key)
        filesize = work.facts.filesize
        wanted = Wanted(
            work.key, file_id, work.facts, work.root, filesize, work.reader, work.rounds, work.unasked
        )
        return self._decide(view, work, wanted, self._names.choose(view, wanted))

    def _decide(self, view: View, work: Finish | Adopt, wanted: Wanted, choice: NameChoice) -> bool:
        """Whether what has the name is the file, or is left: then there is nothing to publish."""
        stored = self._names.settled(view, wanted, choice)
        if stored is None:
            return False
        self._decided[wanted.file_id] = work, stored, []
        return True

    def make_folder(self, view: View, work: Finish) -> None:
        """Make a folder; see ``BatchNames.make_folder``."""
        made = self._names.make_folder(view, _wanted_by(work))
        if isinstance(made, StoredFile):
            self._decided[work.upload.file_id] = work, made, []
        else:
            self._made.append((work, made))

    # -- record

    def record(self, view: View) -> None:
        """Write receipts and FINALISING."""
        self._context.finished.hide(self._publications)
        for publication in self._publications.values():
            view.put_receipt(publication.receipt, publication.finalising)
        for _, receipt in self._made:
            view.put_receipt(receipt, None)

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
            self._names.choose_again(collided)
            collided = [one for one in collided if one.error is None and not self._publish(one)]
        self._ctime_ns = self._last_ctime()

    def _last_ctime(self) -> int | None:
        """The ctime (ns) of the file that got its name last: that of no other is later, as long as nobody touches it."""
        for publication in reversed(self._publications.values()):
            if publication.error is None:
                found = self._names.look(publication.receipt.stored_as)
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

    def end(self) -> None:
        """Set the outcomes and note what the ledger is owed; the folders are synced.

        A receipt of a file that did not get its name is taken back at once: recovery would believe it.
        """
        failed = False
        for work, receipt in self._made:
            error = self._names.unsettled.get(receipt.stored_as)
            stored = replace(receipt.stored(), new=True)
            self._outcomes[work] = stored if error is None else outcome_of(error)
            if error is not None:
                failed = True
                self._context.owed.append(Owed(receipt, undo=True))
        for first, stored, twins in self._decided.values():
            self._outcomes.update(dict.fromkeys(twins, stored))
            self._outcomes[first] = replace(stored, new=not stored.left)
        self._context.finished.show(self._publications)
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
            self._context.owed.append(
                Owed(receipt, (record.key, record.storage_id), former=publication.former)
            )
        elif publication.former is not None:
            self._context.owed.append(Owed(receipt, former=publication.former))


def _wanted_by(work: Finish) -> Wanted:
    upload = work.upload
    return Wanted(
        upload.key,
        upload.file_id,
        work.facts,
        work.root,
        work.filesize,
        work.reader,
        work.rounds,
        work.unasked,
    )
