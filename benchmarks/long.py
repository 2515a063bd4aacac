"""Long connections on bad lines: what a reset costs, a picture beside a bulk transfer, how soon a small file is there."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import trio

import blockproto

from .arena import Arena
from .badline import bad_line
from .contest import Options
from .figures import Row, Section
from .pairs import summarise
from .processes import HOST
from .proxy import CountingProxy
from .resets import FAR, NEAR, resets
from .targets import FIRST_ROUND_TRIPS, PICTURE

PICTURE_LENGTH = 100_000
PICTURES = 5
BULK_LENGTH = 1 << 30
SETTLED_S = 4.0
ROUND_TRIP_S = 0.1
SMALL_LENGTHS = (14, 64 * 1024)


def long(arena: Arena, options: Options) -> Iterator[Section]:
    """One section for each kind of figure."""
    for bad in (NEAR, FAR):
        yield from resets(arena, options, bad)
    options.tell("a picture beside a bulk transfer")
    yield Section("one connection at 5 Mbit/s, 50 ms", _pictures(arena))
    options.tell("round trips")
    yield Section("a small upload over a line of 100 ms", _round_trips(arena))


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
        with bad_line(arena.place.folder, words, arena.ours.server.port) as (port, _):
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
    """Of the smallest and the greatest small file; the second one goes when the first was answered."""
    os.environ.update(arena.ours.env)
    rows = []
    for length in SMALL_LENGTHS:
        path = arena.place.folder / f"small {length}"
        path.write_bytes(os.urandom(length))
        proxy = CountingProxy(arena.ours.server.port, ROUND_TRIP_S)
        try:
            taken_s = trio.run(_send_small, proxy.port, path)
        finally:
            proxy.close()
        for what, one_s in zip(("a fresh connection, after connecting", "an open one"), taken_s, strict=True):
            note = f"{one_s * 1e3:.0f} ms"
            trips = summarise([float(round(one_s / ROUND_TRIP_S))])
            rows.append(
                Row(f"{length:,} bytes over {what}", "round trips", trips, FIRST_ROUND_TRIPS, note=note)
            )
        note = "silences of the client that an answer ended: before the second file, and no other"
        waits = summarise([float(proxy.waits)])
        rows.append(Row(f"{length:,} bytes, twice: waits", "waits", waits, FIRST_ROUND_TRIPS, note=note))
    return rows


async def _send_small(port: int, path: Path) -> tuple[float, float]:
    async with blockproto.connect(f"bp://{HOST}:{port}") as client:
        begun = time.monotonic()
        await client.upload(path, name=f"first {path.name}")
        between = time.monotonic()
        await client.upload(path, name=f"second {path.name}")
        return between - begun, time.monotonic() - between
