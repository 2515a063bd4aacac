"""FileBatch: the whole files of one batch, from their bytes to their names.

    plan      choose a name, make a file without one in its folder, with its bytes, mode and mtime
    record    receipts; and which files have no name yet, so that recovery drops the receipts of those that did not get it
    publish   give them their names
    end       outcomes

Between plan and publish such a file exists as an open descriptor only, and a crash leaves nothing of it (``new_file.py``).

Each step is done for thousands of files in turn: what a file costs here is counted in microseconds.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from ...common.times import ctime_of
from ...errors import BadFacts, BlockprotoError, StoreFailed, StoreFull
from .. import (
    FOLDER_FILETYPE,
    AskFirst,
    FileOutcome,
    IfExists,
    StoredFile,
    StoreFiles,
    Undecided,
    UploadKey,
    WholeFile,
    Work,
)
from ..folder_io import Folders, syncs_unnamed
from ..os_errors import refusal
from ..rules import outcome_of
from .batch_names import BatchNames
from .context import LocalContext, Owed
from .ledger_view import View
from .name_choice import NameChoice, Wanted
from .new_file import NewFile, NewFiles, wanted_by
from .prepared import PreparedFiles
from .records import ReceiptRecord

FILES_OPEN_MAX = 4096
"""Files of one batch that are open at once at most, where the system lets us open many."""

FILES_OPEN_SHARE = 4
"""Otherwise this fraction (one in N) of them."""

_Known = tuple[set[bytes], set[str]]


def files_open_max() -> int:
    """How many whole files one batch takes."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(FILES_OPEN_MAX, files // FILES_OPEN_SHARE))


class FileBatch:
    """The whole files of one batch.

    Args:
        context: the store's.
        folders: the folders the batch has open; those changed here are added to its ``changed``.
        names: those of the batch.
        is_published: whether another work of the batch publishes the file of an id.
        give_up: drops what is held of an unfinished upload.
    """

    def __init__(
        self,
        context: LocalContext,
        folders: Folders,
        names: BatchNames,
        is_published: Callable[[bytes], bool],
        give_up: Callable[[View, UploadKey], None],
    ) -> None:
        self._context = context
        self._folders = folders
        self._names = names
        self._is_published = is_published
        self._give_up = give_up
        self._crowded = context.ledger.crowded()
        self._files = NewFiles(context)
        self._ids: set[bytes] = set()
        self._new: dict[bytes, NewFile] = {}
        self._outcomes: dict[StoreFiles, list[FileOutcome | None]] = {}
        self._decided: list[tuple[StoreFiles, int, StoredFile]] = []
        self._made: list[tuple[StoreFiles, int, ReceiptRecord]] = []
        self._on_our_device: set[str] = set()
        self._ctime_ns: int | None = None

    def __len__(self) -> int:
        """How many files get their names."""
        return len(self._new)

    def has(self, file_id: bytes) -> bool:
        """Whether the batch decides of the file of an id here."""
        return file_id in self._ids

    @property
    def unfinished(self) -> bytes:
        """The ids of what is not complete before it is published, one behind the other.

        Files have no name, and the mtime of folders changes with each name in them.
        """
        return b"".join((*self._new, *(receipt.file_id for _, _, receipt in self._made)))

    def outcomes_of(self, work: StoreFiles) -> tuple[FileOutcome, ...]:
        """What became of each of the files."""
        found = tuple(one for one in self._outcomes[work] if one is not None)
        assert len(found) == len(work.files), "a file was not decided"
        return found

    # -- plan

    def plan(self, view: View, work: StoreFiles) -> None:
        """Plan each of the files; what goes wrong for one is its own outcome.

        Raises:
            StoreFailed: the medium reported an error.
        """
        outcomes = self._outcomes[work] = [None] * len(work.files)
        if isinstance(work.prepared, PreparedFiles):
            work.prepared.begin()
        file_ids = [self._context.state.file_id(file.key) for file in work.files]
        known = view.known_of(file_ids, [file.facts.filename.text for file in work.files])
        for at, file_id in enumerate(file_ids):
            try:
                outcomes[at] = self._plan(view, work, at, file_id, known)
                continue
            except OSError as exc:
                error = refusal(exc)
            except BlockprotoError as exc:
                error = exc
            if isinstance(error, StoreFailed):
                raise error
            outcomes[at] = outcome_of(error)

    def _plan(
        self, view: View, work: StoreFiles, at: int, file_id: bytes, known: _Known
    ) -> StoredFile | None:
        """The outcome, if it is one whatever becomes of the batch.

        ``known`` says which ids had a receipt, and which names a file, before the work.
        """
        file = work.files[at]
        facts = file.facts
        if file_id in self._ids or self._is_published(file_id):
            raise Undecided  # the next batch finds what became of the other
        own = view.receipt(file_id) if file_id in known[0] else None
        if own is not None:
            answer, own = self._names.answered(view, own, facts.if_exists, file.root, file.length)
            if answer is not None:
                if facts.filetype == FOLDER_FILETYPE:
                    self._names.keep_time(facts)
                return answer
        if self._crowded:
            raise StoreFull("the ledger is too full for new files")
        if facts.filetype == FOLDER_FILETYPE:
            self._plan_folder(view, wanted_by(work, file, file_id), work, at)
            return None
        self._names.check_portable(facts.filename)
        name, over, former = facts.filename.text, False, None
        new = name not in known[1] and not self._names.is_planned(name)
        if not new or facts.if_exists is not IfExists.KEEP or work.rounds:
            choice = self._choose(view, wanted_by(work, file, file_id), work, at)
            if choice is None:
                return None
            name, over, former = choice.name, choice.over, view.file_id_of(choice.name)
        if file.veto is not None:
            raise file.veto
        if work.unasked:
            raise AskFirst(file_id)
        self._context.free_space.take(file.length)
        left = view.upload(file.key) if file_id in self._context.recorded else None
        fd, partial_name, found = self._make(work, file, self._folder_of(name))
        identity = self._context.finished.identity(found)
        self._ids.add(file_id)
        now_ms = self._names.now_ms
        planned = self._new[file_id] = NewFile(
            file, work, at, file_id, name, over, former, left, now_ms, identity, fd, partial_name
        )
        self._names.forget(view, own)
        self._names.plan(name, planned)
        return None

    def _make(
        self, work: StoreFiles, file: WholeFile, folder_fd: int
    ) -> tuple[int, bytes | None, os.stat_result]:
        """A new file, prepared or made now; see ``NewFiles.make``."""
        if isinstance(work.prepared, PreparedFiles):
            made = work.prepared.take(file) if self._files.makes_unnamed else None
            if made is not None:
                fd, found = made
                return fd, None, found
            if work.prepared.released:  # what is needed for names could not be opened
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._files.make(folder_fd, file.facts, file.content)

    def _choose(self, view: View, wanted: Wanted, work: StoreFiles, at: int) -> NameChoice | None:
        """Which name a file gets; None: it is there already, or what is there is left."""
        choice = self._names.choose(view, wanted)
        stored = self._names.settled(view, wanted, choice)
        if stored is None:
            return choice
        if wanted.file_id in self._context.recorded:
            self._give_up(view, wanted.key)
        self._ids.add(wanted.file_id)
        self._decided.append((work, at, stored))
        return None

    def _plan_folder(self, view: View, wanted: Wanted, work: StoreFiles, at: int) -> None:
        if wanted.filesize:
            raise BadFacts("a folder has no bytes")
        made = self._names.make_folder(view, wanted)
        self._ids.add(wanted.file_id)
        if isinstance(made, ReceiptRecord):
            self._made.append((work, at, made))
        else:
            self._decided.append((work, at, made))

    def _folder_of(self, name: str) -> int:
        """The folder in which a file is to be, opened or made; valid until the next one is.

        Raises:
            OSError: it cannot be, or it lies on another file system, of which a sync of ours would make nothing durable.
        """
        folder = name.rpartition("/")[0]
        folder_fd = self._folders.make(folder)
        if folder not in self._on_our_device:
            if self._context.finished.identity(os.fstat(folder_fd)).dev:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            self._on_our_device.add(folder)
        return folder_fd

    # -- sync

    @property
    def syncs_each(self) -> bool:
        """Whether syncing each of the files makes them durable; else everything has to be synced."""
        return not self._new or syncs_unnamed(self._context.root_fd)

    def syncs(self) -> list[Callable[[], None]]:
        """What makes each of the files durable: bytes, mode and mtime."""
        return [partial(os.fsync, new.fd) for new in self._new.values()]

    # -- record

    def record(self, view: View) -> None:
        """Write the receipts; they do not count before ``end``."""
        self._context.finished.hide(self._new)
        view.put_receipts((new.file_id, new.name, new.record()) for new in self._new.values())
        for _, _, receipt in self._made:
            view.put_receipt(receipt, None)

    def undone(self, works: Iterable[Work], error: StoreFull) -> None:
        """The transaction did not happen: no file is stored that was not before."""
        for work in works:
            if not isinstance(work, StoreFiles):
                continue
            outcomes = self._outcomes.setdefault(work, [None] * len(work.files))
            outcomes[:] = [StoreFull(str(error)) if one is None else one for one in outcomes]
        self._context.finished.show(self._new)
        self.close()
        self._new.clear()
        self._made.clear()
        self._decided.clear()

    # -- publish

    def publish(self) -> None:
        """Give every file its name; what goes wrong for one is its own ``error``."""
        collided = [new for new in self._new.values() if not self._publish(new)]
        while collided:
            self._names.choose_again(collided)
            self._keep_undecided(collided)
            collided = [new for new in collided if new.error is None and not self._publish(new)]
        named = (new for new in reversed(self._new.values()) if new.error is None)
        last = next(named, None)
        if last is not None:
            self._ctime_ns = ctime_of(os.fstat(last.fd))
        self._files.close(self._new.values())

    @staticmethod
    def _keep_undecided(collided: Iterable[NewFile]) -> None:
        """Of a prepared file that is to be decided later the bytes may be nowhere else any more."""
        for new in collided:
            if isinstance(new.error, Undecided) and isinstance(new.work.prepared, PreparedFiles):
                new.work.prepared.put(new.file, (new.fd, os.fstat(new.fd)))
                new.fd = -1

    def _publish(self, new: NewFile) -> bool:
        """Give a file its name; False if somebody else has it."""
        folder, _, last = new.name.rpartition("/")
        try:
            self._files.give_name(new, self._folders.make(folder), last.encode())
        except FileExistsError:
            return False
        except OSError as exc:
            new.error = refusal(exc)
            if isinstance(new.error, StoreFailed):
                raise new.error from exc
            return True
        self._folders.changed.add(folder)
        return True

    # -- end

    def end(self) -> None:
        """Note the outcomes and what the ledger is owed; the folders are synced.

        A receipt of a file that did not get its name is taken back at once: it would stay for ever.
        """
        context = self._context
        for work, at, stored in self._decided:
            self._outcomes[work][at] = replace(stored, new=not stored.left)
        failed = False
        for work, at, receipt in self._made:
            error = self._names.unsettled.get(receipt.stored_as)
            stored = replace(receipt.stored(), new=True)
            self._outcomes[work][at] = stored if error is None else outcome_of(error)
            if error is not None:
                failed = True
                context.owed.append(Owed(receipt, undo=True))
        context.finished.show(self._new)
        for new in self._new.values():
            if new.error is not None:
                failed = True
                context.owed.append(Owed(new.receipt, undo=True, former=new.former))
                self._outcomes[new.work][new.at] = outcome_of(new.error)
                continue
            if self._ctime_ns is not None:
                context.finished.seal(new.file_id, self._ctime_ns)
            self._outcomes[new.work][new.at] = new.stored()
            if new.left is not None or new.former is not None:
                self._end_others(new)
        if failed:
            context.pay_now()

    def _end_others(self, new: NewFile) -> None:
        """An unfinished upload of the same key is superfluous, and so are the receipts of what had the name."""
        left, upload = new.left, None
        if left is not None:
            upload = left.key, left.storage_id
            self._context.live.discard(*upload)
            self._context.recorded.pop(left.file_id, None)
        self._context.owed.append(Owed(new.receipt, upload, former=new.former))

    def close(self) -> None:
        """Close every file; those that have no name yet are gone then. Harmless when repeated."""
        self._files.close(self._new.values())
        for work, outcomes in self._outcomes.items():
            if isinstance(work.prepared, PreparedFiles) and work.prepared.left:
                for file, outcome in zip(work.files, outcomes, strict=True):
                    if not isinstance(outcome, Undecided | AskFirst):  # of which a later batch decides
                        work.prepared.drop(file)
