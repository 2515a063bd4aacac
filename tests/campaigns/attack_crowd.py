"""A crowd of strangers: thousands of connections from 249 addresses that dribble, stall or stop in the middle of a head.

    cd tests; python -m campaigns.attack_crowd [--strangers 10000] [--what dribble|heads]

``dribble``: nothing, a byte a second of a greeting, the beginning of a TLS handshake. ``heads``: a whole greeting, a header
that announces the greatest head a stranger may send, and half of it; the server has little memory (RLIMIT_DATA). Meanwhile
an honest client comes again and again: connects, says who it is and is told its name. Kept: it is told so within
``HONEST_S`` in 99 of 100 cases, every stranger is gone soon after its ten seconds, and the server's memory is bounded.
"""

from __future__ import annotations

import errno
import multiprocessing
import selectors
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from blockproto.wire import HEAD_LENGTH_EARLY, PREFACE, Auth, Hello, encode_frame

from .tools import (
    COMMAND,
    DONE,
    MIB,
    Figures,
    Place,
    Server,
    campaign,
    make_file,
    parser,
    peak_bytes,
    require,
)

HONEST_S = 0.25
STRANGER_S = 15.0
"""Ten seconds to say who it is, five to read why it has to go."""
SLACK_S = 8.0
"""How much later a stranger may be seen gone: of thousands at once each waits to be accepted and to be seen."""
ARRIVE_PER_S = 1500
"""How fast they come: with more than the server accepts, it is the kernel's queue that keeps everybody waiting (1 s)."""
RESIDENT_MAX = 256 * MIB
DATA_MAX = 256 * MIB
ADDRESSES = [f"127.0.0.{last}" for last in range(2, 251)]
_GREETING = PREFACE + encode_frame(0, Hello(agent="stranger"))


def half_a_head() -> bytes:
    """A frame whose head is as great as a stranger's may be, cut in its middle."""
    frame = encode_frame(1, Auth("x" * (HEAD_LENGTH_EARLY - 100)))
    return frame[: len(frame) // 2]


SCRIPTS: dict[str, list[tuple[bytes, bytes]]] = {
    # at once, then a byte a second
    "dribble": [
        (b"", b""),
        (b"", _GREETING),
        (b"\x16\x03\x01\x02\x00\x01", bytes(200)),
        (_GREETING[:20], b""),
    ],
    "heads": [(_GREETING + half_a_head(), b"")],
}


@dataclass(slots=True)
class Stranger:
    """One connection of the crowd."""

    sock: socket.socket
    at_once: bytes
    slowly: bytes
    since_s: float
    lived_s: float | None = None


@dataclass
class Crowd:
    """The strangers, all in one loop."""

    port: int
    strangers: list[Stranger] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def come(self, what: str, number: int) -> None:
        """One more of them."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((ADDRESSES[number % len(ADDRESSES)], 0))
        found = sock.connect_ex(("127.0.0.1", self.port))
        require(found in (0, errno.EINPROGRESS), f"connect: {errno.errorcode.get(found)}")
        scripts = SCRIPTS[what]
        one = Stranger(sock, *scripts[number // len(ADDRESSES) % len(scripts)], time.monotonic())
        self.strangers.append(one)
        self._selector.register(sock, selectors.EVENT_WRITE, one)

    def look(self, wait_s: float) -> None:
        """Send what is to be sent at once to who stands, and see who is gone."""
        for key, events in self._selector.select(wait_s):
            one: Stranger = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    one.since_s = time.monotonic()
                    if one.at_once:
                        one.sock.send(one.at_once)
                    self._selector.modify(one.sock, selectors.EVENT_READ, one)
                elif not one.sock.recv(4096):
                    self._gone(one)
            except BlockingIOError:
                continue
            except OSError:
                self._gone(one)

    def dribble(self) -> None:
        """One byte more from each that has one."""
        for one in self.strangers:
            if one.lived_s is None and one.slowly:
                try:
                    one.sock.send(one.slowly[:1])
                    one.slowly = one.slowly[1:]
                except BlockingIOError:
                    continue
                except OSError:
                    self._gone(one)

    @property
    def left(self) -> int:
        return sum(one.lived_s is None for one in self.strangers)

    def _gone(self, one: Stranger) -> None:
        if one.lived_s is None:
            one.lived_s = time.monotonic() - one.since_s
            self._selector.unregister(one.sock)
            one.sock.close()

    def close(self) -> None:
        for one in self.strangers:
            if one.lived_s is None:
                self._gone(one)
        self._selector.close()


def honest(port: int, token: str, pipe: Connection) -> None:
    """Connect, say who one is, be told so: again and again until told to stop; sends back how long each took."""
    took: list[float] = []
    said = PREFACE + encode_frame(0, Hello(agent="honest")) + encode_frame(1, Auth(token))
    while not pipe.poll(0.02):
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(said)
            heard = b""
            while b"alice" not in heard:
                more = sock.recv(4096)
                if not more:
                    took.append(float("inf"))
                    break
                heard += more
            else:
                took.append(time.monotonic() - begun)
    pipe.send(took)


@contextmanager
def honest_client(port: int, token: str) -> Iterator[list[float]]:
    """An honest client in a process of its own; the list is filled when the context ends."""
    took: list[float] = []
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=honest, args=(port, token, there), daemon=True
    )
    process.start()
    try:
        yield took
        here.send(None)
        require(here.poll(60), "the honest client hangs")
        took += here.recv()
        process.join(10)
    finally:
        process.kill()
        process.join()


def run(place: Place, strangers: int, what: str, honest_s: float = HONEST_S) -> Figures:
    """One crowd against one server that wants tokens; the honest client is served within ``honest_s`` (p99)."""
    added = place.run("token", "add", "alice", "--state", place.served / ".blockproto").require(DONE)
    token = added.out.strip()
    program = ["prlimit", f"--data={DATA_MAX}", *COMMAND] if what == "heads" else COMMAND
    with Server(place, program=program) as server:
        crowd = Crowd(server.port)
        with honest_client(server.port, token) as took:
            begun = dribbled = time.monotonic()
            coming = iter(range(strangers))
            number: int | None = next(coming)
            while number is not None or crowd.left:
                due = 1 + int((time.monotonic() - begun) * ARRIVE_PER_S) - len(crowd.strangers)
                for _ in range(min(due, 50)):
                    if number is not None:
                        crowd.come(what, number)
                        number = next(coming, None)
                crowd.look(0.005)
                if time.monotonic() - dribbled >= 1:
                    dribbled = time.monotonic()
                    crowd.dribble()
                require(time.monotonic() - begun < 120, f"{crowd.left} strangers are still there")
            lasted = time.monotonic() - begun
        lived = [one.lived_s or 0.0 for one in crowd.strangers]
        crowd.close()
        peak = peak_bytes(server.pid)
        source = make_file(place.folder / "after.bin", 3 * MIB, "after")
        place.env["BLOCKPROTO_TOKEN"] = token
        place.run("put", source, server.address).require(DONE)
        require(server.stop() == DONE, "the server did not end in order")
    place.require_quiet_log()
    slowest = statistics.quantiles(took, n=100)[98]
    require(slowest <= honest_s, f"the honest client waited {slowest:.3f} s (p99 of {len(took)})")
    require(max(lived) <= STRANGER_S + SLACK_S, f"a stranger stayed {max(lived):.1f} s")
    require(peak <= RESIDENT_MAX, f"the server had {peak / MIB:.0f} MiB resident")
    return {
        "campaign": f"crowd that sends {what}",
        "strangers": strangers,
        "lasted_s": round(lasted, 1),
        "honest_times": len(took),
        "honest_median_ms": round(1e3 * statistics.median(took), 1),
        "honest_p99_ms": round(1e3 * slowest, 1),
        "stranger_stayed_s": {"median": round(statistics.median(lived), 1), "longest": round(max(lived), 1)},
        "server_peak_mib": round(peak / MIB, 1),
    }  # fmt: skip


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--strangers", type=int, default=10_000)
    options.add_argument("--what", choices=tuple(SCRIPTS), default="dribble")
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.strangers, given.what))


if __name__ == "__main__":
    sys.exit(main())
