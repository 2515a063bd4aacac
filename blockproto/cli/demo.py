"""``blockproto demo``: a server is killed in the middle of an upload, and the file arrives all the same.

Everything is real: a server process, a client process, a file, SIGKILL. Nothing waits for a fixed time: the server is
killed when its own ledger says that enough is durable. Any surprise is an error (exit code 1).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import click
import trio
from blake3 import blake3

from .. import connect
from .access import TOKEN_VARIABLE
from .options import verbose_option
from .output import Status, show_size, warn

COMMAND = [sys.executable, "-m", "blockproto"]
FILESIZE = 400 << 20
KILL_AT = 0.3
"""The share of the file that must be durable before the server is killed."""
TRIES = 3
_STEP_S = 30.0
_LOOK_AGAIN_S = 0.005


class _Surprise(Exception):
    """Something did not go as promised; the text says what."""


@click.command("demo", epilog="Exit codes: 0 all went as promised, 1 something did not, 2 usage, 130 Ctrl-C.")
@click.option(
    "--size",
    metavar="MIB",
    type=click.IntRange(32),
    default=FILESIZE >> 20,
    show_default=True,
    help="How large a file to send.",
)
@verbose_option
def demo(size: int) -> int:
    """Kill a server in the middle of an upload, start it again, and watch the file arrive whole."""
    with tempfile.TemporaryDirectory(prefix="blockproto-demo-") as folder:
        try:
            _Demo(Path(folder)).run(size << 20)
        except _Surprise as surprise:
            warn(f"blockproto demo: {surprise}")
            return Status.FAILED
    return Status.DONE


class _Demo:
    """The steps, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.served = folder / "served"
        self.source = folder / "holiday film.mp4"
        self.served.mkdir()

    def run(self, filesize: int) -> None:
        """All steps; raises _Surprise at the first that does not go as promised."""
        for size in (filesize << doubled for doubled in range(TRIES)):
            _tell(f"a file of {show_size(size)} of random bytes: '{self.source.name}'")
            wanted = self._make_source(size)
            port = self._interrupted_upload()
            if port is not None:
                return self._resume(wanted, port)
            _tell("the upload ended before the kill; once more with a file of twice the size")
            (self.served / self.source.name).unlink()
        raise _Surprise("the upload ended before the server could be killed, every time")

    def _make_source(self, size: int) -> str:
        hasher = blake3()
        with self.source.open("wb") as file:
            for _ in range(0, size, 1 << 20):
                block = os.urandom(1 << 20)
                hasher.update(block)
                file.write(block)
        return hasher.hexdigest()

    def _interrupted_upload(self) -> int | None:
        """Upload until enough is durable and kill the server; its port, or None if the upload ended first."""
        with _serving(self.served, 0) as (server, port):
            arguments = self._put_arguments(port)
            _tell(f"the command: blockproto {shlex.join(arguments)}")
            with _process(*arguments) as client:
                held = trio.run(_wait_until_durable, port, self._enough(), client)
                if held is None:
                    return None
                server.kill()
                server.wait(_STEP_S)
                share = 100 * held // self.source.stat().st_size
                _tell(f"SIGKILL to the server, with {share} % of the file acknowledged")
                status, words = _end_of(client)
        if status != Status.UNREACHABLE:
            raise _Surprise(f"the client ended with {status} instead of {Status.UNREACHABLE}: {words}")
        _tell(f"the client gave up with exit code {status}, which means: run the same command again")
        return port

    def _resume(self, wanted: str, port: int) -> None:
        with _serving(self.served, port):
            _tell("the server is started again, and the same command is run again")
            with _process(*self._put_arguments(port)) as client:
                status, words = _end_of(client)
        if status != Status.DONE:
            raise _Surprise(f"the second run ended with {status}: {words}")
        self._explain(json.loads(words.splitlines()[-1]), wanted)

    def _explain(self, receipt: dict[str, Any], wanted: str) -> None:
        size = self.source.stat().st_size
        sent = receipt["payload_bytes_sent"]
        if not receipt["resumed"] or sent >= size:
            raise _Surprise(f"the second run began anew: {receipt}")
        _tell(
            f"resumed: {receipt['blocks_skipped']} of {receipt['blocknum']} blocks were there already, "
            f"only {show_size(sent)} travelled in this run"
        )
        if receipt["stored_as"] != self.source.name or _b3sum(self.served / receipt["stored_as"]) != wanted:
            raise _Surprise("what was stored is not what was sent")
        _tell(f"verified: the stored file has the same BLAKE3 as the source, {wanted[:16]}…")

    def _put_arguments(self, port: int) -> list[str]:
        return ["put", str(self.source), f"bp://127.0.0.1:{port}/", "--json", "--retry-for", "1s"]

    def _enough(self) -> int:
        return int(self.source.stat().st_size * KILL_AT)


def _tell(text: str) -> None:
    click.echo(f"  {text}")


@contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A ``blockproto`` process that is gone afterwards, whatever happens."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
    )
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    except subprocess.TimeoutExpired as error:
        raise _Surprise(f"{shlex.join(arguments)} took longer than {error.timeout:.0f} s") from error


@contextmanager
def _serving(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server process that listens, and its port."""
    with _process("serve", str(folder), "--listen", f"127.0.0.1:{port}") as server:
        assert server.stdout is not None
        assert server.stderr is not None
        line = server.stdout.readline()
        if not line.startswith("listening on "):
            raise _Surprise(f"the server did not start: {server.stderr.read()}")
        yield server, int(line.rpartition(":")[2])


def _end_of(client: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process to end; its exit code, and what it said: its JSON if it succeeded, else its complaint."""
    out, err = client.communicate(timeout=_STEP_S)
    return client.returncode, out.strip() if client.returncode == Status.DONE else err.strip()


async def _wait_until_durable(port: int, enough: int, client: subprocess.Popen[str]) -> int | None:
    """Ask the server's ledger until ``enough`` bytes are durable; how many, or None if the client ended first."""
    with trio.move_on_after(_STEP_S):
        async with connect(f"bp://127.0.0.1:{port}") as watcher:
            while client.poll() is None:
                async with aclosing(watcher.uploads()) as unfinished:
                    async for upload in unfinished:
                        if upload.position >= enough:
                            return upload.position
                await trio.sleep(_LOOK_AGAIN_S)
        return None
    raise _Surprise(f"not even {show_size(enough)} were acknowledged in {_STEP_S:.0f} s")


def _b3sum(path: Path) -> str:
    hasher = blake3()
    hasher.update_mmap(path)
    return hasher.hexdigest()
