"""Engines with one mistake each, made by patching: a simulation that cannot tell them from the real one is not working."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import trio
from mistakes import Mutants, Patch, nothing

import blockproto.connection.scheduler as turns_module
from blockproto.client_side.upload import Uploader
from blockproto.common.blocks import BLOCK_LENGTH, BlockSet, blocknum_of
from blockproto.connection.endpoint import SocketEndpoint
from blockproto.connection.liveness import Liveness
from blockproto.errors import Superseded
from blockproto.protocol.session import Session
from blockproto.store import StoredFile, upload_state
from blockproto.testing import memory_files
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.committer import Committer
from blockproto.transfer.live_upload import LiveUpload
from blockproto.transfer.live_uploads import LiveUploads
from blockproto.transfer.receiver import UploadReceiver
from blockproto.transfer.sender import Sender
from blockproto.wire import Commit, Committed, Opened

from .mix import LEAST, Mix

MUTANTS = mutant = Mutants()


# -- acknowledgements


@mutant
def acknowledged_when_verified(patch: Patch) -> None:
    """A block is acknowledged before it is durable."""
    real = LiveUpload.block_verified

    def block_verified(live: LiveUpload, blockno: int, length: int, digest: bytes) -> None:
        for feed in live.feeds:
            feed.say_durable(live.position, [(blockno, 1)])
        real(live, blockno, length, digest)

    patch.setattr(LiveUpload, "block_verified", block_verified)


@mutant
def reported_before_the_commit(patch: Patch) -> None:
    """The committer reports its works before the store has done them."""
    real = Committer._commit

    async def commit(committer: Committer, batch: list[Any]) -> None:
        for queued in batch:
            queued.done(None)
        await real(committer, [replace(queued, done=nothing) for queued in batch])

    patch.setattr(Committer, "_commit", commit)


@mutant
def position_counts_the_blocks(patch: Patch) -> None:
    """The position is said as if blocks came in their order."""

    def position(live: LiveUpload) -> int:
        held = len(live.held) * BLOCK_LENGTH
        return held if live.facts.filesize is None else min(held, live.facts.filesize)

    patch.setattr(LiveUpload, "position", property(position))


@mutant
def position_goes_down(patch: Patch) -> None:
    """What was acknowledged on a connection is forgotten with it: OPENED says that nothing is there."""
    real = UploadReceiver._opened

    def opened(incoming: UploadReceiver, upload: LiveUpload) -> Opened:
        said = real(incoming, upload)
        return Opened(
            said.sourceid,
            said.file_id,
            said.attempt,
            0,
            said.incarnation,
            said.expires_ms,
            held=(),
            prefixes=(),
        )

    patch.setattr(UploadReceiver, "_opened", opened)


@mutant
def resume_by_file_size(patch: Patch) -> None:
    """What is held is read off the length of the partial file."""
    real = MemoryStore.open_upload

    def open_upload(store: MemoryStore, key: Any, facts: Any, attempt: int) -> Any:
        upload = real(store, key, facts, attempt)
        if not isinstance(upload, StoredFile):
            upload.held = BlockSet([(0, len(upload.written) // BLOCK_LENGTH)])
        return upload

    patch.setattr(MemoryStore, "open_upload", open_upload)


# -- who may write


@mutant
def no_attempt_check(patch: Patch) -> None:
    """Whoever opens joins, whatever the attempt."""

    def enter(live: LiveUpload, feed: Any, facts: Any, attempt: int) -> None:
        live.attempt = attempt
        live.feeds.append(feed)

    patch.setattr(LiveUpload, "enter", enter)
    patch.setattr(upload_state, "_check_attempt", nothing)


@mutant
def takeover_waits_for_the_old_stream(patch: Patch) -> None:
    """Whoever holds an upload keeps it until its connection has ended."""
    real = LiveUploads.open

    async def open_(uploads: LiveUploads, key: Any, facts: Any, attempt: int, *args: Any) -> Any:
        while (live := uploads.find(key)) and live.feeds and attempt > live.attempt:  # noqa: ASYNC110
            await trio.sleep(0.1)
        return await real(uploads, key, facts, attempt, *args)

    patch.setattr(LiveUploads, "open", open_)


@mutant
def the_superseded_take_over_again(patch: Patch) -> None:
    """Whoever is told SUPERSEDED opens with a greater attempt: two devices take one upload from each other for ever."""
    real = Uploader._once

    async def once(uploader: Uploader, sending: Sender) -> int:
        while True:
            try:
                return await real(uploader, sending)
            except Superseded as exc:
                uploader._attempts.pass_by(exc.current or 0)

    patch.setattr(Uploader, "_once", once)


@mutant
def superseded_is_passed_by_twice(patch: Patch) -> None:
    """Who has asked for it takes over as often as it is refused before it was let in."""
    real = Uploader._once

    async def once(uploader: Uploader, sending: Sender) -> int:
        while True:
            try:
                return await real(uploader, sending)
            except Superseded as exc:
                if sending.plan.reached >= 0:
                    raise
                uploader._attempts.pass_by(exc.current or 0)

    patch.setattr(Uploader, "_once", once)


# -- commit


@mutant
def duplicate_commit(patch: Patch) -> None:
    """Receipts are not looked at: the same upload again is another file."""
    patch.setattr(MemoryStore, "_receipt", nothing)


@mutant
def names_overwritten(patch: Patch) -> None:
    """A name that is taken is taken again."""
    patch.setattr(MemoryStore, "_choose", lambda store, work, key, file_id: work.facts.filename)


@mutant
def any_file_is_the_same(patch: Patch) -> None:
    """Whatever has the name counts as the file that is sent."""
    patch.setattr(memory_files, "is_same", lambda there, work: not there.entry.folder)


@mutant
def no_root_check(patch: Patch) -> None:
    """A file is committed as soon as somebody says so, whatever is there of it."""

    def finish_if_complete(live: LiveUpload) -> None:
        if live._commits and not live.finishing:
            live.finishing = True
            live._submit(next(iter(live._commits.values())), live._on_finished)

    patch.setattr(LiveUpload, "_finish_if_complete", finish_if_complete)
    patch.setattr(upload_state, "_check_finish", nothing)


@mutant
def said_is_done(patch: Patch) -> None:
    """A sender that has said COMMIT does not wait for the answer."""

    async def commit(sending: Sender) -> None:
        size = sending._filesize()
        root = bytes(32)
        send_stream = sending._send_streams[0]
        send_stream.connection.post(
            send_stream.stream, Commit(sending.sourceid, root, size, blocknum_of(size))
        )
        name = sending.source.facts.filename.text
        sending.committed = Committed(sending.sourceid, bytes(16), root, size, name)

    patch.setattr(Sender, "_commit", commit)


@mutant
def sent_is_held(patch: Patch) -> None:
    """A sender believes that what it has sent has come."""
    real = Sender.receiver_holds

    def receiver_holds(sending: Sender, held: BlockSet, prefixes: dict[int, int], position: int = 0) -> None:
        for blockno in sending.plan._in_flight:
            held.add(blockno, 1)
        real(sending, held, prefixes, position)

    patch.setattr(Sender, "receiver_holds", receiver_holds)


# -- flow


@mutant
def credit_waits_for_the_end_of_the_block(patch: Patch) -> None:
    """Credit is returned for whole blocks only."""
    real = Session.consumed
    kept: dict[tuple[int, int], int] = defaultdict(int)

    def consumed(session: Session, stream: int, length: int) -> None:
        kept[id(session), stream] += length
        if kept[id(session), stream] >= BLOCK_LENGTH:
            real(session, stream, kept.pop((id(session), stream)))

    patch.setattr(Session, "consumed", consumed)


@mutant
def strict_priority(patch: Patch) -> None:
    """Who is more important always goes first."""

    patch.setattr(turns_module, "WEIGHTS", (1e12, 1e6, 1.0))


@mutant
def no_bound_of_what_is_unsent(patch: Patch) -> None:
    """The kernel takes whatever it likes, and a picture waits behind it."""
    patch.setattr(SocketEndpoint, "limit_unsent", nothing)


@mutant
def keep_alive_counts_frames(patch: Patch) -> None:
    """Only whole frames are signs of life: a slow honest peer is given up in the middle of one."""
    real = Liveness.heard

    def heard(life: Liveness, now_s: float, *, in_head: bool) -> None:
        if not in_head:
            real(life, now_s, in_head=in_head)

    patch.setattr(Liveness, "heard", heard)


BREAKING = Mix.calm(cut=0.9)
CRASHING = Mix.calm(kill_server=4.0, die_in_commit=5.0, cut=0.3, disk_s=0.3)
MIXES: dict[str, Mix] = {
    "acknowledged_when_verified": Mix.calm(disk_s=0.3),
    "reported_before_the_commit": Mix.calm(disk_s=0.3),
    "position_counts_the_blocks": CRASHING,
    "position_goes_down": BREAKING,
    "resume_by_file_size": CRASHING,
    "no_attempt_check": Mix.calm(rivals=1.0, rates=(500e3,), trouble_s=10.0),
    "takeover_waits_for_the_old_stream": Mix.calm(black_hole=0.8),
    "the_superseded_take_over_again": Mix.calm(rivals=1.0, rates=(500e3,), trouble_s=10.0),
    "duplicate_commit": CRASHING,
    "names_overwritten": Mix.calm(),
    "any_file_is_the_same": Mix.calm(),
    "no_root_check": Mix.calm(),
    "said_is_done": Mix.calm(),
    "sent_is_held": Mix.calm(cut=0.3, rates=(500e3,), trouble_s=10.0),
    "credit_waits_for_the_end_of_the_block": Mix.calm(limits=LEAST),
}
"""What has to go wrong so that each mistake shows soon; the others are caught by tests (``test_mutants.py``)."""
