"""FolderFiles: the port's ``LocalFiles`` over the folders that downloads go to."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from .. import Destination
from ..os_errors import refusal_here
from .final_name import check_regular
from .portable_io import set_facts
from .target_folder import TargetFolder


class FolderFiles:
    """Looks at files in folders; the last folder stays open, for files come folder by folder.

    Threads: everything may be called at any time.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[str, Path | None], TargetFolder] | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the last folder. Harmless when repeated."""
        with self._lock:
            last, self._last = self._last, None
        if last is not None:
            last[1].close()

    def look(self, dest: Destination, name: str) -> os.stat_result | None:
        """See the port."""
        try:
            with self._lock:
                return self._place(dest).look(name)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise refusal_here(exc) from exc

    def set_facts(self, dest: Destination, name: str, mode: int, mtime_ns: int) -> None:
        """See the port."""
        try:
            with self._lock:
                place = self._place(dest)
                check_regular(place.look(name))
                fd = place.open_to_read(name)
            try:
                check_regular(os.fstat(fd))
                set_facts(fd, place.path, name, mode, mtime_ns)
            finally:
                os.close(fd)
        except OSError as exc:
            raise refusal_here(exc) from exc

    def _place(self, dest: Destination) -> TargetFolder:
        key = os.path.dirname(dest.path), dest.below
        if self._last is not None and self._last[0] == key and self._last[1].is_there():
            return self._last[1]
        place = TargetFolder(dest.path.parent, dest.below)
        if self._last is not None:
            self._last[1].close()
        self._last = key, place
        return place
