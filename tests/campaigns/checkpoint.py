"""Leaving in order: SIGTERM and SIGINT of the server, and Ctrl-C of the client, in the middle of a block.

What came of the unfinished block is recorded, so that the same command again begins inside it: not one byte travels twice,
and everything that had arrived is kept.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from .counting_proxy import Proxy
from .tools import (
    DONE,
    INTERRUPTED,
    MIB,
    UNREACHABLE,
    Figures,
    Place,
    Server,
    campaign,
    make_file,
    parser,
    require,
    require_same,
)

FILESIZE = 40 * MIB + 4
STOPPED_AT = 17 * MIB + 345_678
"""Payload bytes that have passed then: the last block is unfinished."""
STATUS_OF = {signal.SIGTERM: DONE, signal.SIGINT: INTERRUPTED}


def server_leaves(place: Place, signum: signal.Signals) -> Figures:
    """The server ends on a signal and is started again; the client comes back, by itself or run again."""
    source = make_file(place.folder / f"{signum.name}.bin", FILESIZE, signum)
    with Server(place) as server, Proxy(lambda: server.port) as proxy:
        gate = proxy.hold(payload_bytes=STOPPED_AT)
        client = place.start("put", source, proxy.address)
        gate.wait()
        status = server.stop(signum)
        require(status == STATUS_OF[signum], f"the server ended with {status} on {signum.name}")
        proxy.cut_lines()
        proxy.wait_idle()
        cut = proxy.tally.cut()
        server.start()
        if client.end().require(DONE, UNREACHABLE).status == UNREACHABLE:
            place.run("put", source, proxy.address).require(DONE)
        proxy.wait_idle()
        require(server.stop() == DONE, "the server did not end in order")
        figures = _judge(proxy, *cut.judge())
    require_same(place.served / source.name, source)
    place.require_clean()
    return figures


def client_stops(place: Place) -> Figures:
    """Ctrl-C of the client; the same command goes on."""
    source = make_file(place.folder / "ctrl-c.bin", FILESIZE, "ctrl-c")
    with Server(place) as server, Proxy(lambda: server.port) as proxy:
        gate = proxy.hold(payload_bytes=STOPPED_AT)
        client = place.start("put", source, proxy.address)
        gate.wait()
        client.signal(signal.SIGINT)
        told = client.end().require(INTERRUPTED)
        require("run the same command again" in told.err, f"what the client says: {told.err}")
        proxy.cut_lines()
        proxy.wait_idle()
        cut = proxy.tally.cut()
        receipt = place.run("put", source, proxy.address, "--json").require(DONE).objects[-1]
        require(receipt["resumed"], f"not resumed: {receipt}")
        proxy.wait_idle()
        require(server.stop() == DONE, "the server did not end in order")
        figures = _judge(proxy, *cut.judge())
    require_same(place.served / source.name, source)
    place.require_clean()
    return figures


def _judge(proxy: Proxy, resent: int, unacked: int) -> Figures:
    begun = proxy.tally.block_positions
    require(STOPPED_AT in begun, f"it went on at {begun}, and {STOPPED_AT} bytes had arrived")
    require(resent == 0, f"{resent} bytes travelled twice")
    return {"resumed_at": STOPPED_AT, "resent_bytes": resent, "unacked_mib": round(unacked / MIB, 1)}


def run(place: Place) -> Figures:
    """All three, beside each other: they mostly wait."""
    cases: dict[str, Callable[[Place], Figures]] = {
        **{f"server_{signum.name}": partial(server_leaves, signum=signum) for signum in STATUS_OF},
        "client_SIGINT": client_stops,
    }
    with ThreadPoolExecutor() as pool:
        running = {name: pool.submit(case, Place(place.folder / name)) for name, case in cases.items()}
    return {"campaign": "checkpoint", **{name: future.result() for name, future in running.items()}}


def main() -> int:
    """The campaign's command line."""
    return campaign(parser(__doc__).parse_args(), run)


if __name__ == "__main__":
    sys.exit(main())
