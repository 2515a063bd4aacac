"""A bad line before a port of this machine: ``blockproto chaos`` in a process of its own, and what it has handed on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .ours import COMMAND
from .processes import HOST, Server


class Passed:
    """What a bad line handed on, once it has ended.

    Attributes:
        up_bytes, down_bytes: to the server and back: everything, so heads and encryption too.
    """

    up_bytes = 0
    down_bytes = 0

    def of(self, way: str) -> int:
        """The bytes of one direction, ``up`` or ``down``."""
        return self.up_bytes if way == "up" else self.down_bytes


@contextmanager
def bad_line(folder: Path, words: Sequence[str], target: int) -> Iterator[tuple[int, Passed]]:
    """The port where the line begins, and what it has handed on when this is over.

    Args:
        folder: where the log goes.
        words: what ``blockproto chaos`` is told of the line.
        target: the port where it ends.
    """
    command = [COMMAND, "chaos", "--listen", f"{HOST}:0", "--to", f"{HOST}:{target}", "--json", *words]
    line = Server(command, folder / "chaos.log")
    passed = Passed()
    try:
        yield line.port, passed
    finally:
        line.process.send_signal(signal.SIGINT)
        assert line.process.stdout is not None
        said = line.process.stdout.read().decode().splitlines()
        line.stop()
        totals = json.loads(said[-1]) if said else {}
        passed.up_bytes, passed.down_bytes = totals.get("up_bytes", 0), totals.get("down_bytes", 0)
