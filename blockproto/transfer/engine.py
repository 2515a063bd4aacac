"""Engine: a store with everything that works on it, built in one place for a server and for a client's downloads.

    UploadStore ← Committer ← LiveUploads → Disk         Engine: what a download needs
    FileStore ← quotas, comparison, hashing, expiry      FileEngine: what a server needs besides

Every protocol receives files through the live uploads of an engine, so none can forget the quota, the hooks, the slow disk
or the comparison with files that are there already.

Spec: BP1-COM, BP1-PRN-005.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from ..common.tasks import background_tasks
from ..connection.unexpected_errors import unexpected
from ..errors import BlockprotoError, StoreFailed
from ..identity.realm import ANONYMOUS, Realm
from ..observability.observer import NULL_OBSERVER, Load, Observer
from ..store import FileStore, UploadStore, Work
from .committer import Committer
from .compare_files import FileComparer
from .file_hashing import FileHashing
from .frame_memory import FrameMemory
from .hooks import CommitHooks, HookRunner
from .live_uploads import LiveUploads
from .quota import Quotas
from .slow_disk import Disk, local_disk
from .threads import run_anyhow, run_in_thread

SWEEP_EVERY_S = 3600.0

log = logging.getLogger(__name__)


class Engine:
    """Receive uploads into one store.

    Args:
        store: where they go; ``close`` closes it.
        uploads: the live uploads of that store; None: new ones for a download, without quota and comparison.
    """

    def __init__(self, store: UploadStore, uploads: LiveUploads | None = None) -> None:
        self.store = store
        self.uploads = LiveUploads(store, Committer(store), local_disk()) if uploads is None else uploads
        self.committer = self.uploads.committer

    @property
    def disk(self) -> Disk:
        """Decides whether reads and writes leave the Trio thread."""
        return self.uploads.disk

    @property
    def incarnation(self) -> int:
        """The incarnation of the store (BP1-RES)."""
        return self.store.incarnation

    async def run(self) -> None:
        """Make durable what is submitted, until cancelled.

        Raises:
            StoreFailed: the store reported an error; nothing is taken any more.

        Cancellation: the batch under way is finished.
        """
        await self.committer.run()

    async def drain(self) -> None:
        """Wait until everything submitted so far is durable, or the store has failed. Cancellation: no effect."""
        await self.committer.drain()

    async def close(self) -> None:
        """Close the store, on which nothing may be under way any more. Cancellation: the close is waited for."""
        await run_anyhow(self.store.close)


@asynccontextmanager
async def running(engine: Engine, *, close: bool = True) -> AsyncIterator[Engine]:
    """Run ``engine`` beside the body, and close it at the end unless told otherwise.

    The engine goes on while the body is being cancelled, so that the body can still drain it.

    Raises:
        StoreFailed: the store failed; the body is cancelled.

    Cancellation: the batch under way is finished, and the store is closed.
    """
    committing = trio.CancelScope(shield=True)

    async def run() -> None:
        with committing:
            await engine.run()

    try:
        async with background_tasks() as nursery:
            nursery.start_soon(run)
            try:
                yield engine
            finally:
                committing.cancel()
    finally:
        if close:
            with trio.CancelScope(shield=True):
                await engine.close()


class FileEngine(Engine):
    """Receive uploads into a store of files, with all that a server needs besides.

    Args:
        store: where files are.
        on_failed: called with each error after which the disk cannot be trusted.
        observer: hears what happens.
        hooks: have to agree before a file gets its name, and hear of it afterwards; None: there are none.

    Attributes:
        quotas: hold each principal to its quota.
        hashing: computes the BLAKE3 of finished files.
        frame_memory: limits what is held in memory of whole files.
    """

    store: FileStore

    def __init__(
        self,
        store: FileStore,
        on_failed: Callable[[StoreFailed], None],
        *,
        observer: Observer = NULL_OBSERVER,
        hooks: CommitHooks | None = None,
    ) -> None:
        committer = Committer(store, observer=observer)
        committer.accounts = self.quotas = Quotas(store)
        committer.hooks = self._hooks = HookRunner(hooks or CommitHooks())
        self._comparer = FileComparer(store, committer)
        super().__init__(store, LiveUploads(store, committer, Disk(), self.quotas, observer, self._comparer))
        self.hashing = FileHashing(store, self.committer)
        self.frame_memory = FrameMemory()
        self._on_failed = on_failed

    def hold(self, realm: Realm) -> None:
        """Hold a principal to its quota from now on, in every protocol."""
        self.quotas.hold(realm)

    async def run(self) -> None:
        """Commit, compare files, run hooks, and remove what has expired, until cancelled.

        A failure of the store is reported to ``on_failed``; the rest goes on, so that ``drain`` returns.

        Cancellation: the batch under way is finished.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commit)
            nursery.start_soon(self._comparer.run)
            nursery.start_soon(self._hooks.run)
            nursery.start_soon(self._sweep)

    def load(self, connections: Mapping[str, int]) -> Load:
        """The load at this moment, with the number of ``connections`` of each kind."""
        return Load(
            connections, self.uploads.count, self.committer.queued, self.disk.slow, self.quotas.used()
        )

    async def _commit(self) -> None:
        try:
            await super().run()
        except StoreFailed as exc:
            self._on_failed(exc)

    async def _sweep(self) -> None:
        """Remove what has expired, a little at a time."""
        while True:
            works: Sequence[Work] = ()
            try:
                works = await run_in_thread(self.store.sweep)
                for work in works:
                    self.committer.submit(work, lambda _: None, principal=ANONYMOUS.principal, small=True)
            except StoreFailed as exc:
                self._on_failed(exc)
                return
            except BlockprotoError as exc:
                extra = {"event": "expiry postponed"}
                log.warning("what has expired is looked for again in an hour: %s", exc, extra=extra)
            except Exception as exc:
                unexpected("looking for what has expired", exc)
                works = ()
            if works:
                await self.committer.drain()
            else:
                await trio.sleep(SWEEP_EVERY_S)
