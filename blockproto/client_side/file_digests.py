"""The roots of this machine's files: read, or cached from when they were read or sent before.

A root is cached under the file's ``Fingerprint``, and only if that was the same before and after the file was read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import FileIO
from typing import TYPE_CHECKING

import trio

from ..common.blocks import BLOCK_LENGTH, block_span, blocknum_of, digest_of, root_of
from ..common.names import show_name
from ..errors import BlockprotoError, SourceChanged
from ..transfer.threads import Kind, run_in_thread
from .fingerprint import Fingerprint
from .regular_file import open_regular

if TYPE_CHECKING:
    from .digest_cache import DigestCache

STEP_BYTES = 64 << 20
"""Bytes that are read in one step: cancellation waits for one step at most."""
SMALL_BYTES = 1 << 20
BATCH_FILES = 32
"""How many files of at most ``SMALL_BYTES`` are read in one thread call."""
LOOKS_MAX = 5
"""How often a file is read again because its inode changed while it was being read."""


def read_root(path: str | os.PathLike[str]) -> tuple[bytes, os.stat_result]:
    """Read a whole file: its root, and its facts, which were the same before and after. Blocking.

    Raises:
        OSError: it cannot be read.
        Refused: it is not a regular file.
        SourceChanged: it was written to while it was read.
    """
    steps = reading(path)
    while (found := next(steps)) is None:
        pass
    return found


def reading(path: str | os.PathLike[str]) -> Generator[tuple[bytes, os.stat_result] | None, None, None]:
    """``read_root`` in steps: yields None after each ``STEP_BYTES``, and its result at the end. Blocking."""
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        for _ in range(LOOKS_MAX):
            before = os.fstat(file.fileno())
            digests: list[bytes] = []
            file.seek(0)
            for digest in _digests_of(file, before.st_size):
                digests.append(digest)
                if len(digests) % (STEP_BYTES // BLOCK_LENGTH) == 0:
                    yield None
            after = os.fstat(file.fileno())
            if Fingerprint.of(before) == Fingerprint.of(after) and len(digests) == blocknum_of(after.st_size):
                yield root_of(digests, len(digests)), after
                return
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                break
    raise SourceChanged(f"{show_name(os.fspath(path))} changed while it was being read")


def _digests_of(file: FileIO, filesize: int) -> Iterator[bytes]:
    """The digests of the blocks of a file; fewer if it is shorter than it was."""
    memory = memoryview(bytearray(min(BLOCK_LENGTH, filesize)))
    for blockno in range(blocknum_of(filesize)):
        _, length = block_span(blockno, 0, filesize)
        filled = 0
        while filled < length:
            read = file.readinto(memory[filled:length])
            if not read:
                return
            filled += read
        yield digest_of(memory[:length])


class FileDigests:
    """The roots of this machine's files, cached or read.

    Args:
        open_memory: opens the cache that is kept between runs, when it is first needed; None: there is none.
    """

    def __init__(self, open_memory: Callable[[], DigestCache] | None = None) -> None:
        self._open_memory = open_memory
        self._memory: DigestCache | None = None
        self._new: dict[Fingerprint, bytes] = {}

    async def recall(self, facts: Iterable[os.stat_result]) -> dict[Fingerprint, bytes]:
        """The roots of those among these files that were read or sent before, and have not changed since."""
        wanted = list(dict.fromkeys(map(Fingerprint.of, facts)))
        found = {one: self._new[one] for one in wanted if one in self._new}
        rest = [one for one in wanted if one not in found]
        if rest and self._open_memory is not None:
            found |= await run_in_thread(partial(self._recall, rest))
        return found

    def _recall(self, fingerprints: Sequence[Fingerprint]) -> dict[Fingerprint, bytes]:
        memory = self._opened()
        return {} if memory is None else memory.recall(fingerprints)

    def _opened(self) -> DigestCache | None:
        if self._memory is None and self._open_memory is not None:
            self._memory = self._open_memory()
        return self._memory

    async def root(
        self, path: str | os.PathLike[str], facts: os.stat_result, *, checksum: bool = False
    ) -> bytes:
        """The root of a file that has ``facts``: cached, or read now; with ``checksum`` always read.

        Raises:
            SourceChanged: it is not the file with ``facts`` any more.
            OSError, Refused: as ``read_root``.

        Cancellation: waits for what is being read, ``STEP_BYTES`` at most.
        """
        known = None if checksum else (await self.recall([facts])).get(Fingerprint.of(facts))
        if known is not None:
            return known
        steps = reading(path)
        try:
            while (found := await run_in_thread(partial(next, steps), Kind.HASH)) is None:
                pass
        finally:
            steps.close()
        return self._take(path, facts, *found)

    async def roots(
        self,
        files: Sequence[tuple[str | os.PathLike[str], os.stat_result]],
        known: Mapping[Fingerprint, bytes] | None = None,
    ) -> list[bytes | OSError | BlockprotoError]:
        """``root`` of many files, the small ones many at a time; for each its root, or why there is none.

        ``known`` are those that need not be read; None: all that are remembered.
        """
        if known is None:
            known = await self.recall(facts for _, facts in files)
        found = [known.get(Fingerprint.of(facts)) for _, facts in files]
        read: dict[int, bytes | OSError | BlockprotoError] = {}
        batch: list[int] = []
        for at, (_, facts) in enumerate(files):
            if found[at] is not None:
                continue
            if facts.st_size > SMALL_BYTES:
                read[at] = await self._root_or_error(*files[at])
                continue
            batch.append(at)
            if len(batch) == BATCH_FILES:
                read |= await run_in_thread(partial(self._read_batch, files, batch), Kind.HASH)
                batch = []
        if batch:
            read |= await run_in_thread(partial(self._read_batch, files, batch), Kind.HASH)
        return [read[at] if root is None else root for at, root in enumerate(found)]

    async def _root_or_error(
        self, path: str | os.PathLike[str], facts: os.stat_result
    ) -> bytes | OSError | BlockprotoError:
        try:
            return await self.root(path, facts, checksum=True)
        except (OSError, BlockprotoError) as exc:
            return exc

    def _read_batch(
        self, files: Sequence[tuple[str | os.PathLike[str], os.stat_result]], batch: Sequence[int]
    ) -> dict[int, bytes | OSError | BlockprotoError]:
        read: dict[int, bytes | OSError | BlockprotoError] = {}
        for at in batch:
            path, facts = files[at]
            try:
                read[at] = self._take(path, facts, *read_root(path))
            except (OSError, BlockprotoError) as exc:
                read[at] = exc
        return read

    def _take(
        self, path: str | os.PathLike[str], facts: os.stat_result, root: bytes, now: os.stat_result
    ) -> bytes:
        """Learn and return the ``root`` that was read; raises SourceChanged if the file is not the one with ``facts``."""
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (facts.st_ino, facts.st_size, facts.st_mtime_ns):
            raise SourceChanged(f"{show_name(os.fspath(path))} changed while it was being read")
        self.learn(now, root)
        return root

    def learn(self, facts: os.stat_result, root: bytes) -> None:
        """Note the root of a file that had ``facts`` both before and after it was read."""
        self.learn_many([(facts, root)])

    def learn_many(self, files: Iterable[tuple[os.stat_result, bytes]]) -> None:
        """``learn`` of many files and their roots."""
        now_s = time.time()
        for facts, root in files:
            one = Fingerprint.of(facts)
            if one.settled(now_s):
                self._new[one] = root

    async def keep(self) -> None:
        """Write what was learned into the cache. Cancellation: waits for it."""
        if self._new and self._open_memory is not None:
            new, self._new = self._new, {}  # here, because more is learned while the thread writes
            await run_in_thread(partial(self._remember, new))

    def _remember(self, new: dict[Fingerprint, bytes]) -> None:
        memory = self._opened()
        if memory is not None:
            memory.remember(new)

    async def close(self) -> None:
        """Write what was learned into the cache and close it; harmless when repeated. Cancellation: waits for it."""
        with trio.CancelScope(shield=True):
            await self.keep()
            memory, self._memory, self._open_memory = self._memory, None, None
            if memory is not None:
                await run_in_thread(memory.close)
