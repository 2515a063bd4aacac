"""A line that is there for five seconds and away for three, now and then as a black hole, for as long as it is told to.

A real server, a real client, ``ChaosProxy`` between them. Rounds of fifty files of mixed size and priority, half of them up
and half down, all at once over one connection; each must arrive whole, and no transfer may fail.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

import trio

import blockproto
from blockproto.calling.lines import LineEvent, Reconnecting
from blockproto.chaos import Amount, ChaosProxy, Conditions, Ending, How

from .tools import DONE, MIB, Figures, Place, Server, campaign, make_file, parser, require, require_same

UP_S, DOWN_S, HOLE_S = 5.0, 3.0, 20.0
HOLES = 0.15
FILES = 50
RATE_BYTES_S = 2e6
ROUND_TRIP_S = 0.06
RETRY_FOR_S = 600.0
PRIORITIES = ("interactive", "normal", "bulk")
_HOST = "127.0.0.1"


class Flapping:
    """The line to a server: a proxy that comes and goes on one port.

    Args:
        target: the server's port.
        rng: draws when it becomes a black hole.
    """

    def __init__(self, target: int, rng: random.Random) -> None:
        self.times_up = 0
        self.holes = 0
        self._target = target
        self._rng = rng

    async def run(self, *, task_status: trio.TaskStatus[int]) -> None:
        """Come and go until cancelled; started with the port."""
        port = 0
        while True:
            self.times_up += 1
            hole = self._rng.random() < HOLES
            self.holes += hole
            ending = Ending(How.BLACK_HOLE, after_s=Amount(1.0, 4.0)) if hole else None
            conditions = Conditions(RATE_BYTES_S, RATE_BYTES_S, ROUND_TRIP_S, ending=ending)
            proxy = ChaosProxy((_HOST, self._target), conditions, seed=self.times_up)
            with trio.move_on_after(HOLE_S if hole else UP_S):
                async with trio.open_nursery() as nursery:
                    port = (await nursery.start(proxy.serve, (_HOST, port)))[0][1]
                    if self.times_up == 1:
                        task_status.started(port)
            await trio.sleep_until(trio.current_time() + DOWN_S)


async def rounds(place: Place, server: Server, seconds: float, seed: object) -> Figures:
    """Round after round until the time is over; the last one is finished."""
    rng = random.Random(f"flap {seed}")
    flapping = Flapping(server.port, rng)
    lost: list[LineEvent] = []
    done, moved = 0, 0
    ends_at = time.monotonic() + seconds
    async with trio.open_nursery() as nursery:
        port = await nursery.start(flapping.run)
        while time.monotonic() < ends_at:
            done += 1
            moved += await _round(place, port, done, rng, lost)
        nursery.cancel_scope.cancel()
    return {
        "campaign": "flap",
        "rounds": done,
        "files": done * FILES,
        "mib": round(moved / MIB, 1),
        "times_up": flapping.times_up,
        "black_holes": flapping.holes,
        "reconnecting": sum(isinstance(event, Reconnecting) for event in lost),
    }


async def _round(place: Place, port: int, number: int, rng: random.Random, lost: list[LineEvent]) -> int:
    """Fifty files, all at once; returns how many bytes they have."""
    folder = place.folder / f"round {number}"
    folder.mkdir()
    moved = 0
    checks: list[Callable[[], None]] = []
    async with (
        blockproto.connect(f"bp://{_HOST}:{port}", retry_for_s=RETRY_FOR_S, on_line=lost.append) as client,
        trio.open_nursery() as transfers,
    ):
        for index in range(FILES):
            size = rng.choice([0, 1000, 70_000, MIB, rng.randrange(6 * MIB)])
            name = f"{number}-{index}"
            moved += size
            priority = PRIORITIES[index % 3]
            if index % 2:
                source = make_file(folder / name, size, name)
                transfer: Awaitable[object] = client.upload(source, priority=priority)
                checks.append(partial(require_same, place.served / name, source))
            else:
                source = make_file(place.served / name, size, name)
                transfer = client.download(name, folder / name, priority=priority)
                checks.append(partial(require_same, folder / name, source))
            transfers.start_soon(_await, transfer)
    for check in checks:
        check()
    for path in [*folder.iterdir(), *(path for path in place.served.iterdir() if path.is_file())]:
        path.unlink()
    return moved


async def _await(transfer: Awaitable[object]) -> None:
    await transfer


def run(place: Place, minutes: float, seed: object) -> Figures:
    """The campaign once."""
    with Server(place) as server:
        figures = trio.run(rounds, place, server, minutes * 60, seed)
        require(server.stop() == DONE, "the server did not end in order")
    place.require_clean()
    return figures


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=30.0)
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.minutes, given.seed))


if __name__ == "__main__":
    sys.exit(main())
