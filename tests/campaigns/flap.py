"""A line that is there for five seconds and away for three, now and then a black hole, and a queue that gets through it.

    blockproto queue run → ChaosProxy, coming and going → counting proxy → blockproto serve

Rounds of fifty files of mixed size and priority, half of them up and half down, put into the queue of a real process.
Ten of them are pictures, interactive and small, put in while the others are under way. What is judged is what passed right
before the server (``Order``), not what the client says of itself:

    1. Every file arrives, byte for byte.
    2. No byte that its receiver had acknowledged passes again. A file of at most ``BRIEF_LENGTH_MAX`` has one answer for
       all of it: where that was lost with its connection, it is sent again, and counted as ``brief_again``.
    3. The picture is first: no less urgent file that had more than ``AHEAD_MAX`` to go when the picture was put in, or had
       not begun, is complete before it.
"""

from __future__ import annotations

import random
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from blockproto import QueuedTransfer, TransferQueue, TransferState
from blockproto.common.blocks import BRIEF_LENGTH_MAX
from blockproto.common.tasks import background_tasks
from blockproto.testing.chaos import Amount, ChaosProxy, Conditions, Ending, How

from .counting_proxy import Proxy, Referee
from .tools import (
    DONE,
    INTERRUPTED,
    MIB,
    STEP_S,
    Figures,
    Place,
    Server,
    campaign,
    make_file,
    parser,
    require,
    require_same,
)

HOLE_S = 20.0
ROUND_TRIP_S = 0.06
PICTURE = 100_000
AHEAD_MAX = 2 * MIB
"""A file that has less to go than this may be complete before a picture that is put in now: about 3 s of the line."""
RETRY_FOR = "30m"
LOOK_S = 0.02
ROUND_S = 3600.0
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Weather:
    """What the line is like, and how much has to get through.

    Attributes:
        up_s, down_s: how long it is there, and away.
        files: how many in a round; one in five is a picture.
        holes: which part of the times that it is there it is a black hole.
        rate_bytes_s: what it carries each way.
    """

    up_s: float = 5.0
    down_s: float = 3.0
    files: int = 50
    holes: float = 0.15
    rate_bytes_s: float = 625e3


class Order(Referee):
    """Counts what passes right before the server, and in which order files are complete.

    Attributes:
        ended: names of files, in the order in which their COMMITTED passed.
        sizes: of all files, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ended: dict[str, None] = {}
        self.sizes: dict[str, int] = {}

    def again_of(self, *, brief: bool) -> int:
        """Acknowledged bytes that passed again, of the files that have one answer for all of it, or of the others."""
        return sum(
            count for name, count in self.again.items() if (self.sizes[name] <= BRIEF_LENGTH_MAX) is brief
        )

    def on_committed(self, sourceid: bytes, filesize: int) -> None:
        """See Tally."""
        super().on_committed(sourceid, filesize)
        with self.lock:
            self.ended.setdefault(self._file(sourceid).filename)

    def on_done(self, name: str) -> None:
        """It is complete, as far as the queue knows: a COMMITTED that the client says can be lost with its connection."""
        with self.lock:
            self.ended.setdefault(name)

    def far_from_done(self) -> set[str]:
        """The files that still have more than ``AHEAD_MAX`` to go."""
        with self.lock:
            passed = {tally.filename: len(tally.sent) for tally in self.files.values()}
            return {name for name, size in self.sizes.items() if size - passed.get(name, 0) > AHEAD_MAX}

    def passed_of_others(self, name: str) -> int:
        """Payload bytes of all files but this one so far."""
        with self.lock:
            mine = sum(len(tally.sent) for tally in self.files.values() if tally.filename == name)
            return self.payload_bytes - mine


class Flapping:
    """The line to a server: a proxy that comes and goes on one port.

    Args:
        target: the port behind it.
        weather: how it comes and goes.
        rng: draws when it becomes a black hole.
    """

    def __init__(self, target: int, weather: Weather, rng: random.Random) -> None:
        self.times_up = 0
        self.holes = 0
        self.connections = 0
        self._target = target
        self._weather = weather
        self._rng = rng

    async def run(self, *, task_status: trio.TaskStatus[int]) -> None:
        """Come and go until cancelled; started with the port."""
        with socket.socket() as kept:  # nobody else shall answer on this port while the line is away
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind((_HOST, 0))
            await self._come_and_go(kept.getsockname()[1], task_status)

    async def _come_and_go(self, port: int, task_status: trio.TaskStatus[int]) -> None:
        while True:
            self.times_up += 1
            hole = self._rng.random() < self._weather.holes
            self.holes += hole
            ending = Ending(How.BLACK_HOLE, after_s=Amount(1.0, 4.0)) if hole else None
            rate = self._weather.rate_bytes_s
            conditions = Conditions(rate, rate, ROUND_TRIP_S, ending=ending)
            proxy = ChaosProxy((_HOST, self._target), conditions, seed=self.times_up)
            with trio.move_on_after(HOLE_S if hole else self._weather.up_s):
                async with trio.open_nursery() as nursery:
                    await nursery.start(proxy.serve, (_HOST, port))
                    if self.times_up == 1:
                        task_status.started(port)
            self.connections += proxy.totals.connections
            await trio.sleep_until(trio.current_time() + self._weather.down_s)


@dataclass(slots=True)
class Picture:
    """What was seen when a picture was put into the queue.

    Attributes:
        name: what it is called.
        added_at: monotonic seconds.
        others: payload bytes of other files that had passed.
        behind: the less urgent files that must not be complete before it.
    """

    name: str
    added_at: float
    others: int
    behind: set[str]


@dataclass(slots=True)
class Files:
    """The files of a round: those that are put in at once, and the pictures."""

    ups: dict[str, Path] = field(default_factory=dict)
    downs: dict[str, Path] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)

    @property
    def others(self) -> list[str]:
        """All but the pictures."""
        return [name for name in self.sizes if name not in self.pictures]


class Round:
    """Fifty files through the queue.

    Args:
        place, queue: where.
        address: of the line's near end.
        referee: who counts.
        rng: draws sizes and moments.
    """

    def __init__(
        self, place: Place, queue: TransferQueue, address: str, referee: Order, rng: random.Random
    ) -> None:
        self.pictures: list[Picture] = []
        self.picture_s: dict[str, float] = {}
        self.picture_others: dict[str, int] = {}
        self._place = place
        self._queue = queue
        self._address = address
        self._referee = referee
        self._rng = rng

    async def run(self, number: int, weather: Weather) -> int:
        """All of it; returns how many bytes the files have."""
        files = self._make(number, weather.files)
        self._referee.sizes |= files.sizes
        begun_bytes = self._referee.payload_bytes
        async with background_tasks() as nursery:
            ended = trio.Event()
            await nursery.start(self._observer, len(files.sizes), ended)
            for name in files.others:
                await self._add(files, name, self._rng.choice(("normal", "bulk")))
            todo = sum(files.sizes[name] for name in files.others)
            for index, name in enumerate(files.pictures):
                moment = todo * (index + self._rng.random()) / (len(files.pictures) + 1)
                await wait_for(lambda: self._referee.payload_bytes >= begun_bytes + moment, ROUND_S)  # noqa: B023
                await self._add_picture(files, name)
            await ended.wait()
        for name, source in files.ups.items():
            require_same(self._place.served / name, source)
        for name, dest in files.downs.items():
            require_same(dest, self._place.served / name)
        self._judge_order()
        return sum(files.sizes.values())

    def _make(self, number: int, count: int) -> Files:
        folder = self._place.folder / f"round {number}"
        folder.mkdir()
        files = Files()
        for index in range(count):
            picture = index % 5 == 0
            sizes = [0, 1000, 70_000, MIB, self._rng.randrange(2 * MIB, 5 * MIB)]
            size = PICTURE if picture else self._rng.choice(sizes)
            name = f"{number}-{index} {'picture' if picture else 'file'}"
            files.sizes[name] = size
            if index % 2:
                files.ups[name] = make_file(folder / name, size, name)
            else:
                make_file(self._place.served / name, size, name)
                files.downs[name] = folder / name
            if picture:
                files.pictures.append(name)
        return files

    async def _add(self, files: Files, name: str, priority: str) -> None:
        if name in files.ups:
            await self._queue.add_upload(files.ups[name], self._address, priority=priority)
        else:
            await self._queue.add_download(self._address, name, files.downs[name], priority=priority)

    async def _add_picture(self, files: Files, name: str) -> None:
        others = self._referee.passed_of_others(name)
        behind = self._referee.far_from_done() & set(files.others)
        self.pictures.append(Picture(name, time.monotonic(), others, behind))
        await self._add(files, name, "interactive")

    async def _observer(
        self, count: int, ended: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Wait until so many transfers are done; none may fail."""
        done: set[int] = set()
        async with aclosing(self._queue.events()) as events:
            task_status.started()
            async for one in events:
                require(one.state is not TransferState.FAILED, f"{one.name} failed: {one.error}")
                if one.state is TransferState.DONE and one.id not in done:
                    done.add(one.id)
                    self._note(one)
                if len(done) == count:
                    ended.set()
                    return

    def _note(self, one: QueuedTransfer) -> None:
        self._referee.on_done(one.name)
        for picture in self.pictures:
            if picture.name == one.name:
                self.picture_s[one.name] = time.monotonic() - picture.added_at
                self.picture_others[one.name] = self._referee.passed_of_others(one.name) - picture.others

    def _judge_order(self) -> None:
        order = {name: at for at, name in enumerate(self._referee.ended)}
        for picture in self.pictures:
            before = sorted(name for name in picture.behind if order[name] < order[picture.name])
            after_s = self.picture_s[picture.name]
            require(
                not before, f"'{picture.name}' took {after_s:.1f} s, and {before} were complete before it"
            )


async def rounds(place: Place, port: int, referee: Order, weather: Weather, given: Given) -> Figures:
    """Round after round until the time is over; the last one is finished."""
    rng = random.Random(f"flap {given.seed}")
    flapping = Flapping(port, weather, rng)
    played: list[Round] = []
    moved = 0
    ends_at = time.monotonic() + given.seconds
    async with background_tasks() as nursery:
        address = f"bp://{_HOST}:{await nursery.start(flapping.run)}"
        async with _running_queue(place) as queue:
            while not played or time.monotonic() < ends_at:
                one = Round(place, queue, address, referee, rng)
                moved += await one.run(len(played) + 1, weather)
                played.append(one)
                _require_nothing_again(referee)
                _clear(place)
                print(
                    f"round {len(played)}: all there, {moved / MIB:.0f} MiB so far",
                    file=sys.stderr,
                    flush=True,
                )
    others = [count for one in played for count in one.picture_others.values()]
    waits = [seconds for one in played for seconds in one.picture_s.values()]
    return {
        "campaign": "flap",
        "rounds": len(played),
        "files": len(played) * weather.files,
        "mib": round(moved / MIB, 1),
        "times_up": flapping.times_up,
        "black_holes": flapping.holes,
        "connections": flapping.connections,
        "payload_bytes": referee.payload_bytes,
        "again": referee.again_of(brief=False),
        "brief_again": referee.again_of(brief=True),
        "repeated": referee.repeated,
        "repeated_part": round(referee.repeated / max(1, moved), 4),
        "pictures": len(waits),
        "picture_and_file_judged": sum(len(picture.behind) for one in played for picture in one.pictures),
        "picture_s_median": round(statistics.median(waits), 2),
        "picture_s_most": round(max(waits), 2),
        "others_meanwhile_median": statistics.median(others),
    }


@dataclass(frozen=True, slots=True)
class Given:
    """For how long, and from which seed."""

    seconds: float
    seed: object


@asynccontextmanager
async def _running_queue(place: Place) -> AsyncIterator[TransferQueue]:
    """A queue that another process runs; that process has to end as Ctrl-C ends it."""
    file = place.folder / "queue.sqlite3"
    async with TransferQueue.open(file) as queue:
        runner = place.start("queue", "run", "--queue", file, "--retry-for", RETRY_FOR)
        try:
            with trio.fail_after(STEP_S):
                while not await queue.is_running():
                    await trio.lowlevel.checkpoint()
            yield queue
            require(not runner.ended, "the process that runs the queue has ended")
        finally:
            runner.signal(2)
            ran = await trio.to_thread.run_sync(runner.end)
        ran.require(DONE, INTERRUPTED)


async def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    """Look again and again until it holds: threads and other processes do not wake us."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(LOOK_S)


def _require_nothing_again(referee: Order) -> None:
    again = referee.again_of(brief=False)
    require(not again, f"{again} bytes passed again that were acknowledged: {referee.again}")


def _clear(place: Place) -> None:
    for path in [*place.folder.glob("round */*"), *place.served.iterdir()]:
        if path.is_file():
            path.unlink()


def run(place: Place, minutes: float, seed: object, weather: Weather | None = None) -> Figures:
    """The campaign once: rounds for so many minutes, one at least."""
    referee = Order()
    with Server(place) as server, Proxy(lambda: server.port, referee) as proxy:
        figures = trio.run(
            rounds, place, proxy.port, referee, weather or Weather(), Given(minutes * 60, seed)
        )
        proxy.cut_lines()
        proxy.wait_idle()
        require(server.stop() == DONE, "the server did not end in order")
    _require_nothing_again(referee)
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
