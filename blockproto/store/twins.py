"""Twins: names that differ only in case or normalisation, which Windows and macOS take for one.

A store that is asked to keep names portable refuses the second of two twins. What is there is what the folders' listings
say: files count that came by other ways, too. A batch lists each folder it needs once and remembers what it adds itself; so
a folder with many entries is read once for a batch, not once for a file.

What somebody else puts into a folder between the listing and the end of the batch is not seen; then both are there.

Spec: BP1-NAM-005.
"""

from __future__ import annotations

import os

from ..names import SafeName, collision, fold, judge_portable
from .disk import Folders


class Twins:
    """The names in folders, by what they are folded to.

    Args:
        folders: where they are read.
    """

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._names: dict[str, dict[str, set[str]]] = {}

    def check(self, name: SafeName) -> None:
        """Raises NameRefused if ``name`` breaks a rule of the profile portable, with what is there or alone."""
        folder = ""
        for component in name.components:
            judge_portable(component)
            there = self._in(folder).get(fold(component), set())
            if there and component not in there:
                raise collision(component, min(there))
            folder = f"{folder}/{component}" if folder else component

    def add(self, name: SafeName) -> None:
        """It is going to be there."""
        folder = ""
        for component in name.components:
            self._in(folder).setdefault(fold(component), set()).add(component)
            folder = f"{folder}/{component}" if folder else component

    def _in(self, folder: str) -> dict[str, set[str]]:
        found = self._names.get(folder)
        if found is None:
            found = self._names[folder] = {}
            for name in self._listing(folder):
                found.setdefault(fold(name), set()).add(name)
        return found

    def _listing(self, folder: str) -> list[str]:
        try:
            return os.listdir(self._folders.open(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []  # nothing is below it; whether it can be made is found when it is made
