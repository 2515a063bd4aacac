"""Startup: how long the command takes to say its version, and to begin a transfer."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from .contest import Options
from .figures import Row, Section
from .ours import COMMAND
from .pairs import summarise
from .processes import CommandFailed, timed
from .targets import STARTUP_S


def startup(options: Options) -> Iterator[Section]:
    """``--version``; beside it the bare interpreter, and ``put --help``, which loads the engine."""
    options.tell("startup")
    rows = [
        _row("blockproto --version", [COMMAND, "--version"], options.pairs),
        _row("blockproto put --help", [COMMAND, "put", "--help"], options.pairs, judged=False),
        _row("python -c pass", [sys.executable, "-c", "pass"], options.pairs, judged=False),
    ]
    yield Section("startup", rows)


def _row(what: str, command: list[str], count: int, *, judged: bool = True) -> Row:
    target = STARTUP_S if judged else None
    try:
        timed(command)
        times_s = [timed(command).wall_s for _ in range(count)]
    except CommandFailed as error:
        return Row(what, "s", None, target, note=str(error))
    return Row(what, "s", summarise(times_s), target)
