"""Opening a file of this machine that was looked at before, and may have become something else since."""

from __future__ import annotations

import os
import stat

from ..common.names import show_name
from ..errors import Refused
from .walk import kind_of

_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading, following links: its descriptor, which the caller closes. Blocking.

    It never waits for the writer of a pipe, also if the file becomes a pipe between the look and the opening.

    Raises:
        OSError: it cannot be opened.
        Refused: it is not a regular file.
    """
    check_regular(path, os.stat(path))  # before it is opened: opening a device can do something
    fd = open_looked_at(path)
    try:
        check_regular(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_looked_at(path: str | os.PathLike[str]) -> int:
    """Open what was a regular file a moment ago: its descriptor, which the caller looks at again, and closes. Blocking.

    It never waits for the writer of a pipe. Raises OSError, and Refused of a socket.
    """
    try:
        return os.open(path, _FLAGS)
    except OSError:
        check_regular(path, os.stat(path))  # no system opens a socket
        raise


def check_regular(path: str | os.PathLike[str], found: os.stat_result) -> None:
    """Raise Refused if ``found``, the ``os.stat`` of ``path``, is not that of a regular file."""
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISDIR(found.st_mode):
        raise Refused(f"{show_name(os.fspath(path))} is not a regular file but a folder")
    raise Refused(f"{show_name(os.fspath(path))} is not a regular file but {kind_of(found.st_mode)}")
