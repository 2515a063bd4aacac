"""A contest: one piece of work for us and everybody else in pairs, and its rows."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from .arena import Arena, Contestants
from .figures import Row, Section, Target, show
from .floor import creates_us
from .ours import OLD
from .pairs import (
    FLOOR,
    Match,
    Pair,
    elapsed_ratio,
    floor_times,
    run_pairs,
    spread,
    summarise,
    wall_ratio,
)
from .places import Place, settler
from .processes import CommandFailed
from .targets import NOT_SLOWER

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What a run was asked for.

    Attributes:
        sizes: of single files, bytes.
        pairs: how many with each peer.
        files: how many in a folder.
        memory_size: bytes of the file with which memory is shown.
        held_blocks: blocks of the upload that is resumed.
        rng: draws the order.
        tell: hears what is being done.
        old: the older checkout beside which everything is measured, instead of the peers.
    """

    sizes: tuple[int, ...]
    pairs: int
    files: int
    memory_size: int
    held_blocks: int
    rng: random.Random
    tell: Tell
    old: Path | None = None


def hold(
    title: str,
    arena: Arena,
    contestants: Contestants,
    source: Path,
    targets: Mapping[str, Target],
    options: Options,
    amount: tuple[float, str],
    *,
    creates: bool = False,
) -> Section:
    """Run all pairs and make the section.

    Args:
        title: of the section.
        arena: for the place, and those who do not take part.
        contestants: ours and theirs.
        source: the file or folder that is moved.
        targets: peer → target.
        options: of the run.
        amount: how much work one run is, and its unit, for the rates in the notes.
        creates: whether plain creates are measured before and after each pair.
    """
    ours, theirs = contestants
    options.tell(title)
    targets = {**targets, OLD: NOT_SLOWER}
    measure = partial(_creates_us, arena.place) if creates else None
    try:
        match = run_pairs(ours, theirs, options.pairs, options.rng, settler(source), options.tell, measure)
    except (CommandFailed, ValueError) as error:
        return Section(title, [Row(f"{ours.name} failed", "×", None, note=arena.ours.explain(error))])
    rows = rows_of(match, targets, arena.absent, amount)
    floors = floor_times(match)
    said = [f"on {arena.place.about}", *_say_creates(match)]
    return Section(
        title, rows, spread(floors) if floors else None, [_raw(pair) for pair in match.pairs], said
    )


def _creates_us(place: Place) -> float:
    os.sync()
    folder = place.folder / "creates"
    try:
        return creates_us(folder)
    finally:
        place.discard(folder)


def _say_creates(match: Match) -> list[str]:
    """What plain creates took in a run, and how many pairs are void by that; nothing where they were not measured."""
    all_us = match.creates_us()
    if not all_us:
        return []
    void = sum(map(match.voids, match.pairs))
    middle, lower, upper, count = summarise(all_us)
    quartiles = f"{show(middle)} µs a file [{show(lower)}–{show(upper)}]"
    extremes = f"fastest {show(min(all_us))}, slowest {show(max(all_us))}, of {count}"
    return [
        f"plain creates beside the pairs: {quartiles}, {extremes}",
        f"{void} of {len(match.pairs)} pairs are void",
    ]


def rows_of(
    match: Match, targets: Mapping[str, Target], absent: Mapping[str, str], amount: tuple[float, str]
) -> list[Row]:
    """A row for everybody: those who took part, those who failed, and those who are not here (name → why)."""
    rows = [_row(match, peer, targets.get(peer), amount) for peer in match.peers]
    rows += [
        Row(f"beside {name}", "×", None, targets.get(name), note=why) for name, why in match.failures.items()
    ]
    rows += [Row(f"beside {name}", "×", None, note=why, absent=True) for name, why in absent.items()]
    return rows


def _row(match: Match, peer: str, target: Target | None, amount: tuple[float, str]) -> Row:
    """A peer's row: ``elapsed_s`` beside who is compared by it and where we tell it, else whole commands."""
    pairs = match.good(peer) or match.of(peer)
    alone = peer in match.inside and all(pair.ours.elapsed_s is not None for pair in pairs)
    beside = f"the {peer}" if peer == FLOOR else peer
    what = f"elapsed_s beside {beside}" if alone else f"whole command beside {beside}"
    ratios = map(elapsed_ratio if alone else wall_ratio, pairs)
    void = match.is_void_beside(peer)
    return Row(what, "×", summarise(ratios), target, void, _note(pairs, alone, amount))


def _note(pairs: list[Pair], alone: bool, amount: tuple[float, str]) -> str:
    """The median times behind a ratio, and the rates they come to."""
    count, unit = amount
    times = []
    for who in ("ours", "theirs"):
        timings = [getattr(pair, who) for pair in pairs]
        taken_s = median(one.elapsed_s if alone else one.wall_s for one in timings)
        times.append(f"{who} {show(taken_s, upwards=True)} s ({show(count / taken_s)} {unit})")
    return ", ".join(times)


def _raw(pair: Pair) -> dict[str, Any]:
    creates = {} if pair.creates is None else pair.creates._asdict()
    return pair._asdict() | {
        "ours": pair.ours._asdict(),
        "theirs": pair.theirs._asdict(),
        "creates": creates,
    }
