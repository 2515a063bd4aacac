"""Upload many files: small ones pipelined without a round trip each, big ones one after another.

    jobs → pages → what is there already (``upload_decision``)
                 → small: many together in frames (``upload_files``); to an older server, and where the line is slow for
                          their size, one BLOCK with the COMMIT flag each, as many under way as ``streams_max`` allows
                 → taken: OPEN with ROOT, a few dozen at once: there, left, refused, or sent
                 → big:   the ordinary upload with resume, after the small ones of its page

A thousand small files take a handful of round trips, and a second run sends no content, also after a run of another client.

Spec: BP1-BLK (a file without OPEN), BP1-LST (receipts).
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from ..common.blocks import BRIEF_LENGTH_MAX, is_one_block
from ..common.names import show_name
from ..common.tasks import background_tasks
from ..common.times import mtime_of
from ..connection.connection import Connection, Opening
from ..errors import BlockprotoError, ConnectionLost, FileExists, GoingAway, SourceChanged
from ..results import Job, Receipt
from ..store import IfExists
from ..transfer.send_source import OnProgress, tell_all_done
from ..transfer.slow_disk import Disk, local_disk
from ..wire import Committed
from .batch_queue import BatchQueue
from .connections import Retries
from .context import Context
from .file_digests import LOOKS_MAX
from .fingerprint import Fingerprint
from .jobs import Jobs, as_error, is_for_later
from .receipts import Arrived, brief_receipt, left_receipt
from .regular_file import open_regular
from .sources import FileSource
from .upload import Uploader
from .upload_brief import PRIORITY, opening_of, send_brief
from .upload_decision import Asked, Prepared, UploadDecisions, prepare
from .upload_files import send_files

PAGE_JOBS = 500
"""Jobs that are prepared together: bounds memory, and their receipts mostly fit one answer."""
SLICE_JOBS = 50
"""Jobs that are prepared at one go."""
ASKED_AT_ONCE = 32
"""How many files with taken names are offered by root at once; those the server does not have are sent."""
ASKED_LENGTH_MAX = 16 << 20
"""A longer file is sent alone."""
BATCH_LENGTH = 64 * 1024
BATCH_FILES = 64
"""Small files are written together up to this many bytes or files."""

Outcome = Arrived | Receipt | BlockprotoError
A = TypeVar("A")
B = TypeVar("B")
Deliver = Callable[[Sequence[tuple[Job, Outcome]]], None]


async def upload_all(
    context: Context,
    uploader: Uploader,
    jobs: Iterable[Job],
    progress: OnProgress | None,
    checksum: bool,
    tell_ends: bool,
    ended: BatchQueue[tuple[Job, Outcome]],
) -> None:
    """Upload ``jobs``, see ``Client.upload_all``; what ends goes to ``ended``.

    With ``tell_ends`` the progress of a file that has ended well is told too.
    """
    retries = Retries(context.connections)
    cut: set[bytes] = set()

    def deliver(outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        retries.progressed()
        ended.put_all(outcomes)

    remaining = Jobs(jobs)
    look = False
    try:
        await context.learn_earlier_uploads()
        while True:
            many = UploadMany(
                context, uploader, deliver, progress, cut, checksum=checksum, look=look, tell_ends=tell_ends
            )
            look = True  # what was found before the first round may have changed
            left = await many.run(remaining, ended.emptied)
            if not left and many.lost is None:
                return
            if many.refused and not await _may_be_asked_again(retries, many.refused.values()):
                for job in left:
                    if id(job) in many.refused:
                        ended.put((job, many.refused[id(job)]))
                left = [job for job in left if id(job) not in many.refused]
            remaining.put_back(left)
            if many.lost is not None or not many.refused:
                await retries.wait(many.lost or ConnectionLost())
    except BlockprotoError as exc:
        for job in remaining:
            ended.put((job, exc))


async def _may_be_asked_again(retries: Retries, errors: Iterable[BlockprotoError]) -> bool:
    """Wait as long as the most patient of ``errors`` asks for; False: it is time to give up."""
    try:
        await retries.wait(max(errors, key=lambda error: error.retry_after_ms))
    except BlockprotoError:
        return False
    return True


class UploadMany:
    """One round of an ``upload_all``: until everything has ended, the connection is lost, or something is refused for now.

    Args:
        context: what the client's transfers share.
        uploader: sends what is not small.
        deliver: called with jobs and their outcomes, in the order in which they end.
        on_progress: as for a single upload.
        cut: the sourceids of files that were cut short by a lost connection; added to.
        checksum: see ``UploadDecisions``.
        look: look at each file, also if it was looked at when it was found.
        tell_ends: whether ``on_progress`` hears of files that have ended well, too.

    Attributes:
        lost: why the connection carries nothing more, or None.
        refused: why small files are not stored that may be a little later, by the ``id`` of their job; what goes with OPEN
            tries again by itself.
    """

    def __init__(
        self,
        context: Context,
        uploader: Uploader,
        deliver: Deliver,
        on_progress: OnProgress | None,
        cut: set[bytes],
        *,
        checksum: bool = False,
        look: bool = False,
        tell_ends: bool = True,
    ) -> None:
        self._cut = cut
        self._on_end = on_progress if tell_ends else None
        self._look = look
        self.lost: BlockprotoError | None = None
        self.refused: dict[int, BlockprotoError] = {}
        self._context = context
        self._uploader = uploader
        self._deliver = deliver
        self._on_progress = on_progress
        self._decisions = UploadDecisions(context, checksum=checksum)
        self._open: dict[int, Job] = {}
        self._names: set[str] = set()
        self._page_end = trio.Event()
        self._under_way = 0
        self._all_ended = trio.Event()

    async def run(self, remaining: Jobs, delivered: Callable[[], Awaitable[None]]) -> list[Job]:
        """Send what remains; returns what has begun and not ended (it can be put back and sent again).

        While one page is on its way, the next is compared, the server is asked about another, and one more is prepared.
        ``delivered`` waits until what was delivered so far has been taken, so that memory is bounded by a few pages.
        """
        async with background_tasks() as deciding:
            give_prepared, take_prepared = trio.open_memory_channel[list[Prepared]](0)
            give_asked, take_asked = trio.open_memory_channel[Asked](0)
            give_decided, take_decided = trio.open_memory_channel[list[Prepared]](0)
            deciding.start_soon(self._prepare_all, remaining, give_prepared)
            deciding.start_soon(self._pass_on, self._decisions.ask, take_prepared, give_asked)
            deciding.start_soon(self._pass_on, self._judge, take_asked, give_decided)
            async with trio.open_nursery() as sending:
                async for page in take_decided:
                    gone = trio.Event()
                    sending.start_soon(self._send_and_keep, page, gone)
                    await gone.wait()
                    await delivered()
                    if self._stops:
                        break
        return list(self._open.values())

    @property
    def _stops(self) -> bool:
        """Whether no further page is to be begun in this round."""
        return self.lost is not None or bool(self.refused)

    async def _prepare_all(self, remaining: Jobs, give: trio.MemorySendChannel[list[Prepared]]) -> None:
        """Prepare page after page, the next one while the server is asked about the last."""
        async with give:
            while True:
                page = await self._prepare_page(remaining, PAGE_JOBS)
                if page:
                    await give.send(page)
                elif not remaining.waits:
                    return
                while remaining.waits and self._open:  # the next job wants a name of one of these
                    if self._stops:
                        return
                    await self._page_end.wait()

    async def _prepare_page(self, remaining: Jobs, length: int) -> list[Prepared]:
        """The next page; empty at the end, and before a job that waits. The server's answers are heard meanwhile."""
        page: list[Prepared] = []
        while len(page) < length:
            jobs = remaining.page(min(SLICE_JOBS, length - len(page)), self._names)
            self._open |= {id(job): job for job in jobs}
            page += [one for job in jobs if (one := self._prepare(job)) is not None]
            await trio.lowlevel.checkpoint()
            if remaining.waits or not jobs:
                break
        return page

    async def _pass_on(
        self,
        step: Callable[[A], Awaitable[B]],
        take: trio.MemoryReceiveChannel[A],
        give: trio.MemorySendChannel[B],
    ) -> None:
        """Do one step of finding out what has to be sent, page by page; a lost connection ends this."""
        async with give:
            async for page in take:
                try:
                    await give.send(await step(page))
                except BlockprotoError as exc:
                    self.lost = exc
                    return

    async def _judge(self, asked: Asked) -> list[Prepared]:
        """Deliver what has ended without being sent; returns the others."""
        ended, rest = await self._decisions.judge(asked)
        self._end_all([(one, outcome) for one, outcome in ended if isinstance(outcome, Arrived)])
        for one, outcome in ended:
            if not isinstance(outcome, Arrived):
                self._end(one, as_error(one.job, outcome))
        return rest

    async def _send_and_keep(self, page: Sequence[Prepared], gone: trio.Event) -> None:
        """Send a page, and keep what was learned of its files; sets ``gone`` when the next page may go."""
        try:
            await self._send_page(page, gone)
            await self._context.digests.keep()
        except BlockprotoError as exc:
            self.lost = exc
        finally:
            gone.set()
            ended, self._page_end = self._page_end, trio.Event()
            ended.set()

    async def _send_page(self, page: Sequence[Prepared], gone: trio.Event) -> None:
        small, asked, big = [], [], []
        for one in page:
            if one.asks and (one.facts.filesize or 0) <= ASKED_LENGTH_MAX:
                asked.append(one)
            elif not one.asks and is_one_block(one.facts.filesize) and one.sourceid not in self._cut:
                small.append(one)
            else:
                big.append(one)
        await self._send_small(small, trio.Event() if asked or big else gone)
        await self._send_asked(asked)
        for one in big:
            await self._send_big(one)

    def _end_all(self, ended: Sequence[tuple[Prepared, Arrived]]) -> None:
        """As ``_end``, of many files that are there now."""
        for one, arrived in ended:
            self._tell_end(one, arrived)
            self._close(one.job)
        if ended:  # else nothing has moved, and whoever waits for that may give up
            self._deliver([(one.job, arrived) for one, arrived in ended])

    def _end(self, one: Prepared, outcome: Outcome) -> None:
        """Deliver an outcome, and report the progress of a file that is there now."""
        if not isinstance(outcome, BlockprotoError):
            self._tell_end(one, outcome)
        self._finish(one.job, outcome)

    def _tell_end(self, one: Prepared, outcome: Arrived | Receipt) -> None:
        if self._on_end is not None:
            payload = outcome.payload_bytes_sent
            tell_all_done(self._on_end, one.facts.filename.text, one.facts.filesize or 0, payload)

    def _end_small(self, one: Prepared, outcome: Outcome) -> None:
        """As ``_end``, but a small file that may be taken a little later stays open."""
        if isinstance(outcome, BlockprotoError) and is_for_later(outcome):
            self.refused[id(one.job)] = outcome
        else:
            self._end(one, outcome)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        """Deliver an outcome; a job whose connection was lost, or is ending, stays open."""
        if isinstance(outcome, ConnectionLost | GoingAway):
            self.lost = outcome
            return
        self._close(job)
        self._deliver([(job, outcome)])

    def _close(self, job: Job) -> None:
        self._open.pop(id(job), None)
        self._names.discard(job.name)

    def _prepare(self, job: Job) -> Prepared | None:
        try:
            return prepare(job, self._context.sourceid_of, look=self._look)
        except (OSError, BlockprotoError) as exc:
            self._finish(job, as_error(job, exc))
            return None

    # ---- small files ------------------------------------------------------------------------------------------

    async def _send_small(self, small: list[Prepared], gone: trio.Event) -> None:
        """Send small files; sets ``gone`` when all are on their way, and waits for what becomes of them."""
        if not small:
            return
        connection = await self._context.connection()
        framed, small = _parted(small, connection)
        if framed:
            all_said = trio.Event() if small else gone
            async with self._context.frame_streams:
                await send_files(connection, framed, self._framed, self._framed_all, PRIORITY, all_said)
        if not small:
            return
        self._under_way += len(small)
        if self._all_ended.is_set():
            self._all_ended = trio.Event()
        batch: list[Opening] = []
        length = 0
        disk = local_disk()
        for one in small:
            content = await self._read(connection, disk, one)
            if content is None:
                continue
            if len(content) > connection.piece_length():
                await send_brief(connection, one.sourceid, one.facts, content, self._listener(one))
                continue
            batch.append(opening_of(one.sourceid, one.facts, content, len(content), self._listener(one)))
            length += len(content)
            if length >= BATCH_LENGTH or len(batch) >= BATCH_FILES:
                await _send_batch(connection, batch)
                batch, length = [], 0
        await _send_batch(connection, batch)
        gone.set()
        await self._all_ended.wait()

    async def _read(self, connection: Connection, disk: Disk, one: Prepared) -> bytes | None:
        """The content of a small file; None if it has ended already."""
        if connection.lost is not None:
            self._ended(one, connection.lost, 0.0)
            return None
        try:
            return await disk.run(lambda: _read_whole(one))
        except (OSError, BlockprotoError) as exc:
            self._ended(one, as_error(one.job, exc), 0.0)
            return None

    def _framed(self, one: Prepared, outcome: Committed | BlockprotoError | OSError, begun: float) -> None:
        """A file that went in a frame has ended."""
        if isinstance(outcome, Committed):
            self._end(one, self._sent(one, outcome, begun))
        else:
            self._end_small(one, _left_or(one, as_error(one.job, outcome)))

    def _framed_all(self, ones: Sequence[Prepared], roots: Sequence[bytes], begun: float) -> None:
        """Many files of one frame were stored as they were sent."""
        elapsed_s = time.perf_counter() - begun
        files = [(one, root) for one, root in zip(ones, roots, strict=True) if not one.is_folder]
        self._context.digests.learn_many([(one.stat, root) for one, root in files])
        self._end_all(
            [
                (
                    one,
                    Arrived(one.facts, one.sourceid, root, one.facts.filename.text, "sent", None, elapsed_s),
                )
                for one, root in zip(ones, roots, strict=True)
            ]
        )

    def _listener(self, one: Prepared) -> Callable[[Committed | BlockprotoError], None]:
        begun = time.perf_counter()
        return lambda outcome: self._ended(one, outcome, begun)

    def _ended(self, one: Prepared, outcome: Committed | BlockprotoError, begun: float) -> None:
        if begun and isinstance(outcome, ConnectionLost) and (one.facts.filesize or 0) > BRIEF_LENGTH_MAX:
            self._cut.add(one.sourceid)
        if isinstance(outcome, Committed):
            self._end(one, self._sent(one, outcome, begun))
        else:
            self._end_small(one, _left_or(one, outcome))
        self._under_way -= 1
        if self._under_way == 0:
            self._all_ended.set()

    def _sent(self, one: Prepared, committed: Committed, begun: float) -> Receipt:
        if not one.is_folder and not committed.left:
            self._context.digests.learn(one.stat, committed.root)
        return brief_receipt(one.facts, committed, begun)

    # ---- files with OPEN --------------------------------------------------------------------------------------

    async def _send_asked(self, asked: list[Prepared]) -> None:
        """Ask about the files with taken names, many at once; send what the server does not have."""
        turns = trio.CapacityLimiter(ASKED_AT_ONCE)

        async def ask(one: Prepared) -> None:
            try:
                if self.lost is None:
                    await self._send_big(one)
            except BlockprotoError as exc:
                self.lost = exc
            finally:
                turns.release_on_behalf_of(one)

        async with trio.open_nursery() as nursery:
            for one in asked:
                await turns.acquire_on_behalf_of(one)
                nursery.start_soon(ask, one)
        if self.lost is not None:
            raise self.lost

    async def _send_big(self, one: Prepared) -> None:
        outcome: Outcome
        try:
            source = FileSource(Path(one.job.path), one.job.name, one.facts.if_exists)
        except (OSError, BlockprotoError) as exc:
            self._finish(one.job, as_error(one.job, exc))
            return
        try:
            outcome = await self._uploader.file(source, one.sourceid, self._on_progress, one.root)
        except ConnectionLost:
            raise
        except (OSError, BlockprotoError) as exc:
            outcome = _left_or(one, as_error(one.job, exc))
        finally:
            source.close()
        self._end(one, outcome)


def _parted(small: Sequence[Prepared], connection: Connection) -> tuple[list[Prepared], list[Prepared]]:
    """Those that go together in frames, where the server knows how and the line carries them at once; and the others."""
    most = min(BRIEF_LENGTH_MAX, connection.piece_length()) if connection.session.files else -1
    parted: tuple[list[Prepared], list[Prepared]] = [], []
    for one in small:
        parted[(one.facts.filesize or 0) > most].append(one)
    return parted


async def _send_batch(connection: Connection, batch: list[Opening]) -> None:
    """Send a batch of whole small files; each handler gets the outcome of its file."""
    try:
        if batch:
            await connection.send_openings(batch, PRIORITY)
    except BlockprotoError as exc:
        for opening in batch:
            opening.handler.ended(exc)


def _read_whole(one: Prepared) -> bytes:
    """The content of a small file, which must not have changed since it was prepared; updates ``one.stat``."""
    if one.is_folder:
        return b""
    filesize = one.facts.filesize or 0
    fd = open_regular(one.job.path)
    try:
        for again in range(LOOKS_MAX):
            if again:
                os.lseek(fd, 0, os.SEEK_SET)
            content = os.read(fd, filesize + 1)
            before, one.stat = one.stat, os.fstat(fd)
            if (len(content), mtime_of(one.stat)) != (filesize, one.facts.mtime_ns):
                break
            if Fingerprint.of(before) == Fingerprint.of(one.stat):
                return content
    finally:
        os.close(fd)
    raise SourceChanged(f"{show_name(str(one.job.path))} changed while it was being read")


def _left_or(one: Prepared, error: BlockprotoError) -> Outcome:
    """Take FILE_EXISTS for "left" where ``skip`` was wanted: an older server refuses instead."""
    if one.word is IfExists.SKIP and isinstance(error, FileExists):
        return left_receipt(one.facts, None)
    return error
