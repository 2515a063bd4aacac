"""Resume: what OPEN costs when very many blocks are held, and how soon positions are back after a SIGKILL.

The store is told of blocks of zeros that its sparse partials really hold, through its own API, as if they had come over the
line. Then a server process is started, killed, started again, and asked by hand.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from unittest.mock import patch

from blockproto.common.blocks import BLOCK_LENGTH, digest_of
from blockproto.common.names import SafeName
from blockproto.store import BlockDone, Facts, StoredFile, UploadKey
from blockproto.store.local.store import LocalStore
from blockproto.wire import Open, Opened

from .raw import Raw
from .tools import (
    DONE,
    MIB,
    Figures,
    Place,
    Server,
    bytes_read,
    campaign,
    parser,
    require,
)

BATCH = 512
FILETYPE = "application/octet-stream"
READ_MAX = 4 * MIB
"""System calls may read this much for an OPEN; the partials have gigabytes."""


@dataclass(frozen=True, slots=True)
class Held:
    """An unfinished upload of zeros of which some blocks are held."""

    number: int
    blocknum: int
    gap_every: int | None

    @property
    def sourceid(self) -> bytes:
        """16 bytes, never zeros: those would ask for a new one."""
        return (self.number + 1).to_bytes(16, "big")

    @property
    def filename(self) -> str:
        """What it is called."""
        return f"held {self.number}.bin"

    @property
    def blocknos(self) -> list[int]:
        """The blocks that are held: all but the last, and all but every ``gap_every``-th."""
        every = self.gap_every
        return [no for no in range(self.blocknum - 1) if every is None or (no + 1) % every]

    @property
    def position(self) -> int:
        """The first byte that is not held."""
        return ((self.blocknum if self.gap_every is None else self.gap_every) - 1) * BLOCK_LENGTH

    def open(self, attempt: int) -> Open:
        """OPEN of it."""
        size = self.blocknum * BLOCK_LENGTH
        return Open(self.sourceid, attempt, size, self.blocknum, self.filename, FILETYPE)


def craft(place: Place, uploads: list[Held]) -> None:
    """Make a store that holds them; no server runs."""
    store = LocalStore.open(place.served)
    try:
        # There is no room for so many bytes here, and none is needed: zeros in a sparse file take none.
        with patch.object(LocalStore, "_check_room", lambda *_: None):
            for held in uploads:
                _hold(store, held)
    finally:
        store.close()


def _hold(store: LocalStore, held: Held) -> None:
    size = held.blocknum * BLOCK_LENGTH
    facts = Facts(SafeName.parse(held.filename), FILETYPE, size)
    upload = store.open_upload(UploadKey(bytes(16), held.sourceid), facts, 1)
    assert not isinstance(upload, StoredFile)
    zeros = digest_of(bytes(BLOCK_LENGTH))
    blocknos = held.blocknos
    upload.write((blocknos[-1] + 1) * BLOCK_LENGTH - 1, memoryview(b"\0"))
    for at in range(0, len(blocknos), BATCH):
        batch = [BlockDone(upload, 1, no, BLOCK_LENGTH, zeros) for no in blocknos[at : at + BATCH]]
        outcomes = store.decide(batch)
        require(all(outcome is None for outcome in outcomes), f"not held: {outcomes[0]}")
    upload.close()


def handshakes(server: Server, held: Held, times: int) -> Figures:
    """Ask ``times`` times; the first after the start reads the ledger's pages for the first time."""
    took_ms, read = [], []
    for attempt in range(2, 2 + times):
        with Raw(server.port) as raw:
            before = bytes_read(server.pid)
            opened, took_s = raw.say_open(1, held.open(attempt), [Opened])
            after = bytes_read(server.pid)
        require(opened.position == held.position, f"the position is {opened.position}, not {held.position}")
        took_ms.append(1000 * took_s)
        read.append({name: after[name] - before[name] for name in after})
        require(read[-1]["rchar"] <= READ_MAX, f"the server read {read[-1]['rchar']} bytes for an OPEN")
    return {
        "first_ms": round(took_ms[0], 2),
        "median_ms": round(sorted(took_ms)[len(took_ms) // 2], 2),
        "most_ms": round(max(took_ms), 2),
        "rchar_most": max(one["rchar"] for one in read),
        "read_bytes_most": max(one["read_bytes"] for one in read),
    }


def back_after_kill(place: Place, server: Server, uploads: list[Held]) -> Figures:
    """Kill the server while an upload is open, start it again: when is the last upload's position back?"""
    held = uploads[-1]
    with Raw(server.port) as raw:
        raw.say_open(1, held.open(1000), [Opened])
        server.kill()
    begun = time.perf_counter()
    server.start()
    listening_s = time.perf_counter() - begun
    with Raw(server.port) as raw:
        opened, _ = raw.say_open(1, held.open(1001), [Opened])
    back_s = time.perf_counter() - begun
    require(opened.position == held.position, f"the position is {opened.position}, not {held.position}")
    begun = time.perf_counter()
    listed = place.run("uploads", server.address, "--json").require(DONE).objects
    require(len(listed) == len(uploads), f"{len(listed)} uploads instead of {len(uploads)}")
    return {
        "listening_s": round(listening_s, 3),
        "position_back_s": round(back_s, 3),
        "uploads_command_s": round(time.perf_counter() - begun, 3),
    }


def run(place: Place, blocks: int, partials: int, gib: int, times: int) -> Figures:
    """One upload of ``blocks`` held blocks, with gaps and without; then ``partials`` partials of ``gib`` GiB together."""
    figures: Figures = {"campaign": "resume", "blocks_held": blocks}
    for number, (shape, gap_every) in enumerate({"without_gaps": None, "with_gaps": 16}.items()):
        here = Place(place.folder / shape)
        wanted = blocks + 1 if gap_every is None else blocks * gap_every // (gap_every - 1) + 1
        held = Held(number, wanted, gap_every)
        craft(here, [held])
        with Server(here) as server:
            figures[shape] = handshakes(server, held, times)
            figures[shape] |= back_after_kill(here, server, [held])
            require(server.stop() == DONE, "the server did not end in order")
        here.require_quiet_log()
    here = Place(place.folder / "many")
    each = gib * 1024 // partials
    uploads = [Held(number, each + 1, None) for number in range(partials)]
    craft(here, uploads)
    with Server(here) as server:
        figures["many"] = {"partials": partials, "gib": gib, **back_after_kill(here, server, uploads)}
    here.require_quiet_log()
    return figures


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--blocks", type=int, default=100_000)
    options.add_argument("--partials", type=int, default=100)
    options.add_argument("--gib", type=int, default=100)
    options.add_argument("--times", type=int, default=9)
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.blocks, given.partials, given.gib, given.times))


if __name__ == "__main__":
    sys.exit(main())
