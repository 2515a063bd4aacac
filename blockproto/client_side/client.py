"""``Client``: connects, uploads, downloads and asks, and reconnects by itself.

    async with blockproto.connect("bp://host:7878") as client:
        receipt = await client.upload("film.mp4")

A connection is made when it is first needed, and made again when it is lost. An upload that loses its connections takes over
with a greater attempt and resumes where the server says it stands: to its caller it just takes longer. ``ConnectionLost`` is
raised when there was no progress for as long as the ``RetryPolicy`` allows; the same call resumes then.

Spec: BP1-RES, BP1-FET, BP1-LST; sending and receiving are in ``transfer``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from ..common.tasks import background_tasks
from ..connection.connection import Connection
from ..errors import BlockprotoError
from ..results import (
    DownloadJob,
    FileInfo,
    IfExistsWord,
    Job,
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
from ..store import Destination, IfExists
from ..transfer.send_source import OnProgress
from ..wire import ReceiptItem, Remove, RemoveKind
from .batch_queue import BatchQueue, taken_from
from .config import ClientConfig, OpenPartFile
from .context import Context
from .dial import Dial
from .option_names import ANY_RULE, Rule, if_exists_of, priority_of, rule_of
from .paging import list_files, list_uploads
from .request import ask, stat_item

if TYPE_CHECKING:
    from .download import Downloader
    from .upload import Uploader
    from .upload_many import Outcome
    from .upload_one import SingleUploads

DEFAULTS = ClientConfig()
J = TypeVar("J", bound=Job)


class Client:
    """A client of one server; made by ``connect``.

    Args:
        dial: makes a byte stream to the server.
        server: ``HOST:PORT``; the label of an unfinished download is derived from it.
        nursery: where connections run.
        open_part_file: opens the download store for a destination and the position where its bytes begin.
        config: how it works.
    """

    def __init__(
        self,
        dial: Dial,
        server: str,
        nursery: trio.Nursery,
        open_part_file: OpenPartFile,
        config: ClientConfig = DEFAULTS,
    ) -> None:
        self._nursery = nursery
        self._context = Context(dial, server, nursery, open_part_file, config)
        self._connections = self._context.connections

    # What only one direction needs is imported with its first transfer: half of a short command's time is imports.

    @cached_property
    def _uploader(self) -> Uploader:
        from .upload import Uploader

        return Uploader(self._context)

    @cached_property
    def _uploads(self) -> SingleUploads:
        from .upload_one import SingleUploads

        return SingleUploads(self._context, self._uploader)

    @cached_property
    def _downloader(self) -> Downloader:
        from .download import Downloader

        return Downloader(self._context)

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

        A file that is there with the same content is not stored again, also if another client sent it: the receipt says
        ``outcome="there"``. For that a file of 64 MiB or more is read and hashed before it is sent if its name is taken
        there; digests of files that were read or sent before, and have not changed since, are cached.

        Args:
            source: a path; or an open binary file or Trio stream of unknown length (needs ``name``).
            name: its name on the server; None takes the path's last component.
            folder: the folder on the server, "" for the served one.
            if_exists: when the name is taken by other content: ``keep`` both, ``refuse``, ``replace`` it, ``skip`` the
                upload, or ``update`` (replace it if ours was modified later, else skip). A skipped upload has
                ``outcome="left"``. An older server is told ``refuse`` for ``skip``, and cannot ``update``.
            filetype: MIME type; None guesses from the name.
            priority: ``interactive``, ``normal`` or ``bulk``: they share a connection with other transfers as 16 to 4 to 1.
            checksum: read the file also if its size and times have not changed since it was last read or sent.
            progress: called with a ``Progress`` after each change.

        Raises:
            ValueError, TypeError: an argument is not of those named here.
            OSError: the file cannot be read.
            FileExists: the name is taken, and ``if_exists`` is ``refuse``.
            Unsupported: the server does not know ``update``.
            SourceChanged: the file was written to while it was being sent.
            ConnectionLost: the server is unreachable, or was lost and retries failed; call again to resume.
            BlockprotoError: it was refused; its ``code`` says why.

        Cancellation: the server keeps what it has, and the same call resumes; of a stream, which cannot resume, it keeps
        nothing if it can be told within two seconds. A thread that waits in a file's ``readinto`` is left behind: pass
        ``sys.stdin.buffer.raw``, because Python aborts at its end while a thread holds the lock of the other.
        """
        word, rank = if_exists_of(if_exists), priority_of(priority)
        if not isinstance(source, str | os.PathLike):
            joined = None if name is None else _joined(folder, name)
            return await self._uploads.stream(source, joined, word, filetype, rank, progress)
        job = UploadJob(Path(source), _joined(folder, name or Path(source).name), if_exists)
        await self.learn_earlier_uploads()
        return await self._uploads.file(job, filetype, rank, checksum, progress)

    async def upload_all(
        self, jobs: Iterable[J], *, checksum: bool = False, progress: OnProgress | None = None
    ) -> AsyncGenerator[tuple[J, Receipt | BlockprotoError], None]:
        """Upload many files and folders; yields each with its receipt, or with its error, as they end.

        Files of at most one block are pipelined. What the server has already is found out with digests and not sent again;
        see ``upload``, also for ``checksum``. One that fails does not stop the others; after a lost connection the rest is
        tried again, and when retries fail, each is yielded with its ``ConnectionLost``.

        Cancellation: as for ``upload``.
        """
        from .receipts import receipt_or_error

        sending = self.upload_batches(jobs, checksum=checksum, progress=progress, tell_ends=True)
        async with aclosing(sending) as batches:
            async for batch in batches:
                for job, outcome in batch:
                    yield cast("J", job), receipt_or_error(outcome)

    async def upload_batches(
        self,
        jobs: Iterable[Job],
        *,
        checksum: bool = False,
        progress: OnProgress | None = None,
        tell_ends: bool = False,
    ) -> AsyncGenerator[list[tuple[Job, Outcome]], None]:
        """``upload_all`` for thousands of files a second: many outcomes at once, most as what a receipt is made of.

        ``progress`` hears of files that have ended only with ``tell_ends``.
        """
        from .upload_many import upload_all

        self._connections.demand_open()

        async def run(ended: BatchQueue[tuple[Job, Outcome]]) -> None:
            await upload_all(self._context, self._uploader, jobs, progress, checksum, tell_ends, ended)

        async with aclosing(taken_from(self._nursery, run)) as batches:
            async for batch in batches:
                yield batch

    async def already_there(self, job: UploadJob) -> Receipt | None:
        """The receipt of a file that the server has already; None if it would have to be sent.

        Raises:
            ConnectionLost, GoingAway: before that was known; the question is not repeated.
            BlockprotoError, OSError: as for ``upload``.
        """
        await self.learn_earlier_uploads()
        return await self._uploads.there(job)

    async def cancel_upload(self, sourceid: str) -> None:
        """Remove an unfinished upload and its bytes from the server.

        Raises:
            UnknownUpload: there is none with that sourceid.
            ValueError: ``sourceid`` is not 32 hex digits.
        """
        await ask(self._connections, Remove(kind=RemoveKind.UPLOAD, id=_id_from_hex(sourceid)))

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
                the end, ``skip`` the download, or ``update`` (replace it if the server's was modified later). A file of the
                same size and time, or of the same content, is that file, and nothing is fetched.
            checksum: compare contents also if size and time are equal.
            span: only the bytes from the first to the last of these positions, both included.
            below: the folder below which no symbolic link is followed on the way to ``dest``; None: all are followed.
            made: files (device, inode number) that must not be replaced; the new file is added.
            priority: as for ``upload``.
            progress: as for ``upload``.

        Raises:
            UnknownFile: the server has no file of that name.
            BadFacts: ``span`` begins past its end.
            FileExists: ``refuse``, and another file is there; or one of ``made`` would be replaced.
            NameRefused: a component of ``name``, or ``dest``, begins with ``.blockproto-``.
            ConnectionLost, OSError, BlockprotoError: as for ``upload``.

        Cancellation: what was received is kept beside ``dest``, and the same call resumes.
        """
        rule, rank = rule_of(if_exists, checksum, below, made), priority_of(priority)
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

        Blocks come as they become durable on the server. The uploader may disconnect and resume, and so may this client.
        ``dest`` gets its name only when the file is complete and verified.

        Args:
            upload: as ``uploads`` lists it.
            dest: the file here.
            if_exists: as for ``download``; where the download would be skipped, FileExists is raised.
            priority: as for ``upload``.
            progress: as for ``upload``.

        Raises:
            Cancelled: the upload was cancelled.
            UnknownUpload: it has expired.
            UnknownFile: it is gone; or the server does not send unfinished uploads.
            FileExists, NameRefused: as for ``download``.
            ConnectionLost, OSError, BlockprotoError: as for ``upload``.

        Cancellation: what was received is kept beside ``dest``; the same call resumes.
        """
        item, rule = upload_item(upload), rule_of(if_exists)
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
        """Download many files; yields each with its receipt, or with its error, as they end.

        Files of at most one block are pipelined. One that fails does not stop the others; after a lost connection the
        rest is tried again, and when retries fail, each is yielded with its ``ConnectionLost``. No file of ``jobs`` replaces
        another one of them.

        Args:
            jobs: files as they were listed, and the path of each here; folders must exist. A file that changed since it was
                listed fails with ``SourceChanged``. An error of ``jobs`` is raised when the files before it have ended.
            if_exists: as for ``download``.
            checksum: as for ``download``.
            below: as for ``download``.
            made: as for ``download``.
            progress: as for ``download``.

        Cancellation: as for ``download``, but of files of at most one block nothing is kept.
        """
        from .download_many import download_all

        failed: list[Exception] = []
        rule = rule_of(if_exists, checksum, below, made)
        self._connections.demand_open()

        async def run(ended: BatchQueue[tuple[DownloadJob, Receipt | BlockprotoError]]) -> None:
            await download_all(self._context, self._downloader, jobs, failed, rule, progress, ended)

        async with aclosing(taken_from(self._nursery, run, to_the_end=True)) as batches:
            async for batch in batches:
                for one in batch:
                    yield one
        if failed:
            raise failed[0]

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
        """``download`` without asking for the file's entry; raises SourceChanged if its version is not that of ``entry``."""
        rule, rank = rule_of(if_exists), priority_of(priority)
        place = self.destination(entry.filename, dest, rule)
        return await self._downloader.file(
            entry.filename, place, rule, span, progress, file_item(entry), rank
        )

    def destination(self, name: str, path: Path, rule: Rule = ANY_RULE) -> Destination:
        """Where the file ``name`` of the server goes, with the label of its part file.

        Raises:
            NameRefused: a component of ``name``, or the last of ``path``, belongs to a download in progress.
            NotPermitted: ``path`` names no file.
        """
        return self._context.destination(name, path, rule)

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
            on_left_out: called, between entries, with what the server left out: links, special files, names that cannot be
                sent, files that it cannot read. Servers of older versions do not say.

        Raises:
            UnknownFile: the server has no folder of that name.
            ConnectionLost: as for ``upload``.
        """
        told = None if on_left_out is None else lambda group: on_left_out(left_out(group))
        listed = list_files(self._connections, folder.strip("/"), recursive=recursive, on_left_out=told)
        async with aclosing(listed) as items:
            async for item in items:
                yield file_info(item)

    async def stat(self, name: str, *, b3sum: bool = False) -> FileInfo:
        """One file or folder; with ``b3sum`` the server computes the file's BLAKE3 if it does not know it yet.

        Raises:
            UnknownFile: the server has none of that name.
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
            UnknownFile: the server has none of that name.
            NotEmpty: a folder with something in it, without ``recursive``.
        """
        await ask(
            self._connections, Remove(kind=RemoveKind.FILE, filename=name.strip("/"), recursive=recursive)
        )

    async def receipts(
        self, sourceids: Sequence[bytes], if_exists: IfExists | None = None
    ) -> dict[bytes, ReceiptItem]:
        """Which of these uploads are committed, and what as; ``if_exists``: only with this rule. Raises ConnectionLost."""
        return await self._context.receipts(sourceids, if_exists)

    async def learn_earlier_uploads(self) -> None:
        """Find out which uploads an earlier version of this installation has left unfinished, if there may be some.

        ``sourceid_of`` knows them only after this. Raises ConnectionLost; cancellation: the next call asks again.
        """
        await self._context.learn_earlier_uploads()

    def sourceid_of(
        self, path: str | os.PathLike[str], name: str, facts: os.stat_result, again: bytes = b""
    ) -> bytes:
        """The sourceid of the file at ``path`` when it is sent as ``name``; ``again``: of another content of it."""
        return self._context.sourceid_of(path, name, facts, again)

    def close(self) -> None:
        """Begin nothing from now on: later calls raise LocalProtocolError."""
        self._connections.close()

    async def keep_connected(self) -> None:
        """Hold a connection open until cancelled: kept alive while it is idle, made again when it is gone.

        Raises:
            ConnectionLost: the server could not be reached for as long as ``retry_for_s`` allows.

        Cancellation: the connection stays until the client ends.
        """
        await self._connections.keep_connected()

    def network_changed(self) -> None:
        """Tell the client that this machine has another address or another network.

        Running transfers reconnect at once, instead of waiting for answers that cannot come; what was learned of the old
        network is forgotten.
        """
        self._connections.network_changed()

    def use_token(self, token: str) -> None:
        """Use a newer token of the same principal from now on, without reconnecting (BP1-AUT-013)."""
        self._connections.use_token(token)

    async def connection(self, index: int = 0) -> Connection:
        """A live connection, made now if there is none.

        Raises:
            ConnectionLost: the server cannot be reached.
        """
        return await self._connections.connection(index)


@asynccontextmanager
async def connect_with(
    dial: Dial, server: str, open_part_file: OpenPartFile, config: ClientConfig = DEFAULTS
) -> AsyncIterator[Client]:
    """A client over any way to make byte streams; see ``Client``. ``connect`` uses TCP or TLS.

    Cancellation: connections are closed, digests that were learned are kept.
    """
    async with background_tasks() as nursery:
        if config.recorder is not None:
            nursery.start_soon(config.recorder.run)
        client = Client(dial, server, nursery, open_part_file, config)
        try:
            yield client
        finally:
            client.close()
            await client._context.close()


def _joined(folder: str, name: str) -> str:
    folder = folder.strip("/")
    return f"{folder}/{name}" if folder else name


def _id_from_hex(text: str) -> bytes:
    raw = bytes.fromhex(text)
    if len(raw) != 16:
        raise ValueError(f"{text!r} is not a sourceid: it has 32 hex digits")
    return raw
