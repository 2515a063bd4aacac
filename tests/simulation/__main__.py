"""``python -m tests.simulation``: run seeds, or one seed with its trace."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from .run import Outcome, simulate
from .world import Violation

SAY_EVERY = 100
"""Seeds after which a word is said."""


def main() -> int:
    """Run as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--clients", type=int, default=8, help="how many people in each")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes share the seeds")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    wanted = parser.parse_args()
    begun = time.perf_counter()
    failed: list[str] = []
    events = acks = restarts = 0
    hours = 0.0
    for number, outcome in enumerate(_run_all(wanted), 1):
        if isinstance(outcome, str):
            failed.append(outcome)
            print(outcome, flush=True)
            continue
        events, acks, restarts = events + outcome.events, acks + outcome.acks, restarts + outcome.restarts
        hours += outcome.hours
        if outcome.trace:
            print("\n".join(outcome.trace))
        if wanted.count == 1 or number % SAY_EVERY == 0:
            print(f"{number}: seed {outcome.seed}, {outcome.digest}, {outcome.events} events", flush=True)
    took_s = time.perf_counter() - begun
    print(
        f"{wanted.count:,} seeds × {wanted.clients} clients in {took_s:,.0f} s ({wanted.count / took_s:.2f} seeds/s): "
        f"{hours:,.0f} simulated hours, {restarts:,} restarts, {acks:,} ACKs, {events:,} events; {len(failed)} failed"
    )
    return 1 if failed else 0


def _run_all(wanted: argparse.Namespace) -> Iterator[Outcome | str]:
    seeds = range(wanted.seed, wanted.seed + wanted.count)
    run = partial(_run, clients=wanted.clients, keep=wanted.trace)
    if wanted.jobs == 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(wanted.jobs) as pool:
        yield from pool.map(run, seeds, chunksize=4)


def _run(seed: int, clients: int, keep: bool) -> Outcome | str:
    """The outcome of a run, or what went wrong."""
    try:
        return simulate(seed, clients, keep=keep)
    except Violation as violation:
        return "\n".join([*violation.trace, str(violation)])


if __name__ == "__main__":
    sys.exit(main())
