"""The client: connects, uploads, downloads, asks; comes back by itself when the connection breaks.

    async with blockproto.connect("bp://host:7878") as client:
        receipt = await client.upload("film.mp4")

A connection is made when it is first needed and made again when it is gone. An upload that loses its connections takes
over with a greater attempt and goes on where the server says it stands: to its caller it just takes longer. Only when
nothing got further for as long as its ``RetryPolicy`` lasts, ``ConnectionLost`` says so, and the same call resumes.

Spec: BP1-RES, BP1-FET, BP1-LST; sending and receiving are in ``transfer``.
"""

from __future__ import annotations

import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from .client_side.authenticate import Authenticator
from .client_side.batch_queue import BatchQueue
from .client_side.connections import Connections, OnLine, Retries, RetryPolicy
from .client_side.dial import Dial
from .client_side.download import Downloader, OpenPartFile, stat_item
from .client_side.download_many import DownloadMany, download_jobs, give_up
from .client_side.earlier_uploads import EarlierUploads
from .client_side.existing_file import ANY_RULE, ExistingFileCheck, NoFiles, Rule
from .client_side.file_digests import FileDigests
from .client_side.option_names import if_exists_of, priority_of
from .client_side.paging import list_files, list_receipts, list_uploads
from .client_side.request import ask, ask_once
from .client_side.resume_id import (
    Attempts,
    another_sourceid,
    derive_earlier_sourceid,
    derive_label,
    derive_sourceid,
    installation_secret,
)
from .client_side.sources import FileSource, reader_of
from .client_side.upload import Uploader
from .client_side.upload_many import UploadMany
from .client_side.upload_one import SingleUploads
from .common.blocks import BRIEF_LENGTH_MAX as BRIEF_LENGTH_MAX
from .common.names import refuse_in_progress
from .common.tasks import background_tasks
from .connection.connection import Connection
from .connection.keepalive import KeepAlive
from .errors import BlockprotoError, ConnectionLost, NotPermitted
from .results import (
    DownloadJob,
    FileInfo,
    IfExistsWord,
    LeftOut,
    Receipt,
    UploadInfo,
    UploadJob,
    file_info,
    file_item,
    left_out,
    upload_info,
    upload_item,
)
from .store import Destination, DownloadStore, IfExists, LocalFiles
from .transfer.send_source import OnProgress
from .wire import FileItem, List, ReceiptItem, Remove, RemoveKind, Result

if TYPE_CHECKING:
    from .client_side.digest_cache import DigestCache
    from .observability.recorder import Recorder

RECEIPTS_MAX = 2000

OpenDownloads = Callable[[], DownloadStore]
OpenMemory = Callable[[bytes], "DigestCache"]
"""Opens what is remembered of this machine's files, by the installation's secret."""


class Client:
    """A client of one server; made by ``connect``.

    Args:
        dial: makes a byte stream to the server.
        server: what the server is called, part of what the label of a download in progress is derived from.
        nursery: where connections live.
        open_part_file: opens the download store for a destination and the position where its bytes begin.
        connections: over how many connections a big file is sent.
        retry_for_s: how long to come back without any progress; None: see ``connections.RetryPolicy``.
        tries: how often at most; None: as often as there is time for.
        mobile: whether an idle connection may be silent as long as the network lets it; else PING comes every 15 s.
        on_line: hears when the connection is lost and made again, and when a transfer goes on.
        authenticator: says who we are; None: nobody in particular.
        open_downloads: opens the store for many small downloads; None: each is downloaded like a big one.
        files: the finished files of this machine; None: nothing is ever there.
        open_memory: opens what is remembered of files between runs; None: nothing is.
        earlier_uploads: whether an earlier version of this installation may have left uploads unfinished.
        recorder: writes down what happens on the connections; None: nobody does.
    """

    def __init__(
        self,
        dial: Dial,
        server: str,
        nursery: trio.Nursery,
        open_part_file: OpenPartFile,
        *,
        connections: int = 1,
        retry_for_s: float | None = None,
        tries: int | None = None,
        mobile: bool = False,
        on_line: OnLine | None = None,
        authenticator: Authenticator | None = None,
        open_downloads: OpenDownloads | None = None,
        files: LocalFiles | None = None,
        open_memory: OpenMemory | None = None,
        earlier_uploads: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        self._server = server
        self._nursery = nursery
        self._open_downloads = open_downloads
        keep_alive = KeepAlive(mobile=mobile)
        self._connections = Connections(
            dial,
            nursery,
            connections,
            RetryPolicy(retry_for_s, tries),
            keep_alive,
            on_line,
            authenticator,
            recorder,
        )
        attempts = Attempts()
        self._single = SingleUploads(self, self._connections, Uploader(self._connections, attempts))
        self._secret: bytes | None = None
        self._earlier = EarlierUploads(earlier_uploads, lambda: list_uploads(self._connections))
        self.digests = FileDigests(None if open_memory is None else lambda: open_memory(self._installation()))
        self._downloader = Downloader(
            self._connections, attempts, open_part_file, NoFiles() if files is None else files, self.digests
        )
        self._real_folders: dict[str, str] = {}

    # ---- uploads ----------------------------------------------------------------------------------------------

    async def upload(
        self,
        source: str | os.PathLike[str] | Any,
        *,
        name: str | None = None,
        folder: str = "",
        if_exists: IfExistsWord = "keep",
        filetype: str | None = None,
        priority: str = "normal",
        checksum: bool = False,
        progress: OnProgress | None = None,
    ) -> Receipt:
        """Upload one file; the same call again resumes, or answers at once if the file is there.

        A file that is there with the same content is never stored again, whoever sent it and whatever it was called here:
        the receipt says ``outcome="there"``. For that a file of 64 MiB or more is read and hashed before it is sent if
        something has its name there; what was read or sent before, and has not changed since, is remembered.

        Args:
            source: a path; or an open binary file or Trio stream whose end is not known (needs ``name``).
            name: what it is called on the server; None takes the path's last component.
            folder: the folder on the server, "" for the served one.
            if_exists: when the name is taken by other content: ``keep`` both, ``refuse``, ``replace`` it, ``skip``
                (leave what is there), or ``update`` it (replace it if ours was modified later, else leave it). What was
                left has ``outcome="left"``. An older server is told ``refuse`` for ``skip``, and cannot ``update``.
            filetype: MIME type; None guesses from the name.
            priority: ``interactive``, ``normal`` or ``bulk``: beside other transfers on the same connection they get bytes
                as 16 to 4 to 1.
            checksum: read the file also where its size and times are those of the last time it was read or sent.
            progress: called with a ``Progress`` after each change.

        Raises:
            ValueError, TypeError: an argument is not of those named here.
            OSError: the file cannot be read.
            FileExists: the name is taken, and ``if_exists`` is ``refuse``.
            Unsupported: the server does not know ``update``.
            SourceChanged: the file was written to while it was being sent.
            ConnectionLost: unreachable, or lost after retries; call again to resume.
            BlockprotoError: refused; its ``code`` says why.

        Cancellation: the server keeps what it has; the same call resumes (a stream that was read cannot be).
        """
        word, rank = if_exists_of(if_exists), priority_of(priority)
        if not isinstance(source, str | os.PathLike):
            reader_of(source)  # raises TypeError
            if name is None:
                raise ValueError("a stream has no name of its own: give one")
            refuse_in_progress(name)
            return await self._single.stream(source, _joined(folder, name), word, filetype, rank, progress)
        job = UploadJob(Path(source), _joined(folder, name or Path(source).name), if_exists)
        await self.learn_earlier_uploads()
        return await self._single.file(job, filetype, rank, checksum, progress)

    async def upload_all(
        self, jobs: Iterable[UploadJob], *, checksum: bool = False, progress: OnProgress | None = None
    ) -> AsyncGenerator[tuple[UploadJob, Receipt | BlockprotoError], None]:
        """Upload many files and folders; yields each with its receipt, or with why it failed, as they end.

        Files of at most one block are pipelined. What the server has already, whoever sent it, is found out with digests and
        not sent again; see ``upload``, also for ``checksum``. One that fails does not stop the others; after a lost
        connection the rest is tried again, and what stays lost is yielded with its ``ConnectionLost``.

        Cancellation: as for ``upload``.
        """
        ended: BatchQueue[tuple[UploadJob, Receipt | BlockprotoError]] = BatchQueue()
        scope = trio.CancelScope()
        self._connections.demand_open()
        self._nursery.start_soon(self._run_bulk, jobs, ended, progress, scope, checksum)
        try:
            while some := await ended.take():
                for one in some:
                    yield one
        finally:
            scope.cancel()

    async def already_there(self, job: UploadJob) -> Receipt | None:
        """The receipt of a file that the server has already, so that nothing would be sent; None if something would be.

        Raises:
            ConnectionLost, GoingAway: before that was known; it is not asked again.
            BlockprotoError, OSError: as for ``upload``.
        """
        await self.learn_earlier_uploads()
        return await self._single.there(job)

    async def upload_source(
        self, source: FileSource, sourceid: bytes, progress: OnProgress | None, root: bytes | None = None
    ) -> Receipt:
        """Upload with OPEN and resume; see ``SingleUploads.source``."""
        return await self._single.source(source, sourceid, progress, root)

    async def cancel_upload(self, sourceid: str) -> None:
        """Remove an unfinished upload and its bytes from the server.

        Raises:
            UnknownUpload: there is none of that sourceid.
            ValueError: ``sourceid`` is not 32 hex digits.
        """
        await ask(self._connections, Remove(kind=RemoveKind.UPLOAD, id=_id_from_hex(sourceid)))

    async def _run_bulk(
        self,
        jobs: Iterable[UploadJob],
        ended: BatchQueue[tuple[UploadJob, Receipt | BlockprotoError]],
        progress: OnProgress | None,
        scope: trio.CancelScope,
        checksum: bool,
    ) -> None:
        retries = Retries(self._connections)
        cut: set[bytes] = set()

        def deliver(job: UploadJob, outcome: Receipt | BlockprotoError) -> None:
            retries.progressed()
            ended.put((job, outcome))

        try:
            with scope:
                await self.learn_earlier_uploads()
                while jobs:
                    bulk = UploadMany(self, deliver, progress, cut, checksum=checksum)
                    jobs = await bulk.run(jobs, ended.emptied)
                    if jobs:
                        await retries.wait(bulk.lost or ConnectionLost())
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
        if_exists: IfExistsWord = "keep",
        checksum: bool = False,
        span: tuple[int, int] | None = None,
        below: Path | None = None,
        made: set[tuple[int, int]] | None = None,
        priority: str = "normal",
        progress: OnProgress | None = None,
    ) -> Receipt:
        """Download one file; the same call again resumes. ``dest`` gets its name only when it is complete and verified.

        Args:
            name: of the file on the server.
            dest: the file here. It is never a link, a pipe or a device.
            if_exists: when another file has that name: ``keep`` both (as ``name (1).ext``), ``refuse``, ``replace`` it at
                the end, ``skip`` (leave it), or ``update`` (replace it if the server's was modified later). A file of the
                same size and time, or of the same content, is the file, and nothing is fetched.
            checksum: compare contents also where size and time agree.
            span: only the bytes from the first to the last of these positions, both included.
            below: the folder behind which no symbolic link is followed on the way to ``dest``; None: all are.
            made: files (device, inode number) that must not be replaced; what comes is added.
            priority: as for ``upload``.
            progress: as for ``upload``.

        Raises:
            UnknownFile: there is no such file.
            BadFacts: ``span`` begins past its end.
            FileExists: ``refuse``, and another file is there; or one of ``made`` would be replaced.
            NameRefused: a component of ``name``, or ``dest``, begins with ``.blockproto-``.
            ConnectionLost, OSError, BlockprotoError: as for ``upload``.

        Cancellation: what was received is kept beside ``dest``; the same call resumes.
        """
        rule, rank = _rule(if_exists, checksum, below, made), priority_of(priority)
        place = self.destination(name, Path(dest), rule)
        return await self._downloader.file(name, place, rule, span, progress, None, rank)

    async def download_upload(
        self,
        upload: UploadInfo,
        dest: str | os.PathLike[str],
        *,
        if_exists: IfExistsWord = "keep",
        priority: str = "normal",
        progress: OnProgress | None = None,
    ) -> Receipt:
        """Download a file while it is still being uploaded; returns when the upload was committed and all of it is here.

        Blocks come as they become durable on the server. The uploader may go away and come back meanwhile, and so may
        this connection. ``dest`` gets its name only when the file is complete and verified.

        Args:
            upload: as ``uploads`` lists it.
            dest: the file here.
            if_exists: as for ``download``; a file that is to be left raises FileExists.
            priority: as for ``upload``.
            progress: as for ``upload``.

        Raises:
            Cancelled: the upload was cancelled.
            UnknownUpload: it has expired.
            UnknownFile: it is not there any more; or the server does not hand out what is unfinished.
            FileExists, NameRefused: as for ``download``.
            ConnectionLost, OSError, BlockprotoError: as for ``upload``.

        Cancellation: what was received is kept beside ``dest``; the same call resumes.
        """
        item, rule = upload_item(upload), _rule(if_exists)
        place = self.destination(upload.filename, Path(dest), rule)
        return await self._downloader.unfinished(item, place, rule, progress, priority_of(priority))

    async def download_all(
        self,
        jobs: Iterable[tuple[FileInfo, Path]] | AsyncIterable[tuple[FileInfo, Path]],
        *,
        if_exists: IfExistsWord = "keep",
        checksum: bool = False,
        below: Path | None = None,
        made: set[tuple[int, int]] | None = None,
        progress: OnProgress | None = None,
    ) -> AsyncGenerator[tuple[DownloadJob, Receipt | BlockprotoError], None]:
        """Download many files; yields each with its receipt, or with why it failed, as they end.

        Files of at most one block are pipelined. One that fails does not stop the others; after a lost connection the
        rest is tried again, and what stays lost is yielded with its ``ConnectionLost``. No file of ``jobs`` replaces another
        one of them.

        Args:
            jobs: files as the listing gave them, and where each goes; folders must be there. A file that changed since
                it was listed fails with ``SourceChanged``. What ``jobs`` raises comes out of here.
            if_exists: as for ``download``.
            checksum: as for ``download``.
            below: as for ``download``.
            made: as for ``download``.
            progress: as for ``download``.

        Cancellation: as for ``download``, but of files of at most one block nothing is kept.
        """
        ended: BatchQueue[tuple[DownloadJob, Receipt | BlockprotoError]] = BatchQueue()
        scope = trio.CancelScope()
        failed: list[Exception] = []
        over = trio.Event()
        taken = download_jobs(jobs, failed)
        rule = _rule(if_exists, checksum, below, made)
        self._connections.demand_open()
        self._nursery.start_soon(self._run_downloads, taken, rule, ended, progress, scope, over)
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

    async def download_known(
        self,
        entry: FileInfo,
        dest: Path,
        progress: OnProgress | None,
        *,
        if_exists: IfExistsWord = "keep",
        span: tuple[int, int] | None = None,
        priority: str = "normal",
    ) -> Receipt:
        """``download`` without asking what the file is; raises SourceChanged if its version is not that of ``entry``."""
        rule, rank = _rule(if_exists), priority_of(priority)
        place = self.destination(entry.filename, dest, rule)
        return await self._downloader.file(
            entry.filename, place, rule, span, progress, file_item(entry), rank
        )

    async def fetch_known(
        self, entry: FileItem, dest: Destination, rule: Rule, progress: OnProgress | None
    ) -> Receipt:
        """See ``download_many.DownloadHost``."""
        return await self._downloader.file(entry.filename, dest, rule, None, progress, entry)

    @property
    def existing(self) -> ExistingFileCheck:
        """See ``download_many.DownloadHost``."""
        return self._downloader.existing

    def destination(self, name: str, path: Path, rule: Rule = ANY_RULE) -> Destination:
        """Where the file ``name`` of the server goes, and what is called there that is in progress of it.

        Raises:
            NameRefused: a component of ``name``, or the last of ``path``, belongs to a download in progress.
            NotPermitted: ``path`` names no file.
        """
        if path.name in ("", ".."):
            raise NotPermitted(f"'{path}' is a folder: name the file that is to be made")
        refuse_in_progress(name)
        refuse_in_progress(path.name)
        label = derive_label(self._installation(), self._server, name.strip("/"), self._real(path))
        return Destination(path, label, rule.below, rule.made)

    async def _run_downloads(
        self,
        jobs: AsyncGenerator[DownloadJob, None],
        rule: Rule,
        ended: BatchQueue[tuple[DownloadJob, Receipt | BlockprotoError]],
        progress: OnProgress | None,
        scope: trio.CancelScope,
        over: trio.Event,
    ) -> None:
        store = None if self._open_downloads is None else self._open_downloads()
        retries = Retries(self._connections)

        def deliver(job: DownloadJob, outcome: Receipt | BlockprotoError) -> None:
            retries.progressed()
            ended.put((job, outcome))

        left: Sequence[DownloadJob] | None = ()
        try:
            with scope:
                async with aclosing(jobs):
                    while left is not None:
                        bulk = DownloadMany(self, store, rule, deliver, progress)
                        left = await bulk.run(left, jobs, ended.emptied)
                        if bulk.lost is not None and left is not None:
                            try:
                                await retries.wait(bulk.lost)
                            except BlockprotoError as exc:
                                await give_up(left, jobs, exc, deliver, ended.emptied)
                                left = None
        finally:
            if store is not None:
                store.close()
            ended.close()
            over.set()

    # ---- questions --------------------------------------------------------------------------------------------

    async def listing(
        self,
        folder: str = "",
        *,
        recursive: bool = False,
        on_left_out: Callable[[LeftOut], None] | None = None,
    ) -> AsyncGenerator[FileInfo, None]:
        """The entries of a folder on the server, in byte order of their names; with ``recursive`` all below it.

        Args:
            folder: "" is the whole served folder.
            recursive: also what is in its folders.
            on_left_out: called, between entries, with what the server passed over: links, special files, names that cannot
                travel, what it cannot read. Servers of older versions do not say.

        Raises:
            UnknownFile: there is no such folder.
            ConnectionLost: see ``upload``.
        """
        told = None if on_left_out is None else lambda group: on_left_out(left_out(group))
        listed = list_files(self._connections, folder.strip("/"), recursive=recursive, on_left_out=told)
        async with aclosing(listed) as items:
            async for item in items:
                yield file_info(item)

    async def stat(self, name: str, *, b3sum: bool = False) -> FileInfo:
        """One file or folder; with ``b3sum`` the server computes the file's BLAKE3 if it does not know it yet.

        Raises:
            UnknownFile: there is none of that name.
        """
        return file_info(await stat_item(self._connections, name, b3sum=b3sum))

    async def uploads(self) -> AsyncGenerator[UploadInfo, None]:
        """The unfinished uploads on the server."""
        async with aclosing(list_uploads(self._connections)) as items:
            async for item in items:
                yield upload_info(item)

    async def remove(self, name: str, *, recursive: bool = False) -> None:
        """Remove a file or folder from the server.

        Raises:
            UnknownFile: there is none of that name.
            NotEmpty: a folder with something in it, without ``recursive``.
        """
        await ask(
            self._connections, Remove(kind=RemoveKind.FILE, filename=name.strip("/"), recursive=recursive)
        )

    async def receipts(
        self, sourceids: Sequence[bytes], if_exists: IfExists | None = None
    ) -> dict[bytes, ReceiptItem]:
        """Which of these uploads are committed, and still what was committed; None: whatever was wanted of a taken name."""
        found: dict[bytes, ReceiptItem] = {}
        connection = await self.connection()
        most = min(RECEIPTS_MAX, (connection.session.head_length_max - 64) // 16)
        for at in range(0, len(sourceids), most):
            ids = tuple(sourceids[at : at + most])
            async with aclosing(list_receipts(self._connections, ids, most, if_exists)) as items:
                async for item in items:
                    found[item.sourceid] = item
        return found

    async def ask(self, message: List) -> Result:
        """The answer to one question, not asked again after a lost connection."""
        return await ask_once(self._connections, message)

    async def features(self) -> int:
        """What the server's HELLO says that it can do; waits for it. Raises ConnectionLost."""
        connection = await self.connection()
        await connection.greeted.wait()
        hello = connection.session.peer_hello
        if hello is None:
            raise connection.lost or ConnectionLost()
        return hello.features

    async def learn_earlier_uploads(self) -> None:
        """Find out which uploads an earlier version of this installation has left unfinished, if there may be some.

        Before this, ``sourceid_of`` does not know them. Raises ConnectionLost; cancellation: the next call asks again.
        """
        await self._earlier.learn()

    def sourceid_of(self, path: Path, name: str, facts: os.stat_result, again: bytes = b"") -> bytes:
        """The sourceid of the file at ``path`` when it is sent as ``name``; ``again``: of another content of it."""
        secret, real = self._installation(), self._real(path)
        sourceid = derive_sourceid(secret, name, real, facts)
        if self._earlier:
            earlier = derive_earlier_sourceid(secret, self._server, name, real, facts)
            sourceid = earlier if earlier in self._earlier else sourceid
        return another_sourceid(self._installation(), sourceid, again) if again else sourceid

    def _installation(self) -> bytes:
        if self._secret is None:
            self._secret = installation_secret()
        return self._secret

    def _real(self, path: Path) -> str:
        """``path`` without links in its folder."""
        folder, base = os.path.split(path)
        if folder not in self._real_folders:
            self._real_folders = {folder: os.path.realpath(folder)}
        return f"{self._real_folders[folder]}/{base}"

    def close(self) -> None:
        """Let nothing begin any more; what is asked from now on raises LocalProtocolError."""
        self._connections.close()

    async def keep_connected(self) -> None:
        """Hold a connection open until cancelled: kept alive while it is idle, made again when it is gone.

        Raises:
            ConnectionLost: the server could not be reached for as long as the client was told to try.

        Cancellation: the connection stays until the client ends.
        """
        await self._connections.keep_connected()

    def network_changed(self) -> None:
        """Tell that this machine has another address or another network.

        What runs comes back at once, instead of waiting for an answer that cannot come; what was learned of the old
        network is forgotten.
        """
        self._connections.network_changed()

    def use_token(self, token: str) -> None:
        """Come in with a newer token of the same principal from now on, without connecting anew (spec: BP1-AUT-013)."""
        self._connections.use_token(token)

    async def connection(self, index: int = 0) -> Connection:
        """A live connection, made now if there is none.

        Raises:
            ConnectionLost: the server cannot be reached.
        """
        return await self._connections.connection(index)


@asynccontextmanager
async def connect_with(
    dial: Dial,
    server: str,
    open_part_file: OpenPartFile,
    *,
    connections: int = 1,
    retry_for_s: float | None = None,
    tries: int | None = None,
    mobile: bool = False,
    on_line: OnLine | None = None,
    authenticator: Authenticator | None = None,
    open_downloads: OpenDownloads | None = None,
    files: LocalFiles | None = None,
    open_memory: OpenMemory | None = None,
    earlier_uploads: bool = False,
    recorder: Recorder | None = None,
) -> AsyncIterator[Client]:
    """A client over any way to make byte streams; see ``Client``. ``connect`` is this over TCP."""
    async with background_tasks() as nursery:
        if recorder is not None:
            nursery.start_soon(recorder.run)
        client = Client(
            dial,
            server,
            nursery,
            open_part_file,
            connections=connections,
            retry_for_s=retry_for_s,
            tries=tries,
            mobile=mobile,
            on_line=on_line,
            authenticator=authenticator,
            open_downloads=open_downloads,
            files=files,
            open_memory=open_memory,
            earlier_uploads=earlier_uploads,
            recorder=recorder,
        )
        try:
            yield client
        finally:
            client.close()
            await client.digests.close()


def _rule(
    if_exists: str,
    checksum: bool = False,
    below: Path | None = None,
    made: set[tuple[int, int]] | None = None,
) -> Rule:
    return Rule(if_exists_of(if_exists), checksum, below, set() if made is None else made)


def _joined(folder: str, name: str) -> str:
    folder = folder.strip("/")
    return f"{folder}/{name}" if folder else name


def _id_from_hex(text: str) -> bytes:
    raw = bytes.fromhex(text)
    if len(raw) != 16:
        raise ValueError(f"{text!r} is not a sourceid: it has 32 hex digits")
    return raw
