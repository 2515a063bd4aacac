"""Compute the BLAKE3 of finished files for LIST: read each file once for all requests that wait for it.

One of the waiting tasks reads, a part of the file at a time, in a thread for hashing; if it is cancelled, another one goes
on from there; without any, reading stops. Between two parts no descriptor is held.

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
"""Bytes read at once; the memory of each hashing thread."""
TOUCHED_MAX = 5
"""How often to start again on a file that was touched, although it looks unchanged (BP1-COM-024)."""
STEP_LENGTH = 32 << 20
"""Bytes read before another file has its turn."""


class FileHashing:
    """The digests that are being computed.

    Args:
        store: where the files are.
        committer: records the digests.
    """

    def __init__(self, store: FileStore, committer: Committer) -> None:
        self._store = store
        self._committer = committer
        self._computed: dict[tuple[str, bytes], _Computed] = {}

    @property
    def count(self) -> int:
        """How many files are being read or wait to be."""
        return len(self._computed)

    async def b3sum(self, name: SafeName, version: bytes, principal: bytes) -> bytes:
        """Compute and record the BLAKE3 (32 bytes) of a version of a file.

        Args:
            name: which file.
            version: which version of it (16 bytes).
            principal: whose share of the batches to use for recording (16 bytes).

        Raises:
            SourceChanged: it has another version, or changed while it was being read.
            UnknownFile, NotPermitted, Refused: it cannot be read.

        Cancellation: other tasks that wait for the same file go on.
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
    """One file: how much of it was read, and the outcome."""

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
        """Read the rest of the file. Cancellation: a part that is being read is waited for and counts."""
        while self.outcome is None:
            await run_in_thread(self._read_some, Kind.HASH)

    def result(self) -> bytes:
        """The outcome; raises it if it is an error."""
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
        """Read up to ``STEP_LENGTH`` more bytes; returns how many, fewer at the end of the file."""
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
                self.stamp = b""  # the bytes read may be neither the old nor the new ones
                return STEP_LENGTH
            return done
        finally:
            reader.close()

    def _begin_where_it_was(self, entry: FileEntry) -> None:
        """Go on if the file was not touched meanwhile; otherwise start again, a few times.

        Raises:
            SourceChanged: it has another version, or is touched too often.
        """
        if entry.stamp == self.stamp:
            return
        if entry.version != self._version or self._begun_anew > TOUCHED_MAX:
            raise SourceChanged("the file changed while it was being read")
        self._begun_anew += 1
        self._hasher, self._position, self.stamp = blake3(), 0, entry.stamp
