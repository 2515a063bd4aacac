"""The people of the simulation: each has a device, runs commands on it, and runs them again when they failed.

A command is a process: it can be killed (its lines break, what its disk had not kept is lost) or stopped with Ctrl-C. The
person looks at what came out, waits a little, and runs the same command again until it is done.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import trio

from blockproto.client import Client, connect_with
from blockproto.client_side.config import ClientConfig
from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.common.names import SafeName
from blockproto.errors import BlockprotoError, Code, FileExists, UnknownFile
from blockproto.results import UploadJob
from blockproto.store import Destination
from blockproto.testing.chaos import How, Line

from .determinism import EPOCH_S, clock_wrong_s
from .disk import SimDownloads, SimStore
from .world import World, now_ms

MIB = BLOCK_LENGTH
SIZES = (0, 1, 700, 30_000, 65_537, 300_000, MIB, MIB + 1, MIB + 4000, 2 * MIB + 77, 3 * MIB)
SHARED_SIZES = (300_000, MIB + 4000, 2 * MIB + 77, 3 * MIB)
EVERYBODYS = "everybody's"
"""A name under which many send something, each something else."""
SEEDED = {f"there/{size}": size for size in (0, 5000, 200_000, MIB + 9, 2 * MIB)}
"""Files that are on the server from the beginning."""
_POOL_LENGTH = 8 * MIB

_SEEN_IN_TROUBLE = {
    Code.GOING_AWAY,
    Code.STORE_FULL,
    Code.BUSY,
    Code.TIMEOUT,
    Code.STORE_FAILED,
}
"""What a person may be told while lines and disks are bad; each trouble of a mix may add to it."""
_SEEN_WITH_FLIPS = {
    Code.BAD_CHECK,
    Code.MALFORMED,
    Code.TOO_LARGE,
    Code.DIGEST_MISMATCH,
    Code.NOT_BLOCKPROTO,
    Code.UNEXPECTED,
}


@lru_cache(maxsize=1)
def _pool() -> bytes:
    return random.Random("content").randbytes(_POOL_LENGTH)


def content_of(size: int, variety: int) -> bytes:
    """Content of which no two varieties are the same, and no two blocks."""
    at = variety * 7919 % (_POOL_LENGTH - size)
    return _pool()[at : at + size]


@lru_cache(maxsize=1)
def folder() -> Path:
    """Where the sources lie; removed when the process ends."""
    global _folder
    _folder = tempfile.TemporaryDirectory(prefix="blockproto-simulation-")
    return Path(_folder.name)


_folder: tempfile.TemporaryDirectory[str]


def write_source(path: Path, content: bytes, mtime_s: float) -> Path:
    """A source whose facts are the same in every run."""
    path.write_bytes(content)
    os.utime(path, (mtime_s, mtime_s))
    return path


class Command(Protocol):
    """What a person runs until it is done."""

    async def __call__(self, client: Client) -> None:
        """Run it once; raises BlockprotoError when it failed."""


class Person:
    """One person with one device.

    Args:
        world: where.
        number: who.
    """

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.rng = random.Random(world.rng.random())
        self.done = False
        self.doing = "nothing yet"
        self._connections = self.rng.choice((1, 1, 1, 2, 4))
        self._sidecars: dict[tuple[Path, int], SimStore] = {}
        self._expected = set(_SEEN_IN_TROUBLE)
        if world.mix.flip_every is not None:
            self._expected |= _SEEN_WITH_FLIPS

    async def live(self, commands: list[tuple[str, Command]]) -> None:
        """Run one command after another, each until it is done."""
        clock_wrong_s.set(self.rng.choice((0.0, 0.0, -40.0, 40.0)))
        await trio.sleep(self.rng.uniform(0, self.world.mix.trouble_s / 2))
        for name, command in commands:
            self.doing = name
            while not await self._run(command):
                pause_s = self.rng.choice((0.1, 2.0, 20.0)) * self.rng.uniform(0.5, 1.5)
                await trio.sleep(pause_s)
            self.world.note(self.number, "done", name)
        self.done = True

    def expect(self, *codes: Code) -> None:
        """These may be what this person is told."""
        self._expected.update(codes)

    async def _run(self, command: Command) -> bool:
        """Run a command as a process; whether it is done."""
        lines: list[Line] = []
        world = self.world
        world.begin_process()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_it, nursery.cancel_scope, lines)
                await self._process(command, lines)
                nursery.cancel_scope.cancel()
                return True
        except BaseExceptionGroup as group:
            for error in _leaves(group):
                if not isinstance(error, BlockprotoError):
                    raise
                self._look_at(error)
        finally:
            for line in lines:
                line.end(How.RESET)
        world.note(self.number, "again", self.doing)
        return False

    async def _process(self, command: Command, lines: list[Line]) -> None:
        async with connect_with(
            partial(self.world.dial, lines),
            "simulated",
            self._open_part_file,
            ClientConfig(
                connections=self._connections,
                tries=self.rng.choice((1, 3, 5)),
                open_downloads=partial(SimDownloads, now_ms=now_ms),
            ),
        ) as client:
            await command(client)

    async def _end_it(self, scope: trio.CancelScope, lines: list[Line]) -> None:
        """Kill the process, or stop it with Ctrl-C, or let it be."""
        drawn, mix = self.rng.random(), self.world.mix
        if drawn >= mix.kill_client + mix.stop_client:
            return
        await trio.sleep(self.rng.expovariate(1 / 5.0))
        if self.world.calm:
            return
        if drawn < mix.kill_client:
            for line in lines:
                line.end(How.RESET)
            for where, store in self._sidecars.items():
                self._sidecars[where] = store.survivor()
                store.die()
        scope.cancel()

    def _open_part_file(self, place: Destination, first: int) -> SimStore:
        """The store beside a destination, as the process before left it."""
        dest = place.path
        before = self._sidecars.get((dest, first))
        store = SimStore(now_ms=now_ms, first=first) if before is None else before.survivor()
        self._sidecars[dest, first] = store
        return store

    def _look_at(self, error: BlockprotoError) -> None:
        self.world.note(self.number, self.doing, "failed", error.code.name)
        if error.code not in self._expected:
            self.world.break_promise(f"{self.doing} of person {self.number} failed: {error!r}")

    # ---- commands ---------------------------------------------------------------------------------------------

    def draw_commands(self) -> list[tuple[str, Command]]:
        """What this person wants done."""
        kinds: list[tuple[int, str, Callable[[int], Command]]] = [
            (6, "upload", self.upload),
            (1, "same name", self.upload_same_name),
            (1, "removed", self.upload_and_remove),
            (1, "beside", self.upload_beside),
            (2, "many uploads", self.upload_many),
            (1, "stream", self.upload_stream),
            (2, "download", self.download),
            (1, "changing download", self.download_changing),
            (1, "many downloads", self.download_many),
            (1, "list", self.list_files),
            (1, "cancel", self.begin_and_cancel),
        ]
        weights = [weight for weight, _, _ in kinds]
        drawn = self.rng.choices(kinds, weights, k=self.rng.choice((1, 1, 2)))
        return [(f"{name} {at}", make(at)) for at, (_, name, make) in enumerate(drawn)]

    def upload(self, at: int) -> Command:
        """One file; perhaps it changes meanwhile."""
        size = self.rng.choice(SIZES)
        name, variety = f"{self.number}/{at}", self.number * 10 + at
        if self.rng.random() < self.world.mix.changes:
            return self._changing_upload(name, size, variety)
        return self._plain_upload(name, size, variety)

    def upload_same_name(self, at: int) -> Command:
        """A file whose name others use too."""
        content = content_of(self.rng.choice(SIZES), self.number * 10 + at)
        path = _source(len(content), self.number * 10 + at)
        self.world.promises.may_become(EVERYBODYS, content)
        policy = self.rng.choice(("keep", "refuse", "replace"))

        async def command(client: Client) -> None:
            try:
                receipt = await client.upload(path, name=EVERYBODYS, if_exists=policy)
            except FileExists:
                if policy != "refuse":
                    raise
                return
            if not self.world.promises.may_have(EVERYBODYS, receipt.stored_as):
                self.world.break_promise(f"{receipt.stored_as} is nothing that anybody sent")

        return command

    def upload_and_remove(self, at: int) -> Command:
        """A file that is not wanted any more once it is there."""
        name = f"{self.number}/gone {at}"
        begin = self._plain_upload(name, self.rng.choice(SIZES), self.number * 10 + at)
        there = False

        async def command(client: Client) -> None:
            nonlocal there
            if not there:
                await begin(client)
            there = True
            with suppress(UnknownFile):  # it was removed before, and the answer was lost
                await client.remove(name)
            if self.world.promises.stored(name) is not None:
                self.world.break_promise(f"{name} was removed and is still there")

        return command

    def upload_beside(self, at: int) -> Command:
        """Something big that can wait, and something small that perhaps cannot, on the same connections."""
        ranks = ("bulk", self.rng.choice(("interactive", "normal", "bulk")))
        sizes = (3 * MIB, self.rng.choice((70_000, 300_000, MIB + 1)))
        uploads: list[Command] = []
        for number, (rank, size) in enumerate(zip(ranks, sizes, strict=True)):
            variety = self.number * 10 + at + 300 * number
            name = f"{self.number}/beside {at} {number}"
            uploads.append(self._plain_upload(name, size, variety, rank))

        async def command(client: Client) -> None:
            async with trio.open_nursery() as nursery:
                for upload in uploads:
                    nursery.start_soon(upload, client)

        return command

    def upload_shared(self, number: int, size: int) -> Command:
        """A file that another device sends too, as the same upload."""
        self.expect(Code.SUPERSEDED)
        return self._plain_upload(f"shared {number}", size, 8000 + number)

    def _plain_upload(self, name: str, size: int, variety: int, priority: str = "normal") -> Command:
        content = content_of(size, variety)
        self.world.promises.may_become(name, content)
        return partial(self._upload, _source(size, variety), name, priority, [content])

    async def _upload(
        self, path: Path, name: str, priority: str, versions: list[bytes], client: Client
    ) -> None:
        receipt = await client.upload(path, name=name, priority=priority)
        if self.world.promises.stored(receipt.stored_as) not in versions:
            self.world.break_promise(
                f"{name} was uploaded as {receipt.stored_as}, which is not what was sent"
            )

    def _changing_upload(self, name: str, size: int, variety: int) -> Command:
        """The source is written anew once, at some moment while it is being sent."""
        size = max(size, 100_000)
        versions = [content_of(size, variety), content_of(size + self.rng.choice((0, 5000)), variety + 500)]
        path = folder() / f"{self.number}-{variety}-changing"
        write_source(path, versions[0], EPOCH_S)
        for version in versions:
            self.world.promises.may_become(name, version)
        there = versions[:1]
        self.expect(Code.SOURCE_CHANGED)
        after_s = self.rng.expovariate(1 / 0.5)

        async def change() -> None:
            await trio.sleep(after_s)
            write_source(path, versions[1], EPOCH_S + 1)
            there.append(versions[1])

        async def command(client: Client) -> None:
            del there[:-1]  # what it was before this command began is not sent any more
            async with trio.open_nursery() as nursery:
                if there == versions[:1]:
                    nursery.start_soon(change)
                await self._upload(path, name, "normal", there, client)
                nursery.cancel_scope.cancel()

        return command

    def upload_many(self, at: int) -> Command:
        """Some small files in one go, and one that is not small."""
        wanted: dict[str, bytes] = {}
        jobs: list[UploadJob] = []
        for number in range(self.rng.randrange(2, 12)):
            size = self.rng.choice((0, 10, 5000, 5000, 80_000, MIB + 3))
            variety = 1000 + self.number * 20 + number
            name = f"{self.number}/many {at}/{number}"
            wanted[name] = content_of(size, variety)
            self.world.promises.may_become(name, wanted[name])
            jobs.append(UploadJob(_source(size, variety), name))

        async def command(client: Client) -> None:
            async with aclosing(client.upload_all(jobs)) as outcomes:
                async for job, outcome in outcomes:
                    if isinstance(outcome, BlockprotoError):
                        raise outcome
                    if self.world.promises.stored(outcome.stored_as) != wanted[job.name]:
                        self.world.break_promise(f"{job.name} was uploaded, and is something else")

        return command

    def upload_stream(self, at: int) -> Command:
        """Bytes whose end is not known; what fails is sent anew, under a name of its own."""
        size = self.rng.choice((0, 100, MIB, MIB + 17, 2 * MIB + 5))
        content = content_of(size, 5000 + self.number)
        name = f"{self.number}/stream {at}"
        self.world.promises.may_become(name, content)

        async def command(client: Client) -> None:
            receipt = await client.upload(_Slow(content, self.rng), name=name)
            if self.world.promises.stored(receipt.stored_as) != content:
                self.world.break_promise(f"{name} was streamed, and is something else")

        self.expect(Code.SOURCE_CHANGED)
        return command

    def download(self, at: int) -> Command:
        """A file, or a range of it."""
        name = self.rng.choice([name for name, size in SEEDED.items() if size])
        size = SEEDED[name]
        span = None
        if self.rng.random() < 0.3:
            first = self.rng.randrange(size)
            span = (first, self.rng.randrange(first, size))
        dest = Path(f"/simulated/{self.number}/{at}")
        content = content_of(size, 9)
        wanted = content if span is None else content[span[0] : span[1] + 1]

        async def command(client: Client) -> None:
            await client.download(name, dest, span=span, if_exists="replace")
            store = self._sidecars[dest, span[0] if span else 0]
            if store._files.find(SafeName.parse(dest.name), None).content != wanted:
                self.world.break_promise(f"{name} was downloaded, and is something else")

        return command

    def download_changing(self, at: int) -> Command:
        """A file that others replace meanwhile: one version of it comes, never two."""
        dest = Path(f"/simulated/{self.number}/changing {at}")
        self.expect(Code.SOURCE_CHANGED)

        async def command(client: Client) -> None:
            try:
                await client.download(EVERYBODYS, dest, if_exists="replace")
            except UnknownFile:
                return  # nobody has sent it yet
            got = self._sidecars[dest, 0]._files.find(SafeName.parse(dest.name), None).content
            if not self.world.promises.was_sent(EVERYBODYS, got):
                self.world.break_promise(f"{EVERYBODYS} was downloaded, and is nothing that anybody sent")

        return command

    def download_many(self, at: int) -> Command:
        """A folder."""
        dest = Path(f"/simulated/{self.number}")

        async def command(client: Client) -> None:
            async with aclosing(client.listing("there")) as listing:
                entries = [entry async for entry in listing]
            if {entry.filename: entry.filesize for entry in entries} != SEEDED:
                self.world.break_promise(f"the listing of 'there' says {entries}")
            jobs = [(entry, dest / entry.filename.partition("/")[2]) for entry in entries]
            async with aclosing(client.download_all(jobs, if_exists="replace")) as outcomes:
                async for job, outcome in outcomes:
                    if isinstance(outcome, BlockprotoError):
                        raise outcome
                    if outcome.root != job.entry.root:
                        self.world.break_promise(
                            f"{job.entry.filename} was downloaded, and is something else"
                        )

        return command

    def list_files(self, at: int) -> Command:
        """What is there must be whole."""

        async def command(client: Client) -> None:
            async with aclosing(client.listing(recursive=True)) as listing:
                async for entry in listing:
                    if not entry.folder and not self.world.promises.may_be(entry.filename, entry.filesize):
                        self.world.break_promise(f"the listing says {entry}")
            async with aclosing(client.uploads()) as uploads:
                _ = [upload async for upload in uploads]

        return command

    def begin_and_cancel(self, at: int) -> Command:
        """Begin an upload, change one's mind, and have it removed; or it was too late."""
        begin = self.upload(at)
        after_s = self.rng.uniform(0.0, 3.0)
        self.expect(Code.UNKNOWN_UPLOAD)

        async def command(client: Client) -> None:
            with trio.move_on_after(after_s):
                await begin(client)
                return
            async with aclosing(client.uploads()) as uploads:
                mine = [upload async for upload in uploads if upload.filename.startswith(f"{self.number}/")]
            for upload in mine:
                await client.cancel_upload(upload.sourceid)

        return command


class _Slow:
    """A Trio stream that gives what a program writes, now and then."""

    def __init__(self, content: bytes, rng: random.Random) -> None:
        self._rest = memoryview(content)
        self._rng = rng

    async def receive_some(self, length_max: int) -> bytes:
        """See trio.abc.ReceiveStream."""
        await trio.sleep(self._rng.choice((0.0, 0.0, 0.1)))
        part = bytes(self._rest[: min(length_max, self._rng.choice((5000, 300_000, MIB)))])
        self._rest = self._rest[len(part) :]
        return part


@lru_cache(maxsize=4096)
def _source(size: int, variety: int) -> Path:
    path = folder() / f"{size}-{variety}"
    return write_source(path, content_of(size, variety), EPOCH_S - variety)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
