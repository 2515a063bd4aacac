"""Download one file, finished or still being uploaded: FETCH with resume, into a part file beside its destination.

Spec: BP1-FET.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from ..common.blocks import BLOCK_LENGTH, BlockSet, blocknum_of
from ..common.names import SafeName
from ..connection.connection import Connection
from ..errors import (
    BadFacts,
    BlockprotoError,
    Cancelled,
    FileExists,
    RangeOutside,
    SourceChanged,
    Superseded,
    TooFewFiles,
)
from ..results import Receipt
from ..store import (
    Destination,
    Facts,
    IfExists,
    Prefix,
    StoredFile,
    UploadKey,
)
from ..transfer.engine import Engine, running
from ..transfer.fetch_receiver import FetchReceiver
from ..transfer.send_source import OnProgress, Progress, tell_all_done
from ..transfer.threads import run_in_thread
from ..wire import ZERO_ID, Fetch, FileItem, Priority, UploadItem, runs_max
from .connections import Resumed, Retries
from .context import Context
from .existing_file import ExistingFileCheck
from .option_names import Rule
from .receipts import receipt_of
from .request import stat_item
from .resume_id import Attempts

_OTHER_SIDE = bytes(16)


class Downloader:
    """Fetches single files.

    Args:
        context: what the client's transfers share.

    Attributes:
        existing: judges what downloads meet on this machine.
    """

    def __init__(self, context: Context) -> None:
        self._connections = context.connections
        self._attempts = context.attempts
        self._open_part_file = context.open_part_file
        self.existing = ExistingFileCheck(context.files(), context.digests, self._ask_b3sum)

    async def _ask_b3sum(self, item: FileItem) -> FileItem:
        return await stat_item(self._connections, item.filename, b3sum=True)

    async def file(
        self,
        name: str,
        dest: Destination,
        rule: Rule,
        span: tuple[int, int] | None,
        progress: OnProgress | None,
        known: FileItem | None,
        priority: Priority = Priority.NORMAL,
    ) -> Receipt:
        """Download a finished file; errors and cancellation as ``Client.download``. ``known``: its entry, if that is known.

        Its entry is asked for once: after a lost connection FETCH names the version, and a file that was replaced is refused
        and downloaded from the beginning.
        """
        retries = Retries(self._connections)
        so_far = DownloadState()
        entry = known
        while True:
            best = so_far.reached
            try:
                entry = entry or await stat_item(self._connections, name, b3sum=False)
                receipt = await self._finished(entry, dest, rule, span, progress, so_far, priority)
            except SourceChanged:
                if known is not None or so_far.tries < 2:
                    raise
                entry, so_far = None, DownloadState(begun=so_far.begun, payload_bytes=so_far.payload_bytes)
            except BlockprotoError as exc:
                await _wait_for_next(retries, exc, so_far.reached - best)
            else:
                self._connections.worked()
                filesize = entry.filesize if receipt.outcome == "left" else receipt.filesize
                tell_all_done(progress, entry.filename, filesize, receipt.payload_bytes_sent)
                return receipt

    async def _finished(
        self,
        entry: FileItem,
        dest: Destination,
        rule: Rule,
        span: tuple[int, int] | None,
        progress: OnProgress | None,
        so_far: DownloadState,
        priority: Priority,
    ) -> Receipt:
        """One attempt at a finished file; a file that is here already, or is to be left, is not fetched."""
        if span is None and so_far.reached < 0:  # until some of it came: another process may have fetched it
            met = await self.existing.settle(entry, dest, rule)
            if not met.fetched:
                return self.existing.receipt(entry, met, time.perf_counter() - so_far.begun)
        try:
            wanted = _wanted(entry, span)
            return await self._once(wanted, dest, rule.if_exists, progress, so_far, priority)
        except FileExists:
            if rule.if_exists not in (IfExists.SKIP, IfExists.UPDATE):
                raise
            met = await self.existing.settle(entry, dest, rule)  # another file of its name was made since
            if met.fetched:
                raise
            return self.existing.receipt(entry, met, time.perf_counter() - so_far.begun)

    async def unfinished(
        self,
        upload: UploadItem,
        dest: Destination,
        rule: Rule,
        progress: OnProgress | None,
        priority: Priority,
    ) -> Receipt:
        """Download an unfinished upload (version: its file id); errors and cancellation as ``Client.download_upload``."""
        retries = Retries(self._connections)
        so_far = DownloadState()
        wanted = WantedFile(
            upload.filename,
            upload.filetype,
            0,
            upload.filesize,
            version=upload.file_id,
            file_id=upload.file_id,
        )
        while True:
            best = so_far.reached
            try:
                receipt = await self._once(wanted, dest, rule.if_exists, progress, so_far, priority)
            except BlockprotoError as exc:
                await _wait_for_next(retries, exc, so_far.reached - best)
            else:
                self._connections.worked()
                tell_all_done(progress, upload.filename, receipt.filesize, receipt.payload_bytes_sent)
                return receipt

    async def _once(
        self,
        wanted: WantedFile,
        dest: Destination,
        if_exists: IfExists,
        progress: OnProgress | None,
        so_far: DownloadState,
        priority: Priority,
    ) -> Receipt:
        """One attempt."""
        facts = Facts(
            SafeName.parse(dest.path.name),
            wanted.filetype,
            wanted.end,
            wanted.mtime_ns,
            wanted.mode,
            if_exists,
        )
        so_far.tries += 1
        store = await run_in_thread(lambda: self._open_part_file(dest, wanted.first))
        async with running(Engine(store)) as engine:
            connection = await self._connections.connection()
            fetching = DownloadAttempt(connection, engine, wanted, progress, so_far)
            fetching.on_resumed = lambda: self._connections.tell(Resumed(wanted.filename, so_far.reached))
            return await fetching.run(facts, dest.path, self._attempts, priority)


@dataclass(frozen=True, slots=True)
class WantedFile:
    """Which bytes of which file.

    Attributes:
        filename, filetype, version, mtime_ns, mode, b3sum: of the file; None is not known.
        first: position of the first byte.
        end: position after the last one; None while the file's size is not known.
        filesize: of the whole file; None likewise.
        file_id: asked for by this instead of the name; zeros: by name.
    """

    filename: str
    filetype: str
    first: int
    end: int | None
    version: bytes
    filesize: int | None = None
    mtime_ns: int | None = None
    mode: int | None = None
    b3sum: bytes | None = None
    file_id: bytes = ZERO_ID


@dataclass(slots=True)
class DownloadState:
    """The state of a download over all its attempts.

    Attributes:
        begun: when the first began (perf_counter).
        tries: how many there were.
        reached: the most bytes that were here when an attempt began; -1 before the first.
        held: the blocks that were here before the first attempt; None before it.
        arrived: the blocks that came since.
        payload_bytes: bytes of content that came.
    """

    begun: float = field(default_factory=time.perf_counter)
    tries: int = 0
    reached: int = -1
    held: BlockSet | None = None
    arrived: BlockSet = field(default_factory=BlockSet)
    payload_bytes: int = 0


class DownloadAttempt:
    """One download over one connection."""

    def __init__(
        self,
        connection: Connection,
        engine: Engine,
        wanted: WantedFile,
        progress: OnProgress | None,
        so_far: DownloadState,
    ) -> None:
        self.on_resumed: Callable[[], None] = lambda: None
        self._so_far = so_far
        self._connection = connection
        self._engine = engine
        self._wanted = wanted
        self._on_progress = progress
        self._progress = Progress(wanted.filename, None if wanted.end is None else wanted.end - wanted.first)
        self._done = trio.Event()
        self._outcome: StoredFile | BlockprotoError | None = None
        self._raised: BaseException | None = None
        self._receiver = FetchReceiver(
            connection,
            engine,
            wanted.version,
            wanted.filesize,
            self._on_done,
            self._on_durable,
            so_far.arrived,
        )

    async def run(self, facts: Facts, dest: Path, attempts: Attempts, priority: Priority) -> Receipt:
        """Fetch what is missing; returns when the file is complete."""
        key = UploadKey(_OTHER_SIDE, self._wanted.version)
        incoming, so_far = self._receiver, self._so_far
        first = self._wanted.first
        try:
            live = await self._engine.uploads.open(key, facts, attempts.next(), incoming, first)
        except (
            Superseded
        ) as exc:  # by an earlier run, whose clock was ahead: the part file is this process's alone
            attempts.pass_by(exc.current or 0)
            live = await self._engine.uploads.open(key, facts, attempts.next(), incoming, first)
        if isinstance(live, StoredFile):
            return self._receipt(live, dest)
        if so_far.held is None:
            so_far.held = live.held.copy()
        here = len(live.held) * BLOCK_LENGTH + sum(prefix.length for prefix in live.prefixes.values())
        so_far.reached = max(so_far.reached, here)
        try:
            incoming.fetch(live, self._fetch_message(live.held, live.prefixes, priority))
            if so_far.tries > 1:
                self.on_resumed()
            await self._done.wait()
            if self._raised is not None:
                raise self._raised
        except BaseException as exc:
            self._stop(exc)
            raise
        finally:
            so_far.payload_bytes += incoming.payload_bytes
            with trio.CancelScope(shield=True):
                await self._engine.drain()
        # It is complete even if the connection broke before that could be said.
        outcome = live.outcome or self._outcome
        if isinstance(outcome, BlockprotoError):
            raise outcome
        assert outcome is not None
        return self._receipt(outcome, dest)

    def _fetch_message(self, held: BlockSet, prefixes: dict[int, Prefix], priority: Priority) -> Fetch:
        most = runs_max(self._connection.session.head_length_max) // 2
        wanted = self._wanted
        return Fetch(
            file_id=wanted.file_id,
            filename=wanted.filename if wanted.file_id == ZERO_ID else "",
            version=wanted.version,
            first=wanted.first,
            length=None if wanted.end is None else wanted.end - wanted.first,
            priority=priority,
            held=tuple(held.runs(most)),
            prefixes=tuple((blockno, prefix.length) for blockno, prefix in sorted(prefixes.items())[:most]),
        )

    def _stop(self, error: BaseException) -> None:
        reason = error if isinstance(error, BlockprotoError) else Cancelled("the download was stopped")
        self._receiver.say_stopped(reason)

    def _on_done(self, outcome: StoredFile | BlockprotoError) -> None:
        self._outcome = self._outcome or outcome
        self._done.set()

    def _on_durable(self, position: int) -> None:
        if self._on_progress is not None:
            self._progress.position_bytes_done = position - self._wanted.first
            self._progress.payload_bytes_sent = self._so_far.payload_bytes + self._receiver.payload_bytes
            try:
                self._on_progress(self._progress)
            except (
                Exception
            ) as exc:  # of the caller's callback: raise it from the download, not from the stream
                self._raised = exc
                self._done.set()

    def _receipt(self, stored: StoredFile, dest: Path) -> Receipt:
        wanted, held = self._wanted, self._so_far.held or ()
        end = stored.filesize if wanted.end is None else wanted.end
        blocknum = blocknum_of(end) - wanted.first // BLOCK_LENGTH
        whole = wanted.first == 0 and end == wanted.filesize
        return receipt_of(
            wanted.filename,
            wanted.filetype,
            end - wanted.first,
            sourceid=wanted.version.hex(),
            root=stored.root,
            b3sum=stored.b3sum or (wanted.b3sum if whole else None),
            stored_as=str(dest.with_name(stored.stored_as)),
            resumed=len(held) > 0,
            blocknum=blocknum,
            blocks_sent=min(len(self._so_far.arrived), blocknum),
            payload=self._so_far.payload_bytes,
            elapsed_s=time.perf_counter() - self._so_far.begun,
        )


def _wanted(entry: FileItem, span: tuple[int, int] | None) -> WantedFile:
    """A finished file, or a range of it."""
    first, end = _clip(entry, span)
    return WantedFile(
        entry.filename,
        entry.filetype,
        first,
        end,
        entry.version,
        filesize=entry.filesize,
        mtime_ns=entry.mtime_ns,
        mode=entry.mode,
        b3sum=entry.b3sum,
    )


def _clip(entry: FileItem, span: tuple[int, int] | None) -> tuple[int, int]:
    """The positions of the first byte wanted and after the last."""
    if span is None:
        return 0, entry.filesize
    first, last = span
    if first < 0 or last < first:
        raise BadFacts(f"bytes {first} to {last} are not a range")
    if first >= entry.filesize:
        raise RangeOutside(f"the range begins at {first}, the file has {entry.filesize} bytes")
    return first, min(last + 1, entry.filesize)


async def _wait_for_next(retries: Retries, error: BlockprotoError, gained: int) -> None:
    """Wait before the next attempt, after one that gained ``gained`` bytes; raise ``error`` if another would not help."""
    if isinstance(error, TooFewFiles):  # here, not there
        raise error
    if gained > 0:
        retries.progressed(gained)
    await retries.wait(error)
