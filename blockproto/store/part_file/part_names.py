"""What lies beside a destination while its download runs: how the files are called, and who holds them.

    .blockproto-LABEL.part      the bytes
    .blockproto-LABEL.ledger    what of them is durable (``ledger.py``)
    .blockproto-LABEL.lock      held while the download runs

    .blockproto-LABEL-TAG.part  the bytes of a small file, which is never resumed; TAG: who writes it (``writer_process.py``)

LABEL is 16 hex digits that the same user finds again and nobody else can guess; those of a small file are random. All are
made for their owner only, and never through a link.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from typing import NamedTuple

from ...common.names import IN_PROGRESS
from ...errors import InTheWay, StoreInUse
from .target_folder import TargetFolder, identity_of

LABEL = re.compile(r"[0-9a-f]{16}")
NAME = re.compile(r"\.blockproto-([0-9a-f]{16})\.(part|ledger|lock)")
SMALL_NAME = re.compile(r"\.blockproto-[0-9a-f]{16}-([0-9a-f]{16})\.part")
OLD_PARTIAL, OLD_LEDGER, OLD_LOCK = ".blockproto-part", ".blockproto-ledger", ".blockproto-lock"
"""Endings of the files beside ``NAME`` that version 0.1.0 before this naming made."""


class PartNames(NamedTuple):
    """The names of one label."""

    partial: str
    ledger: str
    lock: str


def names_of(label: str) -> PartNames:
    """The names of the files of ``label``."""
    assert LABEL.fullmatch(label), label
    stem = f"{IN_PROGRESS}{label}"
    return PartNames(f"{stem}.part", f"{stem}.ledger", f"{stem}.lock")


def small_name(label: str, tag: str) -> str:
    """The name of a small file that the process of ``tag`` writes."""
    return f"{IN_PROGRESS}{label}-{tag}.part"


def is_ours(found: os.stat_result) -> bool:
    """Whether it can be a file that this user made: regular, and this user's."""
    return stat.S_ISREG(found.st_mode) and (not hasattr(os, "geteuid") or found.st_uid == os.geteuid())


def check_ours(found: os.stat_result | None, name: str) -> None:
    """Raise InTheWay if something is there and is not ours."""
    if found is not None and not is_ours(found):
        raise InTheWay(f"'{name}' stands in the way, and is not a file of this user: remove it")


class PartFileLock:
    """A lock by name in a folder, held until it is released.

    Raises:
        StoreInUse: somebody holds it.
        InTheWay: somebody else's file has the name.
        OSError: as the system reports it.
    """

    def __init__(self, place: TargetFolder, name: str) -> None:
        self._place = place
        self._name = name
        self._fd = -1
        check_ours(place.look(name), name)
        while not self._hold():
            pass

    def _hold(self) -> bool:
        """Take it; False if the one who had it removed the file meanwhile."""
        fd = self._place.open_lock(self._name)
        try:
            _lock(fd)
            found = self._place.look(self._name)
            if found is not None and identity_of(found) == identity_of(os.fstat(fd)):
                self._fd = fd
                return True
        finally:
            if self._fd < 0:
                os.close(fd)
        return False

    @property
    def held(self) -> bool:
        """Whether it is held."""
        return self._fd >= 0

    def leave(self) -> None:
        """Let go of it, and leave its file. Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def release(self) -> None:
        """Let go of it, and remove its file. Harmless when repeated."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        with suppress(OSError):
            if os.name != "nt":
                self._place.remove(
                    self._name
                )  # while it is held: who opened it meanwhile sees that it is gone
        os.close(fd)
        if os.name == "nt":
            with suppress(OSError):
                self._place.remove(self._name)


def is_held(place: TargetFolder, name: str) -> bool:
    """Whether somebody holds the lock; one that is not there is held by nobody."""
    found = place.look(name)
    if found is None or not is_ours(found):
        return False
    fd = place.open_existing(name)
    try:
        _lock(fd)
    except StoreInUse:
        return True
    finally:
        os.close(fd)
    return False


def _lock(fd: int) -> None:
    """Lock an open file, or raise StoreInUse."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as exc:
        raise StoreInUse("another process is downloading to the same file") from exc
