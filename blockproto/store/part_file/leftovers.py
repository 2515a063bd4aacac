"""What is left of downloads in a folder: found, told apart from what runs, and removed on request.

    .blockproto-LABEL.part|ledger|lock        a download that was stopped; its ledger says of which file
    .blockproto-LABEL-TAG.part                a small file; TAG tells whether its process has ended (``writer_process.py``)
    .blockproto-LABEL.part alone              one of an earlier version
    .blockproto-LABEL.lock alone              the mark of a folder whose download was stopped (``begun_folder.py``)
    NAME.blockproto-part|ledger|lock          a download of an earlier version, if the ledger is one and speaks of NAME
    .HEX.blockproto-part                      a small file that a killed process of that version was writing

Nothing else is ever touched: a file of that kind without its ledger, a link, a file of another user.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...common.names import is_reserved
from ...errors import BlockprotoError, StoreInUse
from .files import old_stem
from .ledger import Begun, read_ledger
from .part_names import (
    NAME,
    OLD_LEDGER,
    OLD_LOCK,
    OLD_PARTIAL,
    SMALL_NAME,
    PartFileLock,
    is_held,
    is_ours,
    names_of,
)
from .target_folder import TargetFolder
from .writer_process import is_gone

YOUNG_S = 600.0
"""A small file has no lock: while it is younger than this, and its process may live, it may be one that is being written."""
_OLD_BRIEF = re.compile(r"\.[0-9a-f]{32}\.blockproto-part")


FailedFolder = Callable[[Path, OSError | BlockprotoError], None]
"""Called with a folder that cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is left of one download.

    Attributes:
        folder: where it lies.
        names: of its files, the partial first.
        lock: the name of the lock that a running download holds; None for small files, which have none.
        filesize: bytes that they occupy, all together.
        changed_s: when the last of them was changed, Unix time.
        of: the name the file was to get, as far as a ledger says; else None.
        held, blocknum: blocks that are here, and that it has; None where that is not known.
        running: whether a download holds it now.
    """

    folder: Path
    names: tuple[str, ...]
    lock: str | None
    filesize: int
    changed_s: float
    of: str | None
    held: int
    blocknum: int | None
    running: bool

    @property
    def path(self) -> Path:
        """Of its partial, or of the first file there is."""
        return self.folder / self.names[0]


def find_leftovers(top: Path, now_s: float, fail: FailedFolder) -> Iterator[Leftover]:
    """Everything that is left of downloads in a folder and below it; no link is followed, and no store is looked into.

    Args:
        top: the folder.
        now_s: Unix time.
        fail: told of each folder that cannot be read.
    """
    waiting = [top]
    while waiting:
        path = waiting.pop()
        try:
            place = TargetFolder(path, None if path == top else top)
        except (OSError, BlockprotoError) as error:
            fail(path, error)
            continue
        try:
            folders, groups = _look_into(place)
            waiting += [path / name for name in sorted(folders, reverse=True)]
            for names, lock in groups:
                leftover = _leftover(place, names, lock, now_s)
                if leftover is not None:
                    yield leftover
        except (OSError, BlockprotoError) as error:
            fail(path, error)
        finally:
            place.close()


def remove_leftover(leftover: Leftover, top: Path) -> bool:
    """Remove it, unless a download has taken it up meanwhile; False then.

    Raises:
        OSError, NotPermitted: it cannot be removed.
    """
    place = TargetFolder(leftover.folder, None if leftover.folder == top else top)
    try:
        lock = None if leftover.lock is None else PartFileLock(place, leftover.lock)
        try:
            for name in leftover.names:
                found = place.look(name)
                if name != leftover.lock and found is not None and is_ours(found):
                    place.remove(name)
        finally:
            if lock is not None:
                lock.release()
    except StoreInUse:
        return False
    finally:
        place.close()
    return True


_Group = tuple[tuple[str, ...], str | None]


def _look_into(place: TargetFolder) -> tuple[list[str], list[_Group]]:
    """The folders in a folder, and the names that belong together with their lock."""
    folders: list[str] = []
    labels: dict[str, set[str]] = {}
    small: set[str] = set()
    old: set[str] = set()
    with place.entries() as entries:
        for entry in entries:
            ours = NAME.fullmatch(entry.name)
            if entry.is_dir(follow_symlinks=False):
                if not is_reserved(entry.name):
                    folders.append(entry.name)
            elif ours:
                labels.setdefault(ours[1], set()).add(entry.name)
            elif SMALL_NAME.fullmatch(entry.name):
                small.add(entry.name)
            elif entry.name.endswith((OLD_PARTIAL, OLD_LEDGER, OLD_LOCK)):
                old.add(entry.name)
    groups: list[_Group] = [((name,), None) for name in sorted(small)]
    for label, there in sorted(labels.items()):
        names = names_of(label)
        brief = there == {names.partial}
        groups.append((tuple(name for name in names if name in there), None if brief else names.lock))
    return folders, groups + list(_old_groups(place, old))


def _old_groups(place: TargetFolder, there: set[str]) -> Iterator[_Group]:
    """What an earlier version left: only with a ledger that speaks of the file it lies beside."""
    for name in sorted(there):
        if _OLD_BRIEF.fullmatch(name):
            yield (name,), None
        elif name.endswith(OLD_LEDGER):
            stem = name.removesuffix(OLD_LEDGER)
            begun = read_ledger(place, name)
            if begun is not None and old_stem(begun.facts.filename.text) == stem:
                names = (stem + OLD_PARTIAL, name, stem + OLD_LOCK)
                yield tuple(one for one in names if one in there), stem + OLD_LOCK


def _leftover(place: TargetFolder, names: tuple[str, ...], lock: str | None, now_s: float) -> Leftover | None:
    """What is known of it; None if a file of it is not this user's, or if it is gone."""
    found = [facts for facts in map(place.look, names) if facts is not None]
    if not found or not all(map(is_ours, found)):
        return None
    begun = _begun(place, names)
    changed_s = max(max(facts.st_mtime, facts.st_ctime) for facts in found)
    running = _may_be_written(names[0], now_s - changed_s) if lock is None else is_held(place, lock)
    return Leftover(
        place.path,
        names,
        lock,
        sum(facts.st_size for facts in found if stat.S_ISREG(facts.st_mode)),
        changed_s,
        None if begun is None else begun.facts.filename.text,
        0 if begun is None else len(begun.blocks),
        None if begun is None else _blocknum(begun),
        running,
    )


def _may_be_written(name: str, age_s: float) -> bool:
    """Whether a file without a lock may still be written."""
    small = SMALL_NAME.fullmatch(name)
    return age_s < YOUNG_S and not (small and is_gone(small[1]))


def _begun(place: TargetFolder, names: tuple[str, ...]) -> Begun | None:
    ledger = next((name for name in names if name.endswith((".ledger", OLD_LEDGER))), None)
    return None if ledger is None else read_ledger(place, ledger)


def _blocknum(begun: Begun) -> int | None:
    end = begun.facts.filesize
    return None if end is None else len(begun.shape.blocknos(end))
