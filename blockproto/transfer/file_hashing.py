"""The BLAKE3 of finished files, for those who ask with LIST: each file is read once for all who wait for it.

One of those who wait reads, some of the file at a time, in a thread of the kind that hashes; when it stops waiting another
goes on where it was, and when nobody waits any more nothing is read. Between two times no descriptor is held.

Spec: BP1-LST, BP1-LIM-007.
"""

from __future__ import annotations

import trio
from blake3 import blake3

from ..common.names import SafeName
from ..errors import BlockprotoError, SourceChanged
from ..store import FileEntry, FileStore, RecordB3sum
from .committer import Committer, commit_and_wait
from .threads import Kind, run_in_thread

READ_LENGTH = 1 << 20
"""Bytes read at once; each thread that hashes has so much memory."""
TOUCHED_MAX = 5
"""How often a file that was touched is read anew, although it looks unchanged (BP1-COM-024)."""
STEP_LENGTH = 32 << 20
"""Bytes read until another file has its turn."""


class FileHashing:
    """The digests that are being computed.

    Args:
        store: where the files are.
        committer: remembers what was computed.
    """

    def __init__(self, store: FileStore, committer: Committer) -> None:
        self._store = store
        self._committer = committer
        self._computed: dict[tuple[str, bytes], _Computed] = {}

    @property
    def count(self) -> int:
        """How many files are being read, or are to be."""
        return len(self._computed)

    async def b3sum(self, name: SafeName, version: bytes, principal: bytes) -> bytes:
        """The BLAKE3 (32 bytes) of the file ``name`` as long as it has that version; it is recorded.

        Args:
            name: which file.
            version: which version of it (16 bytes).
            principal: who asks (16 bytes): its share of the batches is used.

        Raises:
            SourceChanged: it has another one, or changed while it was being read.
            UnknownFile, NotPermitted, Refused: it cannot be read.

        Cancellation: others who wait for the same file go on.
        """
        key = name.text, version
        one = self._computed.setdefault(key, _Computed(self._store, name, version))
        one.waiting += 1
        try:
            async with one.turn:
                if one.outcome is None:
                    await self._compute(one, name, version, principal)
                return one.result()
        finally:
            one.waiting -= 1
            if not one.waiting:
                del self._computed[key]

    async def _compute(self, one: _Computed, name: SafeName, version: bytes, principal: bytes) -> None:
        await one.compute()
        if isinstance(one.outcome, bytes):
            work = RecordB3sum(name, version, one.outcome, stamp=one.stamp)
            await commit_and_wait(self._committer, work, principal)


class _Computed:
    """One file: how much of it was read, and what it came to."""

    def __init__(self, store: FileStore, name: SafeName, version: bytes) -> None:
        self.waiting = 0
        self.turn = trio.Lock()
        self._store = store
        self._name = name
        self._version = version
        self._hasher = blake3()
        self._position = 0
        self._begun_anew = 0
        self.stamp = b""
        self.outcome: bytes | BlockprotoError | None = None

    async def compute(self) -> None:
        """Read what was not read yet."""
        while self.outcome is None:
            await run_in_thread(self._read_some, Kind.HASH)

    def result(self) -> bytes:
        """What came of it; raises it if it is an error."""
        assert self.outcome is not None
        if isinstance(self.outcome, BlockprotoError):
            raise self.outcome.with_traceback(None)
        return self.outcome

    def _read_some(self) -> None:
        try:
            if self._read_step() < STEP_LENGTH:
                self.outcome = self._hasher.digest()
        except BlockprotoError as exc:
            self.outcome = exc

    def _read_step(self) -> int:
        """Read up to ``STEP_LENGTH`` more; fewer: that was the end."""
        reader = self._store.open_file(self._name, None)
        try:
            self._begin_where_it_was(reader.entry)
            memory = memoryview(bytearray(READ_LENGTH))
            done = 0
            while done < STEP_LENGTH and (read := reader.read_into(self._position, memory)):
                self._hasher.update(memory[:read])
                self._position += read
                done += read
            if not reader.unchanged():
                raise SourceChanged("the file changed while it was being read")
            if self._store.stat(self._name).stamp != self.stamp:
                self.stamp = b""  # what was read may be neither the old bytes nor the new ones
                return STEP_LENGTH
            return done
        finally:
            reader.close()

    def _begin_where_it_was(self, entry: FileEntry) -> None:
        """Go on if nobody touched the file meanwhile, else read it anew, a few times.

        Raises:
            SourceChanged: it is another version, or is touched again and again.
        """
        if entry.stamp == self.stamp:
            return
        if entry.version != self._version or self._begun_anew > TOUCHED_MAX:
            raise SourceChanged("the file changed while it was being read")
        self._begun_anew += 1
        self._hasher, self._position, self.stamp = blake3(), 0, entry.stamp
