"""BriefDownloads: many downloads of at most one block each, made durable together.

    FOLDER/.blockproto-LABEL-TAG.part     one file's bytes, until it has its name; LABEL is random, TAG says who writes it

Twenty thousand small files are twenty thousand times this, so a file here has no lock, no ledger and no sync of its
own, and a folder is looked into once: a batch syncs the bytes of all its files, renames each, syncs the folders, and only
then is anything of it acknowledged. A name never appears incomplete. What a crash leaves is a hidden partial that nobody was
promised; the next download into that folder removes it if its process has ended, or once it is a day old where that is not
known. Runs on Linux, macOS and Windows.

Spec: spec/store.md §7.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...common.blocks import BRIEF_LENGTH_MAX, BlockSet
from ...common.names import SafeName, show_name
from ...errors import BlockprotoError, NotPermitted, StoreFailed
from .. import Destination, Facts, Finish, Outcome, Prefix, StoredFile, Upload, UploadKey, Work
from ..open_file import Descriptors, OpenFile
from ..os_errors import refusal_here, refusal_of_sync
from ..rules import outcome_of
from ..upload_state import check_brief
from .files import old_stem
from .final_name import CompleteFile
from .part_names import NAME, OLD_LEDGER, SMALL_NAME, is_ours, names_of, small_name
from .portable_io import files_allowed, read_at, set_facts, write_at
from .target_folder import TargetFolder
from .writer_process import is_gone, tag_of_this_process

SYNC_EACH_MAX = 8
"""How many files are synced one by one; for more, one ``syncfs`` is cheaper where there is one."""
ORPHAN_S = 24 * 3600
FOLDERS_MAX = 1000
OPEN_MAX = 64
"""Folders held open; what is not used is closed where there are more, and opened again when it is."""
KEPT_OPEN_MAX = 512
"""How many files of a batch stay open until they are named; the others are opened again for it."""
KEPT_OPEN_SHARE = 4
"""But no more than one in so many of those that may be open."""
_HAS_SYNCFS = sys.platform == "linux"
if sys.platform == "linux":
    from ..folder_io import syncfs


@dataclass(slots=True)
class Folder:
    """A folder that downloads go to, as it was when the first of them came.

    Attributes:
        place: of it.
        not_taken: names that an ordinary download has to judge: what is no regular file, and what one has begun.
    """

    place: TargetFolder
    not_taken: frozenset[str]


class BriefDownload:
    """One file of a ``BriefDownloads``; the port's ``Upload``. Used by one thread at a time, and closed by any."""

    __slots__ = (
        "_content",
        "_file",
        "_found",
        "attempt",
        "dest",
        "exists",
        "expires_ms",
        "facts",
        "file_id",
        "folder",
        "gone",
        "held",
        "key",
        "partial",
        "prefixes",
        "settled",
        "short_end",
    )

    def __init__(self, dest: Destination, folder: Folder, key: UploadKey, facts: Facts) -> None:
        label = secrets.token_hex(8)
        self.key = key
        self.facts = facts
        self.file_id = label.encode()
        self.attempt = 0
        self.expires_ms: int | None = None
        self.held = BlockSet()
        self.short_end: int | None = None
        self.prefixes: dict[int, Prefix] = {}
        self.dest = dest
        self.folder = folder
        self.partial = small_name(label, tag_of_this_process())
        self.exists = False
        self.settled = False
        self.gone = False
        self._file = OpenFile(self._open)
        self._found: os.stat_result | None = None
        self._content = b""

    @property
    def in_memory(self) -> bool:
        """See the port."""
        return False

    def write(self, position: int, piece: memoryview) -> None:
        """See the port. The last byte settles the file and closes it; a small file is only remembered."""
        filesize = self.facts.filesize
        if filesize is not None and filesize <= BRIEF_LENGTH_MAX and position == len(self._content):
            self._content += piece
            return
        try:
            with self._file as fd:
                write_at(fd, position, piece)
            if position + len(piece) == filesize:
                self.settle()
        except OSError as exc:
            raise refusal_here(exc) from exc

    def read_into(self, position: int, view: memoryview) -> int:
        """See the port."""
        if self.exists:
            with self._file as fd:
                return read_at(fd, position, view)
        piece = self._content[position : position + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def digests(self, blocknos: Iterable[int]) -> dict[int, bytes]:
        """See the port: there is no ledger."""
        return {}

    def close(self) -> None:
        """See the port: without a commit its bytes go."""
        self._file.shut()
        if self.exists and not self.gone:
            with suppress(OSError, BlockprotoError):
                self.folder.place.remove(self.partial)
        self.gone = True

    def settle(self, *, keep_open: bool = False) -> None:
        """Give it its mode and mtime and close it, unless it is to stay open; repeated without effect."""
        if self.settled:
            return
        with self._file as fd:
            if self._content:
                write_at(fd, 0, memoryview(self._content))
                self._content = b""
            set_facts(fd, self.folder.place.path, self.partial, self.facts.mode, self.facts.mtime_ns)
            self._found = os.fstat(fd)
        self.settled = True
        mode = self.facts.mode
        if not keep_open and (mode is None or mode & 0o400):
            self.rest()  # else it stays open: it could not be opened again to be synced

    def sync(self) -> None:
        """Make bytes, mode and mtime durable."""
        with self._file as fd:
            os.fsync(fd)
        self.rest()

    def give_name(self) -> str:
        """Give it its final name, which is returned; see ``CompleteFile.give_name``.

        Durability: not before the folder is synced.
        """
        assert self._found is not None
        complete = CompleteFile(
            self.folder.place, self.partial, self._found, self._file, self.dest, self.facts
        )
        target, there = complete.give_name()
        self.rest()
        self.gone = not there
        return target

    def rest(self) -> None:
        """Hold no open file."""
        self._file.rest()

    def _open(self) -> int:
        place = self.folder.place
        if not self.exists:
            fd = place.open_new(self.partial)
            self.exists = True
            return fd
        fd = place.open_to_read(self.partial) if self.settled else place.open_existing(self.partial)
        found = os.fstat(fd)
        if self._found is not None and (found.st_dev, found.st_ino) != (
            self._found.st_dev,
            self._found.st_ino,
        ):
            os.close(fd)
            raise NotPermitted(f"'{self.partial}' is not the file that was fetched: somebody replaced it")
        return fd


class BriefDownloads:
    """The port's ``DownloadStore``: files of at most one block, each to a place of its own."""

    incarnation = 0
    decisions_at_once = 1

    def __init__(self) -> None:
        self._devices: dict[int, int] = {}
        self._folders: dict[tuple[str, Path | None], Folder] = {}
        self._failed: StoreFailed | None = None
        self._open = Descriptors(OPEN_MAX)
        self._kept_open = min(KEPT_OPEN_MAX, files_allowed() // KEPT_OPEN_SHARE)

    def close(self) -> None:
        """See the port."""
        self._failed = self._failed or StoreFailed("the store is closed")
        devices, self._devices = self._devices, {}
        for fd in devices.values():
            os.close(fd)
        for folder in self._folders.values():
            folder.place.close()
        self._open.rest()

    def takes(self, dest: Destination) -> bool:
        """See the port: what an ordinary download began is gone on with by that; what cannot be is refused by that."""
        try:
            not_taken = self._folder_of(dest).not_taken
        except (OSError, BlockprotoError):
            return False
        if not not_taken:
            return True
        name = dest.path.name
        return not_taken.isdisjoint((name, names_of(dest.label).ledger, old_stem(name) + OLD_LEDGER))

    def begin_at(self, dest: Destination, key: UploadKey, facts: Facts) -> BriefDownload:
        """See the port."""
        self._check_usable()
        try:
            folder = self._folder_of(dest)
        except FileNotFoundError:
            raise NotPermitted(f"the folder {show_name(str(dest.path.parent))} does not exist") from None
        except OSError as exc:
            raise refusal_here(exc) from exc
        return BriefDownload(dest, folder, key, facts)

    def check_parent(self, name: SafeName) -> None:
        """See the port; the place of a download was opened with its folder."""

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> Upload:
        """See the port."""
        raise NotPermitted("this store must be told the destination")

    def open_upload(
        self, key: UploadKey, facts: Facts, attempt: int, reader: bool = False
    ) -> Upload | StoredFile:
        """See the port."""
        raise NotPermitted("this store takes files of at most one block")

    def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        """See the port: bytes, sync, names, sync. Only ``Finish`` has a meaning here."""
        self._check_usable()
        outcomes: dict[Work, Outcome] = dict.fromkeys(works)
        settled: list[Finish] = []
        named: dict[Finish, str] = {}
        try:
            for work in works:
                if isinstance(work, Finish) and _try(
                    outcomes, work, partial(_settle, work, len(settled) < self._kept_open)
                ):
                    settled.append(work)
            for work in self._sync_bytes(outcomes, settled):
                _try(outcomes, work, partial(_give_name, work, named))
            self._sync_folders(list(named))
        except StoreFailed as exc:
            self._failed = exc
            raise
        for work, name in named.items():
            upload = work.upload
            outcomes[work] = StoredFile(upload.key.sourceid, upload.file_id, work.root, work.filesize, name)
        return [outcomes[work] for work in works]

    # -- the folders

    def _folder_of(self, dest: Destination) -> Folder:
        """The folder of a destination; one fd of its device stays open, so that ``syncfs`` reports what failed meanwhile.

        Raises:
            OSError, NotPermitted: it cannot be looked into.
        """
        key = os.path.dirname(dest.path), dest.below
        folder = self._folders.get(key)
        if folder is not None:
            return folder
        place = TargetFolder(dest.path.parent, dest.below, pool=self._open)
        if _HAS_SYNCFS and place.device not in self._devices:
            self._devices[place.device] = place.open_folder()
        if len(self._folders) >= FOLDERS_MAX:
            self._folders.clear()
        folder = self._folders[key] = Folder(place, frozenset(_names_not_taken(place)))
        return folder

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise StoreFailed(str(self._failed))

    # -- a batch

    def _sync_bytes(self, outcomes: dict[Work, Outcome], works: list[Finish]) -> list[Finish]:
        """Sync every file; returns those that are durable."""
        devices = {_download_of(work).folder.place.device for work in works}
        if len(works) > SYNC_EACH_MAX * len(devices) and _HAS_SYNCFS:
            self._syncfs(devices)
            return works
        return [work for work in works if _try(outcomes, work, _download_of(work).sync, refusal_of_sync)]

    def _sync_folders(self, works: list[Finish]) -> None:
        folders = {id(folder): folder for folder in (_download_of(work).folder for work in works)}
        if len(folders) > SYNC_EACH_MAX and _HAS_SYNCFS:
            self._syncfs({folder.place.device for folder in folders.values()})
            return
        for folder in folders.values():
            try:
                folder.place.sync()
            except OSError as exc:
                if isinstance(refusal_of_sync(exc), StoreFailed) or not _HAS_SYNCFS:
                    raise StoreFailed(f"the medium reported: {exc.strerror}") from exc
                self._syncfs({folder.place.device})  # that needs no descriptor more

    def _syncfs(self, devices: set[int]) -> None:
        for device in devices:
            try:
                syncfs(self._devices[device])
            except OSError as exc:
                raise StoreFailed(f"the medium reported: {exc.strerror}") from exc


def _download_of(work: Finish) -> BriefDownload:
    assert isinstance(work.upload, BriefDownload)
    return work.upload


def _settle(work: Finish, keep_open: bool) -> None:
    check_brief(work)
    _download_of(work).settle(keep_open=keep_open and _HAS_SYNCFS)


def _give_name(work: Finish, named: dict[Finish, str]) -> None:
    named[work] = _download_of(work).give_name()


def _try(
    outcomes: dict[Work, Outcome],
    work: Finish,
    step: Callable[[], None],
    refused: Callable[[OSError], BlockprotoError] = refusal_here,
) -> bool:
    """Take one step with a file; what goes wrong is its outcome, and ends everything if the medium cannot be trusted."""
    try:
        step()
        return True
    except (OSError, BlockprotoError) as exc:
        found = outcome_of(exc) if isinstance(exc, BlockprotoError) else refused(exc)
        if isinstance(found, StoreFailed):
            raise found from exc
        outcomes[work] = found
        return False


def _names_not_taken(place: TargetFolder) -> set[str]:
    """The names in a folder that an ordinary download has to judge.

    On the way the small files go that an earlier run left when it was killed.
    """
    found: set[str] = set()
    left: list[tuple[str, bool]] = []
    with place.entries() as entries:
        for entry in entries:
            small = SMALL_NAME.fullmatch(entry.name)
            ours = NAME.fullmatch(entry.name)
            if small:
                left.append((entry.name, is_gone(small[1])))
            elif ours or entry.name.endswith(OLD_LEDGER) or not entry.is_file(follow_symlinks=False):
                found.add(entry.name)
    for name, gone in left:
        with suppress(OSError):
            _remove_orphan(place, name, gone)
    return found


def _remove_orphan(place: TargetFolder, name: str, gone: bool) -> None:
    found = place.look(name)
    if found is not None and is_ours(found) and (gone or found.st_ctime < time.time() - ORPHAN_S):
        place.remove(name)
