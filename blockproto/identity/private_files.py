"""Private files (keys, tokens, pins): readable by their owner only, replaced as a whole, durably.

Root may write into the state of a server that runs as another user, which must be able to read it: what root makes belongs
to the owner of the folder it is in.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the private file ``path``, which lies beside it and stays there. Raises OSError."""
    lock = path.with_name(f"{path.name}.lock")
    with suppress(FileExistsError):
        os.close(_create(lock))
    with FileLock(lock, mode=0o600):
        yield


def _create(path: Path) -> int:
    """A descriptor of a new private file; raises FileExistsError if there is one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if os.geteuid() == 0:
            folder = path.parent.stat()
            os.fchown(fd, folder.st_uid, folder.st_gid)
    except BaseException:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return fd


def write_private(path: Path, content: bytes) -> None:
    """Replace ``path``, durably, by a file that only its owner can read. Raises OSError."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    fd = _create(new)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
