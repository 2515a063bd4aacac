"""Commit: how long COMMIT takes once every block is durable."""

from __future__ import annotations

import os
from collections.abc import Iterator

from blockproto.common.blocks import BLOCK_LENGTH

from .arena import Arena
from .contest import Options
from .figures import Row, Section, show_size
from .pairs import summarise
from .places import remove
from .processes import CommandFailed
from .rawclient import RawClient, RawUpload, fresh_sourceid
from .targets import COMMIT_MS, GIB

NAME = "committed.bin"


def commit(arena: Arena, options: Options) -> Iterator[Section]:
    """One row for each size."""
    title = f"commit, {arena.place.name}"
    rows = []
    for size in options.sizes:
        options.tell(f"{title}: {show_size(size)}")
        what = f"COMMIT of {show_size(size)} whose blocks are durable"
        target = COMMIT_MS if size <= 4 * GIB else None
        try:
            times_ms = [_commit_once(arena, size) * 1e3 for _ in range(options.pairs)]
        except (CommandFailed, OSError) as error:
            rows.append(Row(what, "ms", None, target, note=arena.ours.explain(error)))
            continue
        rows.append(Row(what, "ms", summarise(times_ms), target, note=f"slowest {max(times_ms):.1f} ms"))
    yield Section(title, rows)


def _commit_once(arena: Arena, size: int) -> float:
    """Upload ``size`` bytes (whole blocks) and commit them; returns the seconds of the commit."""
    blocknum = max(1, size // BLOCK_LENGTH)
    try:
        with RawClient(arena.ours.server.port) as client:
            block = os.urandom(BLOCK_LENGTH)
            upload = RawUpload(client, fresh_sourceid(), NAME, blocknum * BLOCK_LENGTH, block)
            upload.open()
            upload.send_blocks(range(blocknum))
            return upload.commit()
    finally:
        remove(arena.ours.served / NAME)
        os.sync()
