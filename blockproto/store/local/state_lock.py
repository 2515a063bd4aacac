"""The lock on a state: one process has it, and its number stands in the file, so that people can send it signals."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from ...errors import StoreInUse

LOCK_NAME = "lock"


def lock_state(state_fd: int) -> int:
    """Take the lock of the state that is open as ``state_fd``; returns its descriptor, which holds it until it is closed.

    Raises:
        StoreInUse: another process has it.
        OSError: the file cannot be made or locked.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(LOCK_NAME, flags, 0o600, dir_fd=state_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(OSError):  # on a full disk it is locked without a number
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except BlockingIOError as exc:
        os.close(fd)
        raise StoreInUse("another process has this state open") from exc
    except BaseException:
        os.close(fd)
        raise
    return fd


def holder_of(state: Path) -> int | None:
    """The number of the process that has a state open; None: there is none, or it cannot be seen from here.

    The number in the file stays there when its process has ended, and may be another's by now: it counts only if that
    process has the file open.
    """
    path = state / LOCK_NAME
    try:
        pid = int(path.read_text("ascii"))
        lock = path.stat()
        opened = list(os.scandir(f"/proc/{pid}/fd"))
    except (OSError, ValueError):
        return None
    for entry in opened:
        with suppress(OSError):  # closed meanwhile
            if os.path.samestat(entry.stat(), lock):
                return pid
    return None
