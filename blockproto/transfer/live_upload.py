"""An upload that is alive: what is held, who sends, and when the file is complete.

A ``LiveUpload`` exists from the first OPEN until its last stream has ended and its last work is durable. It is the one
place where takeover, join and repeat are decided, by one number: the attempt.

    greater: takeover. The upload's older streams hear SUPERSEDED, their late bytes are dropped; nobody waits for them.
    equal:   join (another connection) or repeat: the same answer.
    smaller: SUPERSEDED, nothing changes.

Invariants: a block is in at most one of ``held`` (durable) and ``pending`` (verified, not yet durable); a block of either
is never written again; ``held`` only shrinks by a repair that both ends agreed on.

Spec: BP1-RES, BP1-COM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import trio

from ..common.blocks import BLOCK_LENGTH, Run, block_span, blocknum_of
from ..connection.unexpected_errors import unexpected
from ..errors import (
    BadFacts,
    BlockprotoError,
    Cancelled,
    DigestsDiffer,
    SourceChanged,
    Superseded,
    UnknownFile,
)
from ..store import (
    BlockDone,
    Discard,
    Facts,
    Finish,
    Forget,
    KeepPrefixes,
    Outcome,
    Prefix,
    StoredFile,
    Upload,
    Work,
)
from .commit_queue import Done
from .committer import AwaitedOutcome, Committer
from .quota import Quotas
from .slow_disk import Disk
from .threads import Kind, present_peer, run_in_thread

_TAKEN_OVER = "another process, here or on another machine, sends the same file and took this upload over"

PREFIXES_MAX = 64
"""Unfinished blocks of an upload that are remembered; of more, the ones abandoned first are sent again (BP1-LIM)."""


class Feed(Protocol):
    """A stream that sends blocks of an upload, as the upload sees it."""

    def say_durable(self, position: int, runs: list[Run]) -> None:
        """``runs`` are durable now."""

    def say_committed(self, stored: StoredFile) -> None:
        """The file is complete; the stream ends."""

    def say_differ(self, error: DigestsDiffer) -> None:
        """The root did not agree; the sender has to repair."""

    def say_stopped(self, error: BlockprotoError) -> None:
        """The stream ends without the file."""


class Follower(Protocol):
    """A reader of an upload that is still coming in (BP1-FET-015); telling it something never holds the upload up."""

    def say_durable(self) -> None:
        """More blocks are held."""

    def say_committed(self, stored: StoredFile) -> None:
        """The file is complete."""

    def say_stopped(self, error: BlockprotoError) -> None:
        """The upload is gone."""

    def say_withdrawn(self) -> None:
        """Blocks that were held are not held any more."""


class LiveUpload:
    """One upload and everything that happens to it; build it with ``LiveUploads.open``.

    Args:
        stored: the store's side of it.
        committer, disk: where works and writes go.
        on_idle: called when no stream, follower or work uses it any more.
        first: the position where the wanted bytes begin (not 0 only for a ranged download).
        quotas: whether its principal may have that much; None: there are no quotas.
    """

    def __init__(
        self,
        stored: Upload,
        committer: Committer,
        disk: Disk,
        on_idle: Callable[[LiveUpload], None],
        first: int = 0,
        quotas: Quotas | None = None,
    ) -> None:
        self.stored = stored
        self._quotas = quotas
        self.first = first
        self.facts = stored.facts
        self.attempt = stored.attempt
        self.held = stored.held
        self.prefixes = stored.prefixes
        self.pending: dict[int, bytes] = {}
        self.owners: dict[int, object] = {}
        self.feeds: list[Feed] = []
        self.followers: list[Follower] = []
        self.outcome: StoredFile | None = None
        self._committer = committer
        self._disk = disk
        self._on_idle = on_idle
        self.finishing = False
        self.discarded: trio.Event | None = None
        self._writes: dict[int, trio.Event] = {}
        self._commits: dict[Feed, Finish] = {}
        self._short_end: int | None = stored.short_end
        self._tail: tuple[int, int] | None = None
        self._durable = trio.lowlevel.ParkingLot()
        self._works = 0
        self._peer = present_peer()
        self._prefixes_changed = False

    @property
    def position(self) -> int:
        """Where the first byte is that is not durable."""
        held = max(self.first, self.held.first_gap(self.first // BLOCK_LENGTH) * BLOCK_LENGTH)
        end = self._short_end if self.facts.filesize is None else self.facts.filesize
        return held if end is None else min(held, end)

    def length_of(self, blockno: int) -> int | None:
        """The length of a held block; None if it is not held, or might be the last of a file whose size is unknown."""
        if blockno not in self.held:
            return None
        if self.facts.filesize is not None:
            return block_span(blockno, self.first, self.facts.filesize)[1]
        if self._tail is not None and self._tail[0] == blockno:
            return self._tail[1]
        first, number = self.held.runs()[-1]
        return BLOCK_LENGTH if blockno < first + number - 1 else None

    # ---- followers --------------------------------------------------------------------------------------------

    def follow(self, follower: Follower) -> None:
        """Tell ``follower`` what happens, and stay alive for it."""
        self.followers.append(follower)
        if self.outcome is not None:
            follower.say_committed(self.outcome)

    def unfollow(self, follower: Follower) -> None:
        """Tell it no more. Harmless when repeated."""
        if follower in self.followers:
            self.followers.remove(follower)
            self.rest()

    # ---- feeds ------------------------------------------------------------------------------------------------

    def enter(self, feed: Feed, facts: Facts, attempt: int | None) -> None:
        """Let ``feed`` send blocks: takeover, join or refusal by ``attempt``; None takes the upload over in any case.

        Raises:
            Superseded: a greater attempt owns the upload.
            SourceChanged: the facts are not those the upload was begun with.
        """
        if attempt is None:
            attempt = self.attempt + 1
        if attempt < self.attempt:
            raise Superseded(_TAKEN_OVER, current=self.attempt)
        if (facts.filename, facts.filesize) != (self.facts.filename, self.facts.filesize):
            raise SourceChanged("this sourceid was begun with another name or size: use a new sourceid")
        older = tuple(self.feeds) if attempt > self.attempt else ()
        self.attempt = attempt
        self.facts = replace(self.facts, if_exists=facts.if_exists, mtime_ns=facts.mtime_ns, mode=facts.mode)
        if not self._works:
            self._peer = present_peer()  # else they would overtake those that are queued
        self.feeds.append(feed)  # before the older ones leave: an upload without any stream rests
        if self._quotas is not None:
            self._quotas.begin(self.stored.key)
        taken = Superseded(_TAKEN_OVER, current=attempt)
        _tell(older, lambda other: other.say_stopped(taken))

    def leave(self, feed: Feed) -> None:
        """End ``feed``, and its COMMIT with it; with the last feed, record what is known of unfinished blocks.

        Harmless when repeated.
        """
        if feed in self.feeds:
            self.feeds.remove(feed)
            if self._quotas is not None:
                self._quotas.end(self.stored.key)
        self._commits.pop(feed, None)
        for blockno in [blockno for blockno, owner in self.owners.items() if owner is feed]:
            del self.owners[blockno]
        over = self.outcome is not None or self.discarded is not None or self._committer.failed is not None
        if not self.feeds and self._prefixes_changed and not over:
            self._prefixes_changed = False
            self._submit(KeepPrefixes(self.stored, self.attempt, dict(self.prefixes)), lambda _: None)
        self.rest()

    def discard(self, error: BlockprotoError) -> trio.Event:
        """Remove the upload and its bytes, durably, then end every stream with ``error``; returns what is set then.

        A commit that was submitted before is done before, unless hooks are still being asked about it: then its streams
        have heard COMMITTED.
        """
        if self.discarded is not None:
            return self.discarded
        self._committer.withdraw(self.stored)
        discarded = self.discarded = trio.Event()

        def done(_: Outcome) -> None:
            self._committer.withdraw(self.stored)  # hooks may be asked about it since
            self._stop(error)
            _tell(self.followers, lambda follower: follower.say_stopped(error))
            discarded.set()

        self._submit(Discard(self.stored.key), done)
        return discarded

    def _stop(self, error: BlockprotoError) -> None:
        _tell(self.feeds, lambda feed: feed.say_stopped(error))

    # ---- bytes ------------------------------------------------------------------------------------------------

    async def write(self, blockno: int, position: int, view: memoryview) -> None:
        """Write bytes of an unfinished block. Raises what ``store.Upload.write`` raises."""
        if self.discarded is not None:
            return
        if not self._disk.slow:
            await self._disk.write(self.stored, position, view)
            return
        returned = self._writes[blockno] = trio.Event()
        try:
            await self._disk.write(self.stored, position, view)
        finally:
            if self._writes.get(blockno) is returned:
                del self._writes[blockno]
            returned.set()
            self.rest()

    async def take_block(self, blockno: int, owner: object) -> None:
        """Make ``owner``, a feed, that of an unfinished block, once a write of the former owner has returned.

        A feed that has left meanwhile owns nothing, and nobody owns a block that is here: it is not written again.

        Raises:
            QuotaExceeded: it makes a file of unknown size too big for its principal's quota.
        """
        if self._quotas is not None and self.facts.filesize is None:
            await self._quotas.reserve(self.stored.key, (blockno + 1) * BLOCK_LENGTH)
        if owner in self.feeds and not self.has(blockno):
            self.owners[blockno] = owner
        returned = self._writes.get(blockno)
        if returned is not None:
            await returned.wait()

    def owns(self, blockno: int, owner: object) -> bool:
        """Whether ``owner`` still is the one that writes a block."""
        return self.owners.get(blockno) is owner

    def release_block(self, blockno: int) -> None:
        """End the ownership of a block, whoever has it."""
        self.owners.pop(blockno, None)

    def keep_prefix(self, blockno: int, prefix: Prefix) -> None:
        """Remember how far an abandoned block got."""
        if prefix.length and blockno not in self.held and blockno not in self.pending:
            self.prefixes.pop(blockno, None)
            self.prefixes[blockno] = prefix
            if len(self.prefixes) > PREFIXES_MAX:
                del self.prefixes[next(iter(self.prefixes))]
            self._prefixes_changed = True

    def drop_prefix(self, blockno: int) -> None:
        """Forget the beginning of a block: it is being written anew or was not what it should be."""
        if self.prefixes.pop(blockno, None) is not None:
            self._prefixes_changed = True

    async def settle(self) -> None:
        """Wait until what has come is durable: whole blocks, and what is known of unfinished ones."""
        while self.pending:
            await self._durable.park()
        if self._prefixes_changed:
            self._prefixes_changed = False
            recorded = trio.Event()
            work = KeepPrefixes(self.stored, self.attempt, dict(self.prefixes))
            self._submit(work, lambda _: recorded.set())
            await recorded.wait()

    def has(self, blockno: int) -> bool:
        """Whether a block is held or pending."""
        return blockno in self.held or blockno in self.pending

    async def digest_of(self, blockno: int) -> bytes | None:
        """The digest of a block that is held or pending; of any other None, without waiting. Cancellation: no effect."""
        if blockno not in self.held:
            return self.pending.get(blockno)
        look = partial(self.stored.digests, (blockno,))
        found = await run_in_thread(look, Kind.READ) if self._disk.slow else look()
        return found.get(blockno)

    async def digests(self, blocknum: int) -> list[bytes]:
        """The digests of the first ``blocknum`` blocks in order, for a root that no sender states.

        Raises:
            DigestsDiffer: one of them is not here.
        """
        pending = dict(self.pending)
        found = await run_in_thread(lambda: self.stored.digests(range(blocknum))) | pending
        if len(found) < blocknum:
            raise DigestsDiffer("a block that had come is not here any more")
        return [found[blockno] for blockno in range(blocknum)]

    def block_verified(self, blockno: int, length: int, digest: bytes) -> None:
        """A block is whole and has its digest: make it durable."""
        if self.discarded is not None:
            return
        self.pending[blockno] = digest
        self.owners.pop(blockno, None)
        self.prefixes.pop(blockno, None)
        if self.facts.filesize is None and (self._tail is None or blockno >= self._tail[0]):
            self._tail = blockno, length
        if self.facts.filesize is None and length < BLOCK_LENGTH:
            self._short_end = blockno * BLOCK_LENGTH + length
        work = BlockDone(self.stored, self.attempt, blockno, length, digest)
        self._submit(work, lambda outcome: self._on_durable(blockno, outcome))
        self._finish_if_complete()

    def _on_durable(self, blockno: int, outcome: Outcome) -> None:
        self.pending.pop(blockno, None)
        self._durable.unpark_all()
        if isinstance(outcome, BlockprotoError):
            self._fail(outcome)
            return
        self.held.add(blockno)
        position, runs = self.position, [(blockno, 1)]
        _tell(self.feeds, lambda feed: feed.say_durable(position, runs))
        _tell(self.followers, lambda follower: follower.say_durable())

    # ---- commit and repair ------------------------------------------------------------------------------------

    def commit(self, feed: Feed, root: bytes, filesize: int, facts: Facts, reader: bool = False) -> None:
        """Commit with ``root`` as soon as every block is here, unless ``feed`` ends before.

        ``reader``: its principal may read, so the file may be there already (BP1-COM-021).

        Raises:
            BadFacts: ``filesize`` is not the one the upload was begun with.
        """
        if self.facts.filesize is not None and filesize != self.facts.filesize:
            raise BadFacts(f"COMMIT says {filesize} bytes, the upload was begun with {self.facts.filesize}")
        self._commits[feed] = Finish(self.stored, self.attempt, root, filesize, facts, reader=reader)
        self._finish_if_complete()

    def stop_commit(self, feed: Feed) -> bool:
        """Take back the COMMIT of ``feed``, if there is one; False: it is too late (BP1-COM-018).

        It is in time while hooks are being asked. If other streams have said COMMIT too, the commit goes on for them.
        """
        if not self.finishing:
            return True
        if any(other is not feed for other in self._commits):
            return self._committer.awaits_hooks(self.stored)
        return self._committer.withdraw(self.stored)

    async def repair(self, digests: tuple[tuple[int, bytes], ...]) -> None:
        """Forget the held blocks whose digest is not the sender's, durably, before this returns.

        Raises:
            Superseded: a greater attempt owns the upload.
        """
        while self.pending:
            await self._durable.park()
        differing = await run_in_thread(lambda: self._differing(digests))
        if not differing:
            return
        forgotten = AwaitedOutcome()
        self._submit(Forget(self.stored, self.attempt, differing), forgotten)
        await forgotten.wait()
        for blockno in differing:
            self.held.discard(blockno)
        _tell(self.followers, lambda follower: follower.say_withdrawn())

    def _differing(self, digests: tuple[tuple[int, bytes], ...]) -> tuple[int, ...]:
        held = [(blockno, digest) for blockno, digest in digests if blockno in self.held]
        known = self.stored.digests(blockno for blockno, _ in held)
        return tuple(blockno for blockno, digest in held if known.get(blockno) != digest)

    def _finish_if_complete(self) -> None:
        if not self._commits or self.finishing or self.discarded is not None:
            return
        work = next(iter(self._commits.values()))
        wanted = blocknum_of(work.filesize) - self.first // BLOCK_LENGTH
        contradicted = self._short_end not in {None, work.filesize}  # the store says so: BP1-COM-003
        if len(self.held) + len(self.pending) < wanted and not contradicted:
            return
        self.finishing = True
        self._submit(work, self._on_finished)

    def _on_finished(self, outcome: Outcome) -> None:
        self.finishing = False
        self._commits.clear()
        if isinstance(outcome, StoredFile):
            self.committed_as(outcome)
        elif isinstance(outcome, DigestsDiffer):
            _tell(self.feeds, lambda feed: feed.say_differ(outcome))
        elif isinstance(outcome, Cancelled):
            pass  # whoever took the commit back answers
        elif isinstance(outcome, BlockprotoError):
            self._fail(outcome)

    def committed_as(self, stored: StoredFile) -> None:
        """Tell feeds and followers that the file is complete; a brief file with the same sourceid may have completed it."""
        self.outcome = stored
        _tell(self.feeds, lambda feed: feed.say_committed(stored))
        if stored.left:
            left = UnknownFile("the upload did not become a file: what has its name was left")
            _tell(self.followers, lambda follower: follower.say_stopped(left))
        else:
            _tell(self.followers, lambda follower: follower.say_committed(stored))

    def _fail(self, error: BlockprotoError) -> None:
        self._commits.clear()
        self._stop(error)

    # ---- end --------------------------------------------------------------------------------------------------

    def _submit(self, work: Work, done: Done) -> None:
        def finished(outcome: Outcome) -> None:
            self._works -= 1
            try:
                done(outcome)
            finally:
                self.rest()

        self._committer.submit(work, finished, principal=self.stored.key.principal, peer=self._peer)
        self._works += 1

    def rest(self) -> None:
        """Let the registry drop the upload if no stream, follower, work or write uses it."""
        if not self.feeds and not self.followers and not self._works and not self._writes:
            self._on_idle(self)


_Told = TypeVar("_Told", Feed, Follower)


def _tell(those: Sequence[_Told], say: Callable[[_Told], None]) -> None:
    """Tell each of them; what goes wrong with one ends that one, and the others hear it all the same (BP1-ERR-010)."""
    for one in tuple(those):
        try:
            say(one)
        except Exception as exc:
            told = unexpected("a stream of an upload", exc)
            with suppress(Exception):  # logged already, and there is nobody left to tell
                one.say_stopped(told)
