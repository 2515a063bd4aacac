"""What the files of this machine contain, told by root: read, or remembered from when they were read or sent before.

A content is remembered under the file's fingerprint: device, inode, size, modification time and change time. Whoever writes
to a file and sets its modification time back changes the last of them.

Rules:
    1. A root belongs to a fingerprint only if that was the same before and after the file was read.
    2. What changed in the last ``SETTLED_S`` is not remembered: clocks of file systems are coarse, and another write could
       leave the same times.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..blocks import BLOCK_LENGTH, block_span, blocknum_of, digest_of, root_of
from ..errors import Refused, SourceChanged
from ..names import show_name
from ..transfer.committing import run_in_thread

if TYPE_CHECKING:
    from .memory import Memory

SETTLED_S = 2.0
LOOKS_MAX = 5
"""How often a file is read anew because its inode changed while it was being read."""
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells a file of this machine, and that nobody has written to it, without reading it."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, facts: os.stat_result) -> Fingerprint:
        """That of a file with ``facts``."""
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)

    def packed(self) -> bytes:
        """As bytes of a fixed length."""
        numbers = (self.dev, self.ino, self.size, self.mtime_ns, self.ctime_ns)
        return b"".join(number.to_bytes(17, "big", signed=True) for number in numbers)

    def settled(self, now_s: float) -> bool:
        """Whether the last change is so long ago that another one would show."""
        return max(self.ctime_ns, self.mtime_ns) < (now_s - SETTLED_S) * 1e9


def read_root(path: str | os.PathLike[str]) -> tuple[bytes, os.stat_result]:
    """Read a whole file: its root, and its facts, which were the same before and after. Blocking.

    Raises:
        OSError: it cannot be read.
        Refused: it is not a regular file.
        SourceChanged: it was written to meanwhile.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: opening a pipe waits for its writer
        raise Refused(f"{show_name(os.fspath(path))} is not a regular file")
    fd = os.open(path, _READ_FLAGS)
    try:
        for _ in range(LOOKS_MAX):
            before = os.fstat(fd)
            root = _root_of_fd(fd, before.st_size)
            after = os.fstat(fd)
            if root is not None and Fingerprint.of(before) == Fingerprint.of(after):
                return root, after
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                break
    finally:
        os.close(fd)
    raise SourceChanged(f"{show_name(os.fspath(path))} changed while it was being read")


def _root_of_fd(fd: int, filesize: int) -> bytes | None:
    """The root of the first ``filesize`` bytes; None if there are fewer."""
    os.lseek(fd, 0, os.SEEK_SET)
    memory = memoryview(bytearray(min(BLOCK_LENGTH, filesize)))
    digests = []
    with open(fd, "rb", buffering=0, closefd=False) as file:
        for blockno in range(blocknum_of(filesize)):
            _, length = block_span(blockno, 0, filesize)
            filled = 0
            while filled < length:
                read = file.readinto(memory[filled:length])
                if not read:
                    return None
                filled += read
            digests.append(digest_of(memory[:length]))
    return root_of(digests, len(digests))


class Digests:
    """The roots of this machine's files: remembered, or read.

    Args:
        memory: where they are remembered between runs; None: nowhere.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self._memory = memory
        self._new: dict[Fingerprint, bytes] = {}

    async def recall(self, facts: Iterable[os.stat_result]) -> dict[Fingerprint, bytes]:
        """The roots of those among these files that were read or sent before, and have not changed since."""
        wanted = list(dict.fromkeys(map(Fingerprint.of, facts)))
        found = {one: self._new[one] for one in wanted if one in self._new}
        rest = [one for one in wanted if one not in found]
        if rest and self._memory is not None:
            found |= await run_in_thread(partial(self._memory.recall, rest))
        return found

    async def root(
        self, path: str | os.PathLike[str], facts: os.stat_result, *, checksum: bool = False
    ) -> bytes:
        """The root of a file that has ``facts``: remembered, or read now; with ``checksum`` always read.

        Raises:
            SourceChanged: it is not the file with ``facts`` any more.
            OSError, Refused: as ``read_root``.

        Cancellation: waits until the file has been read.
        """
        known = None if checksum else (await self.recall([facts])).get(Fingerprint.of(facts))
        if known is not None:
            return known
        root, now = await run_in_thread(partial(read_root, path))
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (facts.st_ino, facts.st_size, facts.st_mtime_ns):
            raise SourceChanged(f"{show_name(os.fspath(path))} changed while it was being read")
        self.learn(now, root)
        return root

    def learn(self, facts: os.stat_result, root: bytes) -> None:
        """Take note of the root of what was read between two looks that both gave ``facts``."""
        one = Fingerprint.of(facts)
        if one.settled(time.time()):
            self._new[one] = root

    async def keep(self) -> None:
        """Let the memory have what was learned. Cancellation: waits for it."""
        new, self._new = self._new, {}
        if new and self._memory is not None:
            await run_in_thread(partial(self._memory.remember, new))

    def close(self) -> None:
        """Let the memory have what was learned, and let go of it. Blocking; harmless a second time."""
        memory, self._memory = self._memory, None
        new, self._new = self._new, {}
        if memory is not None:
            memory.remember(new)
            memory.close()
