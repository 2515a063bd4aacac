"""Free space: how much of the disk uploads may take, looked at while they take it.

What was free when an upload was opened proves nothing an hour later, and nothing at all for one of unknown size. So every
few megabytes that are written anywhere in the store the disk is looked at again, and before anything is reserved.

Threads: any number at once; then it may be looked at a little later, or once more.
"""

from __future__ import annotations

import os

from ...errors import StoreFull

SPARE_BYTES = 64 << 20
"""Bytes that uploads leave free on the disk, or a hundredth of it where that is less."""

LOOK_EVERY = 4 << 20
"""Bytes that are written, of all uploads together, until the disk is looked at again."""


class FreeSpace:
    """The room on the file system of the partials.

    Args:
        fd: the folder of partials; stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._taken = 0

    def free(self) -> int:
        """Bytes that uploads may still take; negative once they have more than that."""
        disk = os.fstatvfs(self._fd)
        spare = min(SPARE_BYTES, disk.f_blocks * disk.f_frsize // 100)
        return disk.f_bavail * disk.f_frsize - spare

    def take(self, length: int) -> None:
        """``length`` bytes are going to be written.

        Raises:
            StoreFull: there is no room.
        """
        self._taken += length
        if self._taken < LOOK_EVERY:
            return
        if self.free() < 0:
            raise StoreFull(
                "the disk has no more room for uploads"
            )  # and it is looked at for each piece from now on
        self._taken = 0
