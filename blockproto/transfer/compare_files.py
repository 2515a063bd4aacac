"""FileComparer: find out whether a file that is there is the one that is being sent, without holding up other works.

The store decides within a batch, from digests that it computed itself and that are still valid. If it has none it answers
``Undecided``; the files that it names are synced and read here, in the threads for hashing. The digests are recorded and
the work is submitted again. A file that was touched meanwhile is read again in the next round; after a few rounds it counts
as another file.

Spec: BP1-COM-024, BP1-RES-029.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

import trio

from ..common.blocks import BLOCK_LENGTH, blocknum_of, digest_of, root_of
from ..common.names import SafeName
from ..connection.unexpected_errors import unexpected
from ..errors import BlockprotoError
from ..store import FOLDER_FILETYPE, Adopt, Facts, FileStore, RecordB3sum, StoredFile, StoredReader, UploadKey
from .committer import Committer, commit_and_wait
from .threads import Kind, run_in_thread

READERS = 2
"""Files that are read at once, for all principals."""
STEP_BLOCKS = 32
"""Blocks read in one call of a thread."""

_Question = tuple[tuple[str, ...], Callable[[], None]]


class FileComparer:
    """Reads files of a store that have to be compared; principals take turns.

    Args:
        store: where they are.
        committer: records their digests, and asks.
    """

    def __init__(self, store: FileStore, committer: Committer) -> None:
        self._store = store
        self._committer = committer
        self._waiting: dict[bytes, deque[_Question]] = {}  # of each principal; the one whose turn it is first
        self._asked = trio.lowlevel.ParkingLot()
        committer.compare = self._ask

    async def run(self) -> None:
        """Read what is asked for, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(self._work)

    async def adopt(self, key: UploadKey, facts: Facts, root: bytes) -> StoredFile | None:
        """Let an upload with that root be a file that is there, or leave what is there; None: it has to be sent.

        Raises:
            FileExists, NotPermitted, StoreFull, HookRefused: the upload is refused.

        Cancellation: it is decided all the same.
        """
        if facts.filetype == FOLDER_FILETYPE:
            return None  # it has no bytes to save, and one that is there takes on its facts (BP1-BLK-016)
        if not await run_in_thread(lambda: self._store.may_be_there(facts)):
            return None
        return await commit_and_wait(self._committer, Adopt(key, root, facts), key.principal)

    def _ask(self, names: tuple[str, ...], principal: bytes, done: Callable[[], None]) -> None:
        self._waiting.setdefault(principal, deque()).append((names, done))
        self._asked.unpark()

    async def _next(self) -> tuple[bytes, _Question]:
        """The next question of the principal whose turn it is, which then waits for the others."""
        while not self._waiting:
            await self._asked.park()
        principal = next(iter(self._waiting))
        questions = self._waiting.pop(principal)
        question = questions.popleft()
        if questions:
            self._waiting[principal] = questions
        return principal, question

    async def _work(self) -> None:
        while True:
            principal, (names, done) = await self._next()
            for name in names:
                try:
                    await self._read(SafeName.parse(name), principal)
                except BlockprotoError:
                    pass  # a file that cannot be read counts as another one
                except Exception as exc:
                    unexpected("comparing files", exc)
            done()

    async def _read(self, name: SafeName, principal: bytes) -> None:
        reader = await run_in_thread(lambda: self._store.open_file(name, None), Kind.HASH)
        try:
            entry = reader.entry
            if entry.root is not None:
                return
            await run_in_thread(reader.sync, Kind.HASH)
            digests: list[bytes] = []
            blocknum = blocknum_of(entry.filesize)
            while len(digests) < blocknum:
                some = partial(_digests, reader, len(digests), blocknum)
                digests += await run_in_thread(some, Kind.HASH)
        finally:
            reader.close()
        if (await run_in_thread(lambda: self._store.stat(name))).stamp != entry.stamp:
            return
        root = root_of(digests, blocknum)
        work = RecordB3sum(name, entry.version, root=root, stamp=entry.stamp)
        await commit_and_wait(self._committer, work, principal)


def _digests(reader: StoredReader, first: int, blocknum: int) -> list[bytes]:
    """The digests of the next few blocks; if the file became shorter they are wrong, but then it was touched."""
    memory = memoryview(bytearray(BLOCK_LENGTH))
    found = []
    for blockno in range(first, min(first + STEP_BLOCKS, blocknum)):
        read = reader.read_into(blockno * BLOCK_LENGTH, memory)
        found.append(digest_of(memory[:read]))
    return found
