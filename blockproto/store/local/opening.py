"""Opening a local store's places: the served folder, its state, the locks, the ledger and the folder of partials.

One process has a served folder, whatever its state: it holds flock(2) on the folder itself, which every path, bind mount and
symlink to it leads to, and which needs no file. A lock file in the state keeps another folder from being served with it, and
programs of before from using it. No child that runs another program inherits them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...common.names import RESERVED, show_name
from ...errors import NotPermitted, StoreFailed, StoreInUse
from ..folder_io import WatchedFile, look, make_folder, move_new, open_root
from ..os_errors import refusal
from .ledger import Ledger
from .ledger_soundness import require_whole
from .ledger_upgrade import begin
from .state_lock import lock_state

_PRIVATE = 0o700
_CANNOT_LOCK = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What flock(2) on a folder reports where the file system has no such locks (NFS locks only what is open for writing)."""


@dataclass(slots=True)
class Opened:
    """What a local store has open.

    Attributes:
        root_fd: the served folder, locked.
        partials_fd: the state's own folder of partials, on the same mount.
        above_fd: the folder that is in, with those of other states and, before an upgrade, partials.
        lock_fd: the lock file, locked.
        ledger: the ledger.
        watched: what has to stay where it is as long as anything is acknowledged, the ledger first.
        findings: what the operator is to know, a sentence each.
        closed: whether it was closed.
    """

    root_fd: int
    partials_fd: int
    above_fd: int
    lock_fd: int
    ledger: Ledger
    watched: tuple[WatchedFile, ...]
    findings: list[str]
    closed: bool = False

    def check_there(self, *, all_of_it: bool = True) -> None:
        """Raise StoreFailed if the served folder, the ledger or the folder of partials was removed, moved or replaced.

        What is acknowledged after that would be gone with the next start. One system call each.

        Args:
            all_of_it: look at all of these, not at the ledger alone.
        """
        for watched in self.watched if all_of_it else self.watched[:1]:
            if not watched.is_there():
                raise StoreFailed(f"{watched} was removed, moved or replaced under the running server")

    def close(self) -> None:
        """Close it all, the locks last; harmless when repeated."""
        if not self.closed:
            self.closed = True
            self.ledger.close()
            _unlock(self.lock_fd, self.root_fd)
            for fd in (self.partials_fd, self.above_fd, self.lock_fd, self.root_fd):
                os.close(fd)


def _unlock(*fds: int) -> None:
    """Let go of locks that a child which was just forked would else hold until it runs its program."""
    for fd in fds:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


def open_places(folder: Path, state: Path | None, now_ms: int, *, upgrade: bool = True) -> Opened:
    """Open everything, making what is missing; the errors are those of ``LocalStore.open``.

    Args:
        folder: the served folder.
        state: where its state is; None: in its ``.blockproto``.
        now_ms: the wall clock, Unix ms.
        upgrade: bring a ledger of an earlier format to this one. If not it is opened as it is, to be read.

    Durability: the folders and the ledger's file have their names on the medium; LMDB does not see to that.
    """
    opening = _Opening(folder, state)
    try:
        return opening.run(now_ms, upgrade)
    except OSError as exc:
        opening.undo()
        raise _explained(exc, folder) from exc
    except BaseException:
        opening.undo()
        raise


class _Opening:
    """One opening: what was opened so far, to be closed if the rest fails."""

    def __init__(self, folder: Path, state: Path | None) -> None:
        self._folder = folder
        self._state = state
        self._state_path = folder / RESERVED if state is None else state
        self._fds: list[int] = []
        self._ledger: Ledger | None = None
        self._findings: list[str] = []

    def run(self, now_ms: int, upgrade: bool) -> Opened:
        """Everything, the locks first: who is refused has changed nothing."""
        root_fd = self._keep(open_root(os.fspath(self._folder)))
        self._lock_folder(root_fd)
        state_fd = self._keep(_open_state(root_fd, self._folder, self._state))
        lock_fd = self._keep(lock_state(state_fd))
        ledger_fd = self._keep(make_folder(state_fd, b"ledger", _PRIVATE))
        require_whole(self._state_path / "ledger", self._folder / RESERVED / "partials")
        ledger = self._ledger = Ledger.open(self._state_path / "ledger")
        beside = _mount_id(root_fd) != _mount_id(state_fd)
        with ledger.read() as view:
            state_id, unfinished = view.state_id(), any(True for _ in view.items(b"u"))
        if beside and state_id is not None and unfinished:
            self._require_partials(state_id)
        above_fd = self._keep(_open_above(root_fd, state_fd, beside))
        partials_fd, name = self._open_partials(state_id, above_fd, upgrade)
        if upgrade:
            begin(ledger, bytes.fromhex(name), now_ms)
            _adopt(ledger, above_fd, partials_fd)
        for fd in (ledger_fd, state_fd, root_fd):
            os.fsync(fd)
        watched = self._watched(root_fd, ledger, partials_fd, name, beside)
        for fd in (ledger_fd, state_fd):
            os.close(fd)
        return Opened(root_fd, partials_fd, above_fd, lock_fd, ledger, watched, self._findings)

    def undo(self) -> None:
        """Close what was opened."""
        if self._ledger is not None:
            self._ledger.close()
        _unlock(*self._fds)
        for fd in reversed(self._fds):
            os.close(fd)

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _lock_folder(self, root_fd: int) -> None:
        try:
            fcntl.flock(root_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise StoreInUse("another process serves this folder, or checks it") from exc
        except OSError as exc:
            if exc.errno not in _CANNOT_LOCK:
                raise
            self._findings.append(
                "the file system cannot lock a folder: nothing keeps a server with another --state from this one"
            )

    def _require_partials(self, state_id: bytes) -> None:
        """Raise NotPermitted where a folder on another mount does not hold the bytes of what is unfinished."""
        path = os.path.join(self._folder, RESERVED, "partials", state_id.hex())
        if not os.path.isdir(path):
            raise NotPermitted(
                f"the bytes of this state's unfinished uploads belong in {show_name(path)}, and that is not there: is this "
                "the folder they came for, and is its disk mounted? If they are to be given up, make that folder"
            )

    def _open_partials(self, state_id: bytes | None, above_fd: int, upgrade: bool) -> tuple[int, str]:
        """The state's own folder of partials and its name; where none is there and none is made, the folder above."""
        name = (state_id or secrets.token_bytes(16)).hex()
        if not upgrade and look(above_fd, name.encode()) is None:
            return self._keep(os.dup(above_fd)), ""
        fd = self._keep(make_folder(above_fd, name.encode(), _PRIVATE))
        os.fsync(above_fd)
        return fd, name

    def _watched(
        self, root_fd: int, ledger: Ledger, partials_fd: int, name: str, beside: bool
    ) -> tuple[WatchedFile, ...]:
        root = os.path.abspath(self._folder)
        state = os.path.abspath(self._state_path)
        partials = os.path.join(root, RESERVED) if beside else state
        found = os.fstat(partials_fd)
        watched = (
            WatchedFile("the ledger", os.path.join(state, "ledger", "data.mdb"), ledger.version()),
            WatchedFile("the folder of partials", os.path.join(partials, "partials", name), _version(found)),
        )
        if self._state is None:
            return watched  # both lie in the served folder, and are not where they were when that is not
        return (*watched, WatchedFile("the served folder", root, _version(os.fstat(root_fd))))


def _version(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _open_state(root_fd: int, folder: Path, state: Path | None) -> int:
    if state is None:
        return make_folder(root_fd, RESERVED.encode(), _PRIVATE)
    inside = state.resolve().is_relative_to(folder.resolve())
    if inside and state.resolve().relative_to(folder.resolve()).parts[:1] != (RESERVED,):
        raise NotPermitted("the state must not lie in the served folder, where it would be served")
    os.makedirs(state, mode=_PRIVATE, exist_ok=True)
    return open_root(os.fspath(state))


def _open_above(root_fd: int, state_fd: int, beside: bool) -> int:
    """The folder in which each state has a folder of its own for partials."""
    if not beside:
        return make_folder(state_fd, b"partials", _PRIVATE)
    beside_fd = make_folder(root_fd, RESERVED.encode(), _PRIVATE)
    try:
        above_fd = make_folder(beside_fd, b"partials", _PRIVATE)
        os.fsync(beside_fd)
    finally:
        os.close(beside_fd)
    return above_fd


def _adopt(ledger: Ledger, above_fd: int, partials_fd: int) -> None:
    """Move partials of this ledger that lie where format 1 had them; what was moved when a crash came stays moved.

    Others that lie there may be another state's, and are left alone.
    """
    with os.scandir(above_fd) as entries:
        there = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    if not there:
        return
    with ledger.read() as view:
        known = {storage_id.hex() for storage_id in view.storage_ids()}
    ours = [name.encode() for name in sorted(there & known)]
    for name in ours:
        with suppress(FileExistsError):
            move_new(above_fd, name, partials_fd, name)
    if ours:
        os.fsync(partials_fd)
        os.fsync(above_fd)


def _mount_id(fd: int) -> str:
    """The mount of an fd: a rename works within one only, even where two mounts show one device."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        return next(line for line in lines if line.startswith("mnt_id:"))


def _explained(error: OSError, folder: Path) -> Exception:
    shown = show_name(os.fspath(folder))
    if error.errno == errno.ENOENT:
        return NotPermitted(f"there is no folder {shown}")
    if error.errno == errno.ENOTDIR:
        return NotPermitted(f"{shown} is not a folder")
    found = refusal(error)
    if isinstance(found, NotPermitted):
        return NotPermitted(f"{shown} cannot be used: {found}")
    return found
