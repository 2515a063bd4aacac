"""The client: connects, uploads, downloads, asks; comes back by itself when the connection breaks.

    async with blockproto.connect("bp://host:7878") as client:
        receipt = await client.upload("film.mp4")

A connection is made when it is first needed and made again when it is gone. An upload that loses its connections takes
over with a greater attempt and goes on where the server says it stands; ``TRIES_MAX`` times without any progress, then
``ConnectionLost`` says how to resume.

Spec: BP1-RES, BP1-FET, BP1-LST; sending and receiving are in ``transfer``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import trio

from .blocks import BLOCK_LENGTH, BlockSet, blocknum_of
from .bulk import Bulk, if_exists_of, send_brief
from .downloads import BulkDownload, download_jobs, give_up
from .errors import (
    BadFacts,
    BlockprotoError,
    Cancelled,
    Code,
    ConnectionLost,
    GoingAway,
    SourceChanged,
    UnexpectedMessage,
)
from .link.connection import Connection, error_of
from .link.endpoint import Endpoint, endpoint_of
from .mailbox import Mailbox
from .names import SafeName
from .protocol.session import Limits, Session, Side
from .results import DownloadJob, FileInfo, Receipt, UploadInfo, UploadJob, file_info, file_item, upload_info
from .sourceid import Attempts, derive_sourceid, installation_secret
from .sources import FileSource, StreamSource, filetype_of, reader_of
from .store import DownloadStore, Facts, IfExists, StoredFile, UploadKey, UploadStore
from .tasks import background_tasks
from .transfer.committing import Committer, Disk, run_in_thread
from .transfer.receiving import FetchIncoming
from .transfer.sending import Lane, OnProgress, Progress, Sending
from .transfer.uploads import Uploads
from .wire import (
    Committed,
    Error,
    Fetch,
    FileItem,
    List,
    ListKind,
    Message,
    Open,
    ReceiptItem,
    Remove,
    RemoveKind,
    Result,
    UploadItem,
    runs_max,
)

PORT_DEFAULT = 7878
PING_EVERY_S = 15.0
CONNECT_S = 10.0
DISCARD_S = 2.0
"""How long a failed upload that nobody can go on with waits for the server to remove what it has of it."""
TRIES_MAX = 5
RETRY_FIRST_S = 0.2
RETRY_MOST_S = 5.0
BRIEF_LENGTH_MAX = 64 * 1024
"""A single file up to this size is sent without asking first: one round trip."""
RECEIPTS_MAX = 2000
_OTHER_SIDE = bytes(16)
_COMING_BACK = {Code.BUSY, Code.BAD_CHECK, Code.TIMEOUT}
"""Errors after which the same request can succeed, perhaps on a new connection."""

Dial = Callable[[], Awaitable[Endpoint]]
OpenSidecar = Callable[[Path, int], UploadStore]
OpenDownloads = Callable[[], DownloadStore]
Answer = TypeVar("Answer", bound=Message)


class Client:
    """A client of one server; made by ``connect``.

    Args:
        dial: makes a byte stream to the server.
        server: what the server is called, part of what a sourceid is derived from.
        nursery: where connections live.
        open_sidecar: opens the download store for a path and the position where its bytes begin.
        connections: over how many connections a big file is sent.
        tries: how often in a row to come back without any progress.
        open_downloads: opens the store for many small downloads; None: each is downloaded like a big one.
    """

    def __init__(
        self,
        dial: Dial,
        server: str,
        nursery: trio.Nursery,
        open_sidecar: OpenSidecar,
        *,
        connections: int = 1,
        tries: int = TRIES_MAX,
        open_downloads: OpenDownloads | None = None,
    ) -> None:
        self._open_downloads = open_downloads
        self._dial = dial
        self._server = server
        self._nursery = nursery
        self._open_sidecar = open_sidecar
        self._connections: list[Connection | None] = [None] * connections
        self._dialling = [trio.Lock() for _ in range(connections)]
        self._tries = tries
        self._attempts = Attempts()
        self._reached = False
        self._secret: bytes | None = None
        self._real_folders: dict[str, str] = {}

    # ---- uploads ----------------------------------------------------------------------------------------------

    async def upload(
        self,
        source: str | os.PathLike[str] | Any,
        *,
        name: str | None = None,
        folder: str = "",
        if_exists: str = "keep",
        filetype: str | None = None,
        progress: OnProgress | None = None,
    ) -> Receipt:
        """Upload one file; the same call again resumes, or answers at once if the file is there.

        Args:
            source: a path; or an open binary file or Trio stream whose end is not known (needs ``name``).
            name: what it is called on the server; None takes the path's last component.
            folder: the folder on the server, "" for the served one.
            if_exists: ``keep`` both, ``refuse``, or ``replace`` when the name is taken by other content.
            filetype: MIME type; None guesses from the name.
            progress: called with a ``Progress`` after each change.

        Raises:
            OSError: the file cannot be read.
            ConnectionLost: unreachable, or lost after retries; call again to resume.
            BlockprotoError: refused; its ``code`` says why.

        Cancellation: the server keeps what it has; the same call resumes (a stream that was read cannot be).
        """
        policy = if_exists_of(if_exists)
        if not isinstance(source, str | os.PathLike):
            if name is None:
                raise ValueError("a stream has no name of its own: give one")
            return await self._upload_stream(source, _joined(folder, name), policy, filetype, progress)
        path = Path(source)
        target = _joined(folder, name or path.name)
        opened = FileSource(path, target, policy, filetype)
        try:
            sourceid = self.sourceid_of(path, target, opened.stat)
            if opened.stat.st_size <= BRIEF_LENGTH_MAX:
                return await self._upload_brief(opened, sourceid, progress)
            return await self.upload_source(opened, sourceid, progress)
        finally:
            opened.close()

    async def upload_all(
        self, jobs: Iterable[UploadJob], *, progress: OnProgress | None = None
    ) -> AsyncGenerator[tuple[UploadJob, Receipt | BlockprotoError], None]:
        """Upload many files and folders; yields each with its receipt, or with why it failed, as they end.

        Files of at most one block are pipelined. One that fails does not stop the others; after a lost connection the
        rest is tried again, and what stays lost is yielded with its ``ConnectionLost``.

        Cancellation: as for ``upload``.
        """
        ended: Mailbox[tuple[UploadJob, Receipt | BlockprotoError]] = Mailbox()
        scope = trio.CancelScope()
        self._nursery.start_soon(self._run_bulk, jobs, ended, progress, scope)
        try:
            while some := await ended.take():
                for one in some:
                    yield one
        finally:
            scope.cancel()

    async def upload_source(
        self, source: FileSource | StreamSource, sourceid: bytes, progress: OnProgress | None
    ) -> Receipt:
        """Upload with OPEN and resume, coming back after a lost connection; see ``upload``."""
        sending = Sending(source, sourceid, on_progress=progress)
        begun = time.perf_counter()
        used = 1
        tries = 0
        while True:
            before = sending.reached
            try:
                used = await self._upload_once(sending)
                return _upload_receipt(sending, used, time.perf_counter() - begun)
            except BlockprotoError as exc:
                if isinstance(exc, SourceChanged) and await self._look_again(source, sourceid):
                    sending = _read_anew(sending, progress)
                    continue
                tries = 0 if sending.reached > before else tries
                tries = await self._wait_to_retry(exc, tries)

    async def _look_again(self, source: FileSource | StreamSource, sourceid: bytes) -> bool:
        """Whether a file that seemed to change is the same by size and time, so that reading it again can settle it.

        What was sent of one that is another by now is removed: no later call would go on with it.
        """
        if not isinstance(source, FileSource):
            return False
        if source.is_another():
            await self._discard(sourceid)
            return False
        return source.look_again()

    async def cancel_upload(self, sourceid: str) -> None:
        """Remove an unfinished upload and its bytes from the server.

        Raises:
            UnknownUpload: there is none of that sourceid.
            ValueError: ``sourceid`` is not 32 hex digits.
        """
        await self._ask(Remove(kind=RemoveKind.UPLOAD, id=_id_from_hex(sourceid)))

    async def _upload_once(self, sending: Sending) -> int:
        """One attempt over all connections; returns how many took part."""
        wanted = len(self._connections)
        if sending.source.end is not None:
            wanted = max(1, min(wanted, blocknum_of(sending.source.end)))
        elif sending.source.window_bytes is not None:
            wanted = 1
        message = _open_message(sending, self._attempts.next())
        lanes: list[Lane] = []
        sending.begin_again()
        try:
            for index in range(wanted):
                lane = Lane(await self.connection(index), sending)
                lanes.append(lane)
                await lane.open(message)
                if sending.committed is not None:
                    sending.check_committed(sending.committed)
                    return index + 1
            await sending.run(lanes)
            return wanted
        finally:
            if sending.committed is None:
                for lane in lanes:
                    lane.release()

    async def _upload_brief(
        self, source: FileSource, sourceid: bytes, progress: OnProgress | None
    ) -> Receipt:
        size = source.stat.st_size
        memory = memoryview(bytearray(size))
        content = bytes(await source.read_block(0, memory)) if size else b""
        if not source.unchanged():
            raise SourceChanged(f"{source.path} changed while it was being read")
        begun = time.perf_counter()
        committed = await self._retrying(partial(self._send_brief, sourceid, source.facts, content))
        state = Progress(source.facts.filename.text, size, size, size)
        if progress is not None:
            progress(state)
        return _receipt(source.facts, committed, blocknum_of(size), 0, size, 1, time.perf_counter() - begun)

    async def _send_brief(self, sourceid: bytes, facts: Facts, content: bytes) -> Committed:
        ended: list[Committed | BlockprotoError] = []
        heard = trio.Event()

        def done(outcome: Committed | BlockprotoError) -> None:
            ended.append(outcome)
            heard.set()

        await send_brief(await self.connection(), sourceid, facts, content, done)
        await heard.wait()
        if isinstance(ended[0], BlockprotoError):
            raise ended[0]
        return ended[0]

    async def _upload_stream(
        self, source: Any, name: str, if_exists: IfExists, filetype: str | None, progress: OnProgress | None
    ) -> Receipt:
        facts = Facts(SafeName.parse(name), filetype or filetype_of(name), None, None, None, if_exists)
        opened = StreamSource(reader_of(source), facts)
        sourceid = os.urandom(16)
        receipt: Receipt | None = None
        try:
            receipt = await self.upload_source(opened, sourceid, progress)
            return receipt
        finally:  # whatever ended it: a cancelled nursery raises a group, not trio.Cancelled
            opened.close()
            if receipt is None:
                await self._discard(sourceid)

    async def _discard(self, sourceid: bytes) -> None:
        """Remove what was sent of something that nobody can go on with, as far as the server can be told."""
        with trio.move_on_after(DISCARD_S, shield=True), suppress(BlockprotoError):
            await self._ask_once(Remove(kind=RemoveKind.UPLOAD, id=sourceid))

    async def _run_bulk(
        self,
        jobs: Iterable[UploadJob],
        ended: Mailbox[tuple[UploadJob, Receipt | BlockprotoError]],
        progress: OnProgress | None,
        scope: trio.CancelScope,
    ) -> None:
        tries = 0

        def deliver(job: UploadJob, outcome: Receipt | BlockprotoError) -> None:
            nonlocal tries
            tries = 0
            ended.put((job, outcome))

        try:
            with scope:
                while jobs:
                    bulk = Bulk(self, deliver, progress)
                    jobs = await bulk.run(jobs, ended.emptied)
                    if jobs:
                        tries = await self._wait_to_retry(bulk.lost or ConnectionLost(), tries)
        except BlockprotoError as exc:
            for job in jobs:
                ended.put((job, exc))
        finally:
            ended.close()

    # ---- downloads --------------------------------------------------------------------------------------------

    async def download(
        self,
        name: str,
        dest: str | os.PathLike[str],
        *,
        span: tuple[int, int] | None = None,
        progress: OnProgress | None = None,
    ) -> Receipt:
        """Download one file; the same call again resumes. ``dest`` gets its name only when it is complete and verified.

        Args:
            name: of the file on the server.
            dest: the file here; one that is there is replaced at the end.
            span: only the bytes from the first to the last of these positions, both included.
            progress: as for ``upload``.

        Raises:
            UnknownFile: there is no such file.
            BadFacts: ``span`` begins past its end.
            ConnectionLost, OSError, BlockprotoError: as for ``upload``.

        Cancellation: what was received is kept beside ``dest``; the same call resumes.
        """
        return await self._download(name, Path(dest), span, progress, None)

    async def download_all(
        self,
        jobs: Iterable[tuple[FileInfo, Path]] | AsyncIterable[tuple[FileInfo, Path]],
        *,
        progress: OnProgress | None = None,
    ) -> AsyncGenerator[tuple[DownloadJob, Receipt | BlockprotoError], None]:
        """Download many files; yields each with its receipt, or with why it failed, as they end.

        Files of at most one block are pipelined. One that fails does not stop the others; after a lost connection the
        rest is tried again, and what stays lost is yielded with its ``ConnectionLost``.

        Args:
            jobs: files as the listing gave them, and where each goes; folders must be there. A file that changed since
                it was listed fails with ``SourceChanged``. What ``jobs`` raises comes out of here.
            progress: as for ``download``.

        Cancellation: as for ``download``, but of files of at most one block nothing is kept.
        """
        ended: Mailbox[tuple[DownloadJob, Receipt | BlockprotoError]] = Mailbox()
        scope = trio.CancelScope()
        failed: list[Exception] = []
        over = trio.Event()
        taken = download_jobs(jobs, failed)
        self._nursery.start_soon(self._run_downloads, taken, ended, progress, scope, over)
        try:
            while some := await ended.take():
                for one in some:
                    yield one
            if failed:
                raise failed[0]
        finally:
            scope.cancel()
            with trio.CancelScope(shield=True):
                await over.wait()

    async def download_known(self, entry: FileInfo, dest: Path, progress: OnProgress | None) -> Receipt:
        """``download`` without asking what the file is: its version must still be that of ``entry``."""
        return await self._download(entry.filename, dest, None, progress, file_item(entry))

    async def _run_downloads(
        self,
        jobs: AsyncGenerator[DownloadJob, None],
        ended: Mailbox[tuple[DownloadJob, Receipt | BlockprotoError]],
        progress: OnProgress | None,
        scope: trio.CancelScope,
        over: trio.Event,
    ) -> None:
        store = None if self._open_downloads is None else self._open_downloads()
        tries = 0

        def deliver(job: DownloadJob, outcome: Receipt | BlockprotoError) -> None:
            nonlocal tries
            tries = 0
            ended.put((job, outcome))

        left: Sequence[DownloadJob] | None = ()
        try:
            with scope:
                async with aclosing(jobs):
                    while left is not None:
                        bulk = BulkDownload(self, store, deliver, progress)
                        left = await bulk.run(left, jobs, ended.emptied)
                        if bulk.lost is not None and left is not None:
                            try:
                                tries = await self._wait_to_retry(bulk.lost, tries)
                            except BlockprotoError as exc:
                                await give_up(left, jobs, exc, deliver, ended.emptied)
                                left = None
        finally:
            if store is not None:
                store.close()
            ended.close()
            over.set()

    async def _download(
        self,
        name: str,
        dest: Path,
        span: tuple[int, int] | None,
        progress: OnProgress | None,
        known: FileItem | None,
    ) -> Receipt:
        """``download``; ``known``: what it is, if that need not be asked."""
        tries = 0
        reached: list[int] = []
        while True:
            best = max(reached, default=-1)
            try:
                return await self._download_once(name, dest, span, progress, reached, known)
            except BlockprotoError as exc:
                tries = 0 if max(reached, default=-1) > best else tries
                tries = await self._wait_to_retry(exc, tries)

    async def _download_once(
        self,
        name: str,
        dest: Path,
        span: tuple[int, int] | None,
        progress: OnProgress | None,
        reached: list[int],
        known: FileItem | None,
    ) -> Receipt:
        """One attempt; ``reached`` gets the bytes that were here when it asked."""
        entry = known or await self._stat_item(name, b3sum=False)
        first, end = _clip(entry, span)
        filename = dest.name
        facts = Facts(
            SafeName.parse(filename), entry.filetype, end, entry.mtime_ns, entry.mode, IfExists.REPLACE
        )
        begun = time.perf_counter()
        store = await run_in_thread(lambda: self._open_sidecar(dest, first))
        try:
            async with background_tasks() as nursery:
                committer = Committer(store)
                committing = trio.CancelScope(shield=True)
                nursery.start_soon(_commit_within, committing, committer)
                uploads = Uploads(store, committer, Disk())
                try:
                    connection = await self.connection()
                    fetching = _Fetching(connection, uploads, entry, first, end, progress, reached)
                    return await fetching.run(facts, dest, begun, self._attempts.next())
                finally:
                    committing.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await run_in_thread(store.close)

    # ---- questions --------------------------------------------------------------------------------------------

    async def listing(self, folder: str = "", *, recursive: bool = False) -> AsyncGenerator[FileInfo, None]:
        """The entries of a folder on the server, in byte order of their names; with ``recursive`` all below it.

        Raises:
            UnknownFile: there is no such folder.
            ConnectionLost: see ``upload``.
        """
        cursor = ""
        while True:
            page = await self._ask(
                List(kind=ListKind.FILES, name=folder.strip("/"), cursor=cursor, recursive=recursive)
            )
            for item in page.items:
                assert isinstance(item, FileItem)
                yield file_info(item)
            cursor = page.cursor
            if not cursor:
                return

    async def stat(self, name: str, *, b3sum: bool = False) -> FileInfo:
        """One file or folder; with ``b3sum`` the server computes the file's BLAKE3 if it does not know it yet.

        Raises:
            UnknownFile: there is none of that name.
        """
        return file_info(await self._stat_item(name, b3sum=b3sum))

    async def uploads(self) -> AsyncGenerator[UploadInfo, None]:
        """The unfinished uploads on the server."""
        cursor = ""
        while True:
            page = await self._ask(List(kind=ListKind.UPLOADS, cursor=cursor))
            for item in page.items:
                assert isinstance(item, UploadItem)
                yield upload_info(item)
            cursor = page.cursor
            if not cursor:
                return

    async def remove(self, name: str, *, recursive: bool = False) -> None:
        """Remove a file or folder from the server.

        Raises:
            UnknownFile: there is none of that name.
            NotEmpty: a folder with something in it, without ``recursive``.
        """
        await self._ask(Remove(kind=RemoveKind.FILE, filename=name.strip("/"), recursive=recursive))

    async def receipts(self, sourceids: Sequence[bytes]) -> dict[bytes, ReceiptItem]:
        """Which of these uploads are committed, and still what was committed."""
        found: dict[bytes, ReceiptItem] = {}
        connection = await self.connection()
        most = min(RECEIPTS_MAX, (connection.session.head_length_max - 64) // 16)
        for at in range(0, len(sourceids), most):
            ids = tuple(sourceids[at : at + most])
            cursor: str | None = ""
            while cursor is not None:
                page = await self._ask_once(List(kind=ListKind.RECEIPTS, cursor=cursor, limit=most, ids=ids))
                found.update((item.sourceid, item) for item in page.items if isinstance(item, ReceiptItem))
                cursor = page.cursor or None
        return found

    def sourceid_of(self, path: Path, name: str, facts: os.stat_result) -> bytes:
        """The sourceid of the file at ``path`` when it is sent as ``name``."""
        if self._secret is None:
            self._secret = installation_secret()
        folder, base = os.path.split(path)
        if folder not in self._real_folders:
            self._real_folders = {folder: os.path.realpath(folder)}
        return derive_sourceid(
            self._secret, self._server, name, f"{self._real_folders[folder]}/{base}", facts
        )

    async def _stat_item(self, name: str, *, b3sum: bool) -> FileItem:
        page = await self._ask(List(kind=ListKind.FILES, name=name.strip("/"), exact=True, b3sum=b3sum))
        item = page.items[0]
        assert isinstance(item, FileItem)
        return item

    async def _ask(self, message: List | Remove) -> Result:
        return await self._retrying(partial(self._ask_once, message))

    async def _ask_once(self, message: List | Remove) -> Result:
        question = _Question(await self.connection(), message)
        return await question.answer()

    # ---- connections ------------------------------------------------------------------------------------------

    async def connection(self, index: int = 0) -> Connection:
        """A live connection, made now if there is none.

        Raises:
            ConnectionLost: the server cannot be reached.
        """
        async with self._dialling[index]:
            current = self._connections[index]
            if current is not None and current.lost is None and current.going_away is None:
                return current
            if current is not None:
                current.close(GoingAway())
            endpoint = await self._dial()
            self._reached = True
            connection = Connection(
                endpoint, Session(Side.CLIENT, Limits(agent="blockproto")), ping_every_s=PING_EVERY_S
            )
            self._nursery.start_soon(connection.run)
            self._connections[index] = connection
            return connection

    async def _retrying(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        tries = 0
        while True:
            try:
                return await request()
            except BlockprotoError as exc:
                tries = await self._wait_to_retry(exc, tries)

    async def _wait_to_retry(self, error: BlockprotoError, tries: int) -> int:
        """Wait a little longer each time; raises ``error`` when waiting cannot help or was tried often enough.

        A server that was never reached is not waited for: the address is wrong more often than the server is late.
        """
        comes_back = isinstance(error, ConnectionLost | GoingAway) or error.code in _COMING_BACK
        if not comes_back or not error.retryable or tries + 1 >= self._tries or not self._reached:
            raise error
        pause_s = min(RETRY_MOST_S, RETRY_FIRST_S * 2**tries)
        await trio.sleep(max(pause_s, error.retry_after_ms / 1000))
        return tries + 1


class _Question:
    """One LIST or REMOVE and its answer."""

    def __init__(self, connection: Connection, message: List | Remove) -> None:
        self._answered = trio.Event()
        self._answer: Result | BlockprotoError | None = None
        stream = connection.open(self)
        connection.post(stream, message)

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.Sink."""
        if isinstance(message, Result):
            self._answer = message
        elif isinstance(message, Error):
            self._answer = error_of(message)
        self._answered.set()

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.Sink."""
        raise UnexpectedMessage("an answer has no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.Sink."""
        self._answer = self._answer or error
        self._answered.set()

    async def answer(self) -> Result:
        """Wait for the answer; raises it if it is an error."""
        await self._answered.wait()
        if isinstance(self._answer, BlockprotoError):
            raise self._answer
        assert self._answer is not None
        return self._answer


class _Fetching:
    """One download over one connection."""

    def __init__(
        self,
        connection: Connection,
        uploads: Uploads,
        entry: FileItem,
        first: int,
        end: int,
        progress: OnProgress | None,
        reached: list[int],
    ) -> None:
        self._reached = reached
        self._connection = connection
        self._uploads = uploads
        self._entry = entry
        self._first = first
        self._end = end
        self._on_progress = progress
        self._progress = Progress(entry.filename, end - first)
        self._done = trio.Event()
        self._outcome: StoredFile | BlockprotoError | None = None
        self._incoming = FetchIncoming(
            connection, uploads, _OTHER_SIDE, entry.version, self._on_done, self._on_durable
        )

    async def run(self, facts: Facts, dest: Path, begun: float, attempt: int) -> Receipt:
        """Fetch what is missing; returns when the file is complete."""
        key = UploadKey(_OTHER_SIDE, self._entry.version)
        incoming = self._incoming
        live = await self._uploads.open(key, facts, attempt, incoming, self._first)
        if isinstance(live, StoredFile):
            return self._receipt(live, dest, begun, BlockSet(), 0)
        held = live.held.copy()
        self._reached.append(
            len(held) * BLOCK_LENGTH + sum(prefix.length for prefix in live.prefixes.values())
        )
        try:
            incoming.fetch(live, self._fetch_message(live.held, live.prefixes))
            await self._done.wait()
        except BaseException as exc:
            self._stop(exc)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await self._uploads.committer.drain()
        # It is complete even if the connection broke before that could be said.
        outcome = live.outcome or self._outcome
        if isinstance(outcome, BlockprotoError):
            raise outcome
        assert outcome is not None
        return self._receipt(outcome, dest, begun, held, incoming.payload_bytes)

    def _fetch_message(self, held: BlockSet, prefixes: dict[int, Any]) -> Fetch:
        most = runs_max(self._connection.session.head_length_max) // 2
        return Fetch(
            filename=self._entry.filename,
            version=self._entry.version,
            first=self._first,
            length=self._end - self._first,
            held=tuple(held.runs(most)),
            prefixes=tuple((blockno, prefix.length) for blockno, prefix in sorted(prefixes.items())[:most]),
        )

    def _stop(self, error: BaseException) -> None:
        reason = error if isinstance(error, BlockprotoError) else Cancelled("the download was stopped")
        self._incoming.say_stopped(reason)

    def _on_done(self, outcome: StoredFile | BlockprotoError) -> None:
        self._outcome = self._outcome or outcome
        self._done.set()

    def _on_durable(self, position: int) -> None:
        if self._on_progress is not None:
            self._progress.position_bytes_done = position - self._first
            self._on_progress(self._progress)

    def _receipt(self, stored: StoredFile, dest: Path, begun: float, held: BlockSet, payload: int) -> Receipt:
        entry = self._entry
        blocknum = blocknum_of(self._end) - self._first // BLOCK_LENGTH
        whole = self._first == 0 and self._end == entry.filesize
        return Receipt(
            filename=entry.filename,
            filetype=entry.filetype,
            filesize=self._end - self._first,
            blocknum=blocknum,
            sourceid=entry.version.hex(),
            root=stored.root.hex(),
            b3sum=_b3sum_hex(stored.root, stored.b3sum or (entry.b3sum if whole else None), blocknum),
            stored_as=str(dest),
            resumed=len(held) > 0,
            blocks_sent=blocknum - len(held),
            blocks_skipped=len(held),
            payload_bytes_sent=payload,
            connections=1,
            elapsed_s=time.perf_counter() - begun,
        )


@asynccontextmanager
async def connect_with(
    dial: Dial,
    server: str,
    open_sidecar: OpenSidecar,
    *,
    connections: int = 1,
    tries: int = TRIES_MAX,
    open_downloads: OpenDownloads | None = None,
) -> AsyncIterator[Client]:
    """A client over any way to make byte streams; see ``Client``. ``connect`` is this over TCP."""
    async with background_tasks() as nursery:
        yield Client(
            dial,
            server,
            nursery,
            open_sidecar,
            connections=connections,
            tries=tries,
            open_downloads=open_downloads,
        )


def tcp_dial(url: str) -> tuple[Dial, str]:
    """How to reach ``url`` (``bp://HOST[:PORT]``), and what the server is called.

    Raises:
        ValueError: it is no such URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "bp" or not parts.hostname:
        raise ValueError(f"{url!r} is no address: write bp://HOST:PORT")
    host, port = parts.hostname, parts.port or PORT_DEFAULT
    server = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def dial() -> Endpoint:
        try:
            with trio.fail_after(CONNECT_S):
                return endpoint_of(await trio.open_tcp_stream(host, port))
        except trio.TooSlowError as exc:
            raise ConnectionLost(f"{server} did not answer within {CONNECT_S:.0f} s") from exc
        except OSError as exc:
            raise ConnectionLost(f"cannot reach {server}: {_reason(exc)}") from exc

    return dial, server


async def _commit_within(scope: trio.CancelScope, committer: Committer) -> None:
    """Commit until ``scope`` is cancelled: what a cancelled download still owes is recorded first."""
    with scope:
        await committer.run()


def _reason(error: OSError) -> str:
    """What to tell of a failed connect: Trio wraps what each address said."""
    causes = error.__cause__
    if isinstance(causes, BaseExceptionGroup):
        causes = causes.exceptions[0]
    if isinstance(causes, OSError) and causes.errno:
        return os.strerror(causes.errno)
    if isinstance(error, socket.gaierror):
        return f"no such host ({error.strerror})"
    return error.strerror or str(error)


def _joined(folder: str, name: str) -> str:
    folder = folder.strip("/")
    return f"{folder}/{name}" if folder else name


def _id_from_hex(text: str) -> bytes:
    raw = bytes.fromhex(text)
    if len(raw) != 16:
        raise ValueError(f"{text!r} is not a sourceid: it has 32 hex digits")
    return raw


def _clip(entry: FileItem, span: tuple[int, int] | None) -> tuple[int, int]:
    """The positions of the first byte wanted and after the last."""
    if span is None:
        return 0, entry.filesize
    first, last = span
    if first < 0 or last < first:
        raise BadFacts(f"bytes {first} to {last} are no range")
    if first >= entry.filesize:
        raise BadFacts(f"the range begins at {first}, {entry.filename} has {entry.filesize} bytes")
    return first, min(last + 1, entry.filesize)


def _open_message(sending: Sending, attempt: int) -> Open:
    facts = sending.source.facts
    return Open(
        sourceid=sending.sourceid,
        attempt=attempt,
        filesize=facts.filesize,
        blocknum=None if facts.filesize is None else blocknum_of(facts.filesize),
        filename=facts.filename.text,
        filetype=facts.filetype,
        priority=sending.priority,
        if_exists=facts.if_exists,
        mtime_ns=facts.mtime_ns,
        mode=facts.mode,
    )


def _read_anew(before: Sending, progress: OnProgress | None) -> Sending:
    """The same upload by a sender that has read nothing yet: it hashes what the receiver holds, and repairs it."""
    sending = Sending(before.source, before.sourceid, priority=before.priority, on_progress=progress)
    sending.progress, sending.blocks_sent = before.progress, before.blocks_sent
    sending.held_before = before.held_before
    return sending


def _upload_receipt(sending: Sending, connections: int, elapsed_s: float) -> Receipt:
    committed = sending.committed
    assert committed is not None
    blocknum = blocknum_of(committed.filesize)
    skipped = blocknum if sending.held_before is None else len(sending.held_before)
    sent = sending.progress.payload_bytes_sent
    receipt = _receipt(
        sending.source.facts, committed, sending.blocks_sent, skipped, sent, connections, elapsed_s
    )
    return receipt


def _receipt(
    facts: Facts,
    committed: Committed,
    sent: int,
    skipped: int,
    payload: int,
    connections: int,
    elapsed_s: float,
) -> Receipt:
    blocknum = blocknum_of(committed.filesize)
    return Receipt(
        filename=facts.filename.text,
        filetype=facts.filetype,
        filesize=committed.filesize,
        blocknum=blocknum,
        sourceid=committed.sourceid.hex(),
        root=committed.root.hex(),
        b3sum=_b3sum_hex(committed.root, committed.b3sum, blocknum),
        stored_as=committed.stored_as,
        resumed=skipped > 0,
        blocks_sent=sent,
        blocks_skipped=skipped,
        payload_bytes_sent=payload,
        connections=connections,
        elapsed_s=elapsed_s,
    )


def _b3sum_hex(root: bytes, b3sum: bytes | None, blocknum: int) -> str | None:
    """The BLAKE3 of the file: for at most one block it is the root."""
    known = root if blocknum <= 1 else b3sum
    return known.hex() if known else None
