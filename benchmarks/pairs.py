"""Pairs: ours and theirs right after each other, many times in shuffled order, and what the ratios say.

A machine is now fast and now slow for everybody, so single times say little. Each pair is measured within seconds and
gives one ratio, their time divided by ours: above 1 we are faster. What is quoted is the median of these ratios and
their quartiles.

Rules:
    1. Ours goes first in half of a peer's pairs, and the order of everything is drawn anew for each round.
    2. A run whose floors spread more than ``SPREAD_MAX`` from fastest to slowest is void: the machine changed
       under it.
    3. Where plain creates of files are measured between the pairs, a pair beside which they took more than
       ``SPREAD_MAX`` times as long as in the fastest measurement of the run is void: it is left out of every median. A
       peer of whose pairs fewer than half are left has no figure.
    4. A peer that fails is left out from then on and named; if ours fails, the run ends.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .processes import CommandFailed

SPREAD_MAX = 2.0
"""How far the slowest floor of a run, or plain creates beside one of its pairs, may be from the fastest."""

FLOOR = "floor"
"""The name of the floor among the contestants."""


class Timing(NamedTuple):
    """How long one transfer took.

    Attributes:
        wall_s: seconds from the start of the command to its end.
        elapsed_s: seconds of the transfer alone, where the contestant tells them.
    """

    wall_s: float
    elapsed_s: float | None = None


@dataclass(frozen=True, slots=True)
class Contestant:
    """Somebody who can do the work.

    Attributes:
        name: what the tables call it.
        run: does the work once.
        clean: removes what ``run`` made; called after every run, and harmless without one.
        check: raises ValueError if what ``run`` made is not what it should be; called once.
        prepare: what has to be there before every run.
        inside: whether what counts beside it is ``elapsed_s``, where both tell it, and not the whole command.
    """

    name: str
    run: Callable[[], Timing]
    clean: Callable[[], None]
    check: Callable[[], None] = lambda: None
    prepare: Callable[[], None] = lambda: None
    inside: bool = False


class Creates(NamedTuple):
    """What plain creates took right before and right after a pair, microseconds a file."""

    before_us: float
    after_us: float


class Pair(NamedTuple):
    """One pair as it was measured; ``creates`` where plain creates were measured beside it."""

    number: int
    peer: str
    ours: Timing
    theirs: Timing
    ours_first: bool
    creates: Creates | None = None


class Summary(NamedTuple):
    """What many values of one thing come to: the quartiles, and how many there were."""

    median: float
    lower: float
    upper: float
    values: int


@dataclass(slots=True)
class Match:
    """Everything that was measured between us and the peers in one run.

    Attributes:
        pairs: in the order in which they were run.
        failures: peer → why it did not finish.
        peers: those with at least one pair, in the order in which they were given.
        inside: those beside whom ``elapsed_s`` counts.
    """

    pairs: list[Pair] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    peers: list[str] = field(default_factory=list)
    inside: frozenset[str] = frozenset({FLOOR})

    def of(self, peer: str) -> list[Pair]:
        """The pairs with one peer."""
        return [pair for pair in self.pairs if pair.peer == peer]

    def good(self, peer: str) -> list[Pair]:
        """Those of them that are not void."""
        return [pair for pair in self.of(peer) if not self.voids(pair)]

    def creates_us(self) -> list[float]:
        """All that plain creates took, microseconds a file, in the order in which they were measured."""
        beside = [pair.creates for pair in self.pairs if pair.creates is not None]
        return [beside[0].before_us, *(one.after_us for one in beside)] if beside else []

    def voids(self, pair: Pair) -> bool:
        """Whether plain creates had become so slow beside a pair that it says nothing."""
        return pair.creates is not None and is_void([*pair.creates, min(self.creates_us())])

    def is_void_beside(self, peer: str) -> bool:
        """Whether too few pairs with a peer are left for a figure, or the floors of the run spread too far."""
        return 2 * len(self.good(peer)) < len(self.of(peer)) or is_void(floor_times(self))


class Turn(NamedTuple):
    """One pair of the schedule."""

    number: int
    peer: str
    ours_first: bool


def schedule(peers: Sequence[str], pairs: int, rng: random.Random) -> list[Turn]:
    """The order of ``pairs`` pairs with each of ``peers``: one pair with each in every round, rounds shuffled."""
    sides = {peer: _sides(pairs, rng) for peer in peers}
    turns: list[Turn] = []
    for number in range(pairs):
        turns += [Turn(number, peer, sides[peer][number]) for peer in rng.sample(peers, len(peers))]
    return turns


def _sides(pairs: int, rng: random.Random) -> list[bool]:
    """Who goes first: ours in half of the pairs (an odd one falls to either), shuffled."""
    odd = [rng.random() < 0.5] if pairs % 2 else []
    sides = [True, False] * (pairs // 2) + odd
    rng.shuffle(sides)
    return sides


def run_pairs(
    ours: Contestant,
    theirs: Sequence[Contestant],
    pairs: int,
    rng: random.Random,
    settle: Callable[[], None],
    tell: Callable[[str], None] = lambda text: None,
    creates_us: Callable[[], float] | None = None,
) -> Match:
    """Measure ``pairs`` pairs with each of ``theirs``, after one unmeasured run of everybody that is checked.

    Args:
        ours: we.
        theirs: everybody else.
        pairs: how many with each, at least 1.
        rng: draws the order.
        settle: called before every run, when nothing of the run before is left.
        tell: hears what is being done.
        creates_us: measures what plain creates take, microseconds a file: before the first pair and after each.

    Raises:
        CommandFailed, ValueError: ours failed, or did not do what it should.
    """
    match = Match(inside=frozenset(one.name for one in theirs if one.inside))
    tell(f"{ours.name}: unmeasured run")
    _checked(ours, settle)
    able = {one.name: one for one in theirs if _try_once(one, settle, match, tell)}
    before_us = creates_us() if creates_us else 0.0
    for turn in schedule(list(able), pairs, rng):
        if turn.peer in match.failures:
            continue
        tell(f"pair {turn.number + 1} of {pairs}: {ours.name} and {turn.peer}")
        try:
            pair = _measure(ours, able[turn.peer], turn, settle)
        except _TheirFailure as failure:
            match.failures[turn.peer] = str(failure)
            continue
        if creates_us:
            after_us = creates_us()
            pair = pair._replace(creates=Creates(before_us, after_us))
            before_us = after_us
        match.pairs.append(pair)
    match.peers = [name for name in able if match.of(name)]
    return match


def _measure(ours: Contestant, theirs: Contestant, turn: Turn, settle: Callable[[], None]) -> Pair:
    timings: dict[str, Timing] = {}
    for one in (ours, theirs) if turn.ours_first else (theirs, ours):
        one.prepare()
        settle()
        try:
            timings[one.name] = one.run()
        except CommandFailed as error:
            raise (error if one is ours else _TheirFailure(str(error))) from error
        finally:
            one.clean()
    return Pair(turn.number, turn.peer, timings[ours.name], timings[theirs.name], turn.ours_first)


class _TheirFailure(Exception):
    """A peer could not do it."""


def _try_once(one: Contestant, settle: Callable[[], None], match: Match, tell: Callable[[str], None]) -> bool:
    tell(f"{one.name}: unmeasured run")
    try:
        _checked(one, settle)
    except (CommandFailed, ValueError) as error:
        match.failures[one.name] = str(error)
        return False
    return True


def _checked(one: Contestant, settle: Callable[[], None]) -> None:
    one.prepare()
    settle()
    try:
        one.run()
        one.check()
    finally:
        one.clean()


def wall_ratio(pair: Pair) -> float:
    """Their whole command's time divided by ours."""
    return pair.theirs.wall_s / pair.ours.wall_s


def elapsed_ratio(pair: Pair) -> float:
    """Their transfer's time divided by ours; both tell it."""
    assert pair.ours.elapsed_s is not None
    assert pair.theirs.elapsed_s is not None
    return pair.theirs.elapsed_s / pair.ours.elapsed_s


def summarise(values: Iterable[float]) -> Summary:
    """Median and quartiles of at least one value (quartiles include the extremes, as for a whole population)."""
    known = list(values)
    if len(known) < 2:
        return Summary(known[0], known[0], known[0], len(known))
    lower, median, upper = statistics.quantiles(known, n=4, method="inclusive")
    return Summary(median, lower, upper, len(known))


def spread(values: Iterable[float]) -> float:
    """The slowest divided by the fastest; 1.0 for none."""
    known = list(values)
    return max(known) / min(known) if known else 1.0


def floor_times(match: Match) -> list[float]:
    """The seconds of every floor of a run, without those of void pairs."""
    return [pair.theirs.elapsed_s or pair.theirs.wall_s for pair in match.good(FLOOR)]


def is_void(floors: Sequence[float]) -> bool:
    """Whether the floors of a run spread too far for its figures to mean anything."""
    return spread(floors) > SPREAD_MAX
