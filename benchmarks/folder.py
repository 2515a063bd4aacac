"""Folder: many small files up, beside everybody who can do that; again without sending anything; and round trips counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .arena import Arena
from .contest import Options, hold
from .figures import Row, Section, show_size
from .ours import receipts_of
from .pairs import summarise
from .places import remove, settler
from .processes import CommandFailed, timed
from .proxy import CountingProxy
from .sources import random_tree
from .targets import FOLDER, FOLDER_FILE_LENGTH, FOLDER_FILES, FOLDER_WAITS, SECOND_RUN_PAYLOAD

ROUND_TRIP_S = 0.05
"""The delay with which waits are counted."""


def small(arena: Arena, options: Options) -> Iterator[Section]:
    """``put DIR`` of many small files."""
    count = options.files
    title = f"put DIR, {count:,} × {show_size(FOLDER_FILE_LENGTH)}, {arena.place.name}"
    source = random_tree(arena.place.folder / "tree", count, FOLDER_FILE_LENGTH)
    try:
        targets = FOLDER if count == FOLDER_FILES else {}
        contestants = arena.folder_uploaders(source)
        section = hold(title, arena, contestants, settler(source), targets, options, (count, "files/s"))
        if len(section.rows) > 1:
            options.tell("the same folder again, and round trips")
            section.rows += [*_again(arena, source, count), *_round_trips(arena, source, count)]
    finally:
        remove(source)
    yield section


def _again(arena: Arena, source: Path, count: int) -> list[Row]:
    """Payload and time of a second run."""
    ours = arena.ours
    try:
        timed(ours.put(source), ours.env)
        ran = timed(ours.put(source, "--json"), ours.env)
        receipts = receipts_of(ran.out)
        payload = sum(receipt["payload_bytes_sent"] for receipt in receipts)
        files = sum(receipt["filetype"] != "inode/directory" for receipt in receipts)
        if files != count:
            raise CommandFailed(f"the second run told of {files} files of {count}")
    except CommandFailed as error:
        return [Row("payload of a second run", "B", None, SECOND_RUN_PAYLOAD, note=ours.explain(error))]
    finally:
        remove(ours.served / source.name)
    note = f"{files:,} files in {ran.wall_s:.2f} s"
    return [Row("payload of a second run", "B", summarise([payload]), SECOND_RUN_PAYLOAD, note=note)]


def _round_trips(arena: Arena, source: Path, count: int) -> list[Row]:
    """Waits for an answer, a file, over a line of ``ROUND_TRIP_S``."""
    ours = arena.ours
    proxy = CountingProxy(ours.server.port, ROUND_TRIP_S)
    try:
        ran = timed(ours.put(source, port=proxy.port), ours.env)
    except CommandFailed as error:
        return [Row("round trips a file", "", None, FOLDER_WAITS, note=ours.explain(error))]
    finally:
        proxy.close()
        remove(ours.served / source.name)
    note = (
        f"{proxy.waits} waits over {len(proxy.counters)} connection(s) with {ROUND_TRIP_S * 1e3:g} ms round trip, "
        f"{ran.wall_s:.2f} s; the line changed direction {proxy.turns} times"
    )
    return [Row("round trips a file", "", summarise([proxy.waits / count]), FOLDER_WAITS, note=note)]
