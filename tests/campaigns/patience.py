"""A dead peer is noticed on time, and a slow honest one is not killed: client and server, over real sockets.

The clocks of the processes run ``TIMES`` times as fast as ours (libfaketime), so that half a minute of silence passes in a
second. Who is dead is played by a socket that greets and then says nothing more; who is slow stands behind a ChaosProxy that
carries a little more than the least that a server bears (BP1-LIM-005).
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from functools import partial

import trio

from blockproto.common.tasks import background_tasks
from blockproto.connection.keepalive import ACTIVE_S
from blockproto.connection.liveness import ANSWER_S
from blockproto.testing.chaos import ChaosProxy, Conditions
from blockproto.wire import PREFACE, Hello, Opened, Ping, encode_frame

from .clocks import hurried
from .raw import Raw, RawFile
from .tools import (
    DONE,
    STEP_S,
    Figures,
    Place,
    Ran,
    Server,
    campaign,
    make_file,
    parser,
    require,
    require_same,
)

TIMES = 30
SLOW_BYTES_S = 1300
"""Of the processes' seconds; 61,440 in a minute are the least."""
FILESIZE = 200_000
_HOST = "127.0.0.1"


def a_dead_client(place: Place) -> Figures:
    """A client promises to be heard in 15 s, begins a block and is silent: the server ends the connection."""
    place.env |= hurried(TIMES)
    file = RawFile(bytes(FILESIZE))
    with Server(place) as server, Raw(server.port) as raw:
        raw.say_open(1, file.open(attempt=1), [Opened])
        raw.say(1, file.block(0, ends=False), file.content[: FILESIZE // 2])
        raw.say(0, Ping(bytes(8), int(ACTIVE_S)))
        raw.hear(Ping)
        silent_at = time.monotonic()
        raw.wait_end()
        noticed_s = (time.monotonic() - silent_at) * TIMES
        require(noticed_s > 1.5 * ACTIVE_S, f"the server waited only {noticed_s:.0f} s")
        require(server.stop() == DONE, "the server did not end in order")
    return {"noticed_s": round(noticed_s, 1), "on_time_s": 2 * ACTIVE_S}


def a_dead_server(place: Place) -> Figures:
    """A server greets and is silent: the client asks, waits for an answer, and comes back."""
    source = make_file(place.folder / "file.bin", FILESIZE, "dead")
    with socket.create_server((_HOST, 0)) as listener:
        listener.settimeout(STEP_S)
        place.env |= hurried(TIMES)
        client = place.start("put", source, f"bp://{_HOST}:{listener.getsockname()[1]}/")
        with listener.accept()[0] as first:
            _greet(first)
            silent_at = time.monotonic()
            with listener.accept()[0]:
                noticed_s = (time.monotonic() - silent_at) * TIMES
                client.signal(2)
                client.end()
    require(noticed_s > 1.5 * ACTIVE_S, f"the client waited only {noticed_s:.0f} s")
    return {"noticed_s": round(noticed_s, 1), "on_time_s": ACTIVE_S + ANSWER_S}


def _greet(connection: socket.socket) -> None:
    """Say HELLO, and read and drop whatever comes from now on."""
    connection.sendall(PREFACE + encode_frame(0, Hello(agent="campaign"), 0))

    def drop() -> None:
        while connection.recv(1 << 16):
            pass

    threading.Thread(target=drop, daemon=True).start()


def a_slow_honest_one(place: Place, way: str, filesize: int = FILESIZE) -> Figures:
    """Both ends are behind a slow line, for minutes without a whole block: one connection carries it all."""
    place.env |= hurried(TIMES)
    here, there = place.folder / "file.bin", place.served / "file.bin"
    make_file(here if way == "up" else there, filesize, way)
    with Server(place) as server:
        begun_at = time.monotonic()
        ran, connections = trio.run(_over_a_slow_line, place, server.port, way)
        took_s = (time.monotonic() - begun_at) * TIMES
        ran.require(DONE)
        require(server.stop() == DONE, "the server did not end in order")
    require_same(there, here)
    require(connections == 1, f"{way}: {connections} connections, somebody was taken for dead")
    return {"took_s": round(took_s), "connections": connections}


async def _over_a_slow_line(place: Place, port: int, way: str) -> tuple[Ran, int]:
    rate = SLOW_BYTES_S * TIMES
    proxy = ChaosProxy((_HOST, port), Conditions(rate, rate))
    async with background_tasks() as nursery:
        address = f"bp://{_HOST}:{(await nursery.start(proxy.serve, (_HOST, 0)))[0][1]}/"
        here = place.folder / "file.bin"
        what = ("put", here, address) if way == "up" else ("get", f"{address}file.bin", here)
        return await trio.to_thread.run_sync(partial(place.run, *what)), proxy.totals.connections
    raise AssertionError


def run(place: Place) -> Figures:
    """All of it."""
    return {
        "campaign": "patience",
        "dead client": a_dead_client(Place(place.folder / "dead client")),
        "dead server": a_dead_server(Place(place.folder / "dead server")),
        "slow up": a_slow_honest_one(Place(place.folder / "slow up"), "up"),
        "slow down": a_slow_honest_one(Place(place.folder / "slow down"), "down"),
    }


def main() -> int:
    """The campaign's command line."""
    given = parser(__doc__).parse_args()
    return campaign(given, run)


if __name__ == "__main__":
    sys.exit(main())
