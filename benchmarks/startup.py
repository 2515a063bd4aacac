"""Startup: what a whole command takes from its start to its end: its version, and one small file there and back.

The server is idle and on loopback. What importing the libraries takes that a transfer needs is measured beside it, in turns,
and what a command takes beyond that is judged.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .arena import Arena
from .contest import Options
from .figures import Row, Section
from .ours import Ours
from .pairs import summarise
from .processes import CommandFailed, timed
from .targets import COMMAND_MS, NOT_SLOWER, STARTUP_S

LENGTH = 4096
ROUNDS_A_PAIR = 3
"""Rounds for each of ``--pairs``: a round takes little, and little is to be told apart."""

IMPORTS = "import trio, construct, click, lmdb, blake3"

VERSION, PUT, GET = "blockproto --version", f"put of {LENGTH} bytes", f"get of {LENGTH} bytes"
LIBRARIES, INTERPRETER = f"python -c '{IMPORTS}'", "python -c pass"
_OLD = "old: "

Run = Callable[[], float]
"""Runs a command once; returns its seconds."""


def startup(arena: Arena, options: Options) -> Iterator[Section]:
    """Everything once in each round, in shuffled order, after one round that is not measured."""
    title = f"startup, {arena.place.name}"
    options.tell(title)
    runs = _runs(arena)
    times_s: dict[str, list[float]] = {what: [] for what in runs}
    try:
        for run in runs.values():
            run()
        for _ in range(ROUNDS_A_PAIR * options.pairs):
            for what in options.rng.sample(list(runs), len(runs)):
                times_s[what].append(runs[what]())
    except CommandFailed as error:
        yield Section(title, [Row("startup", "s", None, note=arena.ours.explain(error))])
        return
    yield Section(title, rows_of_startup(times_s), raw=times_s, said=[f"on {arena.place.about}"])


def rows_of_startup(times_s: dict[str, list[float]]) -> list[Row]:
    """The rows of what was measured: what → its seconds, round by round."""
    rows = [
        Row(what, "s", summarise(taken), STARTUP_S if what == VERSION else None)
        for what, taken in times_s.items()
    ]
    for what in (PUT, GET):
        beyond = zip(times_s[what], times_s[LIBRARIES], strict=True)
        beyond_ms = [(one - other) * 1e3 for one, other in beyond]
        rows.append(Row(f"{what}, beyond the imports", "ms", summarise(beyond_ms), COMMAND_MS))
    for what in (VERSION, PUT, GET):
        if _OLD + what in times_s:
            ratios = [old / new for old, new in zip(times_s[_OLD + what], times_s[what], strict=True)]
            rows.append(Row(f"{what} beside old", "×", summarise(ratios), NOT_SLOWER))
    return rows


def _runs(arena: Arena) -> dict[str, Run]:
    runs = _commands_of(arena.ours, arena, "")
    for old in arena.old:
        runs |= _commands_of(old, arena, _OLD)
    runs[LIBRARIES] = _taking([sys.executable, "-c", IMPORTS])
    runs[INTERPRETER] = _taking([sys.executable, "-c", "pass"])
    for peer in arena.running:
        for method in peer.methods:
            if method.put is not None:
                runs[f"{method.name} of {LENGTH} bytes"] = partial(_put, arena, method.put)
    return runs


def _commands_of(who: Ours, arena: Arena, called: str) -> dict[str, Run]:
    kept = who.served / "kept.bin"
    kept.write_bytes(os.urandom(LENGTH))
    dest = arena.place.folder / "fetched"

    def get() -> float:
        taken_s = timed(who.get(kept.name, dest), who.env).wall_s
        arena.place.discard(dest)
        return taken_s

    return {
        called + VERSION: _taking([who.command, "--version"]),
        called + PUT: partial(_put, arena, who.put, who.env),
        called + GET: get,
    }


def _put(arena: Arena, command: Callable[[Path], list[str]], env: dict[str, str] | None = None) -> float:
    """Send a file that nobody has seen, under the same name."""
    source = arena.place.folder / "small.bin"
    source.write_bytes(os.urandom(LENGTH))
    taken_s = timed(command(source), env).wall_s
    arena.place.discard(source)
    arena.discard(source.name)
    return taken_s


def _taking(command: list[str]) -> Run:
    return lambda: timed(command).wall_s
