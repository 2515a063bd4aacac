"""What tells a file of this machine, and that nobody has written to it, without reading it.

Device, inode, size, modification time and change time. Whoever writes to a file and sets its modification time back changes
the last of them. Clocks of file systems are coarse: within ``SETTLED_S`` of a change another write could leave the same
times, so a younger fingerprint proves nothing yet.
"""

from __future__ import annotations

import os
from typing import NamedTuple

SETTLED_S = 2.0
"""The age in seconds of a file's last change from which another change would show in its times."""


class Fingerprint(NamedTuple):
    """The identity and the times of a file."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, facts: os.stat_result) -> Fingerprint:
        """That of a file with ``facts``."""
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)

    def settled(self, now_s: float) -> bool:
        """Whether the last change is old enough, at ``now_s`` (seconds of Unix time), that another one would show."""
        return max(self.ctime_ns, self.mtime_ns) < (now_s - SETTLED_S) * 1e9


def is_unchanged(before: os.stat_result, now: os.stat_result) -> bool:
    """Whether two looks have the same fingerprint."""
    return (
        before.st_ino == now.st_ino
        and before.st_ctime_ns == now.st_ctime_ns
        and before.st_mtime_ns == now.st_mtime_ns
        and before.st_size == now.st_size
        and before.st_dev == now.st_dev
    )
