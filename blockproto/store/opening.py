"""Opening a local store's places: the served folder, its state, the lock, the ledger and the folder of partials."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import NotPermitted, StoreInUse
from ..names import RESERVED, show_name
from .disk import make_folder, open_root
from .ledger import Ledger
from .refusals import refusal

_PRIVATE = 0o700


@dataclass(slots=True)
class Opened:
    """What a local store has open.

    Attributes:
        root_fd: the served folder.
        partials_fd: the folder of partials, on the same mount.
        lock_fd: the lock file, locked.
        ledger: the ledger.
        closed: whether it was closed.
    """

    root_fd: int
    partials_fd: int
    lock_fd: int
    ledger: Ledger
    closed: bool = False

    def close(self) -> None:
        """Close it all, the lock last; harmless when repeated."""
        if not self.closed:
            self.closed = True
            self.ledger.close()
            for fd in (self.partials_fd, self.root_fd, self.lock_fd):
                os.close(fd)


def open_places(folder: Path, state: Path | None, now_ms: int) -> Opened:
    """Open everything, making what is missing; the errors are those of ``LocalStore.open``.

    Durability: the folders and the ledger's file have their names on the medium; LMDB does not see to that.
    """
    fds: list[int] = []
    ledger: Ledger | None = None
    try:
        root_fd = _keep(fds, open_root(os.fspath(folder)))
        state_path = folder / RESERVED if state is None else state
        state_fd = _keep(fds, _open_state(root_fd, folder, state))
        lock_fd = _keep(fds, _lock(state_fd))
        partials_fd = _keep(fds, _open_partials(root_fd, state_fd))
        ledger_fd = _keep(fds, make_folder(state_fd, b"ledger", _PRIVATE))
        ledger = Ledger.open(state_path / "ledger", now_ms)
        for fd in (ledger_fd, state_fd, root_fd):
            os.fsync(fd)
        for fd in (ledger_fd, state_fd):
            os.close(fd)
    except OSError as exc:
        _close_all(fds, ledger)
        raise _explained(exc, folder) from exc
    except BaseException:
        _close_all(fds, ledger)
        raise
    return Opened(root_fd, partials_fd, lock_fd, ledger)


def _keep(fds: list[int], fd: int) -> int:
    fds.append(fd)
    return fd


def _close_all(fds: list[int], ledger: Ledger | None) -> None:
    if ledger is not None:
        ledger.close()
    for fd in reversed(fds):
        os.close(fd)


def _open_state(root_fd: int, folder: Path, state: Path | None) -> int:
    if state is None:
        return make_folder(root_fd, RESERVED.encode(), _PRIVATE)
    inside = state.resolve().is_relative_to(folder.resolve())
    if inside and state.resolve().relative_to(folder.resolve()).parts[:1] != (RESERVED,):
        raise NotPermitted("the state must not lie in the served folder, where it would be served")
    os.makedirs(state, mode=_PRIVATE, exist_ok=True)
    return open_root(os.fspath(state))


def _open_partials(root_fd: int, state_fd: int) -> int:
    if _mount_id(root_fd) == _mount_id(state_fd):
        return make_folder(state_fd, b"partials", _PRIVATE)
    beside_fd = make_folder(root_fd, RESERVED.encode(), _PRIVATE)
    try:
        partials_fd = make_folder(beside_fd, b"partials", _PRIVATE)
        os.fsync(beside_fd)
    finally:
        os.close(beside_fd)
    return partials_fd


def _mount_id(fd: int) -> str:
    """The mount of an fd: a rename works within one only, even where two mounts show one device."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        return next(line for line in lines if line.startswith("mnt_id:"))


def _lock(state_fd: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(b"lock", flags, 0o600, dir_fd=state_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise StoreInUse("another process has this store open") from exc
    return fd


def _explained(error: OSError, folder: Path) -> Exception:
    shown = show_name(os.fspath(folder))
    if error.errno == errno.ENOENT:
        return NotPermitted(f"there is no folder {shown}")
    if error.errno == errno.ENOTDIR:
        return NotPermitted(f"{shown} is no folder")
    found = refusal(error)
    if isinstance(found, NotPermitted):
        return NotPermitted(f"{shown} cannot be used: {found}")
    return found
