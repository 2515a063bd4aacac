"""The command as real processes: run it to its end, or start a server that listens."""

from __future__ import annotations

import json
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

import blockproto

COMMAND = [sys.executable, "-m", "blockproto"]
TIMEOUT_S = 60.0


class Process(subprocess.Popen):  # type: ignore[type-arg]
    """A ``subprocess.Popen`` that no test can wait for without end.

    ``wait`` and ``communicate`` take ``TIMEOUT_S`` at most; a ``with`` block that fails kills the process instead of
    waiting for it, and one that ends waits ``TIMEOUT_S`` at most, then kills it and fails. A read of a pipe ends with
    the test's own time limit (pytest-timeout), whose error leaves the ``with`` block the same way.
    """

    def wait(self, timeout: float | None = None) -> int:
        """See ``subprocess.Popen.wait``; None is ``TIMEOUT_S``."""
        return super().wait(TIMEOUT_S if timeout is None else timeout)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """See ``subprocess.Popen.communicate``; None is ``TIMEOUT_S``."""
        return super().communicate(input, TIMEOUT_S if timeout is None else timeout)

    def __exit__(self, *exc_info: Any) -> None:
        """Wait for the end if the block went well, else kill."""
        if exc_info[0] is not None:
            self.kill()
        try:
            super().__exit__(*exc_info)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@dataclass(frozen=True, slots=True)
class Ran:
    """What a finished command left: exit code, stdout and stderr as text."""

    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


class Server:
    """A ``blockproto serve`` process that is ready.

    Args:
        folder: what it serves.
        options: more arguments.
        port: where to listen; 0 picks a free one.
        popen: more for ``subprocess.Popen``.
    """

    def __init__(self, folder: Path, *options: str, port: int = 0, **popen: Any) -> None:
        self.folder = folder
        self.process = Process(
            [*COMMAND, "serve", str(folder), "--listen", f"127.0.0.1:{port}", *options],
            stdout=subprocess.PIPE,
            text=True,
            **popen,
        )
        line = wait_for_line(self.process, timeout_s=TIMEOUT_S)
        assert line.startswith("listening on "), line
        self.port = int(line.rpartition(":")[2])

    @property
    def address(self) -> str:
        """``bp://HOST:PORT``."""
        return f"bp://127.0.0.1:{self.port}"

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code. Harmless when it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        try:
            return self.process.wait(TIMEOUT_S)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def kill(self) -> None:
        """SIGKILL."""
        self.stop(signal.SIGKILL)


class Chaos:
    """A ``blockproto chaos --json`` process that is ready."""

    def __init__(self, target: int, *options: str) -> None:
        listen = ("--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{target}")
        self.process = Process(
            [*COMMAND, "chaos", *listen, "--json", *options], stdout=subprocess.PIPE, text=True
        )
        self.address = "bp://" + wait_for_line(self.process, TIMEOUT_S).removeprefix("listening on ") + "/"

    def stop(self) -> list[dict[str, Any]]:
        """End it; what it told of, the totals last."""
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 130
        return [json.loads(line) for line in out.splitlines()]

    def kill(self) -> None:
        """SIGKILL. Harmless when it has ended."""
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT_S)


def wait_for_line(process: subprocess.Popen[str], timeout_s: float) -> str:
    """The next line of a process's stdout, or an error if it ends or takes longer than ``timeout_s``."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        assert selector.select(timeout_s), f"{process.args} said nothing in {timeout_s} s"
    return process.stdout.readline().rstrip("\n")


def wait_until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Look at ``condition`` again and again until it holds, or fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not hold in {timeout_s} s"
        time.sleep(0.005)


async def wait_until_held(address: str, blocks: int, timeout_s: float = TIMEOUT_S) -> blockproto.UploadInfo:
    """Ask a server until an unfinished upload has ``blocks`` durable blocks; returns it."""
    with trio.fail_after(timeout_s):
        async with blockproto.connect(address) as client:
            while True:
                async with aclosing(client.uploads()) as unfinished:
                    async for upload in unfinished:
                        if upload.held_count >= blocks:
                            return upload
                await trio.sleep(0.005)
