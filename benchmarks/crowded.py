"""Many connections at once: what an idle one costs, how a new one is served beside them, many uploads, and the wake-up.

Figures of ours alone. The crowd of the wake-up are processes of their own (``benchmarks.crowd``).
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from blockproto.wire import PREFACE, Hello, Ping, encode_frame

from .arena import Arena
from .contest import Options
from .figures import Row, Section
from .ours import COMMAND
from .pairs import summarise
from .processes import HOST, CommandFailed, Server, peak_bytes
from .targets import (
    CONNECTS,
    CROWD,
    IDLE_CONNECTIONS,
    IDLE_KIB,
    NEW_MS,
    UPLOADS_AT_ONCE,
    UPLOADS_MIB,
    UPLOADS_SPREAD,
    WAKE_S,
)

GREETING = (
    PREFACE + encode_frame(0, Hello(agent="bench")) + encode_frame(0, Ping(opaque=bytes(8), next_s=600))
)
ANSWER_LENGTH = 110
"""Preface, HELLO and the answer to PING have at least so many bytes."""
REST_S = 3.0
NEWCOMERS = 200
UPLOAD_LENGTH = 4 << 20
CROWDS = 2
"""Processes that the crowd of the wake-up is divided among."""
CROWD_S = 200.0


def crowded(arena: Arena, options: Options) -> Iterator[Section]:
    """Idle connections, many uploads at once, and the return of a crowd."""
    title = "many connections"
    options.tell(title)
    rows: list[Row] = []
    for figure in (_idle, _uploads, _wake_up):
        try:
            rows += figure(arena)
        except (CommandFailed, OSError) as error:
            rows.append(Row(figure.__name__.strip("_"), "", None, note=arena.ours.explain(error)))
    yield Section(title, rows)


# ---- idle -----------------------------------------------------------------------------------------------------


def _idle(arena: Arena) -> list[Row]:
    arena.ours.server.stop()
    arena.ours.restart()
    server = arena.ours.server
    greeted = _greet(server.port)
    time.sleep(REST_S)
    before = resident_bytes(server.pid)
    idle = [greeted]
    try:
        idle += [_greet(server.port, _address(number)) for number in range(IDLE_CONNECTIONS)]
        time.sleep(REST_S)
        each_kib = (resident_bytes(server.pid) - before) / IDLE_CONNECTIONS / 1024
        taken_ms = []
        for _ in range(NEWCOMERS):
            begun = time.perf_counter()
            with closing(_greet(server.port)):
                taken_ms.append((time.perf_counter() - begun) * 1e3)
    finally:
        for sock in idle:
            sock.close()
    taken_ms.sort()
    late_ms = taken_ms[int(len(taken_ms) * 0.99)]
    return [
        Row(f"memory of an idle connection, of {IDLE_CONNECTIONS:,}", "KiB", summarise([each_kib]), IDLE_KIB),
        Row("a new one greeted beside them, the slowest of 100", "ms", summarise([late_ms]), NEW_MS),
    ]


def _address(number: int) -> str:
    """One of many addresses of this machine: a server bounds what one of them has."""
    return f"127.0.1.{1 + number % 200}"


def _greet(port: int, address: str = "") -> socket.socket:
    """A connection that has greeted and was answered."""
    sock = socket.create_connection((HOST, port), source_address=(address, 0))
    greet(sock)
    return sock


def greet(sock: socket.socket) -> None:
    """Greet a server and wait until it has answered."""
    sock.settimeout(30.0)
    sock.sendall(GREETING)
    heard = 0
    while heard < ANSWER_LENGTH:
        came = len(sock.recv(4096))
        if not came:
            raise CommandFailed("the server closed a connection that greeted it")
        heard += came


def resident_bytes(pid: int) -> int:
    """The memory a process has resident now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise CommandFailed(f"process {pid} is gone")


# ---- uploads at once ------------------------------------------------------------------------------------------


def _uploads(arena: Arena) -> list[Row]:
    """Each over a connection of its own; they begin together."""
    arena.ours.server.stop()
    arena.ours.restart()
    server = arena.ours.server
    command = [
        sys.executable,
        "-m",
        "benchmarks.uploads_at_once",
        str(server.port),
        str(UPLOADS_AT_ONCE),
        str(UPLOAD_LENGTH),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise CommandFailed(f"{UPLOADS_AT_ONCE} uploads at once: {done.stderr[-300:]}")
    taken_s = sorted(json.loads(done.stdout))
    memory_mib = (peak_bytes(server.pid) or 0) / (1 << 20)
    what = f"{UPLOADS_AT_ONCE} uploads of {UPLOAD_LENGTH >> 20} MiB at once"
    note = f"{taken_s[0]:.2f} s to {taken_s[-1]:.2f} s"
    return [
        Row(
            f"{what}: slowest by fastest",
            "×",
            summarise([taken_s[-1] / taken_s[0]]),
            UPLOADS_SPREAD,
            note=note,
        ),
        Row(f"{what}: peak memory of the server", "MiB", summarise([memory_mib]), UPLOADS_MIB),
    ]


# ---- the wake-up ----------------------------------------------------------------------------------------------


def _wake_up(arena: Arena) -> list[Row]:
    """The server is killed and started again; everybody who was connected and idle is told its position again."""
    port = arena.ours.server.port
    crowds = [_start_crowd(port, CROWD // CROWDS) for _ in range(CROWDS)]
    try:
        for crowd in crowds:
            _require_up(crowd)
        arena.ours.server.kill()
        killed_at = time.monotonic()
        for crowd in crowds:
            assert crowd.stdin is not None
            crowd.stdin.write(f"{killed_at}\n")
            crowd.stdin.flush()
        log = arena.ours.work / "server.log"
        serve = [COMMAND, "serve", str(arena.ours.served), "--listen", f"{HOST}:{port}"]
        arena.ours.server = Server(serve, log, env=arena.ours.env)
        away_s = time.monotonic() - killed_at
        told = [json.loads(crowd.communicate(timeout=CROWD_S)[0] or "{}") for crowd in crowds]
    except subprocess.TimeoutExpired as error:
        raise CommandFailed("the crowd hangs") from error
    finally:
        for crowd in crowds:
            crowd.kill()
            crowd.wait()
    back_s = [one for crowd in told for one in crowd["back_s"]]
    missing = back_s.count(None)
    if missing:
        raise CommandFailed(f"{missing} of {CROWD} clients did not come back")
    back_s.sort()
    connects = sorted(one for crowd in told for one in crowd["connects"])
    dials = sorted(one for crowd in told for one in crowd["dials"])
    at = int(CROWD * 0.99)
    note = f"half of them after {back_s[CROWD // 2]:.1f} s; the server was away for {away_s:.1f} s"
    return [
        Row(
            f"{CROWD:,} clients told their position after SIGKILL, the slowest of 100",
            "s",
            summarise([back_s[at]]),
            WAKE_S,
            note=note,
        ),
        Row(
            "connects each, the most of 100",
            "",
            summarise([float(connects[at])]),
            CONNECTS,
            note=f"{dials[at]} dials, with those that were refused while nobody listened",
        ),
    ]


def _start_crowd(port: int, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.crowd", str(port), str(number)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _require_up(crowd: subprocess.Popen[str]) -> None:
    assert crowd.stdout is not None
    hung = threading.Timer(CROWD_S, crowd.kill)
    hung.start()
    try:
        if crowd.stdout.readline() != "up\n":
            raise CommandFailed("the crowd did not come up")
    finally:
        hung.cancel()
