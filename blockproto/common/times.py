"""Modification times between what file systems keep and what the wire carries.

The wire has nanoseconds since 1970 in an i64: 1677-09-21 to 2262-04-11. File systems keep less (ext3 and many network file
systems end in 2038 or 2106, ext4 begins in 1901) or more (ext4 ends in 2446, tmpfs hardly ever). A time beyond what can be
kept or carried becomes the nearest that can, on both sides, and counts as equal to it: else such a file would travel at
every run.

Spec: BP1-FRM-021.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from .names import show_name

S = 1_000_000_000
"""Nanoseconds of a second."""

MTIME_MIN_NS = -(1 << 63) + 1
"""The earliest time that is said; one nanosecond earlier stands for "unknown" in our ledgers."""

MTIME_MAX_NS = (1 << 63) - 1
"""The latest time that is said."""

EARLIEST_KEPT_NS = (MTIME_MIN_NS, -(1 << 31) * S, 0, 315_532_800 * S)
"""Where the times of file systems begin: 64 bits, 1901 (32 bits), 1970 (unsigned), 1980 (FAT)."""

LATEST_KEPT_NS = (MTIME_MAX_NS, ((1 << 31) - 1) * S, ((1 << 32) - 1) * S, 4_354_819_198 * S)
"""Where they end: 64 bits, 2038, 2106, 2107 (FAT)."""

_NOT_TAKEN = {getattr(errno, name) for name in ("EINVAL", "ERANGE", "EOVERFLOW") if hasattr(errno, name)}


def clamp(mtime_ns: int) -> int:
    """The nearest time that the wire carries."""
    if MTIME_MIN_NS <= mtime_ns <= MTIME_MAX_NS:  # as good as always, and asked some times for each file
        return mtime_ns
    return MTIME_MIN_NS if mtime_ns < 0 else MTIME_MAX_NS


def mtime_of(found: os.stat_result) -> int:
    """The modification time of a file for the wire: ``clamp`` of what the file system keeps."""
    mtime_ns = found.st_mtime_ns
    return mtime_ns if MTIME_MIN_NS <= mtime_ns <= MTIME_MAX_NS else clamp(mtime_ns)


def ctime_of(found: os.stat_result) -> int:
    """The time of a file's last change of any kind, likewise; it cannot be set by programs."""
    return clamp(found.st_ctime_ns)


def same_mtime(one_ns: int, other_ns: int) -> bool:
    """Whether two files that are alike else have the same time, as far as both could keep it.

    Equal, or one is exactly where a file system's times begin or end and the other lies beyond that.
    """
    one, other = clamp(one_ns), clamp(other_ns)
    if one == other:
        return True
    earlier, later = sorted((one, other))
    return later in EARLIEST_KEPT_NS or earlier in LATEST_KEPT_NS


def is_newer(one_ns: int, other_ns: int) -> bool:
    """Whether the first time is strictly later, as far as both could be kept."""
    return clamp(one_ns) > clamp(other_ns) and not same_mtime(one_ns, other_ns)


def set_mtime(at: int | str | os.PathLike[str], mtime_ns: int, *, follow_symlinks: bool = True) -> None:
    """Set the modification time of a file, or the nearest one that its file system takes.

    Raises:
        OSError: as the system reports it; not for a time that it does not take.
    """
    wanted = clamp(mtime_ns)
    try:
        os.utime(at, ns=(wanted, wanted), follow_symlinks=follow_symlinks)
        return
    except OverflowError:
        pass
    except OSError as exc:
        if exc.errno not in _NOT_TAKEN:
            raise
    for nearest in _within(wanted):
        try:
            os.utime(at, ns=(nearest, nearest), follow_symlinks=follow_symlinks)
            return
        except OverflowError:
            continue
        except OSError as exc:
            if exc.errno not in _NOT_TAKEN:
                raise


def _within(mtime_ns: int) -> list[int]:
    """Ever narrower clamps of a time that was not taken; none where it lies within the narrowest."""
    narrower = zip(sorted(EARLIEST_KEPT_NS)[1:], sorted(LATEST_KEPT_NS, reverse=True)[1:], strict=True)
    clamps = [min(max(mtime_ns, earliest), latest) for earliest, latest in narrower]
    return [one for one in dict.fromkeys(clamps) if one != mtime_ns]


class SaidOnce:
    """Says once that times had to be changed, with the first such file.

    Args:
        say: called with the sentence.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = False

    def look(self, found: os.stat_result, name: str) -> int:
        """Return ``mtime_of(found)``; say so if that is another time, unless it was said before.

        Args:
            found: what the file is.
            name: of it.
        """
        mtime_ns = mtime_of(found)
        if mtime_ns != found.st_mtime_ns and not self._said:
            self._said = True
            self._say(
                f"'{show_name(name)}' has a time before 1677 or after 2262: such times are told as the nearest within"
            )
        return mtime_ns
