"""Broken conversations by the hundred thousand through one living server: it forgets each of them.

    cd tests; python -m campaigns.attack_sessions [--sessions 200000]

Each is a connection of its own: a greeting (or something like it), then frames with anything wrong in them under a right
check, random bytes, or a frame cut short; then the end. Kept: the server's memory after all of them is what it was after the
first tenth, within ``DRIFT_MAX``; it has no more open files; and a good upload succeeds at once.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import fuzz

from blockproto.wire import PREFACE, Hello, encode_frame

from .tools import (
    DONE,
    MIB,
    Figures,
    Place,
    Server,
    campaign,
    make_file,
    open_fds,
    parser,
    require,
    wait_until,
)

DRIFT_MAX = 0.05
ANSWER_S = 30.0
HANDS = 4
_RESET = struct.pack("ii", 1, 0)


def broken_words(rng: random.Random) -> bytes:
    """What one connection says."""
    greeting = PREFACE + encode_frame(0, Hello(agent="broken"))
    frames = b"".join(
        fuzz.mutated_frame(rng, rng.choice((0, 1, 1, 3, 2, 1 << 31))) for _ in range(rng.randint(1, 4))
    )
    match rng.randrange(8):
        case 0:
            return rng.randbytes(rng.randint(1, 300))
        case 1:
            return PREFACE + frames
        case 2:
            return fuzz.mutated(rng, greeting + frames)
        case 3:
            return greeting + frames[: rng.randrange(len(frames))]
        case 4:
            return greeting + rng.randbytes(rng.randint(1, 300))
        case _:
            return greeting + frames


def say(port: int, seed: int) -> None:
    """One broken conversation: said to its end and heard to its end, or reset in the middle."""
    rng = random.Random(seed)
    raw = broken_words(rng)
    with socket.socket() as sock:
        sock.settimeout(ANSWER_S)
        sock.bind((f"127.0.0.{2 + seed % 249}", 0))
        sock.connect(("127.0.0.1", port))
        with suppress(ConnectionError):
            sock.sendall(raw)
            if rng.random() < 0.2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return
            _say_no_more(sock)
            while sock.recv(65_536):
                pass


def _say_no_more(sock: socket.socket) -> None:
    """Shut the sending side; a server that has reset the connection before is as good."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


def resident(pid: int) -> int:
    """Bytes the process has resident now."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def run(place: Place, sessions: int, seed: int) -> Figures:
    """All of them through one server."""
    with Server(place) as server, ThreadPoolExecutor(HANDS) as hands:
        files = open_fds(server.pid)
        first = max(1, sessions // 10)
        list(hands.map(lambda number: say(server.port, number), range(seed, seed + first), chunksize=50))
        before = resident(server.pid)
        list(
            hands.map(
                lambda number: say(server.port, number), range(seed + first, seed + sessions), chunksize=50
            )
        )
        source = make_file(place.folder / "good.bin", 2 * MIB + 1, seed)
        place.run("put", source, server.address).require(DONE)
        after = resident(server.pid)
        wait_until(lambda: open_fds(server.pid) <= files + 2, "the end of all connections")
        require(server.stop() == DONE, "the server did not end in order")
    place.require_quiet_log()
    drift = after / before - 1
    require(drift < DRIFT_MAX, f"the server grew by {drift:.1%}: {before} to {after} bytes")
    return {
        "campaign": "broken conversations",
        "sessions": sessions,
        "resident_mib": [round(before / MIB, 1), round(after / MIB, 1)],
        "drift_percent": round(100 * drift, 2),
    }


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--sessions", type=int, default=200_000)
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.sessions, given.seed))


if __name__ == "__main__":
    sys.exit(main())
