"""One file coming down: FETCH with resume, into a store beside its place.

Spec: BP1-FET.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from .asking import ask
from .blocks import BLOCK_LENGTH, BlockSet, blocknum_of
from .errors import BadFacts, BlockprotoError, Cancelled
from .lines import Lines
from .link.connection import Connection
from .names import SafeName
from .results import Receipt, b3sum_hex
from .sourceid import Attempts
from .store import Facts, IfExists, StoredFile, UploadKey, UploadStore
from .tasks import background_tasks
from .transfer.committing import Committer, Disk, run_in_thread
from .transfer.receiving import FetchIncoming
from .transfer.sending import OnProgress, Progress
from .transfer.uploads import Uploads
from .wire import Fetch, FileItem, List, ListKind, runs_max

_OTHER_SIDE = bytes(16)

OpenSidecar = Callable[[Path, int], UploadStore]


async def stat_item(lines: Lines, name: str, *, b3sum: bool) -> FileItem:
    """What the server knows of one file or folder."""
    page = await ask(lines, List(kind=ListKind.FILES, name=name.strip("/"), exact=True, b3sum=b3sum))
    item = page.items[0]
    assert isinstance(item, FileItem)
    return item


class Downloader:
    """Fetches single files.

    Args:
        lines: over which connections.
        attempts: the client's.
        open_sidecar: opens the download store for a path and the position where its bytes begin.
    """

    def __init__(self, lines: Lines, attempts: Attempts, open_sidecar: OpenSidecar) -> None:
        self._lines = lines
        self._attempts = attempts
        self._open_sidecar = open_sidecar

    async def file(
        self,
        name: str,
        dest: Path,
        span: tuple[int, int] | None,
        progress: OnProgress | None,
        known: FileItem | None,
    ) -> Receipt:
        """See ``Client.download``; ``known``: what it is, if that need not be asked."""
        tries = 0
        reached: list[int] = []
        while True:
            best = max(reached, default=-1)
            try:
                return await self._once(name, dest, span, progress, reached, known)
            except BlockprotoError as exc:
                tries = 0 if max(reached, default=-1) > best else tries
                tries = await self._lines.wait_to_retry(exc, tries)

    async def _once(
        self,
        name: str,
        dest: Path,
        span: tuple[int, int] | None,
        progress: OnProgress | None,
        reached: list[int],
        known: FileItem | None,
    ) -> Receipt:
        """One attempt; ``reached`` gets the bytes that were here when it asked."""
        entry = known or await stat_item(self._lines, name, b3sum=False)
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
                    connection = await self._lines.connection()
                    fetching = Fetching(connection, uploads, entry, first, end, progress, reached)
                    return await fetching.run(facts, dest, begun, self._attempts.next())
                finally:
                    committing.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await run_in_thread(store.close)


class Fetching:
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
            connection, uploads, entry.version, self._on_done, self._on_durable
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
            b3sum=b3sum_hex(stored.root, stored.b3sum or (entry.b3sum if whole else None), blocknum),
            stored_as=str(dest),
            resumed=len(held) > 0,
            blocks_sent=blocknum - len(held),
            blocks_skipped=len(held),
            payload_bytes_sent=payload,
            connections=1,
            elapsed_s=time.perf_counter() - begun,
        )


async def _commit_within(scope: trio.CancelScope, committer: Committer) -> None:
    """Commit until ``scope`` is cancelled: what a cancelled download still owes is recorded first."""
    with scope:
        await committer.run()


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
