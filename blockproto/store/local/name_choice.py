"""Choosing: which name a file gets, and whether the file that has the name is this one already.

    keep      the first name that is free; or the first, of those that are tried, whose file has the same size and root
    refuse    the name; or its file, if that has the same size and root
    replace   the name, whatever file has it; if that has the same bytes, they stay
    skip      the name if it is free, else what has it is left
    update    as replace if ours is later by mtime, else what has it is left

What has the same bytes is only known where its digest was computed from them (``FinishedFiles.root_of``). Where it was not,
nothing is decided: ``Undecided`` names what is to be read, by somebody who holds nobody up.

Many works of a batch can want one name, and each asks for all that was given before it. So what was found under a name is
remembered while the batch is planned; what changes it there is told (``forget``).

Spec: BP1-COM-013, BP1-COM-021 to 025.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol

from ...common.blocks import EMPTY_DIGEST
from ...common.names import SafeName
from ...common.times import mtime_of
from ...errors import FileExists, NameRefused
from .. import (
    FOLDER_FILETYPE,
    ROUNDS_MAX,
    AskFirst,
    Facts,
    IfExists,
    StoredFile,
    Undecided,
    UploadKey,
    Verdict,
)
from ..folder_io import Folders, look
from ..name_rules import Kind, decide_name, is_later, kind_of
from ..rules import first_free, free_name
from .finished_files import FinishedFiles
from .ledger_view import View
from .name_collisions import NameCollisions
from .records import Identity

COMPARED_MAX = 100
"""How many names are compared at most before one of those behind them is taken that is free (BP1-COM-021)."""


@dataclass(slots=True)
class Wanted:
    """What is to be under a name.

    Attributes:
        key, file_id: of the upload.
        facts: its name, and the rule for it.
        root, filesize: of its bytes; ``filesize`` None: not known.
        reader: its principal may read: a file that is there may be this one (BP1-COM-021).
        rounds: how often it was ``Undecided``.
        unasked: hooks have to agree first.
    """

    key: UploadKey
    file_id: bytes
    facts: Facts
    root: bytes
    filesize: int | None
    reader: bool
    rounds: int
    unasked: bool


def must_be_asked(wanted: Wanted) -> None:
    """Raise AskFirst if hooks have to agree first, before the file gets a name or becomes one that is there."""
    if wanted.unasked:
        raise AskFirst(wanted.file_id)


class Planned(Protocol):
    """A file of the batch that gets a name."""

    @property
    def root(self) -> bytes:
        """Of its bytes."""

    @property
    def identity(self) -> Identity:
        """What it will be known by."""


@dataclass(frozen=True, slots=True)
class NameChoice:
    """What becomes of a file.

    Attributes:
        name: the name it gets, or has, or that is left.
        over: what has the name is replaced.
        there: what has the name is this file already.
        left: what has the name is left as it is.
    """

    name: str
    over: bool = False
    there: os.stat_result | None = None
    left: os.stat_result | None = None


class NameChooser:
    """Chooses the names of one batch.

    Args:
        finished: the store's files.
        folders: the folders the batch has open.
        collisions: refuses names that some file systems take for the same, or None.
    """

    def __init__(self, finished: FinishedFiles, folders: Folders, collisions: NameCollisions | None) -> None:
        self._finished = finished
        self._folders = folders
        self._collisions = collisions
        self._planned: dict[str, Planned] = {}
        self._found: dict[str, os.stat_result | None] = {}
        self._roots: dict[str, bytes | None] = {}
        self._free_names: dict[tuple[SafeName, int], SafeName] = {}

    def plan(self, name: str, planned: Planned) -> None:
        """A file of this batch gets that name."""
        self._planned[name] = planned

    def unplan(self, name: str) -> None:
        """It does not: somebody else was first."""
        self._planned.pop(name, None)
        self.forget()  # others of the batch have their names already

    def forget(self, name: str | None = None) -> None:
        """What was found under a name, or under any, is not there any more, or there is more now."""
        if name is None:
            self._found.clear()
            self._roots.clear()
            return
        self._roots.pop(name, None)
        while name:
            self._found.pop(name, None)
            name = name.rpartition("/")[0]

    def is_planned(self, name: str) -> bool:
        """Whether a file of this batch gets that name."""
        return name in self._planned

    def choose(self, view: View, wanted: Wanted) -> NameChoice:
        """Which name, and what becomes of what has it.

        Raises:
            FileExists: it is taken, and the rule is to refuse it then.
            NotPermitted: what has it cannot be replaced.
            NameRefused: there is no name left.
            Undecided: what has it has to be read first, or published.
            OSError: as the system reports it.
        """
        name, facts = wanted.facts.filename.text, wanted.facts
        found = self._look(name)
        if found is None and name not in self._planned:
            return NameChoice(name)
        if facts.if_exists is IfExists.KEEP:
            return self._keep(view, wanted)
        there = Kind.FILE if found is None or name in self._planned else kind_of(found.st_mode)
        newer = self._is_later(facts, found)
        verdict = decide_name(facts.if_exists, there, equal=None, newer=newer)
        if verdict is Verdict.COMPARE:
            equal = self._is_equal(view, name, found, wanted)
            verdict = decide_name(facts.if_exists, there, equal=equal, newer=newer)
        if verdict is Verdict.LEAVE:
            return self._left(name, found, wanted)
        if verdict is Verdict.REFUSE:
            raise FileExists
        return NameChoice(name, over=True) if verdict is Verdict.REPLACE else NameChoice(name, there=found)

    # -- the rules

    def _keep(self, view: View, wanted: Wanted) -> NameChoice:
        unread: list[str] = []
        names = (self._free_name(wanted.facts.filename, number) for number in count())
        free = None
        for name in islice(names, COMPARED_MAX) if wanted.reader else ():
            found = self._look(name.text)
            if found is None and name.text not in self._planned:
                free = name
                break
            if self._same(view, name.text, found, wanted, unread) and found is not None:
                return NameChoice(name.text, there=found)
        self._demand(unread)
        if free is None or not self._is_free(free):
            free = first_free(wanted.facts.filename, self._is_free, self._free_name)
        return NameChoice(free.text)

    def _left(self, name: str, found: os.stat_result | None, wanted: Wanted) -> NameChoice:
        """What has the name is left; what is to get it in this batch is looked at when it has it."""
        if name in self._planned and wanted.rounds < ROUNDS_MAX:
            raise Undecided
        return NameChoice(name, left=found or os.stat_result((0,) * 10))

    def _is_later(self, facts: Facts, found: os.stat_result | None) -> bool:
        planned = self._planned.get(facts.filename.text)
        there = planned.identity.mtime_ns if planned is not None else mtime_of(found) if found else None
        return there is not None and is_later(facts, there)

    # -- what is there

    def _is_equal(self, view: View, name: str, found: os.stat_result | None, wanted: Wanted) -> bool:
        """Whether what has the name is the file; raises Undecided while that has to be found out."""
        unread: list[str] = []
        if self._same(view, name, found, wanted, unread) and found is not None:
            return True
        self._demand(unread)
        return False

    def _same(
        self, view: View, name: str, found: os.stat_result | None, wanted: Wanted, unread: list[str]
    ) -> bool:
        """Whether the file of that name has the size and root of ``wanted``; one that has to be read is noted in ``unread``.

        Raises:
            Undecided: a file of this batch that has them is to get the name.
        """
        if not wanted.reader:
            return False
        planned = self._planned.get(name)
        if planned is not None:
            if (planned.identity.size, planned.root) == (
                wanted.filesize,
                wanted.root,
            ) and wanted.rounds < ROUNDS_MAX:
                raise Undecided
            return False
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != wanted.filesize:
            return False
        root = EMPTY_DIGEST if found.st_size == 0 else self._root_of(view, name, found)
        if root is None and wanted.rounds < ROUNDS_MAX:
            unread.append(name)
        return root == wanted.root

    @staticmethod
    def _demand(unread: list[str]) -> None:
        if unread:
            raise Undecided(tuple(unread))

    def look(self, name: str) -> os.stat_result | None:
        """What has a name now, a symlink itself included."""
        folder, _, last = name.rpartition("/")
        try:
            return look(self._folders.open(folder), last.encode())
        except FileNotFoundError:
            return None

    def _look(self, name: str) -> os.stat_result | None:
        if name not in self._found:
            self._found[name] = self.look(name)
        return self._found[name]

    def _root_of(self, view: View, name: str, found: os.stat_result) -> bytes | None:
        if name not in self._roots:
            self._roots[name] = self._finished.root_of(view, name, found)
        return self._roots[name]

    def _free_name(self, filename: SafeName, number: int) -> SafeName:
        if number == 0:
            return filename
        name = self._free_names.get((filename, number))
        if name is None:
            name = self._free_names[filename, number] = free_name(filename, number)
        return name

    def _is_free(self, name: SafeName) -> bool:
        if self._collisions is not None:
            try:
                self._collisions.check(name)
            except NameRefused:
                return False
        return name.text not in self._planned and self._look(name.text) is None


def early_choice(
    finished: FinishedFiles, folders: Folders, view: View, key: UploadKey, facts: Facts, reader: bool
) -> StoredFile | None:
    """What is known at OPEN of a name: it is left (BP1-COM-026), or nothing is known yet (None).

    Raises:
        FileExists, NotPermitted: the commit would be refused (BP1-COM-020).
    """
    found = finished.look(facts.filename.text, folders)
    if found is None:
        return None
    folder = facts.filetype == FOLDER_FILETYPE
    may_be_equal = reader and facts.filesize in (None, found.st_size)
    verdict = decide_name(
        facts.if_exists,
        kind_of(found.st_mode),
        folder=folder,
        equal=None if may_be_equal else False,
        newer=is_later(facts, mtime_of(found)),
    )
    if verdict is Verdict.REFUSE:
        raise FileExists
    if verdict is not Verdict.LEAVE:
        return None
    return left_as(finished, view, key, facts.filename.text, found, reader)


def left_as(
    finished: FinishedFiles, view: View, key: UploadKey, name: str, found: os.stat_result, reader: bool
) -> StoredFile:
    """The answer that what has a name was left, with what a reader may know of it (BP1-COM-025, BP1-PRN-010)."""
    file_id, root, filesize = bytes(16), bytes(32), 0
    if reader and stat.S_ISREG(found.st_mode):
        filesize = found.st_size
        root = finished.root_of(view, name, found) or root
        file_id = finished.file_id_of(view, name, found) or file_id
    return StoredFile(key.sourceid, file_id, root, filesize, name, left=True)
