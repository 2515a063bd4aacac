"""One run: a world of one seed, some people in it; trouble, then calm, in which everything must finish."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import trio
from blake3 import blake3

import blockproto.connection.pace as pace_module
import blockproto.testing.chaos.pipe as pipe_module
from blockproto.client_side import context
from blockproto.common.blocks import BLOCK_LENGTH, digest_of, root_of
from blockproto.common.names import SafeName
from blockproto.store import BlockDone, Facts, Finish, StoredFile, UploadKey

from .determinism import EPOCH_S, run_repeatable
from .disk import SimStore
from .mix import Mix
from .people import SEEDED, SHARED_SIZES, Command, Person, content_of
from .world import Violation, World

FINISH_S = 600.0
"""How long after the trouble everything must have finished."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        digest: the hash of everything that happened; the same for the same seed.
        events, acks, restarts: how much happened.
        hours: simulated time.
        trace: everything that happened, if it was kept.
    """

    seed: int
    digest: str
    events: int
    acks: int
    restarts: int
    hours: float
    trace: list[str]


def simulate(seed: int, clients: int, *, mix: Mix | None = None, keep: bool = False) -> Outcome:
    """Run one seed with so many clients.

    Args:
        seed: decides everything.
        clients: how many people there are.
        mix: what goes wrong; None: what the seed draws.
        keep: whether to keep the whole trace, not only its hash.

    Raises:
        Violation: a promise was broken, or something did not finish; says how to see it again.
    """
    world = World(seed, mix, keep=keep)
    crash: Exception | None = None
    hours = 0.0
    with world.observed(), _derived_alike(), _quiet(), _cut(world.mix.fine):
        try:
            hours = run_repeatable(seed, world.worker, lambda: _live(world, clients))
        except Exception as exc:
            crash = exc
            world.violation = world.violation or f"a crash: {exc!r}"
    if world.violation is not None:
        again = f"python -m tests.simulation --seed {seed} --clients {clients} --trace"
        raise Violation(f"seed {seed}: {world.violation}\nsee it again: {again}", world.trace) from crash
    return Outcome(seed, world.digest, world.events, world.promises.acks, world.restarts, hours, world.trace)


async def _live(world: World, clients: int) -> float:
    begun = trio.current_time()
    with world.scope:
        async with trio.open_nursery() as nursery:
            world.nursery = nursery
            store = world.new_store()
            for name, size in SEEDED.items():
                world.promises.may_become(name, content_of(size, 9))
                put(store, name, content_of(size, 9))
            await world.start(store)
            nursery.start_soon(world.observer)
            people = [Person(world, number) for number in range(clients)]
            async with trio.open_nursery() as living:
                living.start_soon(world.trouble)
                living.start_soon(_finish_in_time, world, people, living.cancel_scope)
                for person, commands in zip(people, _commands(world, people), strict=True):
                    living.start_soon(person.live, commands)
            await _leave(world)
            nursery.cancel_scope.cancel()
    return (trio.current_time() - begun) / 3600


def _commands(world: World, people: list[Person]) -> list[list[tuple[str, Command]]]:
    """Each person's commands; some send the same upload as the one before, from another device."""
    commands = [person.draw_commands() for person in people]
    for number in range(1, len(people)):
        if world.rng.random() < world.mix.rivals:
            size = world.rng.choice(SHARED_SIZES)
            for one in (number - 1, number):
                commands[one].insert(0, (f"shared {number}", people[one].upload_shared(number, size)))
    return commands


async def _finish_in_time(world: World, people: list[Person], scope: trio.CancelScope) -> None:
    """Wait until everybody is done; whoever is not in time was let down."""
    deadline = trio.current_time() + world.mix.trouble_s + FINISH_S
    while not (world.calm and all(person.done for person in people)):
        if trio.current_time() > deadline:
            late = ", ".join(f"{person.number}: {person.doing}" for person in people if not person.done)
            world.break_promise(f"not finished {FINISH_S:.0f} s after the trouble: {late}")
        await trio.sleep(1.0)
    scope.cancel()


async def _leave(world: World) -> None:
    """The server leaves in order and leaves nothing behind."""
    machine = world.machine
    assert machine is not None
    machine.server.stop()
    await machine.ended.wait()
    if machine.server._connections or machine.server.engine.uploads._live:
        world.break_promise("the server left connections or uploads behind")
    world.note("left")


def put(store: SimStore, name: str, content: bytes) -> None:
    """A finished file, as if it had been uploaded."""
    facts = Facts(SafeName.parse(name), "application/octet-stream", len(content))
    key = UploadKey(bytes(16), blake3(name.encode()).digest(16))
    upload = store.open_upload(key, facts, 1)
    assert not isinstance(upload, StoredFile)
    upload.write(0, memoryview(content))
    blocks = [content[at : at + BLOCK_LENGTH] for at in range(0, len(content), BLOCK_LENGTH)]
    digests = [digest_of(block) for block in blocks]
    works = [BlockDone(upload, 1, no, len(block), digests[no]) for no, block in enumerate(blocks)]
    finish = Finish(upload, 1, root_of(digests, len(digests)), len(content), facts)
    *_, outcome = store.decide([*works, finish])
    assert isinstance(outcome, StoredFile)


@contextmanager
def _cut(fine: bool) -> Iterator[None]:
    """Unless it is ``fine``, carry in ten times longer packets, and begin with pieces that are not as short."""
    if fine:
        yield
        return
    with (
        mock.patch.object(pipe_module, "PACKET_S", 10 * pipe_module.PACKET_S),
        mock.patch.object(pipe_module, "PACKET_LENGTH_MAX", 4 * pipe_module.PACKET_LENGTH_MAX),
        mock.patch.object(pace_module, "PIECE_LENGTH_FIRST", 8 * pace_module.PIECE_LENGTH_FIRST),
    ):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the engine log nothing: disks fail here all the time."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _derived_alike() -> Iterator[None]:
    """Derive sourceids from what is the same in every run: name, size and time, not inode and folder."""

    def derive(secret: bytes, name: str, path: str, facts: os.stat_result, again: bytes = b"") -> bytes:
        text = f"{name} {facts.st_size} {facts.st_mtime_ns - int(EPOCH_S * 1e9)}"
        return blake3(text.encode() + again).digest(16)

    with (
        mock.patch.object(context, "derive_sourceid", derive),
        mock.patch.object(context, "installation_secret", return_value=bytes(32)),
    ):
        yield
