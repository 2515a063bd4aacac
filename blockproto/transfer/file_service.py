"""FileService: what one principal may do with the files of an engine, in any protocol.

    FileService(engine, realm) → reader() → FileReader: look, list, read, follow
                               → writer() → FileWriter: upload, cancel, remove, receipts

Rights, quota, the realm's folder and its cursors are decided here and nowhere else. Arguments are names in the realm;
``FileEntry``, ``StoredFile`` and ``UploadEntry`` have the store's names, which ``shown`` translates.

Spec: BP1-PRN, BP1-DIA-020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import trio

from ..common.names import SafeName
from ..connection.unexpected_errors import unexpected
from ..errors import BadFacts, UnknownFile
from ..identity.realm import Realm
from ..store import (
    FOLDER_FILETYPE,
    Facts,
    FileEntry,
    FileOutcome,
    Finish,
    IfExists,
    LeftOut,
    Outcome,
    Remove,
    StoredFile,
    StoredReader,
    StoreFiles,
    Upload,
    UploadEntry,
    UploadKey,
    WholeFile,
)
from ..wire import ZERO_ID, Scopes
from .committer import commit_and_wait
from .engine import FileEngine
from .frame_memory import FrameMemory
from .live_upload import Feed, LiveUpload
from .slow_disk import Disk
from .threads import run_in_thread


@dataclass(frozen=True, slots=True)
class FilePage:
    """A page of a list of files.

    Attributes:
        entries: the files and folders.
        cursor: where the next page begins; empty: there is none.
        left_out: the entries that cannot be listed.
    """

    entries: Sequence[FileEntry]
    cursor: str
    left_out: LeftOut


class FileService:
    """Serve the files of an engine to one principal, and hold it to its quota.

    Args:
        engine: where the files are.
        realm: of the principal.
    """

    __slots__ = ("_reader", "_writer", "realm")

    def __init__(self, engine: FileEngine, realm: Realm) -> None:
        engine.hold(realm)
        self.realm = realm
        self._reader = FileReader(engine, realm)
        self._writer = FileWriter(engine, realm)

    def reader(self) -> FileReader:
        """What the principal may do that changes nothing. Raises Forbidden."""
        self.realm.demand(Scopes.READ)
        return self._reader

    def writer(self) -> FileWriter:
        """What the principal may do that changes something. Raises Forbidden."""
        self.realm.demand(Scopes.WRITE)
        return self._writer


class FileReader:
    """Read the files of a realm; get it from ``FileService.reader``."""

    __slots__ = ("_engine", "realm")

    def __init__(self, engine: FileEngine, realm: Realm) -> None:
        self._engine = engine
        self.realm = realm

    @property
    def disk(self) -> Disk:
        """Decides whether reads leave the Trio thread."""
        return self._engine.disk

    def shown(self, stored_name: str) -> str:
        """The name in the realm for a name of the store."""
        return self.realm.outward(stored_name)

    async def stat(self, filename: str, *, b3sum: bool = False) -> FileEntry:
        """Describe a file or folder.

        Args:
            filename: its name.
            b3sum: compute the BLAKE3 of a file if it is not known yet.

        Raises:
            NameRefused, UnknownFile, NotPermitted: there is none, or it cannot be read.
            SourceChanged: the file changed while it was being read.

        Cancellation: other tasks that wait for the BLAKE3 of the same file go on.
        """
        name = self.realm.inward(filename)
        entry = await run_in_thread(lambda: self._engine.store.stat(name))
        if b3sum and entry.b3sum is None and not entry.folder:
            digest = await self._engine.hashing.b3sum(name, entry.version, self.realm.principal)
            return replace(entry, b3sum=digest)
        return entry

    def page(self, folder: str, cursor: str, limit: int, *, recursive: bool) -> FilePage:
        """List a folder; blocking.

        Args:
            folder: its name; empty: the whole realm.
            cursor: where to begin; empty: at the beginning.
            limit: the most entries.
            recursive: list what is in its folders, too.

        Raises:
            NameRefused, UnknownFile, NotPermitted: there is no such folder, or it cannot be read.
        """
        realm, left_out = self.realm, LeftOut()
        top = "" if realm.folder is None else realm.folder.text
        within = realm.inward(folder).text if folder else top
        after = realm.cursor_inward(cursor)
        try:
            entries, following = self._engine.store.files(within, recursive, after, limit, left_out)
        except UnknownFile:
            if folder:
                raise
            return FilePage((), "", LeftOut())  # the realm's folder is made with the first file in it
        return FilePage(entries, realm.cursor_outward(following), left_out)

    async def open(self, filename: str, file_id: bytes = ZERO_ID) -> StoredReader:
        """Open a file by its id, or by its name if the id is zeros; the caller closes it.

        Raises:
            NameRefused, NotPermitted: it cannot be read.
            UnknownFile: it is not there, or not in the realm; the error does not tell which (BP1-PRN-003).
        """
        return await run_in_thread(lambda: _open_file(self._engine, self.realm, filename, file_id))

    def open_now(self, filename: str) -> StoredReader:
        """As ``open`` by name; blocking."""
        return _open_file(self._engine, self.realm, filename, ZERO_ID)

    def open_committed(self, file_id: bytes) -> StoredReader:
        """Open the file that a followed upload became; blocking. Raises UnknownFile."""
        return self._engine.store.open_file(None, file_id)

    async def unfinished(self, file_id: bytes) -> LiveUpload | None:
        """The principal's own unfinished upload with that file id, or None.

        Follow it or let it ``rest`` before the next checkpoint.
        """
        if file_id == ZERO_ID:
            return None
        principal, uploads = self.realm.principal, self._engine.uploads
        live = uploads.find_by_id(principal, file_id)
        if live is None:
            entry = await run_in_thread(lambda: self._engine.store.upload_of(principal, file_id))
            if entry is None:
                return None
            facts = Facts(entry.filename, entry.filetype, entry.filesize)
            live = await uploads.wake(entry.key, facts)
        return live

    def expiry_now_ms(self) -> int:
        """The time by which uploads expire (ms); blocking."""
        return self._engine.store.expiry_now_ms()


class FileWriter:
    """Change the files of a realm; get it from ``FileService.writer``."""

    __slots__ = ("_engine", "realm")

    def __init__(self, engine: FileEngine, realm: Realm) -> None:
        self._engine = engine
        self.realm = realm

    @property
    def disk(self) -> Disk:
        """Decides whether reads and writes leave the Trio thread."""
        return self._engine.disk

    @property
    def incarnation(self) -> int:
        """The incarnation of the store (BP1-RES)."""
        return self._engine.incarnation

    @property
    def may_read(self) -> bool:
        """Whether the principal may be told that a file is there already (BP1-COM-021, BP1-PRN-010)."""
        return Scopes.READ in self.realm.scopes

    @property
    def has_quota(self) -> bool:
        """Whether it has to be looked what the principal has before it may have more (BP1-PRN-005)."""
        return self.realm.quota is not None

    @property
    def frame_memory(self) -> FrameMemory:
        """What the server holds of whole files, whoever sends them."""
        return self._engine.frame_memory

    def shown(self, stored_name: str) -> str:
        """A name of the store as the realm says it."""
        return self.realm.outward(stored_name)

    # ---- uploads ----------------------------------------------------------------------------------------------

    async def open(
        self, sourceid: bytes, facts: Facts, attempt: int | None, feed: Feed, root: bytes | None = None
    ) -> LiveUpload | StoredFile:
        """Begin, resume, join or take over an upload; or return the receipt if its file is here already.

        Args:
            sourceid: which upload (16 bytes).
            facts: the facts that its sender states, with the name in the realm.
            attempt: of the sender; None: take the upload over in any case.
            feed: the stream that sends it.
            root: the root that its sender states, or None.

        Raises:
            NameRefused, BadFacts: the file cannot be taken under that name.
            Superseded, SourceChanged: a greater attempt has it, or it was begun with other facts.
            FileExists, NotPermitted, StoreFull, QuotaExceeded, HookRefused: it is refused.
        """
        inside = self._inside(facts)
        return await self._engine.uploads.open(
            self._key(sourceid), inside, attempt, feed, 0, self.may_read, root
        )

    async def wake(self, sourceid: bytes, facts: Facts) -> LiveUpload | None:
        """Find an unfinished upload; None if it was committed. Use it or let it ``rest`` before the next checkpoint.

        Raises: as ``open``.
        """
        return await self._engine.uploads.wake(self._key(sourceid), self._inside(facts))

    async def begin_brief(self, sourceid: bytes, facts: Facts) -> Upload:
        """Begin a file of at most one block, which no other stream joins; ``end_brief`` has to follow.

        Raises:
            NameRefused, BadFacts: the file cannot be taken under that name.
            QuotaExceeded: it does not fit the quota.
        """
        return await self._engine.uploads.begin_brief(self._key(sourceid), self._inside(facts))

    def commit_brief(self, finish: Finish, done: Callable[[Outcome], None]) -> None:
        """Make a brief file durable; ``done`` is called with the outcome.

        Raises:
            StoreFailed: the store has failed.
        """
        self._engine.committer.submit(finish, done, principal=self.realm.principal, small=True)

    def withdraw_brief(self, upload: Upload) -> None:
        """Take back the commit of a brief file, if hooks are being asked about it: its outcome is then Cancelled."""
        self._engine.committer.withdraw(upload)

    def tell_stored(self, sourceid: bytes, stored: StoredFile) -> None:
        """Tell an upload with the same sourceid, if there is one, that its file has come without OPEN."""
        live = self._engine.uploads.find(self._key(sourceid))
        if live is not None:
            live.committed_as(stored)

    def end_brief(self, sourceid: bytes) -> None:
        """Release what ``begin_brief`` reserved."""
        self._engine.uploads.end_brief(self._key(sourceid))

    async def store_files(
        self,
        files: Sequence[WholeFile],
        done: Callable[[Sequence[FileOutcome]], None],
        written: Callable[[], None],
    ) -> None:
        """Store whole files that came together; ``done`` is called when it is known, durably, what became of each.

        Args:
            files: with names as the store knows them; their bytes were verified.
            done: called on the Trio thread, now or later, with an outcome for each; QuotaExceeded of those that do not fit.
            written: called on the Trio thread, perhaps before, if the bytes of no file are needed any more.

        Raises:
            StoreFailed: the store has failed.

        Cancellation: nothing is stored, and ``done`` is not called.
        """
        uploads = self._engine.uploads
        exceeded = await uploads.begin_files(files)
        fitting = tuple(file for file in files if file.key not in exceeded) if exceeded else tuple(files)

        def stored(outcomes: Outcome) -> None:
            assert isinstance(outcomes, tuple)  # what StoreFiles has
            uploads.end_files(fitting, outcomes)
            found = iter(outcomes)
            done([exceeded.get(file.key) or next(found) for file in files] if exceeded else outcomes)

        if not fitting:
            stored(())
            return
        committer = self._engine.committer
        asks = committer.hooks is not None and committer.hooks.asks
        soon = partial(trio.lowlevel.current_trio_token().run_sync_soon, _told, written)
        prepared = None if asks or exceeded else self._engine.store.prepare(fitting, soon)
        work = StoreFiles(self.realm.principal, fitting, self.may_read, prepared=prepared)
        try:
            committer.submit(work, stored, principal=self.realm.principal, small=True)
        except BaseException:
            for file in fitting:
                uploads.end_brief(file.key)
            raise

    def withdraw_file(self, file: WholeFile) -> None:
        """Take back a file of ``store_files`` if it waits for hooks; its outcome is Cancelled then, as for the others."""
        self._engine.committer.withdraw(file)

    async def cancel(self, sourceid: bytes) -> None:
        """Remove an unfinished upload. Raises UnknownUpload. Cancellation: it is removed all the same."""
        await self._engine.uploads.discard(self._key(sourceid))
        self._engine.quotas.changed(self.realm)

    def count_as_one(self, sourceid: bytes, other: bytes) -> None:
        """Count two uploads once in the quota: only one of them can become a file."""
        self._engine.quotas.count_as_one(self._key(sourceid), self._key(other))

    def count_apart(self, other: bytes) -> None:
        """Undo ``count_as_one``. Harmless when repeated."""
        self._engine.quotas.count_apart(self._key(other))

    # ---- files ------------------------------------------------------------------------------------------------

    async def remove(self, filename: str, file_id: bytes = ZERO_ID, *, recursive: bool = False) -> None:
        """Remove a file or folder by its id, or by its name if the id is zeros.

        Raises:
            NameRefused, NotPermitted: it cannot be removed.
            UnknownFile: it is not there, or not in the realm.

        Cancellation: it is removed all the same, once this has begun.
        """
        name, id_ = await run_in_thread(lambda: self._target(filename, file_id))
        await commit_and_wait(self._engine.committer, Remove(name, id_, recursive), self.realm.principal)
        self._engine.quotas.changed(self.realm)

    def receipts(self, sourceids: Iterable[bytes], rule: IfExists | None = None) -> list[StoredFile]:
        """The receipts of the principal's uploads among ``sourceids``, in their order; blocking."""
        return self._engine.store.receipts(self.realm.principal, sourceids, rule)

    def unfinished(self, cursor: str, limit: int) -> tuple[Sequence[UploadEntry], str]:
        """A page of the principal's unfinished uploads, and the cursor of the next one; blocking."""
        return self._engine.store.uploads(self.realm.principal, cursor, limit)

    def open_receipt(self, stored: StoredFile) -> StoredReader:
        """Open a file that this principal committed; blocking. Raises UnknownFile."""
        return self._engine.store.open_file(None, stored.file_id)

    # ---- names and ids ----------------------------------------------------------------------------------------

    def _key(self, sourceid: bytes) -> UploadKey:
        return UploadKey(self.realm.principal, sourceid)

    def _inside(self, facts: Facts) -> Facts:
        """The facts with the store's name. Raises NameRefused, BadFacts."""
        name = self.realm.inside(facts.filename)
        if facts.filetype == FOLDER_FILETYPE and facts.filesize != 0:
            raise BadFacts("a folder has no bytes: its filesize is 0")
        return facts if name is facts.filename else replace(facts, filename=name)

    def _target(self, filename: str, file_id: bytes) -> tuple[SafeName | None, bytes | None]:
        """The name or id to remove. Raises UnknownFile for the id of a file outside the realm (BP1-PRN-003)."""
        if file_id == ZERO_ID:
            return self.realm.inward(filename), None
        if self.realm.folder is None:
            return None, file_id
        reader = _open_file(self._engine, self.realm, "", file_id)
        reader.close()
        return reader.entry.filename, None


def _open_file(engine: FileEngine, realm: Realm, filename: str, file_id: bytes) -> StoredReader:
    if file_id == ZERO_ID:
        return engine.store.open_file(realm.inward(filename), None)
    return engine.store.open_file(None, file_id, realm.folder)


def _told(tell: Callable[[], None]) -> None:
    """Call ``tell`` where an error would end everything."""
    try:
        tell()
    except Exception as exc:
        unexpected("what waits for the memory of small files", exc)
