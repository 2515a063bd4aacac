"""Long connections on bad lines: what a reset costs, a picture beside a bulk transfer, and how soon a small file is there.

The bad line is ``blockproto chaos`` in a process of its own; its JSON tells what it handed on, frames and heads included, so
"delivered" is stricter than payload alone. Beside it rsync, begun again after every reset, as its users do it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

import blockproto

from .arena import Arena
from .contest import Options
from .figures import Row, Section, Target
from .ours import COMMAND, receipts_of
from .pairs import summarise
from .processes import HOST, CommandFailed, Server, free_port, timed
from .proxy import CountingProxy
from .targets import (
    FIRST_ROUND_TRIPS,
    PICTURE,
    RESET_DELIVERED,
    RESET_DELIVERED_FAR,
    RESET_TIME,
    RESET_TIME_FAR,
)

BEGINNINGS_MAX = 60
PICTURE_LENGTH = 100_000
PICTURES = 5
BULK_LENGTH = 1 << 30
SETTLED_S = 4.0
ROUND_TRIP_S = 0.1
RSYNC_CONFIG = "use chroot = no\n{user}max verbosity = 0\n[served]\npath = {path}\nread only = no\n"


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is reset again and again.

    Attributes:
        filesize: bytes of the file that is sent over it.
        bits_s: how much it carries.
        words: what ``blockproto chaos`` is told.
        time, delivered: what is to be reached.
    """

    name: str
    filesize: int
    bits_s: float
    words: tuple[str, ...]
    time: Target
    delivered: Target

    @property
    def alone_s(self) -> float:
        """What the line alone needs."""
        return self.filesize * 8 / self.bits_s


NEAR = Bad(
    "8 Mbit/s, 100 ms, reset every 3 MB", 20_000_000, 8e6,
    ("--rate", "8mbit", "--delay", "100ms", "--reset-after", "3MB"), RESET_TIME, RESET_DELIVERED,
)  # fmt: skip
FAR = Bad(
    "256 kbit/s, 600 ms, reset every 300 KB", 2_000_000, 256e3,
    ("--rate", "256kbit", "--delay", "600ms", "--reset-after", "300KB"), RESET_TIME_FAR, RESET_DELIVERED_FAR,
)  # fmt: skip


def long(arena: Arena, options: Options) -> Iterator[Section]:
    """One section for each kind of figure."""
    for bad in (NEAR, FAR):
        options.tell(bad.name)
        yield Section(f"{bad.filesize / 1e6:g} MB over {bad.name}", _resets(arena, bad))
    options.tell("a picture beside a bulk transfer")
    yield Section("one connection at 5 Mbit/s, 50 ms", _pictures(arena))
    options.tell("round trips")
    yield Section("a small upload over a line of 100 ms", _round_trips(arena))


# ---- resets ---------------------------------------------------------------------------------------------------


def _resets(arena: Arena, bad: Bad) -> list[Row]:
    source = arena.place.folder / "source.bin"
    source.write_bytes(os.urandom(bad.filesize))
    rows: list[Row] = []
    for way in ("up", "down"):
        try:
            rows += _ours(arena, bad, source, way)
        except (CommandFailed, OSError) as error:
            rows.append(Row(f"{way}: time beside the line alone", "×", None, bad.time, note=str(error)))
    if bad is NEAR:
        rows += [_rsync(arena, bad, source, way) for way in ("up", "down")]
    return rows


def _ours(arena: Arena, bad: Bad, source: Path, way: str) -> list[Row]:
    ours = arena.ours
    name, dest = f"{way}.bin", arena.place.folder / "fetched.bin"
    dest.unlink(missing_ok=True)
    with _bad_line(arena, bad.words, ours.server.port) as (port, passed):
        address = f"bp://{HOST}:{port}/"
        if way == "up":
            command = [COMMAND, "put", str(source), address, "--as", name, "--json"]
        else:
            shutil.copyfile(source, ours.served / name)
            command = [COMMAND, "get", address + name, str(dest), "--json"]
        ran = timed(command, ours.env)
    _require_same(source, ours.served / name if way == "up" else dest)
    elapsed_s = receipts_of(ran.out)[0]["elapsed_s"]
    delivered = passed.of(way)
    note = f"{elapsed_s:.1f} s; the whole command {ran.wall_s:.1f} s"
    return [
        Row(
            f"{way}: time beside the line alone",
            "×",
            summarise([elapsed_s / bad.alone_s]),
            bad.time,
            note=note,
        ),
        Row(f"{way}: delivered beside the file", "×", summarise([delivered / bad.filesize]), bad.delivered),
    ]


def _rsync(arena: Arena, bad: Bad, source: Path, way: str) -> Row:
    what = f"{way}: rsync --partial, begun again after each reset: time"
    if shutil.which("rsync") is None:
        return Row(what, "×", None, note="not installed; on Debian: apt install rsync", absent=True)
    served = arena.place.folder / f"rsync-{way}"
    served.mkdir()
    config = arena.place.folder / "rsyncd.conf"
    user = "uid = root\ngid = root\n" if os.geteuid() == 0 else ""
    config.write_text(RSYNC_CONFIG.format(path=served, user=user))
    port = free_port()
    daemon = ["rsync", "--daemon", "--no-detach", f"--port={port}", f"--config={config}", f"--address={HOST}"]
    server = Server(daemon, arena.place.folder / "rsyncd.log", port)
    begun = time.monotonic()
    beginnings = 0
    try:
        with _bad_line(arena, bad.words, port) as (through, passed):
            url = f"rsync://{HOST}:{through}/served/"
            command = ["rsync", "--partial", "--inplace", "--timeout=30"]
            command += [str(source), url] if way == "up" else [url + source.name, str(served / "got.bin")]
            if way == "down":
                shutil.copyfile(source, served / source.name)
            while beginnings < BEGINNINGS_MAX:
                beginnings += 1
                try:
                    timed(command)
                    break
                except CommandFailed:
                    continue
            wall_s = time.monotonic() - begun
        _require_same(source, served / (source.name if way == "up" else "got.bin"))
        delivered = passed.of(way) / bad.filesize
    except (CommandFailed, OSError) as error:
        return Row(what, "×", None, note=str(error))
    finally:
        server.stop()
    note = f"begun {beginnings} times; delivered × {delivered:.3f}"
    return Row(what, "×", summarise([wall_s / bad.alone_s]), note=note)


class Passed:
    """What a bad line handed on, once it has ended.

    Attributes:
        up_bytes, down_bytes: to the server and back, frames and heads included.
    """

    up_bytes = 0
    down_bytes = 0

    def of(self, way: str) -> int:
        """The bytes of one direction, ``up`` or ``down``."""
        return self.up_bytes if way == "up" else self.down_bytes


@contextmanager
def _bad_line(arena: Arena, words: Sequence[str], target: int) -> Iterator[tuple[int, Passed]]:
    """A bad line before a port: the port where it begins, and what it has handed on when this is over."""
    command = [COMMAND, "chaos", "--listen", f"{HOST}:0", "--to", f"{HOST}:{target}", "--json", *words]
    line = Server(command, arena.place.folder / "chaos.log")
    passed = Passed()
    try:
        yield line.port, passed
    finally:
        line.process.send_signal(signal.SIGINT)
        assert line.process.stdout is not None
        said = line.process.stdout.read().decode().splitlines()
        line.stop()
        totals = json.loads(said[-1]) if said else {}
        passed.up_bytes, passed.down_bytes = totals.get("up_bytes", 0), totals.get("down_bytes", 0)


def _require_same(source: Path, copy: Path) -> None:
    if source.read_bytes() != copy.read_bytes():
        raise CommandFailed(f"{copy.name} is not what was sent")


# ---- a picture beside a bulk transfer -------------------------------------------------------------------------


def _pictures(arena: Arena) -> list[Row]:
    folder = arena.place.folder / "pictures"
    folder.mkdir()
    with open(folder / "bulk.bin", "wb") as bulk:
        bulk.truncate(BULK_LENGTH)
    (arena.ours.served / "bulk.bin").hardlink_to(folder / "bulk.bin")
    rows = []
    os.environ.update(arena.ours.env)
    words = ("--rate", "5mbit", "--delay", "50ms")
    for way in ("up", "down"):
        with _bad_line(arena, words, arena.ours.server.port) as (port, _):
            alone_s, beside_s = trio.run(_show_pictures, port, folder, arena.ours.served, way)
        ratio = statistics.median(beside_s) / statistics.median(alone_s)
        note = f"{statistics.median(alone_s):.2f} s alone, {statistics.median(beside_s):.2f} s beside it"
        what = f"{way}: 100 KB, interactive, beside 1 GiB, bulk, by its time alone"
        rows.append(Row(what, "×", summarise([ratio]), PICTURE, note=note))
    return rows


async def _show_pictures(port: int, folder: Path, served: Path, way: str) -> tuple[list[float], list[float]]:
    """The seconds that each picture takes: alone, and beside the bulk transfer on the same connection."""
    async with blockproto.connect(f"bp://{HOST}:{port}") as client, trio.open_nursery() as nursery:
        pictures = [_picture(client, folder, served, way, index) for index in range(2 * PICTURES)]
        alone_s = [await one for one in pictures[:PICTURES]]
        nursery.start_soon(_bulk, client, folder, way)
        await trio.sleep(SETTLED_S)
        beside_s = [await one for one in pictures[PICTURES:]]
        nursery.cancel_scope.cancel()
    return alone_s, beside_s


async def _picture(client: blockproto.Client, folder: Path, served: Path, way: str, index: int) -> float:
    name = f"{way} {index}.jpg"
    path = (folder if way == "up" else served) / name
    path.write_bytes(os.urandom(PICTURE_LENGTH))
    begun = time.monotonic()
    if way == "up":
        await client.upload(path, priority="interactive")
    else:
        await client.download(name, folder / name, priority="interactive")
    return time.monotonic() - begun


async def _bulk(client: blockproto.Client, folder: Path, way: str) -> None:
    if way == "up":
        await client.upload(folder / "bulk.bin", name="bulk up.bin", priority="bulk")
    else:
        await client.download("bulk.bin", folder / "bulk down.bin", priority="bulk")


# ---- round trips ----------------------------------------------------------------------------------------------


def _round_trips(arena: Arena) -> list[Row]:
    path = arena.place.folder / "small.txt"
    path.write_bytes(b"hello, blocks\n")
    os.environ.update(arena.ours.env)
    proxy = CountingProxy(arena.ours.server.port, ROUND_TRIP_S)
    try:
        fresh_s, again_s = trio.run(_send_small, proxy.port, path)
    finally:
        proxy.close()
    return [
        Row("over a fresh connection, after connecting", "round trips", summarise([fresh_s / ROUND_TRIP_S])),
        Row("over an open connection", "round trips", summarise([again_s / ROUND_TRIP_S])),
        Row(
            "waits for an answer, over both",
            "waits",
            summarise([float(proxy.waits)]),
            FIRST_ROUND_TRIPS,
            note="counted on the wire: the second begins when the first was answered",
        ),
    ]


async def _send_small(port: int, path: Path) -> tuple[float, float]:
    async with blockproto.connect(f"bp://{HOST}:{port}") as client:
        begun = time.monotonic()
        await client.upload(path, name="first.txt")
        between = time.monotonic()
        await client.upload(path, name="second.txt")
        return between - begun, time.monotonic() - between
