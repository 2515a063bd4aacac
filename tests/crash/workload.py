"""The process that dies in a power cut: `python -m tests.crash.workload FOLDER SEED [MUTANT]`.

It sends files to a store for ever and says on stdout what it begins and what it was promised, a line each.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path

from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.common.names import SafeName
from blockproto.errors import StoreFailed
from blockproto.store import Remove
from blockproto.store.local.store import LocalStore

from .client import Job, Promises, good, send, send_brief, send_whole
from .mutants import MUTANTS


def jobs(rng: random.Random, seed: int) -> Iterator[list[Job]]:
    """Big files one by one, small ones in groups, in folders new and old."""
    for number in count(1):
        folder = f"{seed % 100}/{number // 3}" if rng.random() < 0.5 else f"{seed % 100}"
        unique = seed * 10_000 + number
        if rng.random() < 0.4:
            yield [Job(f"{folder}/big-{unique}-{rng.randrange(BLOCK_LENGTH, 4 * BLOCK_LENGTH)}")]
        else:
            group = range(rng.choice([1, 1, 5, 40]))
            kind = rng.choice(["brief", "whole", "whole", "replacing"])
            yield [
                Job(
                    f"{folder}/{kind}{n}-{unique * 100 + n}-{rng.randrange(1, 40_000 if len(group) < 9 else 5000)}"
                )
                for n in group
            ]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def work(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    store = LocalStore.open(folder)
    promises = Promises(say=say)
    for group in jobs(rng, seed):
        for job in group:
            say(f"begin {job.name}")
        if group[0].filesize >= BLOCK_LENGTH:
            send(store, group[0], promises, 1)
        elif "brief" in group[0].name:
            send_brief(store, group, promises)
        else:
            send_whole(store, group, promises)
        if rng.random() < 0.1:
            remove(store, rng.choice(group).name)


def remove(store: LocalStore, name: str) -> None:
    say(f"going {name}")
    good(*store.decide([Remove(SafeName.parse(name))]))
    say(f"gone {name}")


def main() -> None:
    folder, seed, *name = sys.argv[1:]
    with MUTANTS.at_work(name[0]) if name else nullcontext():
        try:
            work(Path(folder), int(seed))
        except (StoreFailed, OSError) as exc:
            sys.stderr.write(f"{exc}\n")


if __name__ == "__main__":
    main()
