"""Frames: what a server takes for many small files from a client that takes nothing: FILES that were made beforehand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from blockproto.common.blocks import digest_of
from blockproto.common.file_table import FILES_MAX, FileTable
from blockproto.wire import FEATURE_FILES, Files, Message, Stored

from .arena import Arena
from .contest import Options
from .figures import Row, Section
from .pairs import summarise
from .places import remove
from .processes import CommandFailed
from .rawclient import STREAM, RawClient, fresh_sourceid
from .targets import FOLDER_FILE_LENGTH, FRAMES_CPU_US, FRAMES_MIB, FRAMES_WALL_US, MIB

FILES_A_FOLDER = 100

_Frame = tuple[Files, bytes]


class _Took(NamedTuple):
    """What the server took for each file, microseconds, and the memory of its own that it has afterwards, bytes."""

    wall_us: float
    cpu_us: float
    own_bytes: int


class _FilesClient(RawClient):
    """Counts the files that were stored."""

    def __init__(self, port: int) -> None:
        self.stored = 0
        self.over = False
        super().__init__(port, FEATURE_FILES)

    def _next(self) -> Message | None:
        message = super()._next()
        if isinstance(message, Stored):
            if any(message.statuses):
                raise CommandFailed("a file was not stored under its name")
            self.stored += len(message.statuses)
            self.over |= message.last
        return message

    def wait(self) -> None:
        """Wait until everything is answered."""
        while not self.over:
            self._next()


def frames(arena: Arena, options: Options) -> Iterator[Section]:
    """As many runs as there are pairs, each into a new folder of a server that was started for it."""
    title = f"{options.files:,} small files from a client that takes nothing, {arena.place.name}"
    taken: list[_Took] = []
    for number in range(options.pairs):
        options.tell(f"{title}: {number + 1} of {options.pairs}")
        arena.ours.server.stop()
        arena.ours.restart()
        try:
            taken.append(_send_all(arena, f"frames-{number}", options.files))
        except (CommandFailed, OSError) as error:
            yield Section(
                title, [Row("CPU a file", "µs", None, FRAMES_CPU_US, note=arena.ours.explain(error))]
            )
            return
    rows = [
        Row("CPU of the server a file", "µs", summarise([one.cpu_us for one in taken]), FRAMES_CPU_US),
        Row("time a file", "µs", summarise([one.wall_us for one in taken]), FRAMES_WALL_US),
        Row(
            "memory of its own afterwards",
            "MiB",
            summarise([one.own_bytes / MIB for one in taken]),
            FRAMES_MIB,
            note="without what it maps of files, as of the ledger",
        ),
    ]
    yield Section(title, rows, raw=[[one._asdict()] for one in taken])


def _send_all(arena: Arena, folder: str, count: int) -> _Took:
    made = list(_frames(folder, count))
    server = psutil.Process(arena.ours.server.pid)
    try:
        with _FilesClient(arena.ours.server.port) as client:
            os.sync()
            cpu_s, begun = _cpu_s(server), perf_counter()
            for message, payload in made:
                client.send(STREAM, message, payload)
            client.wait()
            wall_s, cpu_s = perf_counter() - begun, _cpu_s(server) - cpu_s
        if client.stored != count:
            raise CommandFailed(f"{client.stored} of {count} files were answered")
        memory = server.memory_info()
        return _Took(wall_s / count * 1e6, cpu_s / count * 1e6, memory.rss - memory.shared)
    finally:
        if arena.place.keeps:
            arena.place.discard(arena.ours.served / folder)
        else:
            remove(arena.ours.served / folder)


def _cpu_s(server: psutil.Process) -> float:
    times = server.cpu_times()
    return float(times.user + times.system)


def _frames(folder: str, count: int) -> Iterator[_Frame]:
    """Frames of as many files as one takes, the last with LAST."""
    content = bytearray(os.urandom(FOLDER_FILE_LENGTH))
    for first in range(0, count, FILES_MAX):
        numbers = range(first, min(first + FILES_MAX, count))
        yield _frame(folder, numbers, content, last=numbers.stop == count)


def _frame(folder: str, numbers: Sequence[int], content: bytearray, *, last: bool) -> _Frame:
    folders = tuple(dict.fromkeys(f"{folder}/{number // FILES_A_FOLDER}" for number in numbers))
    records, names, payload = [], [], bytearray()
    for number in numbers:
        content[:8] = number.to_bytes(8, "big")
        name, at = f"file-{number}.txt", folders.index(f"{folder}/{number // FILES_A_FOLDER}")
        records.append((fresh_sourceid(), digest_of(content), len(content), 10**18, 0o644, at, 0, len(name)))
        names.append(name)
        payload += content
    table = FileTable(tuple(records), tuple(names))
    return Files(numbers[0], folders, ("text/plain",), table, last=last), bytes(payload)
