"""A folder that a download makes under a name of its own: until all of it is there, the same download goes on in it.

    DEST/.blockproto-LABEL.lock     from the making of DEST until all of it is there; locked while the download runs

Without this file DEST is a folder of the user's, and a folder that is fetched goes below it. The file is called like what is
in progress: nothing sends it, and ``blockproto clean`` removes it where the download was given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import BlockprotoError
from .part_names import PartFileLock, is_ours, names_of
from .target_folder import TargetFolder


class BegunFolder:
    """The mark of one folder that is being downloaded. Blocking.

    Args:
        path: the folder, DEST; links on the way to it are followed.
        label: of the download, see ``Destination``.
    """

    def __init__(self, path: Path, label: str) -> None:
        self._path = path
        self._name = names_of(label).lock

    def is_marked(self) -> bool:
        """Whether this download has begun the folder, and not finished it."""
        with suppress(OSError, BlockprotoError):
            place = TargetFolder(self._path)
            try:
                found = place.look(self._name)
                return found is not None and is_ours(found)
            finally:
                place.close()
        return False

    @contextmanager
    def marked(self, is_complete: Callable[[], bool]) -> Iterator[None]:
        """Make and mark the folder; at the end the mark goes if all ``is_complete``, and stays after an error.

        A folder that cannot be marked is not found again. One that another process has locked is marked already.
        """
        place = lock = None
        with suppress(OSError, BlockprotoError):
            place = TargetFolder(self._path, make=True)
            lock = PartFileLock(place, self._name)
        try:
            yield
            if lock is not None and is_complete():
                lock.release()
        finally:
            if lock is not None:
                lock.leave()
            if place is not None:
                place.close()
