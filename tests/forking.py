"""Run the command as a process that is forked off one which has imported everything: imports take a quarter of a second.

    parent ── {"arguments": […], "cwd": "…", "env": {…}} + [stdin, stdout, stderr, status] ──▶ forker ──▶ keeper ──▶ command

The keeper waits for the command and says on ``status`` what its pid is, and then its exit code. The command ends as any
Python process does. What an interpreter reads when it starts is what the forker was started with.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from processes import Process

TESTS = Path(__file__).resolve().parent
REQUEST_MAX = 1 << 20


class Forker:
    """The parent's handle of the process from which commands are forked off."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [sys.executable, "-m", "forking", str(theirs.fileno())]
            self._process = Process(words, pass_fds=[theirs.fileno()], cwd=TESTS)
        self._env = read_at_start(os.environ)

    def close(self) -> None:
        """End it; what it has forked off lives on."""
        self._socket.close()
        self._process.wait(30)

    def can_run_in(self, env: Mapping[str, str]) -> bool:
        """Whether an interpreter that starts in this environment is as the forker is."""
        return read_at_start(env) == self._env

    def run(
        self, arguments: Sequence[str], stdin: bytes, cwd: str, env: Mapping[str, str], timeout_s: float
    ) -> tuple[int, bytes, bytes]:
        """Run ``blockproto`` with these arguments to its end; its exit code (as ``subprocess``'s), stdout and stderr.

        Raises:
            subprocess.TimeoutExpired: it was killed after so many seconds.
        """
        pipes = [os.pipe() for _ in range(4)]
        to_stdin, *to_read = [pipes[0][1], *(read for read, _ in pipes[1:])]
        theirs = [pipes[0][0], *(write for _, write in pipes[1:])]
        request = json.dumps({"arguments": list(arguments), "cwd": cwd, "env": dict(env)}).encode()
        socket.send_fds(self._socket, [request], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        heard: list[bytes] = [b"", b""]
        with open(to_stdin, "wb", buffering=0) as writer, open(to_read[2], "rb") as status:
            pid = int(status.readline())
            expired = threading.Event()

            def kill() -> None:
                expired.set()
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

            timer = threading.Timer(timeout_s, kill)
            threads = [threading.Thread(target=_read, args=(to_read[at], heard, at)) for at in range(2)]
            threads.append(threading.Thread(target=_write, args=(writer, stdin)))
            for thread in (timer, *threads):
                thread.start()
            for thread in threads:
                thread.join()
            code = int(status.readline())
            timer.cancel()
            timer.join()
        if expired.is_set():
            raise subprocess.TimeoutExpired(list(arguments), timeout_s, heard[0], heard[1])
        return code, heard[0], heard[1]


def read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter reads of its environment when it starts, and what the dynamic linker does."""
    begins = ("PYTHON", "LANG", "LC_", "LD_", "MALLOC_", "COVERAGE", "COV_", "TZ", "OPENSSL", "SSL_")
    return {name: value for name, value in env.items() if name.startswith(begins)}


def _read(descriptor: int, heard: list[bytes], at: int) -> None:
    with open(descriptor, "rb") as reader:
        heard[at] = reader.read()


def _write(writer: io.RawIOBase, stdin: bytes) -> None:
    with writer, suppress(BrokenPipeError):
        left = memoryview(stdin)
        while left:
            left = left[writer.write(left) :]


# ---- in the forker


def _import_everything() -> None:
    """Whatever a command could need of the package."""
    for name in (
        "blockproto.client",
        "blockproto.server",
        "blockproto.cli",
        "blockproto.client_side",
        "blockproto.serving",
    ):
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ()), package.__name__ + "."):
            importlib.import_module(module.name)
    gc.freeze()  # what is shared with those that are forked off stays shared


def _keep(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Start the command and wait for it; returns in the command's process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *standard, status = descriptors
    pid = os.fork()
    if pid == 0:
        os.close(status)
        return
    for descriptor in standard:
        os.close(descriptor)
    os.write(status, b"%d\n" % pid)
    _, ended = os.waitpid(pid, 0)
    os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended))
    os._exit(0)


def _text(descriptor: int, like: io.TextIOWrapper, mode: str) -> io.TextIOWrapper:
    """A standard stream as the interpreter makes it."""
    opened = open(descriptor, mode, buffering=-1, closefd=False)  # noqa: SIM115 - for as long as the process lives
    unbuffered = mode == "wb" and bool(os.environ.get("PYTHONUNBUFFERED"))
    return io.TextIOWrapper(
        opened, like.encoding, like.errors, line_buffering=descriptor == 2, write_through=unbuffered
    )


def _be_the_command(request: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    for at, descriptor in enumerate(descriptors):
        os.dup2(descriptor, at)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdin = _text(0, sys.__stdin__, "rb")  # type: ignore[arg-type]
    sys.stdout = _text(1, sys.__stdout__, "wb")  # type: ignore[arg-type]
    sys.stderr = _text(2, sys.__stderr__, "wb")  # type: ignore[arg-type]
    sys.argv = ["blockproto", *request["arguments"]]
    from blockproto.__main__ import main as command

    sys.exit(command())


def main(descriptor: int) -> None:
    """Fork what is asked for until the parent closes."""
    _import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as asked:
        while True:
            request, descriptors, _, _ = socket.recv_fds(asked, REQUEST_MAX, 4)
            if not request:
                return
            if os.fork() == 0:
                asked.close()
                _keep(json.loads(request), descriptors)
                break
            for one in descriptors:
                os.close(one)
    _be_the_command(json.loads(request), descriptors[:3])


if __name__ == "__main__":
    main(int(sys.argv[1]))
