"""Compare a file to download with what has its name here: nothing, the same file, or another one.

    nothing there                        → fetch it
    same size and time, or same content  → it is there already
    something else                       → as the rule says: another name, refused, replaced, or left as it is

``look`` answers at once from sizes and times; ``settle`` compares contents where that decides. Downloads of single files and
of folders use both.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from blake3 import blake3

from ..common.blocks import BLOCK_LENGTH, blocknum_of
from ..common.names import free_entries, show_name
from ..common.times import is_newer, same_mtime
from ..errors import FileExists, Refused, SourceChanged, TooFewFiles
from ..results import FileInfo, Outcome, Receipt
from ..store import MODE_BITS, Destination, IfExists, LocalFiles, Verdict, judge_taken
from ..transfer.threads import run_in_thread
from ..wire import FileItem
from .file_digests import FileDigests
from .fingerprint import Fingerprint
from .option_names import Rule
from .receipts import receipt_of
from .regular_file import open_regular

Ask = Callable[[FileItem], Awaitable[FileItem]]
"""Asks the server for what it knows of a file, its BLAKE3 included."""


@dataclass(frozen=True, slots=True)
class ExistingFile:
    """What has the name of a download here.

    Attributes:
        verdict: None: nothing is in its way; else what to do about what has the name ``path``.
        path: the name it is about.
        found: what that file is; None if there is none.
        root: of that file, where it was compared.
    """

    verdict: Verdict | None
    path: Path
    found: os.stat_result | None = None
    root: bytes | None = None

    @property
    def fetched(self) -> bool:
        """Whether the file is to be fetched, and the store gives it its name as the rule says."""
        return self.verdict in (None, Verdict.NEXT, Verdict.REPLACE)


class ExistingFileCheck:
    """Compares downloads with the files that have their names.

    Args:
        files: what lies on this machine; None: nothing, as for stores that have no folder.
        digests: the roots of this machine's files.
        ask: asks for a file's BLAKE3.
    """

    def __init__(self, files: LocalFiles | None, digests: FileDigests, ask: Ask) -> None:
        self._files = files
        self._digests = digests
        self._ask = ask

    def look(self, item: FileItem | FileInfo, dest: Destination, rule: Rule) -> ExistingFile:
        """What ``item`` meets at ``dest``, quickly; ``COMPARE`` if that cannot be told without reading.

        Raises:
            FileExists: the name is taken, and the rule is to refuse then.
            NotPermitted, OSError: the folder cannot be looked into.
        """
        met = self._look(item, dest, rule, dest.path.name)
        if met.verdict is Verdict.NEXT:
            for name in islice(_candidates(dest.path.name, rule), 1, None):
                other = self._look(item, dest, rule, name)
                if other.verdict is not Verdict.NEXT:
                    return met if other.verdict is None else other
        if met.verdict is Verdict.REFUSE:
            raise _refused(met.path)
        return met

    def _look(self, item: FileItem | FileInfo, dest: Destination, rule: Rule, name: str) -> ExistingFile:
        found = None if self._files is None else self._files.look(dest, name)
        first = name == dest.path.name
        path = dest.path if first else dest.path.with_name(name)
        if found is None:
            return ExistingFile(None, path)
        if not stat.S_ISREG(found.st_mode):
            if rule.if_exists is IfExists.SKIP:
                return ExistingFile(Verdict.LEAVE, path, found)
            return ExistingFile(None if first else Verdict.NEXT, path)  # the store refuses it
        verdict = judge_taken(
            rule.if_exists, equal=_equal(item, found, rule), newer=is_newer(item.mtime_ns, found.st_mtime_ns)
        )
        return _checked(ExistingFile(verdict, path, found), rule)

    async def settle(self, item: FileItem, dest: Destination, rule: Rule) -> ExistingFile:
        """What ``item`` meets at ``dest``; contents are compared where that decides.

        Raises:
            SourceChanged: the file on the server is another one meanwhile.
            FileExists, NotPermitted, OSError: as ``look``; ConnectionLost and the like: the server was to be asked.
        """
        wanted: FileItem | None = None
        met = ExistingFile(None, dest.path)
        for name in _candidates(dest.path.name, rule):
            met = self._look(item, dest, rule, name)
            root = None
            if met.verdict is Verdict.COMPARE:
                assert met.found is not None
                wanted = wanted or await self._known(item)
                root = await self._root_if_equal(wanted, met.path, met.found, rule)
                newer = is_newer(item.mtime_ns, met.found.st_mtime_ns)
                verdict = judge_taken(rule.if_exists, equal=root is not None, newer=newer)
                met = _checked(ExistingFile(verdict, met.path, met.found, root), rule)
            if met.verdict is Verdict.REFUSE:
                raise _refused(met.path)
            if met.verdict is not Verdict.NEXT:
                break
        if met.verdict is Verdict.THERE and rule.if_exists is IfExists.REPLACE:
            mode, mtime_ns = item.mode & MODE_BITS, item.mtime_ns
            files = self._files
            assert files is not None  # something is there
            await run_in_thread(lambda: files.set_facts(dest, met.path.name, mode, mtime_ns))
        return met

    async def _known(self, item: FileItem) -> FileItem:
        """``item`` with a digest of its content, if the server tells one."""
        if item.root is not None or item.b3sum is not None:
            return item
        asked = await self._ask(item)
        if asked.version != item.version:
            raise SourceChanged(f"{show_name(item.filename)} changed while it was being compared")
        return asked

    async def _root_if_equal(
        self, item: FileItem, path: Path, found: os.stat_result, rule: Rule
    ) -> bytes | None:
        """A digest of the file at ``path`` if its content is that of ``item``; None if it is not, or nobody can tell."""
        wanted = item.b3sum if item.root is None and blocknum_of(item.filesize) <= 1 else item.root
        try:
            if wanted is not None:
                root = await self._digests.root(path, found, checksum=rule.checksum)
                return root if root == wanted else None
            if item.b3sum is None:
                return None
            b3sum, now = await run_in_thread(partial(_read_b3sum, path))
            same = Fingerprint.of(now) == Fingerprint.of(found) and b3sum == item.b3sum
            return await self._digests.root(path, found) if same else None
        except (SourceChanged, Refused, OSError) as exc:
            if isinstance(exc, OSError) and exc.errno == errno.EMFILE:
                raise TooFewFiles from exc
            return None  # it cannot be read, or is being written to: it counts as another file

    def receipt(self, item: FileItem | FileInfo, met: ExistingFile, elapsed_s: float) -> Receipt:
        """The receipt of a file that was not fetched; it has a root only if the file here was read."""
        assert met.found is not None
        outcome: Outcome = "left" if met.verdict is Verdict.LEAVE else "there"
        return receipt_of(
            item.filename,
            item.filetype,
            met.found.st_size,
            sourceid=item.version if isinstance(item, FileInfo) else item.version.hex(),
            root=met.root,
            stored_as=str(met.path),
            resumed=outcome == "there",
            elapsed_s=elapsed_s,
            outcome=outcome,
        )


CANDIDATES_MAX = 1000
"""How many names are looked at for a file that may be there under another one already."""


def _candidates(name: str, rule: Rule) -> Iterator[str]:
    """The names under which the file may be there already."""
    yield name
    if rule.if_exists is IfExists.KEEP:
        yield from islice(free_entries(name), CANDIDATES_MAX)


def _equal(item: FileItem | FileInfo, found: os.stat_result, rule: Rule) -> bool | None:
    """Whether a file here is ``item``, as far as size and time tell; None if its content must be read for that."""
    if found.st_size != item.filesize:
        return False
    if (
        not same_mtime(found.st_mtime_ns, item.mtime_ns)
        or rule.checksum
        or (found.st_dev, found.st_ino) in rule.made
    ):
        return None
    return True


def _checked(met: ExistingFile, rule: Rule) -> ExistingFile:
    """``met``; raises FileExists if a file of this run would be replaced."""
    found = met.found
    if met.verdict is Verdict.REPLACE and found is not None and (found.st_dev, found.st_ino) in rule.made:
        raise FileExists(
            f"'{show_name(str(met.path))}' came in this run, too, and they would replace each other"
        )
    return met


def _refused(path: Path) -> FileExists:
    return FileExists(f"'{show_name(str(path))}' is here with other content")


def _read_b3sum(path: Path) -> tuple[bytes, os.stat_result]:
    """The BLAKE3 of a file, and what it was when it had been read."""
    hasher = blake3()
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        memory = memoryview(bytearray(BLOCK_LENGTH))
        while read := file.readinto(memory):
            hasher.update(memory[:read])
        return hasher.digest(), os.fstat(file.fileno())
