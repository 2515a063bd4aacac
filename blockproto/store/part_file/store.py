"""PartFileStore: one download, in a partial and a small ledger beside its destination.

    .blockproto-LABEL.part      the bytes, the first one wanted at offset 0
    .blockproto-LABEL.ledger    what of them is durable (``ledger.py``)
    .blockproto-LABEL.lock      held while the download runs: two of one file exclude each other

The order is the server's: bytes, sync, ledger, sync, acknowledge; FINALISING, rename, folder sync. ``DEST`` gets
its name only when it is complete; then the three are gone. A file that is committed in the same batch as its first
block never gets a ledger. Runs on Linux, macOS and Windows.

Spec: spec/store.md §7.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from ...common.blocks import BlockSet
from ...common.names import SafeName
from ...errors import BlockprotoError, FileExists, NotPermitted, StoreFailed, StoreFull, UnknownUpload
from .. import (
    FOLDER_FILETYPE,
    BlockDone,
    Destination,
    Discard,
    Facts,
    Finish,
    Forget,
    IfExists,
    KeepPrefixes,
    Outcome,
    StoredFile,
    Tidy,
    Upload,
    UploadKey,
    Work,
)
from ..os_errors import refusal_here
from ..rules import check_receipt, outcome_of
from ..upload_state import apply
from .files import PartFiles
from .ledger import Begun, Final, Record, dropped_record, final_record, incarnation_record
from .plan import Plan


class PartFileUpload:
    """The download of a PartFileStore; the port's ``Upload``."""

    def __init__(self, store: PartFileStore, begun: Begun, *, brief: bool = False) -> None:
        self.key = begun.key
        self.facts = begun.facts
        self.file_id = begun.file_id
        self.attempt = begun.attempt
        self.expires_ms: int | None = None
        self.held = BlockSet((blockno, 1) for blockno in sorted(begun.blocks))
        self.short_end = begun.short_end
        self.prefixes = dict(begun.prefixes)
        self.brief = brief
        self._store = store

    @property
    def in_memory(self) -> bool:
        """See the port."""
        return False

    def write(self, position: int, piece: memoryview) -> None:
        """See the port."""
        self._store.write(self, position, piece)

    def read_into(self, position: int, view: memoryview) -> int:
        """See the port."""
        return self._store.read_into(position, view)

    def digests(self, blocknos: Iterable[int]) -> dict[int, bytes]:
        """See the port."""
        return self._store.digests(blocknos)

    def close(self) -> None:
        """See the port; the store itself has the file open."""
        if self.brief:
            self._store.drop_brief(self)


class PartFileStore:
    """The port's ``UploadStore`` for one destination.

    Args:
        dest: the file to make, and the label of what is in progress beside it. Its folder exists.
        first: position in the whole file of the first byte wanted; it becomes the first byte of ``dest``.
        now_ms: the clock, Unix ms.

    Raises:
        StoreInUse: another process is downloading to ``dest``.
        NotPermitted: the folder cannot be written, or ``dest`` is something else than a regular file.
        StoreFailed: the medium reported an error.
    """

    decisions_at_once = 1

    def __init__(
        self,
        dest: Destination,
        *,
        first: int = 0,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._dest = dest
        self._first = first
        self._now_ms = now_ms
        self._begun: Begun | None = None
        self._receipts: dict[UploadKey, tuple[StoredFile, Final]] = {}
        self._failed: StoreFailed | None = None
        self._files = PartFiles(dest, first)
        try:
            self._load()
        except OSError as exc:
            self.close()
            raise refusal_here(exc) from exc
        except BlockprotoError:
            self.close()
            raise
        self.incarnation = now_ms() if self._begun is None else self._begun.incarnation

    def close(self) -> None:
        """See the port. What the ledger does not know is removed."""
        self._fail(StoreFailed("the store is closed"))
        self._files.close()

    def _load(self) -> None:
        """Take up what an earlier run left, as far as ledger and partial agree."""
        begun = self._files.ledger.load()
        size = self._files.partial_size()
        final = None if begun is None else begun.final
        if (
            begun is not None
            and final is not None
            and self._files.is_final(final)
            and (size < 0 or final.ino)
        ):
            self._files.sync_folder()
            self._files.remove()
            self._remember(begun.key, begun.file_id, final)
            return
        if begun is None and size >= 0:
            return  # it may belong to what an earlier version left: ``open_upload`` judges
        if begun is None or size < 0 or begun.first != self._first:
            self._files.remove()
            return
        self._begun = begun
        self._cut(begun, size)

    def _cut(self, begun: Begun, size: int) -> None:
        """Forget blocks that a partial of ``size`` bytes does not have, in a new incarnation."""
        short = [blockno for blockno in begun.blocks if begun.shape.held_end(blockno) - self._first > size]
        if not short:
            return
        incarnation = max(begun.incarnation + 1, self._now_ms())
        records = [dropped_record(short), incarnation_record(incarnation)]
        self._files.append(begun, records)
        for record in records:
            begun.apply(*record)

    def _start_over(self) -> None:
        try:
            self._files.remove()
        except OSError as exc:
            raise refusal_here(exc) from exc
        self._begun = None

    def _remember(self, key: UploadKey, file_id: bytes, final: Final) -> StoredFile:
        receipt = StoredFile(key.sourceid, file_id, final.root, final.filesize, final.target)
        self._receipts[key] = receipt, final
        return receipt

    def _receipt(self, key: UploadKey) -> StoredFile | None:
        receipt, final = self._receipts.get(key, (None, None))
        return receipt if final is not None and self._files.is_final(final) else None

    # -- the download

    def begun(self) -> tuple[UploadKey, Facts] | None:
        """What an earlier run left beside the destination: whose it is, and its facts."""
        return None if self._begun is None else (self._begun.key, self._begun.facts)

    def open_upload(
        self, key: UploadKey, facts: Facts, attempt: int, reader: bool = False
    ) -> PartFileUpload | StoredFile:
        """See the port. One destination holds one download: what was begun with another key is dropped."""
        self._check_usable()
        receipt = self._receipt(key)
        if receipt is not None:
            return receipt
        size = None if facts.filesize is None else facts.filesize - self._first
        if facts.if_exists is IfExists.REFUSE and self._files.taken_by_other(size):
            raise FileExists
        if facts.if_exists is IfExists.SKIP and self._files.taken_by_other(None):
            raise FileExists
        begun = self._begun
        if begun is None and self._adopted(key):
            begun = self._begun
        if begun is None or begun.key != key:
            self._start_over()
            begun = self._begin(key, facts)
        self._check_room(begun)
        return PartFileUpload(self, begun)

    def _adopted(self, key: UploadKey) -> bool:
        """Whether an earlier version of this program began the same file, and it was taken over."""
        try:
            if not self._files.adopt(key):
                return False
            self._load()
        except OSError as exc:
            raise refusal_here(exc) from exc
        return self._begun is not None

    def check_parent(self, name: SafeName) -> None:
        """See the port; the place of a download was opened with its folder."""

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> PartFileUpload:
        """See the port."""
        self._check_usable()
        self._start_over()
        return PartFileUpload(self, self._begin(key, facts), brief=True)

    def _begin(self, key: UploadKey, facts: Facts) -> Begun:
        self._begun = Begun(key, secrets.token_bytes(16), self._first, facts, self.incarnation)
        return self._begun

    def _check_room(self, begun: Begun) -> None:
        if begun.facts.filesize is None:
            return
        held = sum(length for length, _ in begun.blocks.values())
        missing = begun.facts.filesize - self._first - held
        folder = self._dest.path.parent
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise StoreFull(
                f"there is no room on this machine: {missing} more bytes are needed and {free} are free in {folder}"
            )

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise StoreFailed(str(self._failed))

    def _fail(self, error: StoreFailed) -> StoreFailed:
        self._failed = self._failed or error
        return error

    def _current(self, upload: Upload) -> Begun:
        """What the upload is; raises UnknownUpload once it has ended."""
        if self._begun is None or upload.file_id != self._begun.file_id:
            raise UnknownUpload("the download has ended")
        return self._begun

    # -- bytes

    def write(self, upload: PartFileUpload, position: int, piece: memoryview) -> None:
        """Write into the partial; see the port's ``Upload.write``."""
        self._check_usable()
        self._current(upload)
        try:
            self._files.write(position, piece)
        except OSError as exc:
            error = refusal_here(exc)
            raise (self._fail(error) if isinstance(error, StoreFailed) else error) from exc

    def read_into(self, position: int, view: memoryview) -> int:
        """Read from the partial; see the port's ``Upload.read_into``."""
        try:
            return self._files.read_into(position, view)
        except OSError as exc:
            raise refusal_here(exc) from exc

    def digests(self, blocknos: Iterable[int]) -> dict[int, bytes]:
        """The durable digests of blocks."""
        held = {} if self._begun is None else self._begun.blocks
        return {blockno: held[blockno][1] for blockno in blocknos if blockno in held}

    def drop_brief(self, upload: PartFileUpload) -> None:
        """A brief file was let go: without a commit its bytes go."""
        if self._begun is not None and self._begun.file_id == upload.file_id:
            with suppress(BlockprotoError):
                self._start_over()

    # -- decisions

    def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        """See the port."""
        self._check_usable()
        plan = Plan(self._begun, works)
        for work in works:
            try:
                self._plan_one(plan, work)
            except BlockprotoError as exc:
                plan.outcomes[work] = outcome_of(exc)
        try:
            self._carry_out(plan)
        except StoreFailed as exc:
            raise self._fail(exc) from exc
        except BlockprotoError as exc:
            undone = (work for work in plan.changes if plan.outcomes[work] is None)
            plan.outcomes.update(dict.fromkeys(undone, outcome_of(exc)))
        return [plan.outcomes[work] for work in works]

    def _plan_one(self, plan: Plan, work: Work) -> None:
        match work:
            case BlockDone() | Forget() | KeepPrefixes():
                self._current(work.upload)
                plan.state = apply(plan.state, work)
                plan.changes.append(work)
            case Finish():
                self._plan_finish(plan, work)
            case Discard():
                self._discard(work)
            case Tidy():
                pass
            case _:
                raise NotPermitted("a download store has no finished files")

    def _plan_finish(self, plan: Plan, work: Finish) -> None:
        receipt = self._receipt(work.upload.key)
        if receipt is not None:
            plan.outcomes[work] = check_receipt(receipt, work.root, work.filesize)
            return
        if work.facts.filetype == FOLDER_FILETYPE:
            raise NotPermitted("a download store makes files only")
        begun = self._current(work.upload)
        plan.state = apply(
            plan.state, work, ((no, digest) for no, (_, digest) in sorted(begun.blocks.items()))
        )
        plan.changes.append(work)
        if plan.finish is None:
            plan.finish = work
        else:
            plan.twins.append(work)

    def _discard(self, work: Discard) -> None:
        if self._begun is None or self._begun.key != work.key:
            raise UnknownUpload
        if work.expired_ms is None:
            self._start_over()

    def _carry_out(self, plan: Plan) -> None:
        """Sync the bytes, then write the ledger: in this order, or a power cut makes the ledger lie.

        A file that gets its name at once needs no ledger; it gets one if the name is refused.
        """
        begun, finish = self._begun, plan.finish
        if begun is None or not plan.changes:
            return
        settled = self._settle(plan)
        self._files.sync(metadata=settled)
        records = plan.records(begun)
        at_once = settled and not self._files.ledger.exists
        if not at_once:
            self._append(begun, records)
        for record in records:
            begun.apply(*record)
        if finish is not None and settled:
            outcome = self._finish(begun, finish)
            plan.finished(outcome)
            if at_once and isinstance(outcome, BlockprotoError):
                self._append(begun, records)

    def _settle(self, plan: Plan) -> bool:
        """Whether the partial is ready for its name; why not is the outcome of the work that asks for it."""
        if plan.finish is None:
            return False
        try:
            self._files.settle(plan.finish)
            return True
        except OSError as exc:
            error = refusal_here(exc)
            if isinstance(error, StoreFailed):
                raise error from exc
            plan.finished(error)
            return False

    def _append(self, begun: Begun, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            self._files.append(begun, records)
        except OSError as exc:
            raise refusal_here(exc) from exc

    # -- the final name

    def _finish(self, begun: Begun, work: Finish) -> Outcome:
        try:
            return self._publish(begun, work)
        except OSError as exc:
            error = refusal_here(exc)
        except BlockprotoError as exc:
            error = outcome_of(exc)
        if isinstance(error, StoreFailed):
            raise error
        return error

    def _publish(self, begun: Begun, work: Finish) -> StoredFile:
        def announce(target: str) -> None:
            if self._files.ledger.exists:
                self._files.append(begun, [final_record(self._files.final(work, target))])

        target, _ = self._files.give_name(work, announce)
        final = self._files.found(work, target)
        self._files.ledger.remove()
        self._begun = None
        return self._remember(begun.key, begun.file_id, final)
