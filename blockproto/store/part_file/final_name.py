"""Giving a download its name: the one its rule says, and never to another file than the one that was verified.

Which file stands under the partial's name is looked at through the open folder before the name is given, and what stands
under the name afterwards. Another than the one that was written and verified gets no name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...common.blocks import BLOCK_LENGTH
from ...common.names import free_entries
from ...common.times import is_newer
from ...errors import FileExists, InTheWay, NotPermitted
from .. import Destination, Facts, IfExists, Verdict, judge_taken
from ..open_file import OpenFile
from .portable_io import read_at
from .target_folder import TargetFolder, identity_of

_KINDS = (
    (stat.S_ISDIR, "a folder stands where the file should go"),
    (stat.S_ISLNK, "a symbolic link stands where the file should go, and what it leads to is never written"),
    (stat.S_ISFIFO, "a pipe stands where the file should go"),
    (stat.S_ISCHR, "a device stands where the file should go"),
    (stat.S_ISBLK, "a device stands where the file should go"),
    (stat.S_ISSOCK, "a socket stands where the file should go"),
)


def check_regular(found: os.stat_result | None) -> None:
    """Raise InTheWay if something has the name that is no regular file: it is neither written nor replaced."""
    if found is None or stat.S_ISREG(found.st_mode):
        return
    raise InTheWay(
        next((text for is_it, text in _KINDS if is_it(found.st_mode)), "no regular file stands there")
    )


@dataclass(slots=True)
class CompleteFile:
    """A file that is verified and durable, and waits for its name.

    Attributes:
        place: the folder.
        partial: its name there until then.
        facts_there: what it was when it was verified.
        file: the file itself.
        dest, facts: where it goes and what is known of it; ``facts.if_exists`` says what to do when the name is taken.
        announce: called with each name before it is tried.
    """

    place: TargetFolder
    partial: str
    facts_there: os.stat_result
    file: OpenFile
    dest: Destination
    facts: Facts
    announce: Callable[[str], None] = lambda _: None

    def give_name(self) -> tuple[str, bool]:
        """Give it its name.

        Returns:
            The name, and whether a file of the same content had it already; then the partial is still there.

        Raises:
            FileExists: the name is taken and the rule leaves it to what has it.
            InTheWay: what has the name is no regular file.
            NotPermitted: the partial is not the file that was verified.
            OSError: as the system reports it.

        Durability: none before the folder is synced.
        """
        name = self.dest.path.name
        if self._take_free(name):
            return name, False
        for target in self._names(name):
            while (taken := self._judge(target, first=target == name)) in (None, Verdict.REPLACE):
                self.announce(target)
                try:
                    self._move(target, replace=self.facts.if_exists is IfExists.REPLACE or taken is not None)
                except FileExistsError:
                    continue  # somebody took it in this instant: judge again
                self.dest.made.add(identity_of(self.facts_there))
                return target, False
            if taken is Verdict.THERE:
                return target, True
            if taken is not Verdict.NEXT:
                raise FileExists
        raise FileExists

    def _take_free(self, name: str) -> bool:
        """Take the name if nothing has it, without a look before, as it is with nearly every file."""
        self.announce(name)
        try:
            self._move(name, replace=False)
        except FileExistsError:
            return False
        self.dest.made.add(identity_of(self.facts_there))
        return True

    def _names(self, name: str) -> Iterator[str]:
        yield name
        if self.facts.if_exists is IfExists.KEEP:
            yield from free_entries(name)

    def _judge(self, target: str, *, first: bool) -> Verdict | None:
        """What to do about what has the name; None if nothing has it."""
        found = self.place.look(target)
        if found is None:
            return None
        if not stat.S_ISREG(found.st_mode) and not first:
            return Verdict.NEXT
        check_regular(found)
        rule, mtime_ns = self.facts.if_exists, self.facts.mtime_ns
        newer = mtime_ns is not None and is_newer(mtime_ns, found.st_mtime_ns)
        equal = None if rule in (IfExists.KEEP, IfExists.REFUSE) else False
        verdict = judge_taken(rule, equal=equal, newer=newer)
        if verdict is Verdict.COMPARE:
            verdict = judge_taken(rule, equal=self._is_equal(target), newer=newer)
        if verdict is Verdict.REPLACE and identity_of(found) in self.dest.made:
            raise FileExists("another file of this run has that name here: they would replace each other")
        return verdict

    def _is_equal(self, target: str) -> bool:
        """Whether a regular file has the same bytes."""
        try:
            other = self.place.open_to_read(target)
        except PermissionError:
            return False
        try:
            found = os.fstat(other)
            with self.file as fd:
                size = os.fstat(fd).st_size
                return stat.S_ISREG(found.st_mode) and found.st_size == size and _same_bytes(fd, other, size)
        finally:
            os.close(other)

    def _move(self, target: str, *, replace: bool) -> None:
        if os.name == "nt":
            self.file.rest()  # an open file cannot be renamed there
            self._move_pinned(target, replace)
            return
        with self.file as fd:  # while it is open nobody else's file can get its inode number
            if _version(os.fstat(fd)) != _version(self.facts_there):
                raise self._swapped()
            self._move_pinned(target, replace)

    def _move_pinned(self, target: str, replace: bool) -> None:
        found = self.place.look(self.partial)
        if found is None or _version(found) != _version(self.facts_there):
            raise self._swapped()
        (self.place.move_over if replace else self.place.move_new)(self.partial, target)
        found = self.place.look(target)
        if found is None or identity_of(found) != identity_of(self.facts_there):
            self._take_back(target)
            raise NotPermitted(f"somebody put another file under '{target}' while it was being named")

    def _swapped(self) -> NotPermitted:
        return NotPermitted(f"'{self.partial}' is not the file that was fetched: somebody replaced it")

    def _take_back(self, target: str) -> None:
        """Put what got the name by mistake back under the name it came from; nothing is lost by that."""
        try:
            self.place.move_new(target, self.partial)
        except (FileExistsError, FileNotFoundError):
            return  # it is not there any more, or it is somebody else's business now


def _version(facts: os.stat_result) -> tuple[int, ...]:
    """What is another one after the file was changed, or another file got its inode number."""
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _same_bytes(one: int, other: int, size: int) -> bool:
    here, there = bytearray(BLOCK_LENGTH), bytearray(BLOCK_LENGTH)
    for position in range(0, size, BLOCK_LENGTH):
        length = read_at(one, position, memoryview(here))
        if read_at(other, position, memoryview(there)) != length or here[:length] != there[:length]:
            return False
    return True
