"""Half an hour of everything at once against one living server, with honest clients beside: nothing falls, nothing is wrong.

    cd tests; python -m campaigns.endure [--minutes 30]

In turn, at random, and several at once: folders full of odd things that are sent, listed, fetched and removed; broken
and pipelined conversations; floods that ask for memory, descriptors and time; our own client against servers that lie.
Beside them one honest client sends a small file again and again, and another sends folders and fetches them back.

Kept: the server runs from the beginning to the end and prints no traceback; no command prints one or hangs; the honest files
are stored within ``HONEST_S`` in 99 of 100 cases; the server's memory stays below ``RESIDENT_MAX``; every byte that comes
back is the one that was sent.

``TMPDIR`` should be on a fresh file system: ext4 makes folders slowly for minutes after many were removed (0.5 ms each
instead of 0.05), and here thousands of them are made and removed all the time.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import fuzz
import odd_folder
import trio
from hostile_server import CLOSE, Asked, HostileServer
from said_together import vocabulary

from blockproto.wire import PREFACE, Fetch, Hello, List, ListKind, Remove, RemoveKind, encode_frame

from . import attack_sessions
from .attack_crowd import half_a_head
from .attack_greedy import Polite
from .pipeline import Pipeline
from .tools import (
    DONE,
    FAILED,
    INTERRUPTED,
    MIB,
    UNREACHABLE,
    Figures,
    Place,
    Server,
    campaign,
    make_file,
    parser,
    peak_bytes,
    require,
    wait_out,
)

HONEST_S = 0.25
RESIDENT_MAX = 150 * MIB
LOOK_EVERY_S = 1.0
TREE_FILES = 40
ANSWER_S = 30.0
PATIENCE_S = 15.0
GREETING = PREFACE + encode_frame(0, Hello(agent="endure"))
FLOOD_WORDS = 150
"""Requests of one flood: many more than anybody needs, and few enough that they end before the next one."""


@dataclass
class Arena:
    """What all of them share."""

    place: Place
    server: Server
    until: float
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def over(self) -> bool:
        """Whether it is time to end, or something was wrong."""
        return time.monotonic() >= self.until or bool(self.failures)

    def count(self, what: str, more: int = 1) -> None:
        """So much of ``what`` was done."""
        with self.lock:
            self.done[what] += more

    def command(self, *arguments: object, statuses: tuple[int, ...] = (DONE,)) -> None:
        """Run the command to its end, which has to be one of ``statuses`` and without a traceback."""
        self.place.run(*arguments).require(*statuses)
        self.count("commands")


# ---- honest clients


def be_honest(port: int, seconds: float, found: SimpleQueue[list[float] | str]) -> None:
    """A process of its own: a small file ten times a second for so long; puts how long each took, or what was wrong."""
    polite = Polite(1, port, None)

    async def go() -> None:
        await polite.run(trio.current_time() + seconds, 1)

    try:
        trio.run(go)
        found.put(polite.took)
    except BaseException:
        found.put(traceback.format_exc())
        raise


def trees(arena: Arena, rng: random.Random) -> None:
    """Send a folder, fetch it back, compare; then send it again, which has to be harmless, and remove it."""
    name = f"tree {rng.getrandbits(40):x} 电影"
    sent, back = arena.place.folder / name, arena.place.folder / f"back of {name}"
    for number in range(TREE_FILES):
        path = sent / f"{number % 5}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_file(path, rng.choice((0, 1, 700, 4096, 70_000, MIB - 1, MIB + 1, 3 * MIB)), (name, number))
    arena.command("put", sent, arena.server.address)
    arena.command("put", sent, arena.server.address)
    arena.command("get", arena.server.address + name, back)
    for path in sorted(sent.rglob("*")):
        if path.is_file():
            copy = back / path.relative_to(sent)
            require(copy.is_file(), f"{copy} did not come back")
            require(copy.read_bytes() == path.read_bytes(), f"{copy} came back with other bytes")
            arena.count("honest_bytes", path.stat().st_size)
    extra = {path.relative_to(back) for path in back.rglob("*")} - {
        path.relative_to(sent) for path in sent.rglob("*")
    }
    require(not extra, f"nobody sent {sorted(map(str, extra))[:5]}")
    arena.command("rm", "-r", arena.server.address + name)
    shutil.rmtree(sent)
    shutil.rmtree(back)
    arena.count("trees")


# ---- everybody else


def odd(arena: Arena, rng: random.Random) -> None:
    """A folder full of odd things: sent, listed, fetched, removed; some of it may be refused, none of it may be fatal."""
    name = f"odd-{rng.getrandbits(40):x}"
    here = arena.place.folder / name
    here.mkdir()
    odd_folder.fill(here)
    try:
        arena.command("put", here, arena.server.address, statuses=(DONE, FAILED))
        arena.command("ls", "-r", arena.server.address + name, statuses=(DONE, FAILED))
        arena.command("get", arena.server.address + name, f"{here}-back", statuses=(DONE, FAILED))
        arena.command("rm", "-r", arena.server.address + name, statuses=(DONE, FAILED))
    finally:
        odd_folder.remove(here)
        if os.path.lexists(f"{here}-back"):
            odd_folder.remove(Path(f"{here}-back"))
    arena.count("odd_folders")


def odd_and_served(arena: Arena, rng: random.Random) -> None:
    """Odd things that appear in the served folder by other means, and are asked about."""
    name = f"found-{rng.getrandbits(40):x}"
    here = arena.place.served / name
    here.mkdir()
    odd_folder.fill(here)
    back = arena.place.folder / f"{name}-back"
    try:
        arena.command("ls", "-r", arena.server.address, statuses=(DONE, FAILED))
        arena.command("get", arena.server.address + name, back, statuses=(DONE, FAILED))
        arena.command("rm", "-r", arena.server.address + name, statuses=(DONE, FAILED))
    finally:
        for left in (here, back):
            if os.path.lexists(left):
                odd_folder.remove(left)
    arena.count("odd_served")


def broken(arena: Arena, rng: random.Random) -> None:
    """Broken conversations, one after another."""
    for _ in range(200):
        attack_sessions.say(arena.server.port, rng.getrandbits(30))
    arena.count("broken_conversations", 200)


def pipelined(arena: Arena, rng: random.Random) -> None:
    """Random messages on a few streams, legal and not, in one segment a connection; half of them are not waited for."""
    streams = [vocabulary(stream) for stream in (1, 3, 5)]
    words = sorted(streams[0])
    for _ in range(40):
        said = GREETING + b"".join(rng.choice(streams)[rng.choice(words)] for _ in range(rng.randint(2, 12)))
        with (
            suppress(ConnectionError, TimeoutError),
            socket.create_connection(("127.0.0.1", arena.server.port), timeout=ANSWER_S) as sock,
        ):
            sock.sendall(said)
            if rng.random() < 0.5:
                sock.settimeout(rng.uniform(0.01, 0.3))
                while sock.recv(1 << 18):
                    pass
    arena.count("pipelined_openings", 40)


def lies(rng: random.Random) -> Callable[[Asked], Iterable[object]]:
    """A server that answers each message with random ones: of any kind, well-formed or not, or not at all."""

    def answer(asked: Asked) -> Iterator[object]:
        words = vocabulary(asked.stream)
        for _ in range(rng.randrange(4)):
            raw = words[rng.choice(sorted(words))]
            yield fuzz.mutated(rng, raw) if rng.random() < 0.1 else raw
        if rng.random() < 0.3:
            yield CLOSE

    return answer


def hostile(arena: Arena, rng: random.Random) -> None:
    """Our own client against a server that lies: it fails with a sentence, or waits until Ctrl-C ends it."""
    source = make_file(arena.place.folder / f"source-{rng.getrandbits(40):x}", 2 * MIB, 1)
    back = arena.place.folder / f"{source.name}-back"
    with HostileServer(lies(rng)) as server:
        for words in (
            ("ls", "-r", server.address),
            ("stat", f"{server.address}/a", "--b3sum"),
            ("put", source, f"{server.address}/", "--retry-for", "1s"),
            ("get", f"{server.address}/a", back, "--retry-for", "1s"),
            ("rm", f"{server.address}/a"),
            ("uploads", f"{server.address}/"),
        ):
            command = arena.place.start(*words)
            with suppress(subprocess.TimeoutExpired):  # a digest or a commit may take a server hours
                command.process.wait(PATIENCE_S)
            command.signal(signal.SIGINT)
            command.end().require(DONE, FAILED, UNREACHABLE, INTERRUPTED, -signal.SIGINT)
            arena.count("commands")
    source.unlink()
    if os.path.lexists(back):
        odd_folder.remove(back)
    arena.count("hostile_servers")


def flood(arena: Arena, rng: random.Random) -> None:
    """Many requests at once on one connection: digests, pages of one entry, fetches that nobody reads, removals."""
    question = rng.choice(
        [
            List(ListKind.FILES, name="big", exact=True, b3sum=True),
            List(ListKind.FILES, name="", limit=1),
            List(ListKind.FILES, name="", recursive=True),
            Remove(RemoveKind.FILE, filename="nothing of that name", recursive=False),
            Fetch("big"),
        ]
    )
    with Pipeline(arena.server.port) as pipeline:
        pipeline.say((question, b"") for _ in range(FLOOD_WORDS))
        wait_out(timeout_s=rng.uniform(0.1, 5))  # whoever floods does not wait for the answers, nor read them
    arena.count("flood_requests", FLOOD_WORDS)


def strangers(arena: Arena, rng: random.Random) -> None:
    """Connections that say half a head, or nothing, and stay until they are sent away."""
    socks = []
    for number in range(100):
        sock = socket.socket()
        sock.settimeout(ANSWER_S)
        sock.bind((f"127.0.0.{2 + number}", 0))
        sock.connect(("127.0.0.1", arena.server.port))
        sock.sendall(rng.choice((b"\xff", GREETING[:20], GREETING + half_a_head())))
        socks.append(sock)
    for sock in socks:
        with suppress(ConnectionError), sock:
            while sock.recv(65_536):
                pass
    arena.count("strangers", len(socks))


# ---- all of it

Work = Callable[[Arena, random.Random], None]


def again_and_again(arena: Arena, work: Work) -> None:
    """Do it until it is time to end; what goes wrong ends the campaign."""
    rng = random.Random(f"{arena.seed} {work.__name__}")
    while not arena.over:
        try:
            work(arena, rng)
        except BaseException:
            arena.failures.append(f"{work.__name__}: {traceback.format_exc()}")
            raise


def observer(arena: Arena) -> None:
    """Look at the server's memory until it is time to end."""
    while not arena.over:
        wait_out(timeout_s=LOOK_EVERY_S)
        if not Path(f"/proc/{arena.server.pid}/stat").exists():
            arena.failures.append("the server is gone")


WORKS: tuple[Work, ...] = (trees, odd, odd_and_served, broken, pipelined, hostile, flood, strangers)


def run(
    place: Place, minutes: float, seed: int, works: Sequence[Work] = WORKS, timed: bool = True
) -> Figures:
    """One server, all of ``works`` at once, for so long; ``timed``: how long the honest client waited is judged, too."""
    make_file(place.served / "big", 64 * MIB, seed)
    context = multiprocessing.get_context("spawn")
    with Server(place) as server:
        arena = Arena(place, server, time.monotonic() + 60 * minutes, seed)
        found: SimpleQueue[list[float] | str] = context.SimpleQueue()
        honest = context.Process(target=be_honest, args=(server.port, 60 * minutes, found), daemon=True)
        honest.start()
        hands = [threading.Thread(target=again_and_again, args=(arena, work)) for work in works]
        watcher = threading.Thread(target=observer, args=(arena,))
        try:
            for hand in (*hands, watcher):
                hand.start()
            for hand in (*hands, watcher):
                hand.join()
        except BaseException:
            arena.until = 0  # Ctrl-C ends the others, too
            raise
        resident = peak_bytes(server.pid)
        require(not arena.failures, "\n".join(arena.failures))
        took = found.get()
        honest.join()
        require(isinstance(took, list), f"the honest client: {took}")
        arena.command("put", make_file(place.folder / "good", 3 * MIB, seed), server.address)
        require(server.stop() == DONE, "the server did not end in order")
    place.require_quiet_log()
    p99 = statistics.quantiles(took, n=100)[98]
    figures = {
        "campaign": "endurance",
        "minutes": minutes,
        **arena.done,
        "honest_files": len(took),
        "honest_p50_ms": round(1e3 * statistics.median(took), 1),
        "honest_p99_ms": round(1e3 * p99, 1),
        "resident_mib": round(resident / MIB, 1),
    }
    require(resident <= RESIDENT_MAX, f"the server had {resident / MIB:.0f} MiB resident: {figures}")
    require(p99 <= HONEST_S or not timed, f"an honest file took {p99:.3f} s (p99): {figures}")
    return figures


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument(
        "--untimed", action="store_true", help="do not judge how long the honest client waits"
    )
    given = options.parse_args()
    return campaign(given, lambda place: run(place, given.minutes, given.seed, timed=not given.untimed))


if __name__ == "__main__":
    sys.exit(main())
