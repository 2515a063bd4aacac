"""``python -m tests.simulation``: run seeds, or one seed with its trace.

Seeds come in their order, whatever the number of processes. What was stopped goes on with ``--seed`` after the last
seed that it named and as many fewer in ``--count``.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import blockproto

from .run import Outcome, simulate
from .world import Violation

SAY_EVERY = 50
"""Seeds after which a word is said."""


def main() -> int:
    """Run as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--clients", type=int, default=8, help="how many people in each")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes share the seeds")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    wanted = parser.parse_args()
    print(f"engine: {Path(blockproto.__file__).parent}", file=sys.stderr)
    begun = time.perf_counter()
    failed: list[str] = []
    events = acks = restarts = 0
    hours = 0.0
    for number, outcome in enumerate(_run_all(wanted), 1):
        if isinstance(outcome, str):
            failed.append(outcome)
            print(outcome, flush=True)
        else:
            events, acks, restarts = events + outcome.events, acks + outcome.acks, restarts + outcome.restarts
            hours += outcome.hours
            print("\n".join(outcome.trace), end="\n" if outcome.trace else "")
            if wanted.count == 1:
                print(f"seed {outcome.seed}: {outcome.digest}, {outcome.events} events")
        if number % SAY_EVERY == 0:
            seed, took_s = wanted.seed + number - 1, time.perf_counter() - begun
            print(f"up to seed {seed}: {number:,} run in {took_s:,.0f} s, {len(failed)} failed", flush=True)
    took_s = time.perf_counter() - begun
    cpu_s = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(
        f"{wanted.count:,} seeds × {wanted.clients} clients in {took_s:,.0f} s ({cpu_s / wanted.count:.2f} s of CPU each): "
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
