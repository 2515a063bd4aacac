"""Many files in one go: small ones pipelined without a round trip each, big ones one after another.

    jobs → pages → receipts query: which of these sourceids are committed already?
                 → small: one BLOCK with the COMMIT flag each, as many under way as the server's ``streams_max`` allows
                 → big:   the ordinary upload with resume, after the small ones of its page

So a thousand small files cost a handful of round trips, and a second run sends no content.

Spec: BP1-BLK (a file without OPEN), BP1-LST (receipts).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import trio

from ..blocks import BLOCK_LENGTH, blocknum_of, digest_of
from ..errors import (
    BlockprotoError,
    ConnectionLost,
    GoingAway,
    Refused,
    SourceChanged,
    UnexpectedMessage,
)
from ..link.connection import Connection, Opening, error_of
from ..names import SafeName, show_name
from ..results import Receipt, UploadJob
from ..store import FOLDER_FILETYPE, Facts, IfExists
from ..times import mtime_of
from ..transfer.sending import OnProgress, Progress
from ..wire import Block, Committed, Error, Message, Piece, Priority, ReceiptItem
from .sources import TIMES, FileSource, filetype_of, folder_facts

PAGE_JOBS = 2000
"""Jobs looked at before the first is sent; bounds memory and the length of the receipts query."""

PRIORITY = Priority.NORMAL
BATCH_LENGTH = 64 * 1024
CUT_LENGTH_MIN = 64 * 1024
"""What is longer and was cut short by a lost connection is sent with OPEN: over a line that breaks sooner, again and again,
it would never arrive."""
BATCH_FILES = 64
"""Small files are written together up to this many bytes or files."""

_READ_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)

Outcome = Receipt | BlockprotoError


class Host(Protocol):
    """What a bulk upload needs of the client."""

    async def connection(self) -> Connection:
        """A live connection. Raises ConnectionLost."""

    async def receipts(self, sourceids: Sequence[bytes]) -> dict[bytes, ReceiptItem]:
        """What is committed already. Raises ConnectionLost."""

    async def upload_source(
        self, source: FileSource, sourceid: bytes, progress: OnProgress | None
    ) -> Receipt:
        """Upload one file with resume and retries. Raises BlockprotoError."""

    def sourceid_of(self, path: Path, name: str, facts: os.stat_result) -> bytes:
        """The sourceid of a file."""


Deliver = Callable[[UploadJob, Outcome], None]
_IF_EXISTS = {one.name.lower(): one for one in IfExists}


def if_exists_of(word: str) -> IfExists:
    """The policy that ``word`` names; raises ValueError."""
    if word not in _IF_EXISTS:
        raise ValueError(f"if_exists is {word!r}: it is one of {', '.join(_IF_EXISTS)}")
    return _IF_EXISTS[word]


def priority_of(word: str) -> Priority:
    """The priority that ``word`` names; raises ValueError."""
    words = [priority.name.lower() for priority in Priority]
    if word not in words:
        raise ValueError(f"priority is {word!r}: it is one of {', '.join(words)}")
    return Priority[word.upper()]


@dataclass(slots=True)
class Prepared:
    """A job that was looked at: its facts and sourceid."""

    job: UploadJob
    facts: Facts
    sourceid: bytes


class BriefLane:
    """A stream that carries one file of at most one block, without OPEN.

    Args:
        done: called once with COMMITTED, or with why there is none.
    """

    __slots__ = ("_done",)
    waits = False

    def __init__(self, done: Callable[[Committed | BlockprotoError], None]) -> None:
        self._done: Callable[[Committed | BlockprotoError], None] | None = done

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.Sink."""
        if isinstance(message, Committed):
            self._end(message)
        elif isinstance(message, Error):
            self._end(error_of(message))

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.Sink."""
        raise UnexpectedMessage("a receiver sends no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.Sink."""
        self._end(error)

    def _end(self, outcome: Committed | BlockprotoError) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(outcome)


async def send_brief(
    connection: Connection,
    sourceid: bytes,
    facts: Facts,
    content: bytes,
    done: Callable[[Committed | BlockprotoError], None],
    priority: Priority = PRIORITY,
) -> None:
    """Send a whole file of at most one block; ``done`` hears what became of it, once, now or later.

    Cancellation: ``done`` may not be called.
    """
    lane = BriefLane(done)
    try:
        length = min(len(content), connection.piece_length())
        (stream,) = await connection.send_openings(
            [opening_of(lane, sourceid, facts, content, length, priority)], priority
        )
        view = memoryview(content)
        while length < len(content):
            at, length = length, length + min(len(content) - length, connection.piece_length())
            last = length == len(content)
            message = Piece(at, digest=digest_of(content) if last else None, commit=last)
            await connection.send(stream, message, view[at:length], priority)
    except BlockprotoError as exc:
        lane.ended(exc)


def opening_of(
    lane: BriefLane,
    sourceid: bytes,
    facts: Facts,
    content: bytes,
    length: int,
    priority: Priority = PRIORITY,
) -> Opening:
    """The BLOCK that begins a file of at most one block with its first ``length`` bytes."""
    whole = length == len(content)
    block = Block(
        sourceid=sourceid,
        filesize=len(content),
        blocknum=blocknum_of(len(content)),
        blockno=0,
        position=0,
        filename=facts.filename.text,
        filetype=facts.filetype,
        digest=digest_of(content) if whole else None,
        commit=whole,
        mtime_ns=facts.mtime_ns,
        mode=facts.mode,
        if_exists=facts.if_exists or None,
        priority=None if priority is PRIORITY else priority,
    )
    return Opening(lane, block, content if whole else memoryview(content)[:length])


class Bulk:
    """One ``upload_all``.

    Args:
        host: what it needs of the client.
        deliver: called for each job with its outcome, in the order in which they end.
        on_progress: as for a single upload.
        cut: the sourceids of files that were cut short by a lost connection; added to.

    Attributes:
        lost: why jobs were left over, or None.
    """

    def __init__(self, host: Host, deliver: Deliver, on_progress: OnProgress | None, cut: set[bytes]) -> None:
        self._cut = cut
        self.lost: BlockprotoError | None = None
        self._host = host
        self._deliver = deliver
        self._on_progress = on_progress
        self._open: dict[int, UploadJob] = {}
        self._under_way = 0
        self._all_ended = trio.Event()

    async def run(
        self, jobs: Iterable[UploadJob], delivered: Callable[[], Awaitable[None]]
    ) -> list[UploadJob]:
        """Send ``jobs``; returns those that a lost connection stopped (they can be given again).

        ``delivered`` waits until what was delivered so far has been taken, so that memory is bounded by a page.
        """
        remaining = iter(jobs)
        while page := list(islice(remaining, PAGE_JOBS)):
            self._open = {id(job): job for job in page}
            try:
                await self._run_page(page)
            except BlockprotoError as exc:
                self.lost = exc
            if self._open:
                return [*self._open.values(), *remaining]
            await delivered()
        return []

    async def _run_page(self, page: list[UploadJob]) -> None:
        prepared = [one for job in page if (one := self._prepare(job)) is not None]
        known = await self._host.receipts([one.sourceid for one in prepared])
        small, big = [], []
        for one in prepared:
            receipt = known.get(one.sourceid)
            if receipt is not None:
                self._finish(one.job, self._skipped(one, receipt))
            elif _is_small(one.facts) and one.sourceid not in self._cut:
                small.append(one)
            else:
                big.append(one)
        await self._send_small(small)
        for one in big:
            await self._send_big(one)

    def _finish(self, job: UploadJob, outcome: Outcome) -> None:
        """Deliver an outcome; a job that only lost its connection, or came too late on it, stays open."""
        if isinstance(outcome, ConnectionLost | GoingAway):
            self.lost = outcome
            return
        self._open.pop(id(job), None)
        self._deliver(job, outcome)

    def _prepare(self, job: UploadJob) -> Prepared | None:
        try:
            return prepare(job, self._host)
        except (OSError, BlockprotoError) as exc:
            self._finish(job, _as_error(job, exc))
            return None

    # ---- small files ------------------------------------------------------------------------------------------

    async def _send_small(self, small: list[Prepared]) -> None:
        if not small:
            return
        connection = await self._host.connection()
        self._under_way = len(small)
        self._all_ended = trio.Event()
        batch: list[Opening] = []
        length = 0
        for one in small:
            content = self._read(connection, one)
            if content is None:
                continue
            if len(content) > connection.piece_length():
                await send_brief(connection, one.sourceid, one.facts, content, self._listener(one))
                continue
            lane = BriefLane(self._listener(one))
            batch.append(opening_of(lane, one.sourceid, one.facts, content, len(content)))
            length += len(content)
            if length >= BATCH_LENGTH or len(batch) >= BATCH_FILES:
                await _send_batch(connection, batch)
                batch, length = [], 0
        await _send_batch(connection, batch)
        await self._all_ended.wait()

    def _read(self, connection: Connection, one: Prepared) -> bytes | None:
        """The content of a small file; None if it has ended already."""
        if connection.lost is not None:
            self._ended(one, connection.lost, 0.0)
            return None
        try:
            return _read_whole(one)
        except (OSError, BlockprotoError) as exc:
            self._ended(one, _as_error(one.job, exc), 0.0)
            return None

    def _listener(self, one: Prepared) -> Callable[[Committed | BlockprotoError], None]:
        begun = time.perf_counter()
        return lambda outcome: self._ended(one, outcome, begun)

    def _ended(self, one: Prepared, outcome: Committed | BlockprotoError, begun: float) -> None:
        if begun and isinstance(outcome, ConnectionLost) and (one.facts.filesize or 0) > CUT_LENGTH_MIN:
            self._cut.add(one.sourceid)
        self._finish(one.job, self._sent(one, outcome, begun) if isinstance(outcome, Committed) else outcome)
        self._under_way -= 1
        if self._under_way == 0:
            self._all_ended.set()

    def _sent(self, one: Prepared, committed: Committed, begun: float) -> Receipt:
        size = committed.filesize
        self._report(one, size)
        return Receipt(
            filename=one.facts.filename.text,
            filetype=one.facts.filetype,
            filesize=size,
            blocknum=blocknum_of(size),
            sourceid=one.sourceid.hex(),
            root=committed.root.hex(),
            b3sum=None if one.facts.filetype == FOLDER_FILETYPE else committed.root.hex(),
            stored_as=committed.stored_as,
            resumed=False,
            blocks_sent=blocknum_of(size),
            blocks_skipped=0,
            payload_bytes_sent=size,
            connections=1,
            elapsed_s=time.perf_counter() - begun,
        )

    def _skipped(self, one: Prepared, known: ReceiptItem) -> Receipt:
        self._report(one, 0)
        return Receipt(
            filename=one.facts.filename.text,
            filetype=one.facts.filetype,
            filesize=known.filesize,
            blocknum=blocknum_of(known.filesize),
            sourceid=one.sourceid.hex(),
            root=known.root.hex(),
            b3sum=known.b3sum.hex() if known.b3sum else self._b3sum_of_root(one, known),
            stored_as=known.stored_as,
            resumed=True,
            blocks_sent=0,
            blocks_skipped=blocknum_of(known.filesize),
            payload_bytes_sent=0,
            connections=1,
            elapsed_s=0.0,
        )

    @staticmethod
    def _b3sum_of_root(one: Prepared, known: ReceiptItem) -> str | None:
        """For a file of at most one block the root is the BLAKE3 of the file."""
        whole = known.filesize <= BLOCK_LENGTH and one.facts.filetype != FOLDER_FILETYPE
        return known.root.hex() if whole else None

    def _report(self, one: Prepared, sent: int) -> None:
        if self._on_progress is not None:
            size = one.facts.filesize or 0
            self._on_progress(Progress(one.facts.filename.text, size, size, sent))

    # ---- big files --------------------------------------------------------------------------------------------

    async def _send_big(self, one: Prepared) -> None:
        outcome: Outcome
        try:
            source = FileSource(one.job.path, one.job.name, one.facts.if_exists)
        except (OSError, BlockprotoError) as exc:
            self._finish(one.job, _as_error(one.job, exc))
            return
        try:
            outcome = await self._host.upload_source(source, one.sourceid, self._on_progress)
        except ConnectionLost:
            raise
        except (OSError, BlockprotoError) as exc:
            outcome = _as_error(one.job, exc)
        finally:
            source.close()
        self._finish(one.job, outcome)


async def _send_batch(connection: Connection, batch: list[Opening]) -> None:
    """Send a batch of whole small files; each sink hears what became of its file."""
    try:
        if batch:
            await connection.send_openings(batch, PRIORITY)
    except BlockprotoError as exc:
        for opening in batch:
            opening.sink.ended(exc)


def prepare(job: UploadJob, host: Host) -> Prepared:
    """Look at a job's file or folder.

    Raises:
        OSError: it cannot be looked at.
        Refused: it is neither a file nor a folder.
        NameRefused: its name breaks a rule.
    """
    found = os.stat(job.path)
    if_exists = if_exists_of(job.if_exists)
    sourceid = host.sourceid_of(job.path, job.name, found)
    if stat.S_ISDIR(found.st_mode):
        return Prepared(job, folder_facts(job.name, found), sourceid)
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{show_name(str(job.path))} is neither a file nor a folder")
    facts = Facts(
        filename=SafeName.parse(job.name),
        filetype=filetype_of(job.name),
        filesize=found.st_size,
        mtime_ns=TIMES.look(found, show_name(os.fspath(job.path))),
        mode=stat.S_IMODE(found.st_mode) & 0o777,
        if_exists=if_exists,
    )
    return Prepared(job, facts, sourceid)


def _read_whole(one: Prepared) -> bytes:
    """The content of a small file, which must still be what it was when it was looked at."""
    if one.facts.filetype == FOLDER_FILETYPE:
        return b""
    filesize = one.facts.filesize or 0
    fd = os.open(one.job.path, _READ_FLAGS)
    try:
        content = os.read(fd, filesize + 1)
        now = os.fstat(fd)
    finally:
        os.close(fd)
    if (len(content), mtime_of(now)) != (filesize, one.facts.mtime_ns):
        raise SourceChanged(f"{show_name(str(one.job.path))} changed while it was being read")
    return content


def _as_error(job: UploadJob, error: OSError | BlockprotoError) -> BlockprotoError:
    if isinstance(error, BlockprotoError):
        return error
    refused = Refused(f"{show_name(str(job.path))}: {error.strerror or error}")
    refused.__cause__ = error
    return refused


def _is_small(facts: Facts) -> bool:
    """Whether it may go without OPEN."""
    return facts.filesize is not None and facts.filesize <= BLOCK_LENGTH
