"""Resume: how long OPEN takes when the server holds very many blocks, and how soon after it was killed.

Two shapes: all blocks but the last (one run), and one missing every ``GAP_EVERY`` blocks (very many runs). They are not
sent: the store is told of each block as if its bytes had been written and verified, which is true of zeros in a sparse file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from blockproto.common.blocks import BLOCK_LENGTH, digest_of
from blockproto.common.names import SafeName
from blockproto.store import BlockDone, Facts, StoredFile, UploadKey
from blockproto.store.local.store import LocalStore

from .arena import Arena
from .contest import Options
from .figures import Row, Section
from .pairs import summarise
from .places import remove
from .processes import CommandFailed, read_bytes
from .rawclient import FILETYPE, RawClient, RawUpload, fresh_sourceid
from .targets import HELD_BLOCKS, MIB, RECOVERY_S, RESUME_MS, RESUME_READ_MIB

GAP_EVERY = 16
NAME = "held.bin"
ANONYMOUS = bytes(16)
BATCH = 512
ZEROS = bytes(BLOCK_LENGTH)
REST_S = 0.1
"""How long the server is left alone between two handshakes, so that it has let go of the upload."""


@dataclass(frozen=True, slots=True)
class HeldUpload:
    """An unfinished upload of zeros in a store that nobody has open.

    Attributes:
        sourceid, filename, filesize: of the upload.
        held: how many blocks are held.
        missing: the blocks that are not.
    """

    sourceid: bytes
    filename: str
    filesize: int
    held: int
    missing: tuple[int, ...]


def resume(arena: Arena, options: Options) -> Iterator[Section]:
    """Handshake, recovery, and the commit of so many blocks."""
    held = options.held_blocks
    title = f"resume with {held:,} blocks held, {arena.place.name}"
    options.tell(title)
    full = held == HELD_BLOCKS
    try:
        rows = [
            *_handshake(arena, options, "with gaps", full, gap_every=GAP_EVERY),
            *_handshake(arena, options, "without gaps", full, gap_every=None),
        ]
    except (CommandFailed, OSError) as error:
        rows = [Row("OPEN to OPENED", "ms", None, RESUME_MS, note=arena.ours.explain(error))]
    yield Section(title, rows)


def _handshake(arena: Arena, options: Options, shape: str, full: bool, gap_every: int | None) -> list[Row]:
    """The rows of one shape; targets only with the ``full`` number of blocks."""
    upload = _prepare(arena, options.held_blocks, gap_every)
    opened = [_open_once(arena, upload) for _ in range(options.pairs)]
    recoveries = [_kill_and_open(arena, upload) for _ in range(options.pairs)]
    times_ms = [elapsed_s * 1e3 for elapsed_s, _ in opened]
    read_mib = [read / MIB for _, read in opened]
    rows = [
        Row(
            f"OPEN to OPENED, {shape}",
            "ms",
            summarise(times_ms),
            RESUME_MS if full else None,
            note=f"first after the start {times_ms[0]:.1f} ms",
        ),
        Row(
            f"read by the server for it, {shape}",
            "MiB",
            summarise(read_mib),
            RESUME_READ_MIB if full else None,
        ),
        Row(
            f"start after SIGKILL to OPENED, {shape}",
            "s",
            summarise(recoveries),
            RECOVERY_S if full else None,
            note="with the start of the process",
        ),
    ]
    if gap_every is None:
        rows.append(_commit(arena, upload))
    return rows


def _prepare(arena: Arena, held: int, gap_every: int | None) -> HeldUpload:
    """A server on a fresh folder that holds the blocks."""
    ours = arena.ours
    ours.server.stop()
    remove(ours.served)
    ours.served.mkdir()
    upload = hold_blocks(Path(ours.served), NAME, held, gap_every)
    ours.restart()
    return upload


def _open_once(arena: Arena, held: HeldUpload) -> tuple[float, int]:
    """Seconds from OPEN to OPENED, and bytes the server read meanwhile."""
    server = arena.ours.server
    with RawClient(server.port) as client:
        before = read_bytes(server.pid)
        elapsed_s = _open(client, held)
        read = read_bytes(server.pid) - before
    time.sleep(REST_S)
    return elapsed_s, read


def _open(client: RawClient, held: HeldUpload) -> float:
    elapsed_s, opened = _raw(client, held).open()
    if opened.position != held.missing[0] * len(ZEROS):
        raise CommandFailed(f"the position is {opened.position}, not that of block {held.missing[0]}")
    return elapsed_s


def _raw(client: RawClient, held: HeldUpload) -> RawUpload:
    return RawUpload(client, held.sourceid, held.filename, held.filesize, ZEROS)


def _kill_and_open(arena: Arena, held: HeldUpload) -> float:
    """Kill the server while the upload is open; seconds from the start of the next until OPENED."""
    with RawClient(arena.ours.server.port) as client:
        _open(client, held)
        arena.ours.server.kill()
    begun = time.perf_counter()
    arena.ours.restart()
    with RawClient(arena.ours.server.port) as client:
        _open(client, held)
        return time.perf_counter() - begun


def _commit(arena: Arena, held: HeldUpload) -> Row:
    """The commit of everything, once the last block is there."""
    with RawClient(arena.ours.server.port) as client:
        upload = _raw(client, held)
        upload.open()
        upload.send_blocks(range(held.missing[0], upload.blocknum))
        elapsed_s = upload.commit()
    return Row(f"COMMIT of {upload.blocknum:,} blocks", "ms", summarise([elapsed_s * 1e3]))


# ---- blocks that were never sent --------------------------------------------------------------------------------


def hold_blocks(folder: Path, filename: str, held: int, gap_every: int | None = None) -> HeldUpload:
    """Make an unfinished upload that holds ``held`` blocks.

    Args:
        folder: served; no server runs there.
        filename: of the upload.
        held: how many blocks.
        gap_every: every so many blocks one is missing; None: only the last is.

    Raises:
        CommandFailed: the store refused a block.
    """
    wanted = [blockno for blockno in range(2 * held) if gap_every is None or (blockno + 1) % gap_every][:held]
    blocknum = wanted[-1] + 2
    have = set(wanted)
    missing = tuple(blockno for blockno in range(blocknum) if blockno not in have)
    facts = Facts(SafeName.parse(filename), FILETYPE, blocknum * BLOCK_LENGTH)
    key = UploadKey(ANONYMOUS, fresh_sourceid())
    store = LocalStore.open(folder)
    try:
        _record(store, key, facts, wanted)
    finally:
        store.close()
    return HeldUpload(key.sourceid, filename, blocknum * BLOCK_LENGTH, held, missing)


def _record(store: LocalStore, key: UploadKey, facts: Facts, blocknos: list[int]) -> None:
    # The room for 100,000 blocks is not there and not needed: a sparse file takes none.
    with patch.object(LocalStore, "_check_room", lambda *_: None):
        upload = store.open_upload(key, facts, attempt=1)
    assert not isinstance(upload, StoredFile)
    digest = digest_of(ZEROS)
    try:
        upload.write((blocknos[-1] + 1) * BLOCK_LENGTH - 1, memoryview(b"\0"))
        for first in range(0, len(blocknos), BATCH):
            batch = [
                BlockDone(upload, 1, blockno, BLOCK_LENGTH, digest)
                for blockno in blocknos[first : first + BATCH]
            ]
            refused = [outcome for outcome in store.decide(batch) if outcome is not None]
            if refused:
                raise CommandFailed(f"the store refused a block: {refused[0]}")
    finally:
        upload.close()
