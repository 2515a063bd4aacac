"""A contest: one piece of work for us and everybody else in pairs, and its rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from .arena import Arena
from .figures import Row, Section, Target, show
from .pairs import (
    FLOOR,
    Contestant,
    Match,
    Pair,
    elapsed_ratio,
    floor_times,
    is_void,
    run_pairs,
    spread,
    summarise,
    wall_ratio,
)
from .processes import CommandFailed

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
    """

    sizes: tuple[int, ...]
    pairs: int
    files: int
    memory_size: int
    held_blocks: int
    rng: random.Random
    tell: Tell


def hold(
    title: str,
    arena: Arena,
    contestants: tuple[Contestant, list[Contestant]],
    settle: Callable[[], None],
    targets: Mapping[str, Target],
    options: Options,
    amount: tuple[float, str],
) -> Section:
    """Run all pairs and make the section.

    Args:
        title: of the section.
        arena: for those who do not take part.
        contestants: ours and theirs.
        settle: what is done before every run.
        targets: peer → target.
        options: of the run.
        amount: how much work one run is, and its unit, for the rates in the notes.
    """
    ours, theirs = contestants
    options.tell(title)
    try:
        match = run_pairs(ours, theirs, options.pairs, options.rng, settle, options.tell)
    except (CommandFailed, ValueError) as error:
        return Section(title, [Row(f"{ours.name} failed", "×", None, note=arena.ours.explain(error))])
    rows = rows_of(match, targets, arena.absent, amount)
    floors = floor_times(match)
    return Section(title, rows, spread(floors) if floors else None, [_raw(pair) for pair in match.pairs])


def rows_of(
    match: Match, targets: Mapping[str, Target], absent: Mapping[str, str], amount: tuple[float, str]
) -> list[Row]:
    """A row for everybody: those who took part, those who failed, and those who are not here (name → why)."""
    void = is_void(floor_times(match))
    rows = [_row(match, peer, targets.get(peer), void, amount) for peer in match.peers]
    rows += [
        Row(f"beside {name}", "×", None, targets.get(name), note=why) for name, why in match.failures.items()
    ]
    rows += [Row(f"beside {name}", "×", None, note=why, absent=True) for name, why in absent.items()]
    return rows


def _row(match: Match, peer: str, target: Target | None, void: bool, amount: tuple[float, str]) -> Row:
    """A peer's row: ``elapsed_s`` beside the floor where we tell it, whole commands beside everything else."""
    pairs = match.of(peer)
    alone = peer == FLOOR and all(pair.ours.elapsed_s is not None for pair in pairs)
    what = "elapsed_s beside the floor" if alone else f"whole command beside {peer}"
    ratios = map(elapsed_ratio if alone else wall_ratio, pairs)
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
    return pair._asdict() | {"ours": pair.ours._asdict(), "theirs": pair.theirs._asdict()}
