"""Memory: the most that server and client have resident while a large file goes up over four connections, and down."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .tools import (
    DONE,
    MIB,
    Figures,
    Place,
    Running,
    Server,
    campaign,
    parser,
    peak_bytes,
    require,
    wait_until,
)

RESIDENT_MAX = 64 * MIB
CONNECTIONS = 4


def run(place: Place, filesize: int) -> Figures:
    """Up and down, each with a fresh server."""
    source = place.folder / "sparse.bin"
    with source.open("wb") as file:
        os.truncate(file.fileno(), filesize)
    back = place.folder / "back.bin"
    with Server(place) as server:
        up = _peaks(
            server, place.start("put", source, server.address, "--connections", CONNECTIONS), filesize
        )
        require(server.stop() == DONE, "the server did not end in order")
    with Server(place) as server:
        down = _peaks(server, place.start("get", server.address + source.name, back), filesize)
        require(server.stop() == DONE, "the server did not end in order")
    for path in (back, place.served / source.name):
        _require_zeros(path, filesize)
        path.unlink()
    return {
        "campaign": "memory",
        "file_mib": filesize / MIB,
        "connections": CONNECTIONS,
        "upload": up,
        "download": down,
    }


def _peaks(server: Server, client: Running, filesize: int) -> Figures:
    peak = 0

    def ended() -> bool:
        nonlocal peak
        peak = max(peak, peak_bytes(client.process.pid))
        return client.ended

    wait_until(ended, "the end", timeout_s=600 + filesize / (20 * MIB))
    client.end().require(DONE)
    peaks = {"client": peak, "server": peak_bytes(server.pid)}
    for side, resident in peaks.items():
        require(0 < resident <= RESIDENT_MAX, f"the {side} had {resident / MIB:.1f} MiB resident")
    return {f"{side}_peak_mib": round(resident / MIB, 1) for side, resident in peaks.items()}


def _require_zeros(path: Path, filesize: int) -> None:
    require(path.stat().st_size == filesize, f"{path.name} has {path.stat().st_size} bytes")
    zeros = bytes(4 * MIB)
    with path.open("rb") as file:
        while piece := file.read(len(zeros)):
            require(piece == zeros[: len(piece)], f"{path.name} is not what was sent")


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=2048, help="size of the file (8192 for the whole proof)")
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.mib * MIB))


if __name__ == "__main__":
    sys.exit(main())
