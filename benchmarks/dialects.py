"""Dialects: the same file in an older dialect and natively, in pairs; and what the server has resident meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from .arena import Arena
from .contest import Options
from .figures import Row, Section, show, show_size
from .ours import timing_of
from .pairs import summarise
from .places import remove, settler
from .processes import CommandFailed, peak_bytes, timed
from .sources import random_file
from .targets import DIALECT, MEMORY_MIB, MIB

NAMES = ("sourceid", "struct82")


def dialects(arena: Arena, options: Options) -> Iterator[Section]:
    """For each size and dialect: its rate beside the native one, as a ratio of the times that the commands tell."""
    enabled = [word for name in NAMES for word in ("--dialect", name)]
    for size in options.sizes:
        for name in NAMES:
            title = f"dialect {name}, {show_size(size)}, {arena.place.name}"
            options.tell(title)
            source = random_file(arena.place.folder / "source.bin", size)
            arena.ours.server.stop()
            arena.ours.restart(*enabled)
            try:
                yield Section(title, _rows(arena, options, name, source))
            finally:
                remove(source)


def _rows(arena: Arena, options: Options, name: str, source: Path) -> list[Row]:
    ways: list[tuple[str, ...]] = [(), ("--dialect", name)]
    taken_s: dict[tuple[str, ...], list[float]] = {way: [] for way in ways}
    settle = settler(source)
    try:
        for way in ways:
            _timed(arena, source, settle, way)  # once without being measured
        for _ in range(options.pairs):
            for way in options.rng.sample(ways, len(ways)):
                taken_s[way].append(_timed(arena, source, settle, way))
    except CommandFailed as error:
        return [Row(f"{name} beside native", "×", None, DIALECT, note=arena.ours.explain(error))]
    native, old = taken_s[()], taken_s[ways[1]]
    ratios = [one / other for one, other in zip(native, old, strict=True)]
    rates = [f"{source.stat().st_size / 1e9 / median(times):.2f} GB/s" for times in (old, native)]
    peak = (peak_bytes(arena.ours.server.pid) or 0) / MIB
    return [
        Row(f"{name} beside native", "×", summarise(ratios), DIALECT, note=" beside ".join(rates)),
        Row("peak of the server", "MiB", summarise([peak]), MEMORY_MIB, note=f"{show(median(old))} s each"),
    ]


def _timed(arena: Arena, source: Path, settle: Callable[[], None], way: tuple[str, ...]) -> float:
    """Send all of it; returns the seconds that the command tells."""
    settle()
    ran = timed(arena.ours.put(source, "--json", *way), arena.ours.env)
    timing = timing_of(ran, source.stat().st_size)
    remove(arena.ours.served / source.name)
    assert timing.elapsed_s is not None
    return timing.elapsed_s
