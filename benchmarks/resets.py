"""Lines that are reset again and again: a file over them, beside programs that are begun again after every reset.

Everybody gets a line of his own of the same kind, in turn; a time is divided by what the line alone needs for the bytes. The
floor is one plain socket over such a line that is not reset: what is above 1 there is the machine, not the program.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .arena import Arena
from .badline import bad_line
from .contest import Options
from .figures import Row, Section, Target
from .ours import COMMAND, NAME, receipts_of
from .pairs import FLOOR, summarise
from .peers import OpenSsh, Peer, Rsync, missing_packages
from .places import remove
from .processes import HOST, CommandFailed, Server, find_program, free_port, timed
from .targets import RESET_DELIVERED, RESET_DELIVERED_FAR, RESET_TIME, RESET_TIME_FAR

ROUNDS_MAX = 5
BEGINNINGS_MAX = 60
RECEIVE_LENGTH = 64 * 1024


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is reset.

    Attributes:
        filesize: bytes of the file that is sent over it.
        bits_s: how much it carries.
        words: what ``blockproto chaos`` is told of it.
        resets: the words that it is told besides, for those who can come back.
        time, delivered: what is to be reached.
    """

    name: str
    filesize: int
    bits_s: float
    words: tuple[str, ...]
    resets: tuple[str, ...]
    time: Target
    delivered: Target

    @property
    def alone_s(self) -> float:
        """What the line alone needs."""
        return self.filesize * 8 / self.bits_s


NEAR = Bad(
    "8 Mbit/s, 100 ms, reset every 3 MB", 20_000_000, 8e6,
    ("--rate", "8mbit", "--delay", "100ms"), ("--reset-after", "3MB"), RESET_TIME, RESET_DELIVERED,
)  # fmt: skip
FAR = Bad(
    "256 kbit/s, 600 ms, reset every 300 KB", 2_000_000, 256e3,
    ("--rate", "256kbit", "--delay", "600ms"), ("--reset-after", "300KB"), RESET_TIME_FAR, RESET_DELIVERED_FAR,
)  # fmt: skip


@dataclass(slots=True)
class Runner:
    """Somebody who sends or fetches the file.

    Attributes:
        name: what the tables call him.
        run: sends it over a line; returns the time and the bytes delivered, both by what the file alone needs.
        times, delivered: what was measured.
        failed: why he is left out from then on.
    """

    name: str
    run: Callable[[], tuple[float, float]]
    times: list[float] = field(default_factory=list)
    delivered: list[float] = field(default_factory=list)
    failed: str = ""

    def run_once(self) -> None:
        """Run, unless it failed before."""
        if self.failed:
            return
        try:
            taken, delivered = self.run()
        except (CommandFailed, OSError) as error:
            self.failed = str(error)
        else:
            self.times.append(taken)
            self.delivered.append(delivered)

    def rows(self, way: str, bad: Bad) -> list[Row]:
        """What is told of it; only ours has targets."""
        ours = self.name == NAME
        what = f"{way}: {self.name}"
        if not self.times:
            return [
                Row(f"{what}: time by the line's", "×", None, bad.time if ours else None, note=self.failed)
            ]
        rows = [Row(f"{what}: time by the line's", "×", summarise(self.times), bad.time if ours else None)]
        if self.name != FLOOR:
            target = bad.delivered if ours else None
            rows.append(Row(f"{what}: delivered by the file's", "×", summarise(self.delivered), target))
        return rows


def resets(arena: Arena, options: Options, bad: Bad) -> Iterator[Section]:
    """One section for a line; beside the others only where that does not take an hour."""
    source = arena.place.folder / "source.bin"
    source.write_bytes(os.urandom(bad.filesize))
    rounds = min(options.pairs, ROUNDS_MAX)
    rows: list[Row] = []
    for way in ("up", "down"):
        with ExitStack() as ending:
            runners = [
                Runner(FLOOR, partial(_floor, arena, bad, way)),
                Runner(NAME, partial(_ours, arena, bad, source, way)),
            ]
            if bad is NEAR:
                for others in (_rsync, _sftp):
                    runners.append(others(arena, bad, source, way, ending))
            for number in range(rounds):
                options.tell(f"{bad.name}, {way}, {number + 1} of {rounds}")
                for runner in options.rng.sample(runners, len(runners)):
                    runner.run_once()
            rows += [row for runner in runners for row in runner.rows(way, bad)]
    yield Section(f"{bad.filesize / 1e6:g} MB over {bad.name}; medians of {rounds}", rows)


def _ours(arena: Arena, bad: Bad, source: Path, way: str) -> tuple[float, float]:
    ours = arena.ours
    name, dest = f"{way}.bin", arena.place.folder / "fetched.bin"
    remove(dest)
    remove(ours.served / name)
    with bad_line(arena.place.folder, (*bad.words, *bad.resets), ours.server.port) as (port, passed):
        address = f"bp://{HOST}:{port}/"
        if way == "up":
            command = [COMMAND, "put", str(source), address, "--as", name, "--json"]
        else:
            shutil.copyfile(source, ours.served / name)
            command = [COMMAND, "get", address + name, str(dest), "--json"]
        ran = timed(command, ours.env)
    _require_same(source, ours.served / name if way == "up" else dest)
    elapsed_s: float = receipts_of(ran.out)[0]["elapsed_s"]
    return elapsed_s / bad.alone_s, passed.of(way) / bad.filesize


def _floor(arena: Arena, bad: Bad, way: str) -> tuple[float, float]:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        with bad_line(arena.place.folder, bad.words, port) as (through, _):
            serving = threading.Thread(target=_serve_floor, args=(listener, bad.filesize, way))
            serving.start()
            with socket.create_connection((HOST, through)) as sock:
                begun = time.monotonic()
                if way == "up":
                    sock.sendall(bytes(bad.filesize))
                    sock.recv(1)
                else:
                    _take(sock, bad.filesize)
                taken_s = time.monotonic() - begun
            serving.join()
    return taken_s / bad.alone_s, 1.0


def _serve_floor(listener: socket.socket, filesize: int, way: str) -> None:
    sock, _ = listener.accept()
    with sock:
        if way == "up":
            _take(sock, filesize)
            sock.sendall(b"!")
        else:
            sock.sendall(bytes(filesize))


def _take(sock: socket.socket, length: int) -> None:
    while length > 0:
        came = len(sock.recv(RECEIVE_LENGTH))
        if not came:
            raise CommandFailed("the plain socket was closed early")
        length -= came


# ---- begun again after each reset -----------------------------------------------------------------------------


def _absent(name: str, peer: Peer) -> Runner | None:
    missing = missing_packages(peer)
    if not missing:
        return None
    return Runner(
        name, lambda: (0.0, 0.0), failed=f"not installed; on Debian: apt install {' '.join(missing)}"
    )


def _rsync(arena: Arena, bad: Bad, source: Path, way: str, ending: ExitStack) -> Runner:
    name = "rsync --partial, begun again"
    peer = Rsync()
    absent = _absent(name, peer)
    if absent is not None:
        return absent
    served, port, _ = _serve(arena, peer, f"rsync-{way}", ending)
    options = ["rsync", "--partial", "--inplace", "--timeout=30"]

    def command(through: int, _beginning: int) -> list[str]:
        url = f"rsync://{HOST}:{through}/files/"
        if way == "up":
            return [*options, str(source), url]
        return [*options, url + source.name, str(served / "got.bin")]

    return Runner(name, partial(_begin_again, arena, bad, source, way, served, port, command))


def _sftp(arena: Arena, bad: Bad, source: Path, way: str, ending: ExitStack) -> Runner:
    name = "sftp reput" if way == "up" else "sftp reget"
    peer = OpenSsh()
    absent = _absent(name, peer)
    if absent is not None:
        return absent
    served, port, work = _serve(arena, peer, f"sftp-{way}", ending)
    peer.methods(work, served, port)
    sftp = find_program("sftp") or "sftp"

    def command(through: int, beginning: int) -> list[str]:
        batch = work / "batch"
        again = "re" if beginning else ""
        if way == "up":
            batch.write_text(f"{again}put {source} {served}/{source.name}\n")
        else:
            batch.write_text(f"{again}get {served}/{source.name} {served}/got.bin\n")
        return [sftp, "-q", "-F", f"{work}/ssh_config", "-P", str(through), "-b", str(batch), "bench"]

    return Runner(name, partial(_begin_again, arena, bad, source, way, served, port, command))


def _serve(arena: Arena, peer: Peer, name: str, ending: ExitStack) -> tuple[Path, int, Path]:
    """A peer's server until ``ending``: the folder it serves, its port, and where its configuration is."""
    work = arena.place.folder / name
    served = work / "served"
    served.mkdir(parents=True)
    port = free_port()
    ending.callback(Server(peer.server_command(work, served, port), work / "log", port).stop)
    return served, port, work


def _begin_again(
    arena: Arena,
    bad: Bad,
    source: Path,
    way: str,
    served: Path,
    port: int,
    command: Callable[[int, int], list[str]],
) -> tuple[float, float]:
    """Run a program until it succeeds, as its users do."""
    arrives = served / (source.name if way == "up" else "got.bin")
    remove(arrives)
    if way == "down":
        shutil.copyfile(source, served / source.name)
    with bad_line(arena.place.folder, (*bad.words, *bad.resets), port) as (through, passed):
        begun = time.monotonic()
        for beginning in range(BEGINNINGS_MAX):
            try:
                timed(command(through, beginning))
                break
            except CommandFailed:
                if beginning == BEGINNINGS_MAX - 1:
                    raise
        taken_s = time.monotonic() - begun
    _require_same(source, arrives)
    return taken_s / bad.alone_s, passed.of(way) / bad.filesize


def _require_same(source: Path, copy: Path) -> None:
    if source.read_bytes() != copy.read_bytes():
        raise CommandFailed(f"{copy.name} is not what was sent")
