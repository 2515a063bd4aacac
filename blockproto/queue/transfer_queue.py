"""``TransferQueue``: what apps and the command do with a queue."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import trio
from filelock import FileLock, Timeout

from ..client import Client, connect
from ..client_side.batch_queue import BatchQueue
from ..client_side.dial import parse_url
from ..client_side.resume_id import state_folder
from ..common.names import SafeName
from ..common.tasks import background_tasks
from ..errors import StoreInUse
from ..results import IF_EXISTS, IfExistsWord
from ..transfer.threads import run_in_thread
from .entry import PRIORITIES, Direction, QueuedTransfer, TransferState, Wanted
from .journal import Journal
from .runner import OnLeftOut, Runner

AT_ONCE = 3
RETRY_FOR_S = 86_400.0
"""How long (s) a running queue reconnects after a lost connection without progress."""
POLL_S = 0.1
"""How soon (s) a change by another process is seen."""
FILENAME = "queue.sqlite3"

T = TypeVar("T")
_UNFINISHED = (TransferState.WAITING, TransferState.RUNNING, TransferState.PAUSED)


def default_path() -> Path:
    """Where a user's queue is unless told otherwise: beside what else this installation remembers."""
    return state_folder() / FILENAME


class TransferQueue:
    """An open queue; use ``TransferQueue.open``.

    Every change is durable when the call returns, and the process that runs the queue follows it. ``ids`` are numbers of
    transfers; the number of a folder stands for all its files, too.

    All methods raise ValueError for a number that is not in the queue. Cancellation: a change was made whole or not at all.
    """

    def __init__(self, journal: Journal, nursery: trio.Nursery, connect: Callable[..., object]) -> None:
        self._journal = journal
        self._connect = connect
        self._watchers: dict[BatchQueue[QueuedTransfer], None] = {}
        self._runner: Runner | None = None
        self._seen = max((one.revision for one in journal.all()), default=0)
        self._version = journal.version()
        nursery.start_soon(self._watch)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        connect: Callable[..., AbstractAsyncContextManager[Client]] = connect,
    ) -> AsyncIterator[Self]:
        """A queue, made if it is not there.

        Args:
            path: its file; None: this user's own. It must be on a local disk.
            connect: makes a client of ``bp://HOST:PORT`` when the queue runs, with the keyword ``retry_for_s``: for apps
                that have a token or trust to give, ``functools.partial(blockproto.connect, token=…)``. The queue keeps
                neither.

        Raises:
            NotPermitted: the file cannot be opened, or is not a queue.
        """
        where = default_path() if path is None else Path(path)
        journal = await run_in_thread(lambda: Journal(where))
        with closing(journal):
            async with background_tasks() as nursery:
                yield cls(journal, nursery, connect)

    # ---- what is wanted ---------------------------------------------------------------------------------------

    async def add_upload(
        self,
        path: str | os.PathLike[str],
        server: str,
        *,
        name: str | None = None,
        folder: str = "",
        if_exists: IfExistsWord = "keep",
        priority: str = "normal",
    ) -> int:
        """Add a file or folder to upload; returns its number.

        What is in the queue already, and has not ended, is not added again. A folder is replaced by its files when its turn
        comes; symbolic links and special files in it are left out.

        Args:
            path: of the file or folder here.
            server: ``bp://HOST[:PORT]`` or ``bps://HOST[:PORT]``.
            name: what it is called there; None takes the path's last component.
            folder: the folder on the server, "" for the served one.
            if_exists: what to do when the name is taken by other content; see ``UploadJob``. Of what is in the queue already
                and has not begun, the word is changed.
            priority: ``interactive``, ``normal`` or ``bulk``.

        Raises:
            NameRefused: the name cannot be one on a server.
            ValueError: ``server``, ``if_exists`` or ``priority`` is not one of those above.
        """
        place = _absolute(path)
        target = "/".join(filter(None, (folder.strip("/"), (name or place.name).strip("/"))))
        (id_,) = await self.add([wanted(Direction.UPLOAD, server, target, place, if_exists, priority)])
        return id_

    async def add_download(
        self,
        server: str,
        name: str,
        dest: str | os.PathLike[str],
        *,
        if_exists: IfExistsWord = "keep",
        priority: str = "normal",
    ) -> int:
        """Add a file or folder to download; returns its number. Raises as ``add_upload``.

        Args:
            server: ``bp://HOST[:PORT]`` or ``bps://HOST[:PORT]``.
            name: of the file or folder there.
            dest: what it becomes here.
            if_exists: when another file has that name here: as for ``Client.download``.
            priority: ``interactive``, ``normal`` or ``bulk``.
        """
        place = _absolute(dest)
        (id_,) = await self.add(
            [wanted(Direction.DOWNLOAD, server, name.strip("/"), place, if_exists, priority)]
        )
        return id_

    async def add(self, many: Sequence[Wanted]) -> list[int]:
        """Add many at once (all or none); returns their numbers. See ``wanted``."""
        return await self._change(partial(self._journal.add, many))

    async def pause(self, *ids: int) -> list[int]:
        """Pause transfers, without numbers all; they resume where they are. Returns those that were paused."""
        before = (TransferState.WAITING, TransferState.RUNNING)
        return await self._change(partial(self._journal.change, ids or None, before, TransferState.PAUSED))

    async def resume(self, *ids: int) -> list[int]:
        """Let paused transfers wait for their turn again, without numbers all. Returns those that do."""
        before = (TransferState.PAUSED,)
        return await self._change(partial(self._journal.change, ids or None, before, TransferState.WAITING))

    async def retry(self, *ids: int) -> list[int]:
        """Let failed transfers wait again, without numbers all; given ones also if cancelled. Returns those that do."""
        before = (TransferState.FAILED, *((TransferState.CANCELLED,) if ids else ()))
        return await self._change(partial(self._journal.change, ids or None, before, TransferState.WAITING))

    async def cancel(self, *ids: int) -> list[int]:
        """Cancel transfers, without numbers all that have not ended. Returns those that were cancelled.

        The run of the queue, this one or the next, removes what the server has of an upload, or this machine of a download.
        """
        before = (*_UNFINISHED, *((TransferState.FAILED,) if ids else ()))
        return await self._change(partial(self._journal.change, ids or None, before, TransferState.CANCELLED))

    async def move(
        self, *ids: int, first: bool = False, before: int | None = None, after: int | None = None
    ) -> None:
        """Move transfers, in the order given: to the front, before or after another one; else to the end.

        A more urgent priority still goes first.
        """
        beside = before if before is not None else after
        await self._change(partial(self._journal.move, ids, first=first or before is not None, beside=beside))

    async def set_priority(self, *ids: int, priority: str) -> None:
        """Set the priority of transfers, also of running ones: they resume at their place among the others of it."""
        await self._change(partial(self._journal.prioritise, ids, _priority(priority)))

    # ---- what is -----------------------------------------------------------------------------------------------

    def transfers(self) -> list[QueuedTransfer]:
        """All transfers in the queue, in their order, those that have ended among them."""
        return self._journal.all()

    async def events(self) -> AsyncGenerator[QueuedTransfer, None]:
        """All transfers that have not ended, then each transfer again whenever it was changed, by any process.

        Changes in quick succession are reported as one.
        """
        box: BatchQueue[QueuedTransfer] = BatchQueue()
        for one in self._journal.all():
            if not one.state.ended:
                box.put(one)
        self._watchers[box] = None
        try:
            while True:
                for one in await box.take():
                    yield one
        finally:
            del self._watchers[box]

    async def is_running(self) -> bool:
        """Whether any process runs the queue now. After a kill, what was running is still shown as running."""
        lock = self._lock()
        try:
            await run_in_thread(lambda: lock.acquire(timeout=0))
        except Timeout:
            return True
        lock.release()
        return False

    # ---- running ----------------------------------------------------------------------------------------------

    async def run(
        self,
        *,
        at_once: int = AT_ONCE,
        until_empty: bool = False,
        server: str | None = None,
        retry_for_s: float = RETRY_FOR_S,
        on_left_out: OnLeftOut | None = None,
        **options: object,
    ) -> None:
        """Run the transfers until cancelled or, with ``until_empty``, until none waits or runs.

        A transfer that fails stays in the queue as failed, with the reason; the others go on.

        Args:
            at_once: how many of one priority run together with one server; a more urgent one does not wait for less urgent
                ones.
            until_empty: return when all have ended or are paused.
            server: run only transfers with this server, ``bp://HOST:PORT`` as it was added.
            retry_for_s: how long to reconnect after a lost connection without progress.
            on_left_out: called with a folder whose turn has come, and with what is left out of it: links and special files;
                and entries that cannot be sent (``LeftOut.missed``), for which the folder fails while its files run.
            options: further arguments of ``connect``, such as ``on_line``.

        Raises:
            StoreInUse: another process runs this queue.
            ValueError: ``at_once`` is less than 1.

        Cancellation: what was running waits again; a later run, also of another process, resumes it.
        """
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}: give 1 or more")
        lock = self._lock()
        try:
            await run_in_thread(lambda: lock.acquire(timeout=1))
        except Timeout:
            raise StoreInUse(f"another process runs the queue '{self._journal.path}' already") from None
        to_server = partial(self._connect, retry_for_s=retry_for_s, **options)
        self._runner = Runner(self._journal, to_server, at_once, server, on_left_out)  # type: ignore[arg-type]
        try:
            await self._runner.run(until_empty=until_empty)
        finally:
            self._runner = None
            lock.release()

    def _lock(self) -> FileLock:
        return FileLock(f"{self._journal.path}.lock", thread_local=False)

    async def _change(self, change: Callable[[], T]) -> T:
        result = await run_in_thread(change)
        self._look()
        return result

    async def _watch(self) -> None:
        """Follow changes, by this process or another one."""
        while True:
            await trio.sleep(POLL_S)
            self._look()

    def _look(self) -> None:
        version = self._journal.version()
        if version == self._version:
            return
        self._version = version
        changed = self._journal.newer(self._seen)
        if changed:
            self._seen = changed[-1].revision
            for box in self._watchers:
                for one in changed:
                    box.put(one)
            if self._runner is not None:
                self._runner.look(changed)


def wanted(
    direction: Direction, server: str, name: str, path: Path, if_exists: IfExistsWord, priority: str
) -> Wanted:
    """A transfer to add, checked now, so that what can never work is refused at once and not hours later.

    Raises:
        NameRefused: the name cannot be one on a server.
        ValueError: ``server`` is not an address, or ``if_exists`` or ``priority`` is not one of the words.
    """
    scheme = server.partition(":")[0]
    if scheme not in ("bp", "bps"):
        raise ValueError(f"{server!r} is not a server: write bp://HOST:PORT or bps://HOST:PORT")
    parse_url(server, scheme)
    if if_exists not in IF_EXISTS:
        raise ValueError(f"{if_exists!r}: if_exists is one of {', '.join(IF_EXISTS)}")
    SafeName.parse(name)
    return Wanted(direction, server, name, path, if_exists, _priority(priority))


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))


def _priority(name: str) -> int:
    if name not in PRIORITIES:
        raise ValueError(f"{name!r}: a priority is one of {', '.join(PRIORITIES)}")
    return PRIORITIES.index(name)
