"""The parts of one client put together: what its uploads, downloads and questions share, and how many of them run in a row.

``Client`` says in words what people can ask for; this does it. It is the host that single and bulk transfers know. What only
one direction needs is imported when the first transfer goes that way: half of a short command's time is imports.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ..connection.connection import Connection
from ..connection.keepalive import KeepAlive
from ..errors import BlockprotoError, ConnectionLost
from ..results import DownloadJob, FileInfo, Receipt, UploadJob
from ..store import Destination, IfExists, LocalFiles
from ..transfer.send_source import OnProgress
from ..wire import FileItem, List, ReceiptItem, Result
from .batch_queue import BatchQueue
from .config import ClientConfig, OpenPartFile
from .connections import Connections, Retries, RetryPolicy
from .dial import Dial
from .earlier_uploads import EarlierUploads
from .file_digests import FileDigests
from .installation import Installation
from .option_names import ANY_RULE, Rule
from .paging import list_receipts, list_uploads
from .request import ask_once
from .resume_id import Attempts

if TYPE_CHECKING:
    from .download import Downloader
    from .existing_file import ExistingFileCheck
    from .sources import FileSource
    from .upload_one import SingleUploads

RECEIPTS_MAX = 2000

Uploaded = tuple[UploadJob, Receipt | BlockprotoError]
Downloaded = tuple[DownloadJob, Receipt | BlockprotoError]


class Transfers:
    """What one client does.

    Args:
        dial, server, nursery, open_part_file, config: as for ``Client``.

    Attributes:
        connections: over which everything goes.
        digests: what the files of this machine contain.
    """

    def __init__(
        self,
        dial: Dial,
        server: str,
        nursery: trio.Nursery,
        open_part_file: OpenPartFile,
        config: ClientConfig,
    ) -> None:
        self._config = config
        self.connections = Connections(
            dial,
            nursery,
            config.connections,
            RetryPolicy(config.retry_for_s, config.tries),
            KeepAlive(mobile=config.mobile),
            config.on_line,
            config.authenticator,
            config.recorder,
        )
        self._earlier = EarlierUploads(config.earlier_uploads, lambda: list_uploads(self.connections))
        self._installation = Installation(server, self._earlier)
        open_memory = config.open_memory
        self.digests = FileDigests(
            None if open_memory is None else lambda: open_memory(self._installation.secret())
        )
        self._attempts = Attempts()
        self._open_part_file = open_part_file
        self._files: LocalFiles | None = None

    @cached_property
    def uploads(self) -> SingleUploads:
        """Sends single files."""
        from .upload import Uploader
        from .upload_one import SingleUploads

        return SingleUploads(self, self.connections, Uploader(self.connections, self._attempts))

    @cached_property
    def downloads(self) -> Downloader:
        """Fetches single files."""
        from .download import Downloader
        from .existing_file import NoFiles

        open_files = self._config.open_files
        self._files = NoFiles() if open_files is None else open_files()
        return Downloader(self.connections, self._attempts, self._open_part_file, self._files, self.digests)

    async def close(self) -> None:
        """Let go of what is open on this machine; harmless a second time. Cancellation: waits for it."""
        await self.digests.close()
        if self._files is not None:
            self._files.close()

    # ---- many in a row ----------------------------------------------------------------------------------------

    async def upload_all(
        self,
        jobs: Iterable[UploadJob],
        progress: OnProgress | None,
        checksum: bool,
        ended: BatchQueue[Uploaded],
    ) -> None:
        """Upload ``jobs``; see ``Client.upload_all``. What ends goes to ``ended``."""
        from .upload_many import UploadMany

        retries = Retries(self.connections)
        cut: set[bytes] = set()

        def deliver(job: UploadJob, outcome: Receipt | BlockprotoError) -> None:
            retries.progressed()
            ended.put((job, outcome))

        try:
            await self.learn_earlier_uploads()
            while jobs:
                bulk = UploadMany(self, deliver, progress, cut, checksum=checksum)
                jobs = await bulk.run(jobs, ended.emptied)
                if jobs:
                    await retries.wait(bulk.lost or ConnectionLost())
        except BlockprotoError as exc:
            for job in jobs:
                ended.put((job, exc))

    async def download_all(
        self,
        jobs: Iterable[tuple[FileInfo, Path]] | AsyncIterable[tuple[FileInfo, Path]],
        failed: list[Exception],
        rule: Rule,
        progress: OnProgress | None,
        ended: BatchQueue[Downloaded],
    ) -> None:
        """Download ``jobs``, see ``Client.download_all``: what ends goes to ``ended``, what ``jobs`` raise to ``failed``."""
        from .download_many import DownloadMany, download_jobs, give_up

        open_downloads = self._config.open_downloads
        store = None if open_downloads is None else open_downloads()
        retries = Retries(self.connections)

        def deliver(job: DownloadJob, outcome: Receipt | BlockprotoError) -> None:
            retries.progressed()
            ended.put((job, outcome))

        left: Sequence[DownloadJob] | None = ()
        try:
            async with aclosing(download_jobs(jobs, failed)) as taken:
                while left is not None:
                    bulk = DownloadMany(self, store, rule, deliver, progress)
                    left = await bulk.run(left, taken, ended.emptied)
                    if bulk.lost is not None and left is not None:
                        try:
                            await retries.wait(bulk.lost)
                        except BlockprotoError as exc:
                            await give_up(left, taken, exc, deliver, ended.emptied)
                            left = None
        finally:
            if store is not None:
                store.close()

    # ---- what single and bulk transfers need ------------------------------------------------------------------

    async def connection(self) -> Connection:
        """A live connection, made now if there is none. Raises ConnectionLost."""
        return await self.connections.connection()

    async def ask(self, message: List) -> Result:
        """The answer to one question, not asked again after a lost connection."""
        return await ask_once(self.connections, message)

    async def features(self) -> int:
        """What the server's HELLO says that it can do; waits for it. Raises ConnectionLost."""
        connection = await self.connection()
        await connection.greeted.wait()
        hello = connection.session.peer_hello
        if hello is None:
            raise connection.lost or ConnectionLost()
        return hello.features

    async def receipts(
        self, sourceids: Sequence[bytes], if_exists: IfExists | None = None
    ) -> dict[bytes, ReceiptItem]:
        """See ``Client.receipts``."""
        found: dict[bytes, ReceiptItem] = {}
        connection = await self.connection()
        most = min(RECEIPTS_MAX, (connection.session.head_length_max - 64) // 16)
        for at in range(0, len(sourceids), most):
            ids = tuple(sourceids[at : at + most])
            async with aclosing(list_receipts(self.connections, ids, most, if_exists)) as items:
                async for item in items:
                    found[item.sourceid] = item
        return found

    async def learn_earlier_uploads(self) -> None:
        """See ``Client.learn_earlier_uploads``."""
        await self._earlier.learn()

    def sourceid_of(self, path: Path, name: str, facts: os.stat_result, again: bytes = b"") -> bytes:
        """See ``Installation.sourceid_of``."""
        return self._installation.sourceid_of(path, name, facts, again)

    async def upload_source(
        self, source: FileSource, sourceid: bytes, progress: OnProgress | None, root: bytes | None = None
    ) -> Receipt:
        """Upload with OPEN and resume; see ``SingleUploads.source``."""
        return await self.uploads.source(source, sourceid, progress, root)

    async def fetch_known(
        self, entry: FileItem, dest: Destination, rule: Rule, progress: OnProgress | None
    ) -> Receipt:
        """See ``download_many.DownloadHost``."""
        return await self.downloads.file(entry.filename, dest, rule, None, progress, entry)

    @property
    def existing(self) -> ExistingFileCheck:
        """See ``download_many.DownloadHost``."""
        return self.downloads.existing

    def destination(self, name: str, path: Path, rule: Rule = ANY_RULE) -> Destination:
        """See ``Installation.destination``."""
        return self._installation.destination(name, path, rule)
