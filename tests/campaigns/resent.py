"""The most that can travel twice: the server's disk finishes no sync, the window is full, and then somebody is killed.

What was sent and not acknowledged is then as much as it can ever be. The proxy on the server's side counts it, and what
travels again when the same command goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .counting_proxy import RESENT_MAX, Proxy
from .takeover import stuck_disk
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
    wait_until_still,
)

WINDOW = 64 * MIB
"""What a server lets be sent and not yet durable (``undurable_max``)."""
FILESIZE = 150 * MIB + 4321


def run(place: Place, what: str, connections: int) -> Figures:
    """One upload over ``connections``, killed with its window full; ``what`` is ``server`` or ``client``."""
    source = make_file(place.folder / "source.bin", FILESIZE, what)
    stuck = place.folder / "the disk is stuck"
    with Server(place, program=stuck_disk(stuck)) as server, Proxy(lambda: server.port) as proxy:
        stuck.touch()
        gate = proxy.observer(payload_bytes=WINDOW)
        client = _start(place, proxy, source, connections)
        gate.wait()
        proxy.release()
        wait_until_still(lambda: proxy.tally.payload_bytes, "the end of the window")
        if what == "server":
            server.kill()
        else:
            client.kill()
            stuck.unlink()
        proxy.wait_idle()
        cut = proxy.tally.cut()
        stuck.unlink(missing_ok=True)
        if what == "server":
            server.start()
        else:
            client = _start(place, proxy, source, connections)
        client.end().require(DONE)
        proxy.wait_idle()
        require(server.stop() == DONE, "the server did not end in order")
    require_same(place.served / source.name, source)
    orphans = place.require_clean()
    resent, unacked = cut.judge()
    require(unacked <= RESENT_MAX, f"{unacked} bytes were sent and not acknowledged")
    if what == "server":
        require(resent >= WINDOW // 2, f"only {resent} bytes travelled again: the window was not full")
    return {
        "campaign": "resent",
        "what": what,
        "connections": connections,
        "unacked_mib": round(unacked / MIB, 2),
        "resent_mib": round(resent / MIB, 2),
        "orphan_partials": orphans,
    }


def _start(place: Place, proxy: Proxy, source: Path, connections: int) -> Running:
    return place.start("put", source, proxy.address, "--connections", connections)


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--what", choices=("server", "client"), default="server")
    options.add_argument("--connections", type=int, default=1)
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.what, given.connections))


if __name__ == "__main__":
    sys.exit(main())
