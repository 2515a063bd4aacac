"""What one peer can take: one attack after another, with an honest client beside each, and what the kernel says of it.

    cd tests; python -m campaigns.attack_bounds [--what NAME …] [--scale 1.0] [--seconds 4]

Each attack has a server of its own. While it goes on, an honest client sends a small file every ``EVERY_S`` and waits for
COMMITTED. Measured: how long that took (p99), how much the server had resident at most, how many descriptors and threads it
had, and how much of the disk was taken that no file of the honest one accounts for. Each has its bound (``BOUNDS``); the
table in SECURITY.md names the attack.
"""

from __future__ import annotations

import os
import re
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from blockproto.common.blocks import BLOCK_LENGTH, digest_of
from blockproto.common.file_table import FileTable
from blockproto.store import IfExists
from blockproto.wire import (
    FEATURE_FILES,
    HEADER_LENGTH,
    PREFACE,
    ZERO_ID,
    Block,
    Committed,
    Error,
    Fetch,
    Files,
    Hello,
    List,
    ListKind,
    Message,
    Open,
    Ping,
    Remove,
    RemoveKind,
    decode_head,
    decode_header,
    encode_frame,
)

from .attack_names import block
from .pipeline import Pipeline
from .tools import DONE, MIB, Figures, Place, Server, campaign, open_fds, parser, require, wait_out

EVERY_S = 0.03
FILES_MAX = 256
"""Descriptors of the server while they are what is attacked."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What an attack may cost.

    Attributes:
        p99_s: how long an honest client waits for a small file.
        memory: bytes resident, more than before the attack.
        files: descriptors more than before.
        threads: threads in all.
        disk: bytes of the disk.
    """

    p99_s: float = 0.25
    memory: int = 64 * MIB
    files: int = 160
    threads: int = 90
    disk: int = 64 * MIB


BOUNDS: dict[str, Bound] = {
    "digests": Bound(memory=32 * MIB),
    "no_credit": Bound(memory=32 * MIB),
    "descriptors": Bound(),
    "held": Bound(memory=32 * MIB),
    "sparse": Bound(disk=8 * MIB),
    "listing": Bound(p99_s=0.1),
    "recursive": Bound(p99_s=0.1),
    "one_name": Bound(p99_s=0.4),
    "replacing": Bound(p99_s=0.4),
    "unknown_ids": Bound(),
    "openings": Bound(memory=48 * MIB),
    "frames": Bound(memory=192 * MIB),
    "metrics": Bound(files=80, threads=60),
    "pings": Bound(memory=32 * MIB),
    "removals": Bound(),
    "receipts": Bound(memory=32 * MIB),
}


class Peer:
    """One connection of the attacker: says what it likes, and reads only when told."""

    def __init__(self, port: int, hello: Hello | None = None) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._heard = bytearray()
        self.sock.sendall(PREFACE + encode_frame(0, hello or Hello(agent="attacker")))
        self._take(len(PREFACE))
        self.hear()

    def say(self, frames: list[tuple[int, Message, bytes]]) -> None:
        """Say frames in one go."""
        self.sock.sendall(
            b"".join(
                encode_frame(stream, message, len(payload)) + payload for stream, message, payload in frames
            )
        )

    def hear(self) -> tuple[int, Message | None, int]:
        """The next frame: stream, message, length of its payload."""
        header = decode_header(self._take(HEADER_LENGTH))
        message = decode_head(header, self._take(header.head_length))
        self._take(header.payload_length)
        return header.stream, message, header.payload_length

    def close(self) -> None:
        """End it."""
        self.sock.close()

    def _take(self, length: int) -> bytes:
        while len(self._heard) < length:
            more = self.sock.recv(1 << 18)
            if not more:
                raise ConnectionError("the server closed the connection")
            self._heard += more
        taken = bytes(self._heard[:length])
        del self._heard[:length]
        return taken


@dataclass
class Honest:
    """A client that sends a small file again and again, and how long each took."""

    port: int
    took: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While inside, it sends; what it could not send is a failure of the campaign."""
        ended = threading.Event()
        thread = threading.Thread(target=self._run, args=(ended,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(90)

    def _run(self, ended: threading.Event) -> None:
        try:
            with Pipeline(self.port) as pipeline:
                number = 0
                while not ended.wait(EVERY_S):
                    number += 1
                    begun = time.monotonic()
                    asked = block(f"honest/{number}", number + (1 << 90), b"hello")
                    (answer,) = pipeline.ask([asked])
                    self.took.append(time.monotonic() - begun)
                    if not isinstance(answer, Committed):
                        self.failed.append(str(answer))
        except (OSError, AssertionError) as error:
            self.failed.append(repr(error))

    @property
    def p99_s(self) -> float:
        """What 99 of 100 files took at most."""
        return statistics.quantiles(self.took, n=100)[98] if len(self.took) > 1 else float("inf")


class Watcher:
    """What the kernel says of a process, looked at all the time: the most of each."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self.folder = folder
        self.memory = self.files = self.threads = self.disk = 0
        self.before = self._look()

    def _look(self) -> tuple[int, int, int, int]:
        status = Path(f"/proc/{self.pid}/status").read_text()
        memory, threads = (
            int(found[1]) if (found := re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)) else 0
            for name in ("VmRSS", "Threads")
        )
        partials = self.folder / ".blockproto" / "partials"
        disk = 0
        for path in partials.rglob("*"):
            with suppress(OSError):
                disk += path.stat().st_blocks * 512
        return memory * 1024, open_fds(self.pid), threads, disk

    @contextmanager
    def running(self) -> Iterator[None]:
        """While inside, look."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.1):
                with suppress(OSError):
                    self.look()

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.look()

    def look(self) -> None:
        """Note the most of each."""
        memory, files, threads, disk = self._look()
        self.memory = max(self.memory, memory)
        self.files = max(self.files, files)
        self.threads = max(self.threads, threads)
        self.disk = max(self.disk, disk)

    @property
    def resident(self) -> int:
        """Bytes resident now."""
        return self._look()[0]


@dataclass
class Scene:
    """Where an attack takes place."""

    server: Server
    scale: float
    seconds: float
    notes: Figures = field(default_factory=dict)

    def count(self, number: int) -> int:
        """``number``, scaled."""
        return max(2, int(number * self.scale))

    def hold(self) -> None:
        """Let the honest one work while everything is as the attack left it."""
        wait_out(self.seconds)


Attack = Callable[[Scene], None]


# ---- the attacks ------------------------------------------------------------------------------------------------


def digests(scene: Scene) -> None:
    """LIST(EXACT, B3SUM) of one large file, again and again."""
    big = scene.server.folder / "big"
    with big.open("wb") as file:
        os.truncate(file.fileno(), scene.count(256) * MIB)
    peer = Peer(scene.server.port)
    ask = List(ListKind.FILES, "big", exact=True, b3sum=True)
    peer.say([(2 * number + 1, ask, b"") for number in range(scene.count(200))])
    scene.hold()
    peer.close()


def _fetch_all(scene: Scene, peer: Peer, number: int, name: str = "film", **facts: object) -> None:
    with (scene.server.folder / name).open("wb") as file:
        for at in range(4):
            file.write(bytes([at]) * MIB)
    ask = Fetch(name, **facts)  # type: ignore[arg-type]
    peer.say([(2 * at + 1, ask, b"") for at in range(number)])


def no_credit(scene: Scene) -> None:
    """FETCH on many streams, and never a CREDIT."""
    peer = Peer(scene.server.port)
    _fetch_all(scene, peer, scene.count(400))
    scene.hold()
    peer.close()


def descriptors(scene: Scene) -> None:
    """FETCH and OPEN on many streams of many connections, that do nothing more than PING."""
    peers = [Peer(scene.server.port) for _ in range(4)]
    for number, peer in enumerate(peers):
        _fetch_all(scene, peer, scene.count(400), f"film{number}")
        first = 2 * scene.count(400) + 1
        for at in range(scene.count(200)):
            stream = first + 2 * at
            source = (number << 32 | at) + (1 << 80)
            peer.say(begin(stream, source, f"up/{number}/{at}", 4 * MIB, 0, b"x"))
    until = time.monotonic() + scene.seconds
    while time.monotonic() < until:
        for peer in peers:
            peer.say([(0, Ping(opaque=bytes(8), next_s=15), b"")])
        wait_out(0.2)
    Peer(scene.server.port).close()
    for peer in peers:
        peer.close()


def begin(
    stream: int, source: int, name: str, filesize: int | None, blockno: int, content: bytes
) -> list[tuple[int, Message, bytes]]:
    """OPEN of an upload and the beginning of one of its blocks."""
    sourceid = source.to_bytes(16, "big")
    blocknum = None if filesize is None else -(-filesize // BLOCK_LENGTH)
    kind = "application/octet-stream"
    return [
        (stream, Open(sourceid, 1, filesize, blocknum, name, kind), b""),
        (
            stream,
            Block(sourceid, filesize, blocknum, blockno, blockno * BLOCK_LENGTH, name, kind),
            content,
        ),
    ]


def held(scene: Scene) -> None:
    """FETCH that says that everything is held already: the server reads all of it to know the root."""
    with (scene.server.folder / "long").open("wb") as file:
        os.truncate(file.fileno(), scene.count(256) * MIB)
    peer = Peer(scene.server.port)
    held = ((0, scene.count(256) - 1),)
    peer.say([(2 * at + 1, Fetch("long", held=held), b"") for at in range(scene.count(100))])
    scene.hold()
    peer.close()


def sparse(scene: Scene) -> None:
    """One byte here and there in an upload of unknown size."""
    peer = Peer(scene.server.port)
    source = 1 << 81
    for number in range(1, 40):
        frames = begin(1, source, "sparse", None, 64 * number, b"x")
        peer.say(frames if number == 1 else frames[1:])
    scene.hold()
    peer.close()


def _names(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    for at in range(number):
        (folder / f"name of a file {at:06}").touch()


def listing(scene: Scene) -> None:
    """LIST limit=1 of a folder of very many names."""
    _names(scene.server.folder / "many", scene.count(100_000))
    peer = Peer(scene.server.port)
    until = time.monotonic() + scene.seconds
    stream = 1
    while time.monotonic() < until:
        asked = scene.count(200)
        peer.say([(stream + 2 * at, List(ListKind.FILES, "many", limit=1), b"") for at in range(asked)])
        stream += 2 * asked
        for _ in range(asked):
            peer.hear()
        scene.notes["answers"] = stream // 2
    peer.close()


def recursive(scene: Scene) -> None:
    """The same recursively, from the top and from places within, while the folder changes."""
    for number in range(10):
        _names(scene.server.folder / f"tree/{number}", scene.count(10_000))
    peer = Peer(scene.server.port)
    until = time.monotonic() + scene.seconds
    stream = 1
    while time.monotonic() < until:
        asked = scene.count(100)
        cursors = ("", *(f"tree/{number}/name of a file {77 * number:06}" for number in range(10)))
        ask = (
            List(ListKind.FILES, "", recursive=True, limit=1, cursor=cursors[at % len(cursors)])
            for at in range(asked)
        )
        peer.say([(stream + 2 * at, one, b"") for at, one in enumerate(ask)])
        stream += 2 * asked
        (scene.server.folder / f"tree/0/new{stream}").touch()
        for _ in range(asked):
            peer.hear()
        scene.notes["answers"] = stream // 2
    peer.close()


def _send_one_name(scene: Scene, rule: IfExists) -> None:
    times = []
    with Pipeline(scene.server.port) as pipeline:
        step = scene.count(500)
        for first in range(0, scene.count(3000), step):
            begun = time.monotonic()
            blocks = (
                block("one name.txt", at + (1 << 70), at.to_bytes(8, "big"))
                for at in range(first, first + step)
            )
            for answer in pipeline.ask(
                [(replace(head, if_exists=rule), content) for head, content in blocks]
            ):
                require(isinstance(answer, Committed), str(answer))
            times.append(round(time.monotonic() - begun, 3))
    scene.notes["seconds_each_500"] = times


def one_name(scene: Scene) -> None:
    """Very many uploads of one name, each of other bytes; all are kept."""
    _send_one_name(scene, IfExists.KEEP)


def replacing(scene: Scene) -> None:
    """The same, and each replaces the one before."""
    _send_one_name(scene, IfExists.REPLACE)


def unknown_ids(scene: Scene) -> None:
    """FETCH of ids that nothing has, beside very many unfinished uploads."""
    peer = Peer(scene.server.port)
    number = scene.count(2000)
    for at in range(number):
        stream = 2 * at + 1
        source = at + (1 << 82)
        name = f"begun/{at}"
        peer.say(begin(stream, source, name, 2 * MIB, 0, b"x"))
        peer.hear()
    peer.close()
    peer, first = Peer(scene.server.port), 1
    until = time.monotonic() + scene.seconds
    answers = 0
    asked = scene.count(200)
    while time.monotonic() < until:
        peer.say([(first + 2 * at, Fetch("", file_id=os.urandom(16)), b"") for at in range(asked)])
        first += 2 * asked
        _wait_for_answers(peer, asked)
        answers += asked
    scene.notes["answers"] = answers
    peer.close()


def _wait_for_answers(peer: Peer, number: int) -> None:
    """Hear so many refusals."""
    while number:
        stream, message, _ = peer.hear()
        require(stream, f"the server ends the connection: {message}")
        number -= isinstance(message, Error)


def openings(scene: Scene) -> None:
    """OPEN on every stream there may be, with one byte each."""
    peers = [Peer(scene.server.port) for _ in range(2)]
    for number, peer in enumerate(peers):
        for at in range(scene.count(2000)):
            source = (number << 32 | at) + (1 << 83)
            peer.say(begin(2 * at + 1, source, f"o/{number}/{at}", 8 * MIB, 0, b"x"))
    scene.hold()
    for peer in peers:
        peer.close()


def frames(scene: Scene) -> None:
    """FILES of a MiB that lack their last byte, on many connections; behind them whole ones, on many streams."""
    count = scene.count(32)
    peers = [Peer(scene.server.port, Hello(features=FEATURE_FILES, agent="attacker")) for _ in range(count)]
    for number, peer in enumerate(peers[: count // 2]):
        frame, content = _file(1, number + (1 << 93), MIB)
        peer.sock.sendall(encode_frame(1, frame, MIB) + content[:-1])
    wait_out(0.5)
    for number, peer in enumerate(peers[count // 2 :]):
        for at in range(16):
            frame, content = _file(at // 4, (number << 32 | at) + (1 << 94), MIB - 1000)
            peer.say([(1 + 2 * (at % 4), frame, content)])
    scene.hold()
    for peer in peers:
        peer.close()


def _file(number: int, source: int, length: int) -> tuple[Files, bytes]:
    """A frame of one file."""
    content, name = bytes(length), f"frame {source}"
    record = (source.to_bytes(16, "big"), digest_of(content), length, 10**18, 0o644, 0, 0, len(name))
    return Files(number, ("",), ("text/plain",), FileTable((record,), (name,))), content


def metrics(scene: Scene) -> None:
    """Connections to the port of the metrics that ask nothing, half a question, or do not read the answer."""
    port = scene.notes.pop("metrics_port")
    words = (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
    socks = []
    for at in range(scene.count(243)):
        with suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", port), timeout=5)
            sock.sendall(words[at % 3])
            socks.append(sock)
    scene.hold()
    for sock in socks:
        sock.close()


def pings(scene: Scene) -> None:
    """PING as fast as the line takes it, and nothing is read."""
    peer = Peer(scene.server.port)
    flood = encode_frame(0, Ping(opaque=bytes(8), next_s=15), 0) * 1000
    peer.sock.settimeout(0.2)
    until = time.monotonic() + scene.seconds
    while time.monotonic() < until:
        try:
            peer.sock.sendall(flood)
        except TimeoutError:
            wait_out(0.1)
    peer.close()


def removals(scene: Scene) -> None:
    """REMOVE of what is not there, as fast as it is answered."""
    with Pipeline(scene.server.port) as pipeline:
        until = time.monotonic() + scene.seconds
        answers = 0
        while time.monotonic() < until:
            asked = (
                (Remove(RemoveKind.FILE, ZERO_ID, f"nothing/{at}"), b"") for at in range(scene.count(400))
            )
            answers += sum(1 for _ in pipeline.ask(asked))
    scene.notes["answers"] = answers


def receipts(scene: Scene) -> None:
    """LIST of receipts with as many ids as a head takes."""
    ids = tuple(digest_of(at.to_bytes(4, "big"))[:16] for at in range(3900))
    peer = Peer(scene.server.port)
    stream = 1
    until = time.monotonic() + scene.seconds
    while time.monotonic() < until:
        asked = scene.count(40)
        ask = List(ListKind.RECEIPTS, "", ids=ids)
        peer.say([(stream + 2 * at, ask, b"") for at in range(asked)])
        stream += 2 * asked
        for _ in range(asked):
            peer.hear()
        scene.notes["answers"] = stream // 2
    peer.close()


ATTACKS: dict[str, Attack] = {
    one.__name__: one
    for one in (
        digests, no_credit, descriptors, held, sparse, listing, recursive, one_name, replacing, unknown_ids, openings,
        frames, metrics, pings, removals, receipts,
    )
}  # fmt: skip


# ---- judging ----------------------------------------------------------------------------------------------------


def attack(
    place: Place, what: str, scale: float, seconds: float, *, judge: bool = True, patience: float = 1.0
) -> Figures:
    """One attack on a server of its own; raises Broken where it cost more than its bound.

    Args:
        place: where.
        what: its name.
        scale: how much of it.
        seconds: how long it goes on.
        judge: whether bounds count.
        patience: how many times longer than its bound the honest client may wait, on a machine that has other work too.
    """
    place.served.mkdir(exist_ok=True)
    program = ["prlimit", f"--nofile={FILES_MAX}:{FILES_MAX}", sys.executable, "-m", "blockproto"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics_port = free.getsockname()[1]
    options = ["--metrics", f"127.0.0.1:{metrics_port}"] if what == "metrics" else []
    with Server(place, program=program, options=options) as server:
        notes: Figures = {"metrics_port": metrics_port} if what == "metrics" else {}
        scene = Scene(server, scale, seconds, notes)
        honest = Honest(server.port)
        _settle(server)
        watcher = Watcher(server.pid, place.served)
        with watcher.running(), honest.running():
            ATTACKS[what](scene)
        wait_out(0.5)
        after = watcher.resident
        require(server.stop() == DONE, "the server did not end in order")
    place.require_quiet_log()
    memory, files, _, _ = watcher.before
    figures = {
        "p99_ms": round(1e3 * honest.p99_s, 1),
        "longest_ms": round(1e3 * max(honest.took, default=0), 1),
        "honest": len(honest.took),
        "memory_mib": round((watcher.memory - memory) / MIB, 1),
        "memory_after_mib": round((after - memory) / MIB, 1),
        "files": watcher.files - files,
        "threads": watcher.threads,
        "disk_mib": round(watcher.disk / MIB, 1),
        **scene.notes,
    }
    if judge:
        _judge(what, figures, honest, watcher, patience)
    elif honest.failed:
        figures["failed"] = honest.failed[:2]
    return figures


def _settle(server: Server) -> None:
    """What a server takes for its first files is not the attacker's doing."""
    with Pipeline(server.port) as pipeline:
        for number in range(20):
            (answer,) = pipeline.ask([block(f"first/{number}", number + (1 << 91), b"hello")])
            require(isinstance(answer, Committed), str(answer))


def _judge(what: str, figures: Figures, honest: Honest, watcher: Watcher, patience: float) -> None:
    bound = BOUNDS[what]
    memory, files, _, _ = watcher.before
    require(not honest.failed, f"{what}: the honest client was let down: {honest.failed[:2]}")
    require(honest.p99_s <= bound.p99_s * patience, f"{what}: the honest client waited: {figures}")
    require(watcher.memory - memory <= bound.memory, f"{what}: memory: {figures}")
    require(watcher.files - files <= bound.files, f"{what}: descriptors: {figures}")
    require(watcher.threads <= bound.threads, f"{what}: threads: {figures}")
    require(watcher.disk <= bound.disk, f"{what}: disk: {figures}")


def run(
    place: Place, what: list[str], scale: float, seconds: float, *, judge: bool = True, patience: float = 1.0
) -> Figures:
    """Each of ``what`` in a folder of its own; see ``attack``."""
    return {
        "campaign": "what one peer can take",
        **{
            one: attack(Place(place.folder / one), one, scale, seconds, judge=judge, patience=patience)
            for one in what
        },
    }


def main() -> int:
    """The campaign's command line."""
    options = parser(__doc__)
    options.add_argument("--what", nargs="*", choices=list(ATTACKS), default=list(ATTACKS))
    options.add_argument("--scale", type=float, default=1.0)
    options.add_argument("--seconds", type=float, default=4.0)
    options.add_argument("--measure", action="store_true", help="judge nothing")
    given = options.parse_args()
    return campaign(
        given, lambda place: run(place, given.what, given.scale, given.seconds, judge=not given.measure)
    )


if __name__ == "__main__":
    sys.exit(main())
