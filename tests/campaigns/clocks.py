"""A client whose wall clock jumps by a day, forward and back: while it transfers, and between a kill and the next run.

``blockproto queue run`` with a file up, a file down and a picture, under libfaketime (Debian's package ``faketime``), which
answers a process that asks what time it is. The clock jumps in the middle of the transfers; then the process is killed, the
clock jumps by two days the other way, and the same command has to bring everything to its end: nothing that was
acknowledged may pass again, whatever the clock says of attempts, waits and what is old.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import trio

from blockproto import TransferQueue

from .counting_proxy import Proxy, Referee
from .tools import (
    DONE,
    MIB,
    Figures,
    Place,
    Running,
    Server,
    campaign,
    make_file,
    parser,
    require,
    require_same,
    wait_out,
)

LIBRARY = "libfaketimeMT.so.1"
FILESIZE = 6 * MIB + 77
PICTURE = 50_000
JUMP_AT, KILL_AT = 3 * MIB + 5, 3 * MIB + 99
"""So many payload bytes after the beginning, and after the jump."""
DAY_S = 86_400
SEEN_S = 1
"""After so long a process sees that its clock has jumped."""


class NoFaketime(Exception):
    """libfaketime is not installed; the text says what to do."""


def library() -> Path:
    """Where libfaketime is. Raises NoFaketime."""
    for folder in (Path("/usr/lib"), Path("/usr/local/lib")):
        for pattern in (f"*/faketime/{LIBRARY}", f"faketime/{LIBRARY}"):
            for path in folder.glob(pattern):
                return path
    raise NoFaketime("needs libfaketime (Debian: apt install faketime)")


def hurried(times: int) -> Mapping[str, str]:
    """The environment of processes for which every second of ours is so many. Raises NoFaketime."""
    return {"LD_PRELOAD": str(library()), "FAKETIME": f"+0 x{times}", "NO_FAKE_STAT": "1"}


class Clock:
    """The clock of processes that are started with ``env``: the real one, and so many seconds on top.

    Args:
        folder: where the file is kept that tells them.

    Raises:
        NoFaketime: it is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._stamp = folder / "clock"
        self.set(0)
        self.env: Mapping[str, str] = {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._stamp),
            "NO_FAKE_STAT": "1",
            "FAKETIME_CACHE_DURATION": str(SEEN_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """Let it be so many seconds ahead, or behind; a process that asks ``SEEN_S`` later sees it."""
        beside = self._stamp.with_suffix(".new")
        beside.write_text(f"{seconds:+d}s\n")
        beside.replace(self._stamp)


def run(place: Place, jumps: tuple[int, int]) -> Figures:
    """One queue; its clock jumps to ``jumps[0]`` seconds while it runs, and to ``jumps[1]`` before it runs again."""
    clock = Clock(place.folder)
    place.env |= clock.env
    up = make_file(place.folder / "up.bin", FILESIZE, "up")
    picture = make_file(place.folder / "picture.jpg", PICTURE, "picture")
    down = make_file(place.served / "down.bin", FILESIZE, "down")
    here = place.folder / "here.bin"
    file = place.folder / "queue.sqlite3"
    referee = Referee()
    with Server(place) as server, Proxy(lambda: server.port, referee) as proxy:
        trio.run(_fill, file, proxy.address.rstrip("/"), up, here, picture)
        gate = proxy.hold(payload_bytes=JUMP_AT)
        first = _run_queue(place, file)
        gate.wait()
        clock.set(jumps[0])
        wait_out(1.5 * SEEN_S)
        gate = proxy.hold(payload_bytes=KILL_AT)
        gate.wait()
        before = referee.acked_bytes()
        first.kill()
        proxy.cut_lines()
        clock.set(jumps[1])
        ran = _run_queue(place, file, "--until-empty").end().require(DONE)
        proxy.wait_idle()
        require(server.stop(signal.SIGTERM) == DONE, "the server did not end in order")
    for stored, source in (
        (place.served / "up.bin", up),
        (place.served / "picture.jpg", picture),
        (here, down),
    ):
        require_same(stored, source)
    require(before, "something was acknowledged before the kill")
    require(not referee.again, f"acknowledged bytes passed again: {referee.again}")
    require("-" not in ran.err.replace(str(place.folder), ""), f"a time or size below nothing: {ran.err}")
    del place.env["LD_PRELOAD"]
    place.require_clean()
    return {
        "campaign": "clocks",
        "jumps_s": jumps,
        "acked_before_kill_mib": round(before / MIB, 2),
        "repeated_mib": round(referee.repeated / MIB, 3),
        "again": sum(referee.again.values()),
    }


async def _fill(file: Path, server: str, up: Path, here: Path, picture: Path) -> None:
    async with TransferQueue.open(file) as queue:
        await queue.add_upload(up, server)
        await queue.add_download(server, "down.bin", here)
        await queue.add_upload(picture, server, priority="interactive")


def _run_queue(place: Place, file: Path, *options: str) -> Running:
    return place.start("queue", "run", "--queue", file, *options)


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--back", action="store_true", help="back first, then forward")
    given = options.parse_args()
    sign = -1 if given.back else 1
    return campaign(given, lambda place: run(place, (sign * DAY_S, -sign * DAY_S)))


if __name__ == "__main__":
    sys.exit(main())
