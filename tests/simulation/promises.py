"""What must hold whatever happens, checked at each promise on the wire and at each commit.

    acknowledged  ⇒ durable, with the sender's bytes, and so after every crash until the file is committed
    position      ≤ first gap, and never goes down (but for blocks that their sender withdrew)
    OPENED        names a block ⇒ that stream does not send it
    attempt       on the disk never goes down: who was fenced off writes nothing
    final name    ⇒ complete and equal to one version of the source; never over another file; once for each upload
    COMMITTED     ⇒ that file and its receipt are durable
    OPEN          is answered within ``ANSWER_S``, whoever else holds the upload

The first promise that is broken ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.common.names import SafeName
from blockproto.store import (
    BlockDone,
    Decided,
    Finish,
    Forget,
    IfExists,
    KeepPrefixes,
    Remove,
    StoredFile,
    UploadKey,
)
from blockproto.wire import Ack, Block, Committed, Error, Have, Message, Open, Opened

from .disk import SimStore

ANSWER_S = 10.0
"""Longer than any answer to OPEN takes on the slowest of our disks, shorter than the silence of a dead connection."""
ANONYMOUS = bytes(16)

Stream = tuple[int, int]
"""Which connection, and which stream of it."""


@dataclass(slots=True)
class _Promised:
    """What was said of one unfinished upload."""

    blocks: set[int] = field(default_factory=set)
    position: int = 0
    attempt: int = 0


class Promises:
    """Remembers every promise of the server, and holds its disk against them.

    Args:
        broken: called with what is wrong, at the first promise that is not kept.
        trace: called with everything that happens.
    """

    def __init__(self, broken: Callable[[str], None], trace: Callable[..., None]) -> None:
        self.store: SimStore | None = None
        self.acks = 0
        self._broken = broken
        self._trace = trace
        self._versions: dict[str, list[bytes]] = {}
        self._promised: dict[bytes, _Promised] = {}
        self._published: dict[bytes, tuple[str, bytes]] = {}
        self._sourceids: dict[Stream, bytes] = {}
        self._opening: dict[Stream, float] = {}
        self._named: dict[Stream, set[int]] = {}
        self._committed: set[Stream] = set()

    def may_become(self, name: str, content: bytes) -> None:
        """Somebody may send ``content`` as ``name``."""
        versions = self._versions.setdefault(name, [])
        if content not in versions:
            versions.append(content)

    # ---- what crosses the wire --------------------------------------------------------------------------------

    def on_heard(self, stream: Stream, message: Message) -> None:
        """The server takes a message up."""
        if isinstance(message, Open):
            self._opening[stream] = trio.current_time()
            self._sourceids[stream] = message.sourceid
            if self._is_there(message.sourceid):
                self._committed.add(stream)
        elif isinstance(message, Have):
            self._named.pop(stream, None)
        elif isinstance(message, Block) and message.blockno in self._named.get(stream, ()):
            self._broken(f"block {message.blockno} came on {stream} although OPENED there named it")

    def on_said(self, stream: Stream, message: Message) -> None:
        """The server says something."""
        if isinstance(message, Opened | Committed | Error):
            self._opening.pop(stream, None)
        if isinstance(message, Opened):
            if stream in self._committed and self._is_there(message.sourceid):
                self._broken(f"{message.sourceid.hex()[:8]} was committed before {stream} was opened for it")
            self._sourceids[stream] = message.sourceid
            named = self._on_promise("OPENED", message.sourceid, message.position, message.held)
            self._named[stream] = named
        elif isinstance(message, Ack):
            self.acks += 1
            self._on_promise("ACK", self._sourceids[stream], message.position, message.held)
        elif isinstance(message, Committed):
            self._on_committed(message)

    def on_closed(self, connection: int) -> None:
        """A connection has ended: nobody waits for an answer there."""
        for table in (self._opening, self._named, self._sourceids):
            for stream in [stream for stream in table if stream[0] == connection]:
                del table[stream]
        self._committed = {stream for stream in self._committed if stream[0] != connection}

    def check_answers(self) -> None:
        """Whether nobody waits too long."""
        now = trio.current_time()
        for stream, asked_at in self._opening.items():
            if now - asked_at > ANSWER_S:
                self._broken(f"OPEN on {stream} was not answered in {now - asked_at:.1f} s")

    def _on_promise(
        self, what: str, sourceid: bytes, position: int, held: Sequence[tuple[int, int]]
    ) -> set[int]:
        """Check what is said of an unfinished upload; returns the blocks that are named."""
        blocks = {blockno for first, count in held for blockno in range(first, first + count)}
        short = sourceid.hex()[:8]
        self._trace(what, short, position, sorted(blocks))
        if sourceid in self._published:
            return blocks
        store = self.store
        assert store is not None
        begun = store._begun.get(UploadKey(ANONYMOUS, sourceid))
        durable = set() if begun is None else set(begun.state.digests)
        size = None if begun is None else begun.facts.filesize
        promised = self._promised.setdefault(sourceid, _Promised())
        whole = size is not None and position >= size
        blocks |= set(range(-(-position // BLOCK_LENGTH) if whole else position // BLOCK_LENGTH))
        if not blocks <= durable:
            self._broken(f"{what} of {short} says {sorted(blocks)}, durable are {sorted(durable)}")
            return blocks
        if position < promised.position:
            self._broken(f"{what} of {short} says position {position} after {promised.position}")
        promised.position = max(promised.position, position)
        for blockno in blocks - promised.blocks:
            self._check_block(store, UploadKey(ANONYMOUS, sourceid), blockno)
        promised.blocks |= blocks
        self._check_kept(store, sourceid)
        return blocks

    def _check_block(self, store: SimStore, key: UploadKey, blockno: int) -> None:
        begun = store._begun[key]
        name = begun.facts.filename.text
        first = blockno * BLOCK_LENGTH
        there = bytes(begun.content[first : first + BLOCK_LENGTH])
        if not any(version.startswith(there, first) for version in self._versions.get(name, [])):
            self._broken(f"block {blockno} of {name} was acknowledged with bytes that nobody sent")

    def _on_committed(self, message: Committed) -> None:
        self._trace("COMMITTED", message.sourceid.hex()[:8], message.stored_as, message.filesize)
        published = self._published
        if message.sourceid in published or not message.there:
            names = {published.get(message.sourceid, ("", b""))[0]}
        else:  # another sourceid brought the same bytes before
            names = {name for name, _ in published.values()}
        if message.stored_as not in names:
            self._broken(f"COMMITTED says {message.stored_as}, which never got that name")

    # ---- what happens on the disk -----------------------------------------------------------------------------

    def on_commit(self, store: SimStore, decided: Sequence[Decided]) -> None:
        """See disk.Watcher."""
        self._trace("commit", [type(work).__name__ for work, _ in decided])
        for work, outcome in decided:
            if isinstance(work, Remove) and outcome is None and work.filename is not None:
                self._forget_file(work.filename.text)
            if isinstance(work, BlockDone | KeepPrefixes) and outcome is None:
                self._check_attempt(work.upload.key.sourceid, work.attempt)
            if isinstance(work, Finish) and isinstance(outcome, StoredFile) and outcome.there:
                self._found(store, work, outcome)

    def _found(self, store: SimStore, work: Finish, receipt: StoredFile) -> None:
        """An upload ended as a file that was there: it has to be the one that was sent."""
        name, found = work.facts.filename.text, store._files[receipt.stored_as]
        if not self.was_sent(name, found.content):
            self._broken(f"{receipt.stored_as} was said to be there and is not what was sent as {name}")
        self._published[work.upload.key.sourceid] = receipt.stored_as, found.entry.version
        self._promised.pop(work.upload.key.sourceid, None)

    def _forget_file(self, name: str) -> None:
        """A finished file was removed by somebody who asked for it."""
        for sourceid, (published, _) in tuple(self._published.items()):
            if published == name:
                del self._published[sourceid]

    def _check_attempt(self, sourceid: bytes, attempt: int) -> None:
        promised = self._promised.get(sourceid)
        if promised is None:
            return
        if attempt < promised.attempt:
            self._broken(f"attempt {attempt} wrote to {sourceid.hex()[:8]} after {promised.attempt}")
        promised.attempt = attempt

    def on_publish(self, store: SimStore, work: Finish, receipt: StoredFile, taken: bool) -> None:
        """See disk.Watcher."""
        sourceid, name = receipt.sourceid, work.facts.filename.text
        self._trace("publish", sourceid.hex()[:8], receipt.stored_as)
        content = store._files[receipt.stored_as].content
        if not work.facts.filetype.startswith("inode/") and not self.was_sent(name, content):
            self._broken(f"{receipt.stored_as} has {len(content)} bytes that nobody sent as {name}")
        if taken and work.facts.if_exists is not IfExists.REPLACE:
            self._broken(f"{receipt.stored_as} was written over another file")
        if self._is_there(sourceid):
            self._broken(f"{name} was committed twice: {self._published[sourceid][0]}, {receipt.stored_as}")
        self._published[sourceid] = receipt.stored_as, store._files[receipt.stored_as].entry.version
        self._promised.pop(sourceid, None)

    def _is_there(self, sourceid: bytes) -> bool:
        """Whether it was committed, and still is what was committed."""
        name, version = self._published.get(sourceid, ("", b""))
        files = {} if self.store is None else self.store._files
        return name in files and files[name].entry.version == version

    def on_forget(self, work: Forget) -> None:
        """See disk.Watcher."""
        promised = self._promised.get(work.upload.key.sourceid)
        if promised is not None:
            promised.blocks.difference_update(work.blocknos)
            promised.position = min(promised.position, min(work.blocknos) * BLOCK_LENGTH)

    def on_discard(self, key: UploadKey) -> None:
        """See disk.Watcher."""
        self._promised.pop(key.sourceid, None)

    def on_restart(self, store: SimStore) -> None:
        """Another server begins with what is left on the disk: everything that was promised must be there."""
        self.store = store
        self._opening.clear()
        for sourceid in self._promised:
            self._check_kept(store, sourceid)
        for sourceid, (name, _) in self._published.items():
            if name not in store._files:
                self._broken(f"{name} ({sourceid.hex()[:8]}) was committed and is gone")

    def _check_kept(self, store: SimStore, sourceid: bytes) -> None:
        begun = store._begun.get(UploadKey(ANONYMOUS, sourceid))
        lost = self._promised[sourceid].blocks - (set() if begun is None else set(begun.state.digests))
        if lost:
            self._broken(f"blocks {sorted(lost)} of {sourceid.hex()[:8]} were acknowledged and are gone")

    def may_be(self, name: str, size: int) -> bool:
        """Whether a file of that size can have that name, or is there under a name that was free."""
        found = self.stored(name)
        sizes = [len(version) for version in self._versions.get(name, [])]
        return size in sizes or (found is not None and len(found) == size)

    def was_sent(self, name: str, content: bytes) -> bool:
        """Whether ``content`` is a version of ``name``."""
        return content in self._versions.get(name, [])

    def may_have(self, name: str, stored_as: str) -> bool:
        """Whether one version of ``name`` is stored under that name."""
        there = self.stored(stored_as)
        return there is not None and self.was_sent(name, there)

    def stored(self, name: str) -> bytes | None:
        """The content of a finished file."""
        assert self.store is not None
        found = self.store._files.get(SafeName.parse(name).text)
        return None if found is None else found.content
