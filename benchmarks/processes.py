"""Processes: run a command and time it, or keep a server running; every one is ended by its own pid.

Peak memory is the kernel's own high-water mark, ``VmHWM`` of ``/proc/PID/status``.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

READY_S = 20.0
"""How long a server may take until it listens."""

STOP_S = 10.0
"""How long a server may take to end before it is killed."""

COMMAND_S = 1800.0
"""How long a command may take at all."""

HOST = "127.0.0.1"
"""Everything happens on loopback."""

SBIN = "/usr/sbin:/usr/local/sbin:/sbin"
"""Where programs are that a user's PATH may not name."""

_TELL_LENGTH = 300
_WATCH_EVERY_S = 0.02


def find_program(name: str) -> str | None:
    """The path of an installed program."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":" + SBIN)


class CommandFailed(Exception):
    """A command ended with an error, or a server did not come up; says which and why."""


class Ran(NamedTuple):
    """A command that ended well.

    Attributes:
        wall_s: seconds from its start to its end.
        out: its standard output.
    """

    wall_s: float
    out: str


def timed(command: Sequence[str], env: Mapping[str, str] | None = None) -> Ran:
    """Run ``command`` to its end with ``env`` added to the environment.

    Raises:
        CommandFailed: it ended with another status than 0, or took longer than ``COMMAND_S``.
    """
    begun = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            env=os.environ | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{command[0]}: not done after {COMMAND_S:.0f} s") from error
    wall_s = time.perf_counter() - begun
    if done.returncode:
        raise CommandFailed(_failure(command, done.returncode, done.stderr))
    return Ran(wall_s, done.stdout.decode(errors="replace"))


def _failure(command: Sequence[str], status: int, said: bytes) -> str:
    text = " ".join(said.decode(errors="replace").split())[-_TELL_LENGTH:]
    return f"{Path(command[0]).name} ended with status {status}: {text or 'it said nothing'}"


class Server:
    """A process that listens, until ``stop``.

    Args:
        command: what to run.
        log: where its standard error goes, and its standard output unless it is read.
        port: where it will listen; None reads ``listening on HOST:PORT`` from its standard output.
        env: added to the environment.

    Raises:
        CommandFailed: it ended, or does not listen after ``READY_S``.
    """

    def __init__(
        self, command: Sequence[str], log: Path, port: int | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        self._name = Path(command[0]).name
        with open(log, "ab") as said:
            self.process = subprocess.Popen(
                command,
                env=os.environ | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if port is None else said,
                stderr=said,
            )
        try:
            self.port = self._read_port() if port is None else self._wait_for(port)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def stop(self) -> None:
        """End it and everything it started: SIGTERM, then SIGKILL. Harmless when repeated."""
        ending: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.process.poll() is None:
                parent = psutil.Process(self.pid)
                ending = [*parent.children(recursive=True), parent]
        for process in ending:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(ending, timeout=STOP_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def ended(self) -> str:
        """Why it ended, in its own words; empty while it runs."""
        return "" if self.process.poll() is None else self._words()

    def kill(self) -> None:
        """SIGKILL, without any notice."""
        self.process.kill()
        self.stop()

    def _read_port(self) -> int:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline().decode() if selector.select(READY_S) else ""
        if not line.startswith("listening on "):
            raise self._not_up()
        return int(line.rpartition(":")[2])

    def _wait_for(self, port: int) -> int:
        deadline = time.monotonic() + READY_S
        while not listens(port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise self._not_up()
            time.sleep(0.02)
        return port

    def _not_up(self) -> CommandFailed:
        return CommandFailed(f"{self._name} did not come up: {self._words()}")

    def _words(self) -> str:
        said = self._log.read_bytes()[-_TELL_LENGTH:].decode(errors="replace")
        return " ".join(said.split()) or "it said nothing"


def listens(port: int) -> bool:
    """Whether somebody takes connections on a port of this machine."""
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex((HOST, port)) == 0


def free_port() -> int:
    """A port nobody uses now."""
    with socket.create_server((HOST, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def peak_bytes(pid: int) -> int | None:
    """The most memory a process has had resident so far, in bytes; None when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def read_bytes(pid: int) -> int:
    """The bytes a process has read from files so far (``rchar``); what came by ``recv`` or a memory map is not in it."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    return 0


def timed_with_peak(command: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[Ran, int]:
    """As ``timed``, and the command's own peak memory in bytes, looked at until it ends."""
    begun = time.perf_counter()
    peak = 0
    process = subprocess.Popen(
        command,
        env=os.environ | dict(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(_WATCH_EVERY_S):
            peak = max(peak, peak_bytes(process.pid) or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        out, said = process.communicate(timeout=COMMAND_S)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        ended.set()
        watcher.join()
    if process.returncode:
        raise CommandFailed(_failure(command, process.returncode, said))
    return Ran(time.perf_counter() - begun, out.decode(errors="replace")), peak
