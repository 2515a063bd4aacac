"""Opening the file that a log is written to."""

from __future__ import annotations

import os
from typing import Literal, TextIO


def open_log(path: str | os.PathLike[str], mode: Literal["w", "a"]) -> TextIO:
    """Open a log for writing, without waiting for the reader of a pipe.

    Args:
        path: of the file.
        mode: "w" or "a", as for ``open``.

    Raises:
        OSError: it cannot be opened; a pipe that nobody reads, too.
    """
    return open(path, mode, encoding="utf-8", errors="backslashreplace", opener=_open_at_once)


def _open_at_once(path: str, flags: int) -> int:
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(fd, True)
    return fd
