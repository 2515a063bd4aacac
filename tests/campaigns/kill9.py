"""SIGKILL at random moments: uploads and downloads with the server or the client killed up to three times each.

After each kill the same command goes on (by itself, if the server is back before it gives up; else it ends with exit code 3
and is run again). Each file is identical in the end, ``check --read`` and the ledger's structural check are clean, nothing
unfinished is left, and a proxy on the server's side counted what travelled twice.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

from blockproto.wire import Commit, Open

from .counting_proxy import Cut, Gate, Proxy
from .tools import (
    DONE,
    MIB,
    UNREACHABLE,
    Figures,
    Place,
    Ran,
    Running,
    Server,
    campaign,
    make_file,
    parser,
    require,
    require_same,
    require_sound_ledger,
    wait_until,
)

WHAT = ("server", "client", "get-server", "get-client")
KILLS_MAX = 3
SOURCES = 3


@dataclass(slots=True)
class Totals:
    """What happened in all transfers together."""

    kills: int = 0
    at_commit: int = 0
    commands: int = 0
    filesize: int = 0
    payload: int = 0
    resent: list[int] = field(default_factory=list)
    unacked: list[int] = field(default_factory=list)

    def figures(self, transfers: int) -> Figures:
        """For the JSON object."""
        return {
            "transfers": transfers,
            "kills": self.kills,
            "kills_at_commit": self.at_commit,
            "commands": self.commands,
            "file_mib": round(self.filesize / MIB, 1),
            "payload_mib": round(self.payload / MIB, 1),
            "resent_mib": round(sum(self.resent) / MIB, 1),
            "resent_mib_most": round(max(self.resent, default=0) / MIB, 1),
            "unacked_mib": round(sum(self.unacked) / MIB, 1),
            "unacked_mib_most": round(max(self.unacked, default=0) / MIB, 1),
        }


class Kill9:
    """One campaign.

    Args:
        place: where.
        rng: chooses sizes and moments.
        what: one of ``WHAT``.
        connections: for uploads.
        gives_up: how often, from 0 to 1, a killed server stays away until the client has given up.
    """

    def __init__(
        self, place: Place, rng: random.Random, what: str, connections: int, gives_up: float = 0.5
    ) -> None:
        self._place = place
        self._rng = rng
        self._kills_server = what.endswith("server")
        self._downloads = what.startswith("get")
        self._connections = connections
        self._gives_up = gives_up
        self._totals = Totals()
        self._fetched = place.folder / "fetched"
        self._fetched.mkdir()

    def run(self, transfers: int, filesize: int) -> Figures:
        """``transfers`` of about ``filesize`` bytes each; raises Broken at the first broken promise."""
        sources = [self._source(number, filesize) for number in range(min(SOURCES, transfers))]
        with Server(self._place) as server, Proxy(lambda: server.port) as proxy:
            for number in range(transfers):
                self._transfer(server, proxy, sources[number % len(sources)], f"file {number}.bin")
            require(server.stop() == DONE, "the server did not end in order")
        self._place.run("check", self._place.served, "--read").require(DONE)
        orphans = self._place.require_clean()
        left = sorted(path.name for path in self._fetched.iterdir())
        wanted = sorted(f"file {number}.bin" for number in range(transfers)) if self._downloads else []
        require(left == wanted, f"left beside what was fetched: {left}")
        return self._totals.figures(transfers) | {"orphan_partials": orphans}

    def _source(self, number: int, filesize: int) -> Path:
        size = filesize - self._rng.randrange(MIB)
        return make_file(self._place.folder / f"source{number}", size, (number, filesize))

    # ---- one transfer -----------------------------------------------------------------------------------------

    def _transfer(self, server: Server, proxy: Proxy, source: Path, name: str) -> None:
        if self._downloads:
            self._place.run("put", source, server.address, "--as", name).require(DONE)
        proxy.tally.forget()
        cuts = self._go_on_through_kills(server, proxy, source, name)
        stored = self._fetched / name if self._downloads else self._place.served / name
        require_same(stored, source)
        totals = self._totals
        totals.filesize += source.stat().st_size
        totals.payload += proxy.tally.payload_bytes
        for again, unacked in (cut.judge() for cut in cuts):
            totals.resent.append(again)
            totals.unacked.append(unacked)

    def _go_on_through_kills(self, server: Server, proxy: Proxy, source: Path, name: str) -> list[Cut]:
        cuts: list[Cut] = []
        kills = self._rng.randint(1, KILLS_MAX)
        client = self._start(proxy, source, name)
        while len(cuts) < kills:
            gate = self._next_moment(proxy, source.stat().st_size)
            wait_until(lambda: gate.reached.is_set() or client.ended, "a moment to kill, or the end")  # noqa: B023
            proxy.release()
            if client.ended:
                break
            self._totals.at_commit += gate.message is Commit
            client = self._kill(server, proxy, client, source, name, cuts)
        self._require_done(client.end(), name)
        proxy.wait_idle()
        return cuts

    def _start(self, proxy: Proxy, source: Path, name: str) -> Running:
        self._totals.commands += 1
        patience = ("--retry-for", "1s" if self._gives_up == 1 else "10s")
        if self._downloads:
            return self._place.start("get", proxy.address + name, self._fetched / name, "--json", *patience)
        often = ("--connections", self._connections)
        return self._place.start("put", source, proxy.address, "--as", name, "--json", *often, *patience)

    def _next_moment(self, proxy: Proxy, filesize: int) -> Gate:
        kind = self._rng.random()
        if kind < 0.1:
            return proxy.observer(message=Open)
        if kind < 0.25:
            return proxy.observer(message=Commit)
        missing = max(MIB, filesize - proxy.tally.acked_bytes())
        return proxy.observer(payload_bytes=self._rng.randrange(1, missing))

    def _kill(
        self, server: Server, proxy: Proxy, client: Running, source: Path, name: str, cuts: list[Cut]
    ) -> Running:
        """Kill one of them; returns the client that goes on."""
        self._totals.kills += 1
        if not self._kills_server:
            client.kill()
            proxy.wait_idle()
            cuts.append(proxy.tally.cut())
            return self._start(proxy, source, name)
        server.kill()
        require_sound_ledger(self._place.served)
        proxy.wait_idle()
        cuts.append(proxy.tally.cut())
        if self._rng.random() >= self._gives_up:
            server.start()
            return client
        ran = client.end()
        server.start()
        if ran.status == DONE:
            return self._start(proxy, source, name)
        ran.require(UNREACHABLE)
        require("run the same command again" in ran.err, f"the client does not say how to resume: {ran.err}")
        return self._start(proxy, source, name)

    def _require_done(self, ran: Ran, name: str) -> None:
        receipt = ran.require(DONE).objects[-1]
        stored_as = str(self._fetched / name) if self._downloads else name
        require(receipt["stored_as"] == stored_as, f"stored as {receipt['stored_as']} instead of {name}")


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--uploads", type=int, default=20, metavar="N", help="how many transfers")
    options.add_argument("--what", choices=WHAT, default="server", help="who is killed; get-…: in downloads")
    options.add_argument("--connections", type=int, default=1)
    options.add_argument("--mib", type=int, default=256, help="size of each file, about")
    given = options.parse_args()

    def run(place: Place) -> Figures:
        kill9 = Kill9(place, random.Random(given.seed), given.what, given.connections)
        figures = kill9.run(given.uploads, given.mib * MIB)
        return {"campaign": "kill9", "what": given.what, "connections": given.connections, **figures}

    return campaign(given, run)


if __name__ == "__main__":
    sys.exit(main())
