"""Download many files: small ones pipelined without a round trip each, big ones beside them.

    jobs → small, and the server gives many at once: FILES with WANTED → FILES … → STORED (``download_files``)
         → of at most one block: FETCH … OPEN BLOCK COMMIT → verified → batch of the committer → COMMITTED
         → bigger, or begun before, or not plain: the ordinary download with resume, a few at once

The listing gave size, time, mode and version of every file, so nothing is asked again: FETCH carries the version, and
a file that changed since is refused with SOURCE_CHANGED. At most ``UNDER_WAY_MAX`` small files are under way.

Spec: BP1-FET, BP1-COM.
"""

from __future__ import annotations

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
from contextlib import aclosing, nullcontext
from pathlib import Path

import trio

from ..common.blocks import BRIEF_LENGTH_MAX, blocknum_of, is_one_block
from ..common.file_table import FILES_MAX
from ..common.names import SafeName, show_name
from ..common.tasks import background_tasks
from ..connection.connection import Connection
from ..errors import (
    BlockprotoError,
    Cancelled,
    ConnectionLost,
    DigestMismatch,
    DigestsDiffer,
    FileExists,
    GoingAway,
    Refused,
    StoreFailed,
    TooFewFiles,
)
from ..results import DownloadJob, FileInfo, Receipt, file_item
from ..store import (
    Destination,
    DownloadStore,
    Facts,
    IfExists,
    StoredFile,
    UploadKey,
    Verdict,
)
from ..transfer.engine import Engine, running
from ..transfer.send_source import OnProgress, tell_all_done
from ..wire import WANTED_MAX, FileItem
from .batch_queue import BatchQueue
from .brief_download import OTHER_SIDE, BriefFetch, SmallDownload
from .connections import Retries
from .context import Context
from .download import Downloader
from .download_files import FilesFetch, HeldFrames, fitting
from .option_names import Rule
from .receipts import receipt_of

UNDER_WAY_MAX = 512
"""Small files under way at once; fewer if the server allows fewer streams."""
STREAMS_SPARED = 32
"""Streams that are left for big files and for questions."""
BIG_AT_ONCE = 8
BATCH_FILES = 64
"""FETCHes written together."""
ASKED_MAX = WANTED_MAX // 2
"""Streams that ask for many files each, at once."""
PAGE_JOBS = 1024
"""After this many jobs, wait until the consumer has taken the outcomes, so that memory is bounded."""

Outcome = Receipt | BlockprotoError
Deliver = Callable[[DownloadJob, Outcome], None]


async def download_all(
    context: Context,
    downloader: Downloader,
    jobs: Iterable[tuple[FileInfo, Path]] | AsyncIterable[tuple[FileInfo, Path]],
    failed: list[Exception],
    rule: Rule,
    progress: OnProgress | None,
    ended: BatchQueue[tuple[DownloadJob, Outcome]],
) -> None:
    """Download ``jobs``, see ``Client.download_all``; what ends goes to ``ended``, what ``jobs`` raises to ``failed``."""
    open_downloads = context.config.open_downloads
    store = None if open_downloads is None else open_downloads()
    retries = Retries(context.connections)

    def deliver(job: DownloadJob, outcome: Outcome) -> None:
        retries.progressed()
        ended.put((job, outcome))

    left: Sequence[DownloadJob] | None = ()
    try:
        async with aclosing(_jobs(jobs, failed)) as taken:
            while left is not None:
                many = DownloadMany(context, downloader, store, rule, deliver, progress)
                left = await many.run(left, taken, ended.emptied)
                if many.lost is not None and left is not None:
                    try:
                        await retries.wait(many.lost)
                    except BlockprotoError as exc:
                        await _give_up(left, taken, exc, deliver, ended.emptied)
                        left = None
    finally:
        if store is not None:
            store.close()


class DownloadMany:
    """One round of a ``download_all``: until everything has ended, or the connection is lost.

    Args:
        context: what the client's transfers share.
        downloader: fetches what is not small.
        store: where small files go; None: every file goes the ordinary way.
        rule: how files are to arrive.
        deliver: called for each job with its outcome, in the order in which they end.
        on_progress: as for a single download.

    Attributes:
        lost: why jobs were left over, or None.
    """

    def __init__(
        self,
        context: Context,
        downloader: Downloader,
        store: DownloadStore | None,
        rule: Rule,
        deliver: Deliver,
        on_progress: OnProgress | None,
    ) -> None:
        self.lost: BlockprotoError | None = None
        self._context = context
        self._downloader = downloader
        self._rule = rule
        self._store = store
        self._deliver = deliver
        self._on_progress = on_progress
        self._open: dict[int, DownloadJob] = {}
        self._fetches: dict[int, BriefFetch | FilesFetch] = {}
        self._asking: set[FilesFetch] = set()
        self._held = HeldFrames()
        self._news = trio.lowlevel.ParkingLot()
        self._big = 0
        self._big_slots = trio.CapacityLimiter(BIG_AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self._leaving = self._scarce = False
        self._begun = self._asked = 0

    async def run(
        self,
        left: Sequence[DownloadJob],
        jobs: AsyncIterator[DownloadJob],
        delivered: Callable[[], Awaitable[None]],
    ) -> list[DownloadJob] | None:
        """Fetch what is ``left`` of an earlier round, then ``jobs``.

        ``delivered`` waits until what was delivered so far has been taken, so that memory is bounded.

        Returns:
            None when everything has ended; else, ``lost`` says why, those that were begun and did not end.

        Cancellation: what is not complete is removed, what is being made durable is waited for.
        """
        taken = False
        try:
            async with aclosing(_chained(left, jobs)) as chained, background_tasks() as nursery:
                self._nursery = nursery
                engine = None if self._store is None else Engine(self._store)
                async with nullcontext() if engine is None else running(engine, close=False):
                    try:
                        taken = await self._run(chained, delivered, engine)
                        while self._fetches or self._big:
                            await self._news.park()
                    finally:
                        await self._leave(engine)
        except BlockprotoError as exc:
            self.lost = exc
        return None if taken and not self._open else [*self._open.values(), *left[self._begun :]]

    async def _leave(self, engine: Engine | None) -> None:
        self._leaving = True
        for fetch in (*self._fetches.values(), *self._asking):
            fetch.stop(Cancelled("the download was stopped"))
        if engine is not None:
            with trio.CancelScope(shield=True):
                await engine.drain()
            for fetch in tuple(self._fetches.values()):
                fetch.close()

    async def _run(
        self,
        jobs: AsyncIterator[DownloadJob],
        delivered: Callable[[], Awaitable[None]],
        engine: Engine | None,
    ) -> bool:
        connection: Connection | None = None
        batch: list[BriefFetch] = []
        asked: list[SmallDownload] = []
        async for job in jobs:
            self._open[id(job)] = job
            self._begun += 1
            way = self._way_of(job)
            if way is not None and engine is not None:
                connection = connection or await self._connect()
                small = self._prepare(job, way)
                if small is None:
                    continue
                if connection.session.gives_files and job.entry.filesize <= BRIEF_LENGTH_MAX:
                    asked.append(small)
                else:
                    batch.append(self._fetch_of(connection, small, engine))
            elif id(job) in self._open:
                await self._start_big(job)
            if len(batch) >= BATCH_FILES:
                await self._send(connection, batch)
                batch = []
            if len(asked) >= FILES_MAX:
                await self._ask(connection, asked, engine)
                asked = []
            if self._begun % PAGE_JOBS == 0:
                await delivered()
            if self.lost is not None:
                break
        else:
            await self._send(connection, batch)
            await self._ask(connection, asked, engine)
            return self.lost is None
        self._drop(batch, self.lost)
        for small in asked:
            self._small_ended(small, self.lost)
        return False

    async def _connect(self) -> Connection:
        connection = await self._context.connection()
        await connection.greeted.wait()
        return connection

    def _finish(self, job: DownloadJob, outcome: Outcome) -> None:
        """Deliver an outcome; a job whose connection was lost or is ending, or whose disk failed, stays open."""
        if isinstance(outcome, ConnectionLost | GoingAway | StoreFailed):
            self.lost = outcome
            return
        self._open.pop(id(job), None)
        self._deliver(job, outcome)

    # ---- small files ------------------------------------------------------------------------------------------

    def _way_of(self, job: DownloadJob) -> Destination | None:
        """Where a small job goes; None for one that is downloaded alone, and for one that has ended already."""
        entry = job.entry
        try:
            dest = self._context.destination(entry.filename, job.dest, self._rule)
            met = self._downloader.existing.look(entry, dest, self._rule)
        except TooFewFiles:
            return None  # a download of its own waits until there are enough
        except BlockprotoError as exc:
            self._finish(job, exc)
            return None
        if (met.verdict is Verdict.THERE and self._rule.if_exists is not IfExists.REPLACE) or (
            met.verdict is Verdict.LEAVE
        ):
            tell_all_done(self._on_progress, entry.filename, entry.filesize, 0)
            self._finish(job, self._downloader.existing.receipt(entry, met, 0.0))
            return None
        small = met.fetched and is_one_block(entry.filesize)
        if self._store is None or self._scarce or not small:
            return None
        return dest if self._store.takes(dest) else None

    def _prepare(self, job: DownloadJob, dest: Destination) -> SmallDownload | None:
        """A small file with its place here; None if it has ended already."""
        assert self._store is not None
        entry = job.entry
        version = bytes.fromhex(entry.version)
        try:
            name, rule = SafeName.parse(job.dest.name), self._rule.if_exists
            facts = Facts(name, entry.filetype, entry.filesize, entry.mtime_ns, entry.mode, rule)
            upload = self._store.begin_at(dest, UploadKey(OTHER_SIDE, version), facts)
        except BlockprotoError as exc:
            self._finish(job, exc)
            return None
        return SmallDownload(job, version, upload)

    def _fetch_of(self, connection: Connection, small: SmallDownload, engine: Engine) -> BriefFetch:
        job, begun = small.job, time.perf_counter()
        return BriefFetch(
            connection,
            small,
            engine.committer,
            engine.disk,
            lambda outcome: self._ended(job, outcome, begun),
        )

    async def _ask(
        self, connection: Connection | None, smalls: list[SmallDownload], engine: Engine | None
    ) -> None:
        """Ask for many files at once; what the connection does not take any more stays open."""
        while smalls:
            assert connection is not None
            assert engine is not None
            while len(self._asking) >= ASKED_MAX or (self._asking and not self._may_open(connection)):
                await self._news.park()
            count = fitting(smalls, connection.session.head_length_max)
            asked, smalls = smalls[:count], smalls[count:]
            fetch = FilesFetch(
                connection, asked, engine.committer, self._held, self._small_ended, self._stream_over
            )
            self._fetches.update({id(small.job): fetch for small in asked})
            self._asked += count
            self._asking.add(fetch)
            try:
                if connection.going_away is not None:
                    raise GoingAway(retry_after_ms=connection.going_away.retry_after_ms)
                fetch.begin()
            except BlockprotoError as exc:
                fetch.ended(exc)

    def _stream_over(self, fetch: FilesFetch) -> None:
        """A stream that asked for many has ended, perhaps long after the last of its files: one more may ask."""
        self._asking.discard(fetch)
        self._news.unpark_all()

    def _small_ended(self, small: SmallDownload, outcome: StoredFile | BlockprotoError | None) -> None:
        """One of many files has ended; None: the server does not send it that way, so it is fetched by itself."""
        small.upload.close()
        if outcome is not None:
            self._ended(small.job, outcome, small.begun)
            return
        self._fetches.pop(id(small.job), None)
        self._news.unpark_all()
        if not self._leaving:
            self._start(small.job)

    async def _send(self, connection: Connection | None, batch: list[BriefFetch]) -> None:
        """Ask for a batch, as fast as the window allows; what the connection does not take any more stays open."""
        for at, fetch in enumerate(batch):
            assert connection is not None
            while self._fetches and not self._may_open(connection):
                await self._news.park()
            try:
                if connection.going_away is not None:
                    raise GoingAway(retry_after_ms=connection.going_away.retry_after_ms)
                self._fetches[id(fetch.small.job)] = fetch
                self._asked += 1
                fetch.begin()
            except BlockprotoError as exc:
                self._drop(batch[at:], exc)
                return

    def _may_open(self, connection: Connection) -> bool:
        if connection.lost is not None or connection.going_away is not None:
            return True
        hello = connection.session.peer_hello
        streams = UNDER_WAY_MAX if hello is None else min(UNDER_WAY_MAX, hello.streams_max - STREAMS_SPARED)
        return len(self._fetches) < streams and connection.session.may_open

    def _drop(self, batch: list[BriefFetch], error: BlockprotoError | None) -> None:
        for fetch in batch:
            fetch.ended(error or ConnectionLost())

    def _ended(self, job: DownloadJob, outcome: StoredFile | BlockprotoError, begun: float) -> None:
        self._fetches.pop(id(job), None)
        self._news.unpark_all()
        if isinstance(outcome, StoredFile):
            tell_all_done(self._on_progress, job.entry.filename, job.entry.filesize, job.entry.filesize)
            self._finish(job, _receipt(job, outcome, time.perf_counter() - begun))
        elif self._leaving:
            return
        elif _may_help(outcome) or (
            isinstance(outcome, FileExists) and self._rule.if_exists in (IfExists.SKIP, IfExists.UPDATE)
        ):
            self._start(job)
        else:
            self._finish(job, outcome)

    # ---- the others -------------------------------------------------------------------------------------------

    async def _start_big(self, job: DownloadJob) -> None:
        """Begin a download of its own as soon as fewer than ``BIG_AT_ONCE`` are running."""
        while self._big >= BIG_AT_ONCE and self.lost is None:
            await self._news.park()
        self._start(job)

    def _start(self, job: DownloadJob) -> None:
        assert self._nursery is not None
        self._big += 1
        self._nursery.start_soon(self._fetch_big, job)

    async def _fetch_big(self, job: DownloadJob) -> None:
        outcome: Outcome
        try:
            item = file_item(job.entry)
            dest = self._context.destination(item.filename, job.dest, self._rule)
            outcome = await self._fetch_in_turn(item, dest)
        except BlockprotoError as exc:
            outcome = exc
        except OSError as exc:
            outcome = Refused(f"{show_name(str(job.dest))}: {exc.strerror or exc}")
            outcome.__cause__ = exc
        finally:
            self._big -= 1
            self._news.unpark_all()
        self._finish(job, outcome)

    async def _fetch_in_turn(self, item: FileItem, dest: Destination) -> Receipt:
        """A download of its own; where too few files may be open, one after another, with no small one beside it."""
        while True:
            async with self._big_slots:
                alone, asked = self._scarce and not self._fetches, self._asked
                try:
                    return await self._downloader.file(
                        item.filename, dest, self._rule, None, self._on_progress, item
                    )
                except TooFewFiles:
                    if (alone and asked == self._asked) or self.lost is not None:
                        raise
                    self._scarce = True
                    self._big_slots.total_tokens = 1
            while self._fetches and self.lost is None:
                await self._news.park()


async def _jobs(
    jobs: Iterable[tuple[FileInfo, Path]] | AsyncIterable[tuple[FileInfo, Path]], failed: list[Exception]
) -> AsyncGenerator[DownloadJob, None]:
    """``jobs`` one by one; what it raises goes to ``failed`` and ends them."""
    try:
        if isinstance(jobs, AsyncIterable):
            async for entry, dest in jobs:
                yield DownloadJob(entry, dest)
        else:
            for entry, dest in jobs:
                yield DownloadJob(entry, dest)
    except Exception as exc:
        failed.append(exc)


async def _give_up(
    left: Sequence[DownloadJob],
    jobs: AsyncIterator[DownloadJob],
    error: BlockprotoError,
    deliver: Deliver,
    delivered: Callable[[], Awaitable[None]],
) -> None:
    """Deliver ``error`` for all that is left."""
    async with aclosing(_chained(left, jobs)) as chained:
        async for job in chained:
            deliver(job, error)
            await delivered()


async def _chained(
    left: Sequence[DownloadJob], jobs: AsyncIterator[DownloadJob]
) -> AsyncGenerator[DownloadJob, None]:
    for job in left:
        yield job
    async for job in jobs:
        yield job


def _may_help(error: BlockprotoError) -> bool:
    """Whether a download of its own, which retries and resumes, can succeed where the pipelined one failed."""
    if isinstance(error, ConnectionLost | GoingAway):
        return False
    return error.retryable or isinstance(error, DigestMismatch | DigestsDiffer)


def _receipt(job: DownloadJob, stored: StoredFile, elapsed_s: float) -> Receipt:
    entry, dest = job.entry, job.dest
    return receipt_of(
        entry.filename,
        entry.filetype,
        entry.filesize,
        sourceid=entry.version,
        root=stored.root,
        stored_as=str(dest if stored.stored_as == dest.name else dest.with_name(stored.stored_as)),
        resumed=False,
        blocks_sent=blocknum_of(entry.filesize),
        payload=entry.filesize,
        elapsed_s=elapsed_s,
    )
