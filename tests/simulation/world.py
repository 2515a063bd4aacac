"""The simulated world: a server that dies and comes back on what its disk kept, lines that break, and time that jumps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any
from unittest import mock

import trio

from blockproto.connection.endpoint import Endpoint
from blockproto.errors import ConnectionLost, StoreFailed
from blockproto.protocol.session import Event, Received, Session, Side
from blockproto.serving.server import Server
from blockproto.testing.chaos import How, Line, LineStream
from blockproto.wire import Message

from .determinism import EPOCH_S, Worker
from .disk import SimStore
from .endpoint import LineEndpoint
from .fences import Fences
from .mix import Mix
from .promises import Promises

LOOK_EVERY_S = 5.0
SLOW_S = 0.02
"""What a write takes on a disk that is slow; more than the engine calls quick."""

_serving: ContextVar[Visit | None] = ContextVar("serving", default=None)
_process: ContextVar[int] = ContextVar("process", default=0)


class Violation(AssertionError):
    """A promise was broken.

    Attributes:
        trace: everything that happened before, if it was kept.
    """

    def __init__(self, what: str, trace: list[str]) -> None:
        super().__init__(what)
        self.trace = trace


class Machine:
    """One life of the server, from its start to its death."""

    def __init__(self, world: World, store: SimStore) -> None:
        self.world = world
        self.store = store
        self.server = Server(store, limits=world.mix.limits)
        self.lines: list[Line] = []
        self.dead = False
        self.ended = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until it is stopped or has died."""
        try:
            await self.server.run(task_status=task_status)
        except StoreFailed:
            if not self.dead:
                raise
        self.ended.set()

    async def serve(self, line: Line, stream: LineStream) -> None:
        """Serve one connection."""
        visit = Visit(self)
        _serving.set(visit)
        self.lines.append(line)
        await self.server.serve_endpoint(LineEndpoint(stream))
        self.lines.remove(line)
        self.world.promises.on_closed(visit.number)

    def die(self) -> None:
        """End at once: nothing more crosses the wire or reaches the disk. What still runs is a ghost that ends soon."""
        self.dead = True
        for line in self.lines:
            line.end(How.RESET)
        self.store.die()
        self.server.stop()


class Visit:
    """One connection of a machine.

    Attributes:
        number: of its session; 0 while it has none.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.number = 0


class World:
    """Everything that is outside of the clients.

    Args:
        seed: decides everything.
        mix: what goes wrong; None: what the seed draws.
        keep: whether to keep the whole trace, not only its hash.
    """

    def __init__(self, seed: int, mix: Mix | None = None, *, keep: bool = False) -> None:
        self.rng = random.Random(f"world {seed}")
        self.mix = Mix.draw(self.rng) if mix is None else mix
        self.calm = False
        self.events = 0
        self.restarts = 0
        self.trace: list[str] = []
        self.violation: str | None = None
        self.scope = trio.CancelScope()
        self.worker = Worker(self._disk_delay)
        self.promises = Promises(self.break_promise, self.note)
        self.fences = Fences(self.break_promise)
        self.machine: Machine | None = None
        self.nursery: trio.Nursery
        self._keep = keep
        self._hash = blake2b(digest_size=16)
        self._slow = False
        self._connections: list[Line] = []
        self._processes = 0

    # ---- what happened ----------------------------------------------------------------------------------------

    def note(self, *what: Any) -> None:
        """Something happened; the hash of all that is the run's name."""
        self.events += 1
        entry = f"{trio.current_time():.6f} {what!r}"
        self._hash.update(entry.encode())
        if self._keep:
            self.trace.append(entry)

    @property
    def digest(self) -> str:
        """The hash of everything that happened."""
        return self._hash.hexdigest()

    def break_promise(self, what: str) -> None:
        """Something that must not happen has happened: the run ends."""
        if self.violation is None:
            self.violation = what
            self.note("VIOLATION", what)
            self.scope.cancel()

    # ---- the server -------------------------------------------------------------------------------------------

    def new_store(self, **options: Any) -> SimStore:
        """An empty disk of the server."""
        return SimStore(self.promises, now_ms=now_ms, **options)

    async def start(self, store: SimStore) -> None:
        """Begin to serve what ``store`` holds."""
        store.on_write = self._on_write
        self.promises.on_restart(store)
        machine = Machine(self, store)
        await self.nursery.start(machine.run)
        self.machine = machine
        self.note("server started")

    def begin_process(self) -> None:
        """What this task starts from now on belongs to another process of a client."""
        self._processes += 1
        _process.set(self._processes)

    async def dial(self, mine: list[Line]) -> Endpoint:
        """A new line to the server; ``mine`` are those of one process."""
        conditions = self.mix.line(self.rng, self.calm)
        await trio.sleep(conditions.round_trip_s)
        machine = self.machine
        if machine is None:
            raise ConnectionLost("nobody listens")
        line = Line(conditions, random.Random(self.rng.random()))
        near, far = line.streams()
        self._connections.append(line)
        mine.append(line)
        self.nursery.start_soon(line.run)
        self.nursery.start_soon(machine.serve, line, far)
        return LineEndpoint(near)

    def kill_server(self) -> SimStore | None:
        """kill -9, or a power cut; returns what is left on its disk. None if it does not run."""
        machine, self.machine = self.machine, None
        if machine is None:
            return None
        self.restarts += 1
        left = self.promises.store = machine.store.survivor()
        machine.die()
        return left

    # ---- trouble ----------------------------------------------------------------------------------------------

    async def trouble(self) -> None:
        """Everything that goes wrong with the server, until it is calm."""
        with trio.move_on_after(self.mix.trouble_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._every, self.mix.kill_server, self._kill)
                nursery.start_soon(self._every, self.mix.restart_server, self._restart)
                nursery.start_soon(self._every, self.mix.die_in_commit, self._die_in_commit)
                nursery.start_soon(self._every, 20.0, self._disk_period)
                await trio.sleep_forever()
        self._end_trouble()

    def _end_trouble(self) -> None:
        self.calm = True
        self._slow = False
        machine = self.machine
        assert machine is not None
        machine.store.room = None
        machine.store.dies_after = None
        for line in self._connections:
            line.end(How.RESET)
        self.note("calm")

    async def _every(self, mean_s: float | None, what: Any) -> None:
        while mean_s is not None:
            await trio.sleep(self.rng.expovariate(1 / mean_s))
            with trio.CancelScope(shield=True):
                await what()

    async def _kill(self) -> None:
        self.note("kill server")
        await self._come_back(self.kill_server())

    async def _restart(self) -> None:
        machine, self.machine = self.machine, None
        if machine is None:
            return
        self.note("restart server")
        machine.store.dies_after = None
        machine.server.stop()
        await machine.ended.wait()
        await self._come_back(machine.store.survivor())

    async def _die_in_commit(self) -> None:
        """Let the power go in the middle of the next batch."""
        machine = self.machine
        if machine is None or machine.store.dies_after is not None:
            return
        died = trio.Event()
        left: list[SimStore] = []

        def on_death() -> None:
            if self.machine is machine:
                self.note("died in a commit")
                left.extend(filter(None, [self.kill_server()]))
            died.set()

        machine.store.on_death = on_death
        machine.store.dies_after = self.rng.randrange(4)
        with trio.move_on_after(5.0):
            await died.wait()
        machine.store.dies_after = None
        await self._come_back(left[0] if left else None)

    async def _come_back(self, left: SimStore | None) -> None:
        if left is not None:
            left.room = None
            await trio.sleep(self.rng.choice((0.0, 1.0, 15.0)))
            await self.start(left)

    async def _disk_period(self) -> None:
        machine = self.machine
        self._slow = self.rng.random() < self.mix.slow_disk
        if machine is not None:
            full = self.rng.random() < self.mix.full_disk
            machine.store.room = self.rng.choice((0, 100_000, 2_000_000)) if full else None

    def _disk_delay(self) -> float:
        return self.rng.expovariate(1 / self.mix.disk_s) if not self.calm else 0.001

    def _on_write(self, length: int) -> None:
        if self._slow:
            self.worker.stalled_s += SLOW_S

    # ---- looking on -------------------------------------------------------------------------------------------

    async def observer(self) -> None:
        """Look now and then whether somebody waits too long."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            self.promises.check_answers()

    @contextmanager
    def observed(self) -> Iterator[None]:
        """While this lasts, everything that the living server says and hears is checked, and what clients claim."""
        world = self
        visits: dict[Session, Visit] = {}
        clients: dict[Session, tuple[int, int]] = {}
        real_init, real_send, real_next = Session.__init__, Session.send, Session.next_event

        def init(session: Any, side: Side, *args: Any, **options: Any) -> None:
            grease = random.Random(world.rng.random()) if world.mix.grease else None
            real_init(session, side, *args, **options, grease=grease)
            visit = _serving.get() if side is Side.SERVER else None
            if visit is not None:
                visits[session] = visit
                visit.number = len(visits)
            if side is Side.CLIENT:
                clients[session] = _process.get(), len(clients)

        def send(session: Any, stream: int, message: Message, payload_length: int = 0) -> bytes:
            frame = real_send(session, stream, message, payload_length)
            visit = visits.get(session)
            if visit is not None and not visit.machine.dead:
                world.promises.on_said((visit.number, stream), message)
            if session in clients:
                process, number = clients[session]
                world.fences.on_said(process, (number, stream), message)
            return frame

        def next_event(session: Any) -> Event | None:
            event = real_next(session)
            visit = visits.get(session)
            if isinstance(event, Received) and visit is not None and not visit.machine.dead:
                world.promises.on_heard((visit.number, event.stream), event.message)
            if isinstance(event, Received) and session in clients:
                world.fences.on_heard((clients[session][1], event.stream), event.message)
            return event

        with (
            mock.patch.object(Session, "__init__", init),
            mock.patch.object(Session, "send", send),
            mock.patch.object(Session, "next_event", next_event),
        ):
            yield


def now_ms() -> int:
    """The simulated time, Unix ms."""
    return int((EPOCH_S + trio.current_time()) * 1000)
