"""A full disk: the served folder lies on a small tmpfs that somebody else fills, before an upload and in the middle of one.

Each upload ends with exit code 1 and says that there is no room. On the full disk the server still lists, hands out and
removes. Then room is made, and the same command finishes without a restart of the server; what was acknowledged before the
disk was full does not travel again.
"""

from __future__ import annotations

import os
import sys
from contextlib import aclosing
from pathlib import Path

import trio

from blockproto import connect

from .counting_proxy import Proxy
from .tools import (
    DONE,
    FAILED,
    MIB,
    Figures,
    Place,
    Server,
    campaign,
    make_file,
    mounted,
    parser,
    require,
    require_same,
    unfinished,
)

ROOM = 192 * MIB
FILESIZE = 120 * MIB + 321
FULL_AT = 24 * MIB


def run(place: Place) -> Figures:
    """All cases on one mount.

    Raises:
        CannotMount: not root.
    """
    source = make_file(place.folder / "source.bin", FILESIZE, "full")
    small = make_file(place.folder / "small.bin", 5000, "small")
    with mounted("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", place.served):
        with Server(place) as server, Proxy(lambda: server.port) as proxy:
            full_before(place, proxy, source, small)
            figures = full_in_the_middle(place, server, proxy, source)
            require(server.stop() == DONE, "the server did not end in order")
        require_same(place.served / source.name, source)
        require_same(place.served / small.name, small)
        place.require_clean()
    return {"campaign": "disk_full", **figures}


def full_before(place: Place, proxy: Proxy, source: Path, small: Path) -> None:
    """No room at OPEN: refused before a byte is sent; small files are refused too; removing and reading still work."""
    place.run("put", small, proxy.address, "--as", "in the way.bin").require(DONE)
    filler = Filler(place.served)
    filler.fill(leave=MIB)
    proxy.tally.forget()
    _refused(place, proxy, source)
    require(proxy.tally.payload_bytes == 0, "bytes were sent although there was no room at OPEN")
    filler.fill(leave=0)
    _refused(place, proxy, small)
    trio.run(_serves_on, place, proxy, small)
    filler.remove()
    place.run("put", small, proxy.address).require(DONE)


async def _serves_on(place: Place, proxy: Proxy, small: Path) -> None:
    async with connect(proxy.address) as client, aclosing(client.listing()) as entries:
        names = sorted([entry.filename async for entry in entries])
        require(names == ["filler", "in the way.bin"], f"listed: {names}")
        fetched = place.folder / "fetched.bin"
        await client.download("in the way.bin", fetched)
        require_same(fetched, small)
        await client.remove("in the way.bin")


def full_in_the_middle(place: Place, server: Server, proxy: Proxy, source: Path) -> Figures:
    """Filled when ``FULL_AT`` bytes have passed: it stops, and goes on there when there is room."""
    filler = Filler(place.served)
    proxy.tally.forget()
    gate = proxy.hold(payload_bytes=FULL_AT)
    client = place.start("put", source, proxy.address)
    gate.wait()
    filler.fill(leave=0)
    proxy.release()
    told = client.end().require(FAILED)
    require("room" in told.err or "free" in told.err, f"what the client says: {told.err}")
    proxy.wait_idle()
    acked = proxy.tally.acked_bytes()
    require(unfinished(server) == [source.name], f"unfinished: {unfinished(server)}")
    cut = proxy.tally.cut()
    filler.remove()
    receipt = place.run("put", source, proxy.address, "--json").require(DONE).objects[-1]
    proxy.wait_idle()
    resent, unacked = cut.judge()
    require(receipt["resumed"], f"it began anew: {receipt}")
    require(receipt["blocks_skipped"] * MIB >= acked, f"{acked} bytes were acknowledged: {receipt}")
    return {
        "full_after_mib": FULL_AT / MIB,
        "acked_mib": round(acked / MIB, 1),
        "blocks_skipped": receipt["blocks_skipped"],
        "resent_mib": round(resent / MIB, 1),
        "unacked_mib": round(unacked / MIB, 1),
    }


def _refused(place: Place, proxy: Proxy, source: Path) -> None:
    told = place.run("put", source, proxy.address).require(FAILED)
    require("room" in told.err or "free" in told.err, f"what the client says: {told.err}")


class Filler:
    """A file of somebody else's that takes the room.

    Args:
        folder: on the disk that it fills.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "filler"

    def fill(self, leave: int) -> None:
        """Take all but ``leave`` bytes of what is free."""
        with self._path.open("ab") as file:
            step = ROOM
            while step and (free := _free_bytes(self._path.parent)) > leave:
                try:
                    os.posix_fallocate(
                        file.fileno(), os.fstat(file.fileno()).st_size, min(step, free - leave)
                    )
                except OSError:  # the file system takes some for itself, or somebody else was quicker
                    step //= 2

    def remove(self) -> None:
        """Give it back."""
        self._path.unlink()


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def main() -> int:
    """The campaign's command line."""
    return campaign(parser(__doc__).parse_args(), run)


if __name__ == "__main__":
    sys.exit(main())
