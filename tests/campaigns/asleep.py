"""A laptop that sleeps in the middle: the client, or the server, is stopped for minutes (SIGSTOP) and then goes on.

Four cases at once, each with a server, a client and a counting proxy of its own: who sleeps (client, server) × which way the
file goes. When all of them are awake again, each command has to end well by itself, the file has to be what was sent, and
nothing that was acknowledged may pass again. How soon a new connection stood and bytes moved are figures.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

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
    wait_until,
)

FILESIZE = 32 * MIB + 4321
ASLEEP_AT = 12 * MIB + 5
"""So many payload bytes have passed when somebody falls asleep: in the middle of a block."""
RETRY_FOR = "1h"


@dataclass(frozen=True, slots=True)
class Case:
    """Who sleeps: ``client`` or ``server``; and which way the file goes: ``up`` or ``down``."""

    sleeper: str
    way: str

    def __str__(self) -> str:
        return f"{self.sleeper} {self.way}"


ALL = [Case(sleeper, way) for sleeper in ("client", "server") for way in ("up", "down")]


class Sleeping:
    """One case, from its beginning to its end; a server and a proxy that ``stack`` ends.

    Args:
        case: which.
        place: of its own.
        stack: ends what was begun.
    """

    def __init__(self, case: Case, place: Place, stack: ExitStack) -> None:
        self.case = case
        self.place = place
        self.referee = Referee()
        self._server = stack.enter_context(Server(place))
        self._proxy = stack.enter_context(Proxy(lambda: self._server.port, self.referee))
        self._here = place.folder / "film.bin"
        self._there = place.served / "film.bin"
        self._connections = 0
        make_file(self._here if case.way == "up" else self._there, FILESIZE, str(case))
        self._client = self._start()

    def _start(self) -> Running:
        address = self._proxy.address
        what: tuple[Path | str, ...] = ("put", self._here, address)
        if self.case.way == "down":
            what = ("get", f"{address}film.bin", self._here)
        gate = self._proxy.hold(payload_bytes=ASLEEP_AT)
        client = self.place.start(*what, "--retry-for", RETRY_FOR)
        gate.wait()
        wait_until(self.referee.acked_bytes, "the first acknowledgement")
        return client

    def fall_asleep(self) -> None:
        """Stop the process; what it had handed to its kernel goes on."""
        self._signal(signal.SIGSTOP)
        self._connections = len(self._proxy.lines)
        self._proxy.release()

    def wake_up(self) -> None:
        """Let it go on, and wait until bytes move; when they do, the seconds are known."""
        self._woke_at = time.monotonic()
        self.connects_asleep = len(self._proxy.lines) - self._connections
        self._passed = self.referee.payload_bytes
        self._signal(signal.SIGCONT)

    def wait_moving(self) -> tuple[float, int]:
        """(seconds from waking until bytes of the file passed, connections made meanwhile)."""
        wait_until(lambda: self.referee.payload_bytes > self._passed, f"{self.case}: bytes after waking")
        moving_s = time.monotonic() - self._woke_at
        return moving_s, len(self._proxy.lines) - self._connections - self.connects_asleep

    def end(self) -> float:
        """The client's end, and everything judged; returns the seconds since it woke up."""
        self._client.end().require(DONE)
        took_s = time.monotonic() - self._woke_at
        self._proxy.wait_idle()
        require(self._server.stop() == DONE, "the server did not end in order")
        require_same(self._there, self._here)
        require(not self.referee.again, f"{self.case}: acknowledged bytes passed again: {self.referee.again}")
        self.place.require_clean()
        return took_s

    @property
    def connects(self) -> int:
        """How many connections there were in all."""
        return len(self._proxy.lines)

    def _signal(self, signum: int) -> None:
        if self.case.sleeper == "client":
            self._client.signal(signum)
        else:
            self._server.send_signal(signum)


def run(place: Place, seconds: float, cases: list[Case]) -> Figures:
    """The cases at once, each asleep for so many seconds."""
    figures: Figures = {"campaign": "asleep", "asleep_s": seconds}
    with ExitStack() as stack:
        sleeping = [Sleeping(case, Place(place.folder / str(case)), stack) for case in cases]
        for one in sleeping:
            one.fall_asleep()
        wait_out(seconds)
        for one in sleeping:
            one.wake_up()
        for one in sleeping:
            moving_s, connects = one.wait_moving()
            figures[str(one.case)] = {
                "connects_asleep": one.connects_asleep,
                "moving_s": round(moving_s, 3),
                "connects_to_move": connects,
            }
        for one in sleeping:
            figures[str(one.case)] |= {
                "done_s": round(one.end(), 2),
                "connects": one.connects,
                "repeated_mib": round(one.referee.repeated / MIB, 3),
                "again": sum(one.referee.again.values()),
            }
    return figures


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=10.0)
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.minutes * 60, ALL))


if __name__ == "__main__":
    sys.exit(main())
