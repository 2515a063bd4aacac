"""The uploads of one store that are alive, by key: opening, joining, resuming and cancelling them.

While a key is being opened or discarded, other requests for it wait, so there is never more than one ``LiveUpload`` of a
key. The quota of its principal is reserved here, before an upload is entered.

Spec: BP1-RES, BP1-COM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from ..errors import (
    BlockprotoError,
    Cancelled,
    QuotaExceeded,
    SourceChanged,
    UnknownUpload,
)
from ..observability.observer import NULL_OBSERVER, Entered, Observer
from ..store import (
    Discard,
    Facts,
    FileOutcome,
    StoredFile,
    Upload,
    UploadKey,
    UploadStore,
    WholeFile,
)
from .committer import AwaitedOutcome, Committer
from .compare_files import FileComparer
from .live_upload import Feed, LiveUpload
from .quota import Quotas
from .slow_disk import Disk
from .threads import run_in_thread


class LiveUploads:
    """The live uploads of one store, by key."""

    def __init__(
        self,
        store: UploadStore,
        committer: Committer,
        disk: Disk,
        quotas: Quotas | None = None,
        observer: Observer = NULL_OBSERVER,
        comparer: FileComparer | None = None,
    ) -> None:
        self.store = store
        self._comparer = comparer
        self._observer = observer
        self.quotas = quotas
        self.committer = committer
        self.disk = disk
        self._live: dict[UploadKey, LiveUpload] = {}
        self._by_id: dict[bytes, LiveUpload] = {}
        self._opening: dict[UploadKey, trio.Event] = {}

    @property
    def count(self) -> int:
        """How many are alive."""
        return len(self._live)

    def find(self, key: UploadKey) -> LiveUpload | None:
        """The live upload of ``key``, if there is one."""
        return self._live.get(key)

    def find_by_id(self, principal: bytes, file_id: bytes) -> LiveUpload | None:
        """The live, unfinished upload of a principal that will have this file id, if there is one."""
        live = self._by_id.get(file_id)
        if live is None or live.stored.key.principal != principal:
            return None
        return live if live.outcome is None and live.discarded is None else None

    async def wake(self, key: UploadKey, facts: Facts) -> LiveUpload | None:
        """Let an unfinished upload be alive, to be followed at once; None if it was committed meanwhile."""
        live = await self._settled(key)
        found = live or await self._load(key, facts, 0, 0)
        return found if isinstance(found, LiveUpload) and found.outcome is None else None

    async def open(
        self,
        key: UploadKey,
        facts: Facts,
        attempt: int | None,
        feed: Feed,
        first: int = 0,
        reader: bool = False,
        root: bytes | None = None,
    ) -> LiveUpload | StoredFile:
        """Begin, resume, join or take over (None: in any case); or the receipt if the file is already here.

        Args:
            key: which upload.
            facts: what its sender says of it.
            attempt: which one; None takes the upload over in any case.
            feed: the stream that sends it.
            first: the position where the wanted bytes begin.
            reader: its principal may read, so the file may be there already (BP1-COM-021).
            root: the root its sender states, or None.

        Raises:
            Superseded, SourceChanged, StoreFull: see ``LiveUpload.enter`` and ``UploadStore.open_upload``.
            FileExists, NotPermitted: the name is taken.
            QuotaExceeded: it does not fit its principal's quota.
        """
        while True:
            live = await self._find_or_load(key, facts, attempt or 0, first, reader, root)
            if isinstance(live, StoredFile):
                return _receipt_for(live, facts, root)
            length = live.position if live.facts.filesize is None else live.facts.filesize
            if self.quotas is None or self.quotas.covers(key, length):
                break
            try:
                await self.quotas.reserve(key, length)
            except BaseException:
                live.rest()
                raise
        how = _how(live, attempt)
        try:
            live.enter(feed, facts, attempt)
        except BlockprotoError:
            live.leave(feed)
            raise
        self._observer.entered(live.stored, how)
        return live

    async def _find_or_load(
        self,
        key: UploadKey,
        facts: Facts,
        attempt: int,
        first: int,
        reader: bool,
        root: bytes | None,
    ) -> LiveUpload | StoredFile:
        live = await self._settled(key)
        if live is not None and live.outcome is not None and self._comparer is not None:
            self._detach(live)  # the store knows whether that is a receipt for these facts (BP1-COM-027)
            live = None
        if live is None:
            return await self._load(key, facts, attempt, first, reader, root)
        return live.outcome or live

    async def begin_brief(self, key: UploadKey, facts: Facts) -> Upload:
        """Begin an upload of one block that no other stream joins; call ``end_brief`` when its stream has ended.

        A file that is there already needs no room in the quota.

        Raises:
            QuotaExceeded: it does not fit its principal's quota.
        """
        assert facts.filesize is not None
        if self.quotas is None:
            return self.store.begin_brief(key, facts, 0)
        self.quotas.begin(key)
        try:
            try:
                await self.quotas.reserve(key, facts.filesize)
            except QuotaExceeded:
                if not await self.quotas.is_there(key):
                    raise
            return self.store.begin_brief(key, facts, 0)
        except BaseException:
            self.end_brief(key)
            raise

    def end_brief(self, key: UploadKey) -> None:
        """The stream of a ``begin_brief`` has ended: let go of what it reserved."""
        if self.quotas is not None:
            self.quotas.end(key)

    async def begin_files(self, files: Sequence[WholeFile]) -> Mapping[UploadKey, QuotaExceeded]:
        """Reserve room for whole files of one principal; those of which it has none are returned, with the reason.

        Call ``end_files`` with the others when they have their outcomes.
        """
        if self.quotas is None or not files or not self.quotas.holds(files[0].key.principal):
            return {}
        return await self.quotas.reserve_many([(file.key, file.length) for file in files])

    def end_files(self, files: Sequence[WholeFile], outcomes: Sequence[FileOutcome]) -> None:
        """End what ``begin_files`` began; an unfinished upload of one that is stored is complete (BP1-BLK-019)."""
        if self.quotas is not None and files and self.quotas.holds(files[0].key.principal):
            for file in files:
                self.end_brief(file.key)
        if not self._live:  # as good as always, and there are thousands of files in a second
            return
        for file, outcome in zip(files, outcomes, strict=True):
            live = self.find(file.key)
            if live is not None and isinstance(outcome, StoredFile):
                live.committed_as(outcome)

    async def discard(self, key: UploadKey) -> None:
        """Cancel and remove an upload, alive or not.

        Raises:
            UnknownUpload: there is none.
        """
        live = await self._settled(key)
        if live is not None:
            await live.discard(Cancelled("the upload was cancelled")).wait()
            if live.outcome is not None:
                raise UnknownUpload("it was committed meanwhile")
            return
        done = self._opening[key] = trio.Event()
        outcome = AwaitedOutcome()
        try:
            self.committer.submit(Discard(key), outcome, principal=key.principal)
            await outcome.wait()
        finally:
            del self._opening[key]
            done.set()

    async def _settled(self, key: UploadKey) -> LiveUpload | None:
        """The live upload of ``key``, once no other task is opening or discarding it."""
        while True:
            opening, live = self._opening.get(key), self._live.get(key)
            if opening is not None:
                await opening.wait()
            elif live is None or live.discarded is None:
                return live
            elif live.discarded.is_set():
                return None
            else:
                await live.discarded.wait()

    async def _load(
        self,
        key: UploadKey,
        facts: Facts,
        attempt: int,
        first: int,
        reader: bool = False,
        root: bytes | None = None,
    ) -> LiveUpload | StoredFile:
        ready = self._opening[key] = trio.Event()
        try:
            found = await run_in_thread(lambda: self._open_upload(key, facts, attempt, reader))
            if isinstance(found, StoredFile):
                return found
            there = await self._adopt(found, facts, root) if reader else None
            if there is not None:
                return there
            live = LiveUpload(found, self.committer, self.disk, self._retire, first, self.quotas)
            self._live[key] = self._by_id[found.file_id] = live
            return live
        finally:
            del self._opening[key]
            ready.set()

    def _open_upload(self, key: UploadKey, facts: Facts, attempt: int, reader: bool) -> Upload | StoredFile:
        """Open it in a thread; one whose file could not get its name is refused before a byte comes (BP1-COM-028)."""
        found = self.store.open_upload(key, facts, attempt, reader)
        if not isinstance(found, StoredFile):
            try:
                self.store.check_parent(found.facts.filename)
            except BaseException:
                found.close()
                raise
        return found

    async def _adopt(self, found: Upload, facts: Facts, root: bytes | None) -> StoredFile | None:
        """What answers OPEN because the file is there already; then, and when that is refused, the upload is let go."""
        if self._comparer is None or root is None or facts.filesize is None:
            return None
        try:
            there = await self._comparer.adopt(found.key, facts, root)
        except BaseException:
            found.close()
            raise
        if there is not None:
            found.close()
        return there

    def _detach(self, live: LiveUpload) -> None:
        """Forget an upload that is over: the next request for its key begins anew."""
        if self._live.get(live.stored.key) is live:
            del self._live[live.stored.key]
            self._by_id.pop(live.stored.file_id, None)

    def _retire(self, live: LiveUpload) -> None:
        self._detach(live)
        live.stored.close()


def _how(live: LiveUpload, attempt: int | None) -> Entered:
    """How a stream with ``attempt`` comes to an upload."""
    if live.feeds:
        return "joined" if attempt == live.attempt else "taken over"
    return "resumed" if live.attempt or live.held else "begun"


def _receipt_for(stored: StoredFile, facts: Facts, root: bytes | None) -> StoredFile:
    """The receipt that answers an OPEN with ``facts`` (BP1-RES-008); raises SourceChanged if it is of another file."""
    if stored.left:
        return stored
    if facts.filesize not in (None, stored.filesize):
        raise SourceChanged("this sourceid was committed with another size: use a new sourceid")
    if root not in (None, stored.root):
        raise SourceChanged("this sourceid was committed with other bytes: use a new sourceid")
    return stored
