"""A process that has imported everything and forks off servers and clients, healthy ones and mutants, in a moment.

    parent ── {"what": "client", "words": […], "mutant": "…"} + [stdout, stderr, status] ──▶ zygote ──fork──▶ child

The child writes its exit code to ``status``, one byte, and is gone; without one it was killed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

CRASHED = 70
TESTS = Path(__file__).resolve().parent.parent


class Zygote:
    """The parent's handle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-m", "mutants.zygote", str(theirs.fileno())]
        self._process = subprocess.Popen(words, pass_fds=[theirs.fileno()], cwd=TESTS)
        theirs.close()

    def start(self, what: str, words: Sequence[str], stderr: IO[bytes], mutant: str | None = None) -> Forked:
        """Fork off a ``client`` or a ``server`` with these words; its stdout can be read from the result."""
        out, out_theirs = os.pipe()
        status, status_theirs = os.pipe()
        request = json.dumps({"what": what, "words": list(words), "mutant": mutant}).encode()
        with self._lock:
            socket.send_fds(self._socket, [request], [out_theirs, stderr.fileno(), status_theirs])
            pid = int(self._socket.recv(100))
        os.close(out_theirs)
        os.close(status_theirs)
        return Forked(pid, os.fdopen(out, "rb"), status)

    def close(self) -> None:
        """End it; what it has forked off lives on."""
        self._socket.close()
        self._process.wait(30)


class Forked:
    """A process that was forked off: as much of ``subprocess.Popen`` as the harness uses."""

    def __init__(self, pid: int, stdout: IO[bytes], status: int) -> None:
        self.pid = pid
        self.stdout: IO[bytes] | None = stdout
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._look(0)

    def wait(self, timeout: float = 60.0) -> int:
        """The exit code; subprocess.TimeoutExpired if it still runs then."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired([], timeout)
        return code

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """End it and wait until it has ended."""
        self.kill()
        self.wait(30)
        if self.stdout is not None:
            self.stdout.close()

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                ready = selector.select(timeout)
            if ready:
                said = os.read(self._status, 1)
                self.returncode = said[0] if said else -signal.SIGKILL
                os.close(self._status)
        return self.returncode


# ---- in the zygote


def serve(words: Sequence[str]) -> int:
    """A server of the folder that is named first, with the options behind it, on a free port; it says which on stdout."""
    from blockproto.cli import main

    return main(["serve", words[0], "--listen", "127.0.0.1:0", *words[1:]])


def _child(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    out, err, status = descriptors
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)
    code = CRASHED
    try:
        if request["mutant"] is not None:
            from mutants.table import MUTANTS

            MUTANTS[request["mutant"]].apply()
        import client_adapter

        code = (
            client_adapter.main(request["words"]) if request["what"] == "client" else serve(request["words"])
        )
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os.write(status, bytes([code & 0xFF]))
        os._exit(code)


def main(descriptor: int) -> None:
    """Fork what is asked for until the parent closes."""
    import client_adapter  # noqa: F401 - everything is imported before anything is forked

    import blockproto.cli.serve
    import blockproto.server  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asked = socket.socket(fileno=descriptor)
    while True:
        request, descriptors, _, _ = socket.recv_fds(asked, 1 << 16, 3)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            _child(json.loads(request), descriptors)
        for one in descriptors:
            os.close(one)
        asked.send(str(pid).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
