"""Dialects: the same file in an older dialect and natively, in pairs; and what the server has resident meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .arena import Arena, Contestants
from .contest import Options, hold
from .figures import Row, Section, show_size
from .ours import OLD, Ours
from .pairs import Contestant, summarise
from .places import remove
from .processes import peak_bytes
from .sources import check_same, random_file
from .targets import DIALECT, MEMORY_MIB, MIB

NAMES = ("sourceid", "struct82")
NATIVE = "native"


def dialects(arena: Arena, options: Options) -> Iterator[Section]:
    """For each size and dialect: its time beside the native one, as the commands tell it."""
    for size in options.sizes:
        for name in NAMES:
            source = random_file(arena.place.folder / "source.bin", size)
            try:
                yield _section(arena, options, name, source)
            finally:
                remove(source)


def _section(arena: Arena, options: Options, name: str, source: Path) -> Section:
    enabled = [word for one in NAMES for word in ("--dialect", one)]
    for who in (arena.ours, *arena.old):
        who.server.stop()
        who.restart(*enabled)
    spoken = ("--dialect", name)
    ours = _sending(f"dialect {name}", arena.ours, source, *spoken)
    theirs = [
        _sending(NATIVE, arena.ours, source),
        *(_sending(OLD, who, source, *spoken) for who in arena.old),
    ]
    size = source.stat().st_size
    title = f"dialect {name}, {show_size(size)}, {arena.place.name}"
    amount = (size / 1e9, "GB/s")
    section = hold(title, arena, Contestants(ours, theirs), source, {NATIVE: DIALECT}, options, amount)
    peak = (peak_bytes(arena.ours.server.pid) or 0) / MIB
    section.rows.append(Row("peak of the server", "MiB", summarise([peak]), MEMORY_MIB))
    return section


def _sending(called: str, who: Ours, source: Path, *words: str) -> Contestant:
    stored = who.served / source.name
    run = partial(who.timed_put, source, *words)
    return Contestant(called, run, partial(remove, stored), partial(check_same, source, stored), inside=True)
