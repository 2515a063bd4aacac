"""Which case kills which mutant.

``make mutants`` runs every case that a mutant could be killed by; the tests run, for each mutant, cases that name its
clause until one has failed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from blockproto.conformance import client as clients
from blockproto.conformance import server as servers
from blockproto.conformance.case import Case
from blockproto.conformance.cast import Cast
from blockproto.conformance.client.command import Command
from blockproto.conformance.client.subject import ClientSubject
from blockproto.conformance.outcome import Outcome
from blockproto.conformance.runner import Runner, Subject
from blockproto.conformance.server import ServerSubject
from blockproto.conformance.target import Target
from blockproto.conformance.timing import Patience

from . import identity
from .edits import Mutant
from .table import MUTANTS
from .zygote import Zygote

PATIENCE = Patience(slow=0.3)
"""Mutants that say nothing are waited for; the shorter the better."""

THREADS = 4


@dataclass(frozen=True, slots=True)
class Kill:
    """A mutant that was noticed, by which case, and how."""

    mutant: Mutant
    side: str
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.mutant.name} ({self.side}) by {self.outcome.case.name}: {self.outcome.message}"


@cache
def cases_of(side: str) -> list[Case]:
    """Every case of a side that needs no adapter."""
    cases = servers.all_cases() if side == "server" else clients.all_cases()
    return [case for case in cases if not case.needs]


def killers(mutant: Mutant, side: str) -> list[Case]:
    """The cases that name one of the mutant's clauses, the most fitting first, those that take long last."""
    clause, ids = mutant.ids[0], set(mutant.ids)
    named = [case for case in cases_of(side) if ids & set(case.clauses)]
    return sorted(named, key=lambda case: (case.slow, case.clauses[0] != clause, clause not in case.clauses))


class Lab:
    """Where mutants are made and examined."""

    def __init__(self) -> None:
        self.zygote = Zygote()

    def close(self) -> None:
        """No more mutants."""
        self.zygote.close()

    @contextmanager
    def subject(self, side: str, mutant: str | None, patience: Patience = PATIENCE) -> Iterator[Subject]:
        """A server or client of ours, healthy or not, for the harness."""
        if side == "client":
            start = self.zygote.start
            command = Command(("ours",), launch=lambda words, file: start("client", words[1:], file, mutant))
            yield ClientSubject(command, patience)
            return
        with (
            tempfile.TemporaryDirectory(prefix="blockproto-mutant-") as folder,
            open(f"{folder}/stderr", "wb") as stderr,
        ):
            served = Path(folder, "served")
            served.mkdir()
            words, target = [str(served)], Target("127.0.0.1", 0, patience)
            if mutant is not None and MUTANTS[mutant].ids[0].startswith(identity.CHAPTERS):
                tokens, pin = identity.make_cast(served)
                words += identity.serve_options(served)
                target = target.with_(tls=True, pin=pin, cast=Cast(tokens))
            process = self.zygote.start("server", words, stderr, mutant)
            try:
                assert process.stdout is not None
                line = process.stdout.readline().decode()
                if not line:
                    raise RuntimeError(f"no server came of {mutant}: {Path(stderr.name).read_text()[-2000:]}")
                target = target.with_(port=int(line.rpartition(":")[2]))
                yield ServerSubject(target, frozenset({"CORE", "CONNECTION", "IDENTITY"}))
            finally:
                process.end()

    def kills(self, mutant: Mutant, side: str, *, all_: bool = False) -> list[Kill]:
        """The cases that name one of its clauses and fail; without ``all_`` the first of them."""
        found: list[Kill] = []
        with self.subject(side, mutant.name) as subject:
            runner = Runner(subject, Nobody())
            for case in killers(mutant, side):
                outcome = runner.examine(case)
                if outcome.verdict.failed:
                    found.append(Kill(mutant, side, outcome))
                    if not all_:
                        break
        return found


class Nobody:
    """Nobody is told."""

    def begin(self, total: int) -> None: ...

    def ended(self, outcome: Outcome) -> None: ...

    def said(self, text: str) -> None: ...


def examine(
    mutants: Iterable[Mutant], *, all_: bool = False, every_side: bool = True
) -> dict[tuple[str, str], list[Kill]]:
    """(mutant, side): its kills. Without ``every_side`` a mutant of both is examined as a server or as a client, in turn."""
    lab = Lab()
    todo: list[tuple[Mutant, str]] = []
    for at, mutant in enumerate(mutants):
        sides = mutant.sides if every_side else (mutant.sides[at % len(mutant.sides)],)
        todo += [(mutant, side) for side in sides]
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(lambda one: lab.kills(*one, all_=all_), todo)
            return {(mutant.name, side): kills for (mutant, side), kills in zip(todo, found, strict=True)}
    finally:
        lab.close()


def main(names: list[str]) -> int:
    """Print the whole matrix; returns how many mutants nobody notices."""
    began = time.monotonic()
    wanted = [
        mutant
        for mutant in MUTANTS.values()
        if not names or any(name in mutant.name or name in mutant.clauses for name in names)
    ]
    found = examine(wanted, all_="--first" not in sys.argv)
    alive = 0
    for (name, side), kills in found.items():
        print(f"{name} ({side}): {MUTANTS[name].clauses}")
        for kill in kills:
            print(f"    {kill.outcome.case.name}: {kill.outcome.message}")
        if not kills:
            alive += 1
            print("    ALIVE")
    print(f"{len(found)} mutants, {alive} alive, {time.monotonic() - began:.0f} s")
    return min(alive, 100)


if __name__ == "__main__":
    sys.exit(main([word for word in sys.argv[1:] if not word.startswith("-")]))
