"""Name collisions: names that differ only in case or normalisation, which Windows and macOS take for one.

A store that is asked to keep names portable refuses the second of two such names. What is there is what the folders'
listings
say: files count that came by other ways, too. A batch lists each folder it needs once and remembers what it adds itself; so
a folder with many entries is read once for a batch, not once for a file.

What somebody else puts into a folder between the listing and the end of the batch is not seen; then both are there.

Spec: BP1-NAM-005.
"""

from __future__ import annotations

import os

from ...common.names import SafeName, collision, fold, judge_portable
from ..folder_io import Folders


class _Folder:
    """The names in one folder, and one of those that are folded to the same."""

    def __init__(self, names: list[str]) -> None:
        self.names = set(names)
        self.folded = {fold(name): name for name in names}

    def add(self, name: str) -> None:
        self.names.add(name)
        self.folded[fold(name)] = name


class NameCollisions:
    """The names in folders, as they are and as they are folded.

    Args:
        folders: where they are read.
    """

    def __init__(self, folders: Folders) -> None:
        self._open = folders.open
        self._seen: dict[str, _Folder] = {}

    def check(self, name: SafeName) -> None:
        """Raises NameRefused if ``name`` breaks a rule of the profile portable, with what is there or alone."""
        above = ""
        for component in name.components:
            judge_portable(component)
            there = self._in(above)
            twin = None if component in there.names else there.folded.get(fold(component))
            if twin is not None:
                raise collision(component, twin)
            above = f"{above}/{component}" if above else component

    def add(self, name: SafeName) -> None:
        """It is going to be there."""
        above = ""
        for component in name.components:
            self._in(above).add(component)
            above = f"{above}/{component}" if above else component

    def _in(self, folder: str) -> _Folder:
        found = self._seen.get(folder)
        if found is None:
            found = self._seen[folder] = _Folder(self._listing(folder))
        return found

    def _listing(self, folder: str) -> list[str]:
        try:
            return os.listdir(self._open(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []  # nothing is below it; whether it can be made is found when it is made
