"""What every campaign needs: a place on the disk, real processes, waiting with deadlines, and the checks after a crash."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from unittest.mock import patch

import trio
from blake3 import blake3
from lmdb import verify as lmdb_verify

from blockproto import connect
from blockproto.store.local import recovery
from blockproto.store.local.check import check_store
from blockproto.store.local.store import LocalStore

MIB = 1 << 20
STEP_S = 120.0
"""How long anything may take before it counts as hanging."""
LOOK_AGAIN_S = 0.003
COMMAND = (sys.executable, "-m", "blockproto")
DONE, FAILED, UNREACHABLE, INTERRUPTED = 0, 1, 3, 130


class Broken(AssertionError):
    """A promise was not kept; the text says which."""


def require(kept: object, promise: str) -> None:
    """Raise ``Broken`` with ``promise`` unless it was kept."""
    if not kept:
        raise Broken(promise)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = STEP_S) -> None:
    """Look at ``condition`` again and again until it holds.

    Raises:
        Broken: it did not within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        require(time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s")
        time.sleep(LOOK_AGAIN_S)


def wait_out(timeout_s: float) -> None:
    """Let so much time pass, for what is to happen because of it."""
    time.sleep(timeout_s)


def wait_until_still(
    figure: Callable[[], int], what: str, looks: int = 100, timeout_s: float = STEP_S
) -> None:
    """Look at ``figure`` until it was the same ``looks`` times in a row.

    Raises:
        Broken: it still changes after ``timeout_s``.
    """
    last, same = figure(), 0

    def still() -> bool:
        nonlocal last, same
        now = figure()
        same = same + 1 if now == last else 0
        last = now
        return same >= looks

    wait_until(still, what, timeout_s)


# ---- files ----------------------------------------------------------------------------------------------------


def make_file(path: Path, size: int, seed: object) -> Path:
    """A file of ``size`` bytes that repeat nowhere and are the same for the same seed."""
    stream = blake3(repr(seed).encode())
    with path.open("wb") as file:
        for at in range(0, size, MIB):
            file.write(stream.digest(min(MIB, size - at), seek=at))
    return path


def b3sum(path: Path) -> str:
    """The BLAKE3 of a file, in hex."""
    hasher = blake3()
    with path.open("rb") as file:
        while piece := file.read(4 * MIB):
            hasher.update(piece)
    return hasher.hexdigest()


def require_same(stored: Path, source: Path) -> None:
    """The stored file has the bytes of its source."""
    require(stored.is_file(), f"{stored.name} is not there")
    require(b3sum(stored) == b3sum(source), f"{stored.name} is not what was sent")


# ---- processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left behind: exit code, stdout and stderr."""

    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def require(self, *statuses: int) -> Ran:
        """It ended with one of ``statuses`` and without a traceback; returns itself."""
        told = f"{self.out[-500:]}{self.err[-1500:]}"
        require(self.status in statuses, f"exit code {self.status} instead of {statuses}: {told}")
        require("Traceback" not in self.err, f"a traceback: {self.err[-3000:]}")
        return self


class Running:
    """A command that was started; what it says goes to files, so that no pipe can fill.

    Args:
        arguments: the whole command.
        env: its environment.
        stdin: a file or pipe for its standard input; None for none.
    """

    def __init__(
        self, arguments: Sequence[str], env: Mapping[str, str], stdin: BinaryIO | int | None = None
    ) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            arguments,
            env=env,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=self._out,
            stderr=self._err,
        )

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def signal(self, signum: int) -> None:
        """Send a signal; harmless when it has ended."""
        if not self.ended:
            self.process.send_signal(signum)

    def kill(self) -> Ran:
        """SIGKILL; returns what it said before."""
        self.signal(signal.SIGKILL)
        return self.end()

    def end(self, timeout_s: float = STEP_S) -> Ran:
        """Wait for its end.

        Raises:
            Broken: it does not end within ``timeout_s``.
        """
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            self.process.wait()
            raise Broken(f"{self.process.args!r} hangs: {self._read(self._err)}") from error
        try:
            return Ran(status, self._read(self._out), self._read(self._err))
        finally:
            self._out.close()
            self._err.close()

    @staticmethod
    def _read(file: BinaryIO) -> str:
        file.seek(0)
        return file.read().decode(errors="replace")


class Place:
    """A folder with everything one campaign uses: the served folder, sources, the installation secret, the server's log.

    Args:
        folder: an empty folder, or one that is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.served = folder / "served"
        self.served.mkdir(parents=True)
        self.log = folder / "server.log"
        self.env = {**os.environ, "BLOCKPROTO_CONFIG": str(folder / "config"), "PYTHONUNBUFFERED": "1"}

    def start(self, *arguments: object, stdin: BinaryIO | int | None = None) -> Running:
        """Start the command ``blockproto`` with these arguments."""
        return Running([*COMMAND, *map(str, arguments)], self.env, stdin)

    def run(self, *arguments: object, stdin: BinaryIO | int | None = None) -> Ran:
        """Run the command ``blockproto`` to its end."""
        return self.start(*arguments, stdin=stdin).end()

    def require_clean(self, folder: Path | None = None) -> int:
        """Nobody serves ``folder``; its store keeps every invariant, every block read, and nothing unfinished is left.

        A SIGKILL between a partial's first byte and its first record leaves a file that no ledger knows; the store removes
        it after a grace time, which passes here at once. Returns how many there were.
        """
        folder = self.served if folder is None else folder
        findings = check_store(folder, read=True)
        require(not findings, f"check --read: {findings}")
        require_sound_ledger(folder)
        orphans = len(partials(folder))
        with patch.object(recovery, "ORPHAN_GRACE_S", -10):
            store = LocalStore.open(folder)
        try:
            unfinished, _ = store.uploads(bytes(16), "", 1)
            require(not unfinished, f"unfinished: {unfinished}")
            require(not store.findings, f"recovery had something to do: {store.findings}")
        finally:
            store.close()
        require(not partials(folder), f"partials are left: {partials(folder)}")
        self.require_quiet_log()
        return orphans

    def require_quiet_log(self) -> None:
        """No server of this place ever printed a traceback."""
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        at = said.find("Traceback")
        require(at < 0, f"the server's log: {said[max(0, at - 500) : at + 6000]}")


def partials(folder: Path) -> list[str]:
    """The names of the partial files of a served folder, of whichever state."""
    return sorted(path.name for path in (folder / ".blockproto" / "partials").glob("*/*"))


def require_sound_ledger(folder: Path) -> None:
    """The ledger's own structure is sound (what ``python -m lmdb verify`` checks); nobody writes to it now."""
    errors = lmdb_verify.verify(str(folder / ".blockproto" / "ledger"))  # type: ignore[no-untyped-call]
    require(not errors, f"the ledger is damaged: {errors}")


class Server:
    """A ``blockproto serve`` process, started again as often as wanted; a context manager that leaves none behind.

    Args:
        place: where.
        folder: what is served; None for the place's own.
        program: what is run instead of the plain command, for example to delay its disk.
        options: more arguments of ``serve``.
    """

    def __init__(
        self,
        place: Place,
        *,
        folder: Path | None = None,
        program: Sequence[str] = COMMAND,
        options: Sequence[str] = (),
    ) -> None:
        self.place = place
        self.folder = place.served if folder is None else folder
        self.port = 0
        self._program = program
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def address(self) -> str:
        """``bp://HOST:PORT/`` of the process that runs now."""
        return f"bp://127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    def start(self, port: int = 0) -> None:
        """Start it and wait until it listens.

        Args:
            port: where; 0 picks a free one.
        """
        listen = f"127.0.0.1:{port}"
        with self.place.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._program, "serve", str(self.folder), "--listen", listen, *self._options],
                env=self.place.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        line = _wait_for_line(self._process, timeout_s=STEP_S)
        if not line.startswith("listening on "):
            self.kill()
            raise Broken(f"the server did not start: {self.place.log.read_text(errors='replace')[-2000:]}")
        self.port = int(line.rpartition(":")[2])

    def send_signal(self, signum: int) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL; harmless when it has ended."""
        self.stop(signal.SIGKILL)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code. Harmless when it has ended."""
        process = self._process
        assert process is not None
        if process.poll() is None:
            process.send_signal(signum)
        try:
            return process.wait(STEP_S)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _wait_for_line(process: subprocess.Popen[str], timeout_s: float) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        require(selector.select(timeout_s), f"{process.args!r} said nothing in {timeout_s:.0f} s")
    return process.stdout.readline().rstrip("\n")


def unfinished(server: Server) -> list[str]:
    """The names of the unfinished uploads, as the server itself says."""

    async def ask() -> list[str]:
        async with connect(server.address) as client, aclosing(client.uploads()) as uploads:
            return [upload.filename async for upload in uploads]

    return trio.run(ask)


# ---- what the kernel says of a process ------------------------------------------------------------------------


def peak_bytes(pid: int) -> int:
    """The most that a running process had resident (VmHWM); 0 if it has ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def bytes_read(pid: int) -> dict[str, int]:
    """What a process has read so far: ``rchar`` by system calls, ``read_bytes`` from the medium."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    figures = {name: int(count) for name, count in (line.split(": ") for line in lines)}
    return {name: figures[name] for name in ("rchar", "read_bytes")}


def open_fds(pid: int) -> int:
    """How many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


# ---- mounts ---------------------------------------------------------------------------------------------------


class CannotMount(Exception):
    """This test needs root and the right to mount; the text says what is missing."""


@contextlib.contextmanager
def mounted(*arguments: object) -> Iterator[None]:
    """``mount`` with these arguments, the mount point last; unmounted at the end.

    Raises:
        CannotMount: not root, or the kernel or container forbids it.
    """
    _mount(*arguments)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(arguments[-1])], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """``folder`` is on a read-only mount of its own, for everybody, root included. Raises CannotMount."""
    with mounted("--bind", folder, folder):
        _mount("-o", "remount,ro,bind", folder)
        yield


def _mount(*arguments: object) -> None:
    if os.geteuid() != 0:
        raise CannotMount("needs root to mount")
    ran = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise CannotMount(f"mount is not allowed here: {ran.stderr.strip()}")


# ---- the command line of a campaign ---------------------------------------------------------------------------

Figures = dict[str, Any]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every campaign has."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--seed", type=int, default=1, help="of everything that is random")
    made.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    return made


def heed_ctrl_c() -> None:
    """Let processes started from now on heed SIGINT, also where a shell in the background made us ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def campaign(options: argparse.Namespace, run: Callable[[Place], Figures]) -> int:
    """Run a campaign in a fresh place, print its figures as JSON; returns its exit code."""
    heed_ctrl_c()
    with tempfile.TemporaryDirectory(prefix="blockproto-campaign-", dir=options.folder) as folder:
        begun = time.monotonic()
        try:
            figures = run(Place(Path(folder) / "place"))
        except (Broken, CannotMount) as error:
            print(json.dumps({"seed": options.seed, "broken": str(error)}), flush=True)
            return 1
        print(json.dumps({"seed": options.seed, "took_s": round(time.monotonic() - begun, 1), **figures}))
    return 0
