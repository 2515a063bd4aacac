"""BriefDownloads: many downloads of at most one block each, made durable together.

    FOLDER/.HEX.blockproto-part     one file's bytes, until it has its name; HEX is random

Twenty thousand small files are twenty thousand times this, so a file here has no lock, no ledger and no sync of its
own, and a folder is looked into once: a batch syncs the bytes of all its files, renames each, syncs the folders, and only
then is anything of it acknowledged. A name never appears incomplete. What a crash leaves is a hidden partial that nobody was
promised; the next download into that folder removes it once it is a day old. Runs on Linux, macOS and Windows.

Spec: spec/store.md §7.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..blocks import BlockSet
from ..errors import BlockprotoError, NotPermitted, StoreFailed, UnknownFile, UnknownUpload
from . import Facts, Finish, Prefix, StoredFile, Upload, UploadKey, Work
from .portable import open_existing, open_new, read_at, set_mode, set_mtime, sync_folder, write_at
from .refusals import refusal
from .rules import check_brief, outcome_of
from .sidecar_files import PARTIAL_ENDING, stem_beside

SYNC_EACH_MAX = 8
"""How many files are synced one by one; for more, one ``syncfs`` is cheaper where there is one."""
ORPHAN_S = 24 * 3600
FOLDERS_MAX = 1000
CARRIED_MAX = 64 * 1024
"""Files up to this size stay in memory until their batch is committed: making a file while another thread syncs is slow."""
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.blockproto-part")
_HAS_SYNCFS = sys.platform == "linux"
_SYNC_FLAGS = os.O_RDWR if os.name == "nt" else os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
_UTIME_BY_FD = os.utime in os.supports_fd


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that downloads go to, as it was when the first of them came.

    Attributes:
        path: of it.
        device: number of its file system.
        not_taken: names under which other folders stand, and those of which an ordinary download has begun.
    """

    path: str
    device: int
    not_taken: frozenset[str]


class BriefDownload:
    """One file of a ``BriefDownloads``; the port's ``Upload``. Used by one thread at a time."""

    __slots__ = (
        "_content",
        "_fd",
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
    )

    def __init__(self, dest: Path, folder: Folder, key: UploadKey, facts: Facts, file_id: bytes) -> None:
        self.key = key
        self.facts = facts
        self.file_id = file_id
        self.attempt = 0
        self.expires_ms: int | None = None
        self.held = BlockSet()
        self.prefixes: dict[int, Prefix] = {}
        self.dest = dest
        self.folder = folder
        self.partial = f"{folder.path}{os.sep}.{file_id.hex()}{PARTIAL_ENDING}"
        self.exists = False
        self.settled = False
        self.gone = False
        self._fd = -1
        self._content = b""

    def write(self, position: int, piece: memoryview) -> None:
        """See the port. The last byte settles the file and closes it; a small file is only remembered."""
        filesize = self.facts.filesize
        if filesize is not None and filesize <= CARRIED_MAX and position == len(self._content):
            self._content += piece
            return
        try:
            write_at(self._open(), position, piece)
            if position + len(piece) == filesize:
                self.settle()
        except OSError as exc:
            raise refusal(exc) from exc

    def read_into(self, position: int, view: memoryview) -> int:
        """See the port."""
        if self.exists:
            return read_at(self._open(), position, view)
        piece = self._content[position : position + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def digest(self, blockno: int) -> bytes | None:
        """See the port: there is no ledger."""
        return None

    def close(self) -> None:
        """See the port: without a commit its bytes go."""
        self.rest()
        if self.exists and not self.gone:
            with suppress(OSError):
                os.unlink(self.partial)
        self.gone = True

    def settle(self) -> None:
        """Give it its mode and mtime and close it; repeated without effect."""
        if self.settled:
            return
        fd = self._open()
        if self._content:
            write_at(fd, 0, memoryview(self._content))
            self._content = b""
        if self.facts.mode is not None:
            set_mode(fd, self.facts.mode)
        if self.facts.mtime_ns is not None:
            if _UTIME_BY_FD:
                set_mtime(fd, self.facts.mtime_ns)
            else:
                set_mtime(Path(self.partial), self.facts.mtime_ns)
        self.settled = True
        mode = self.facts.mode
        if mode is None or mode & 0o400:
            self.rest()  # else it stays open: it could not be opened again to be synced

    def sync(self) -> None:
        """Make bytes, mode and mtime durable."""
        if self._fd < 0:
            self._fd = os.open(self.partial, _SYNC_FLAGS)
        os.fsync(self._fd)
        self.rest()

    def give_name(self) -> None:
        """Give it its final name. Durability: not before the folder is synced."""
        self.rest()
        os.replace(self.partial, self.dest)
        self.gone = True

    def rest(self) -> None:
        """Hold no open file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _open(self) -> int:
        if self._fd < 0:
            if self.gone:
                raise UnknownUpload("the download has ended")
            self._fd = open_existing(self.partial) if self.exists else open_new(self.partial)
            self.exists = True
        return self._fd


class BriefDownloads:
    """The port's ``DownloadStore``: files of at most one block, each to a place of its own."""

    incarnation = 0

    def __init__(self) -> None:
        self._devices: dict[int, int] = {}
        self._folders: dict[str, Folder] = {}
        self._ids = secrets.token_bytes(8)
        self._begun = 0
        self._failed: StoreFailed | None = None

    def close(self) -> None:
        """See the port."""
        self._failed = self._failed or StoreFailed("the store is closed")
        devices, self._devices = self._devices, {}
        for fd in devices.values():
            os.close(fd)

    def takes(self, dest: Path) -> bool:
        """See the port: what an ordinary download began is gone on with by that; what cannot be is refused by that."""
        try:
            return self._folder_of(dest).not_taken.isdisjoint((dest.name, stem_beside(dest.name)))
        except OSError:
            return False

    def begin_at(self, dest: Path, key: UploadKey, facts: Facts) -> BriefDownload:
        """See the port."""
        self._check_usable()
        try:
            folder = self._folder_of(dest)
        except FileNotFoundError:
            raise NotPermitted("the folder of the destination is not there") from None
        except OSError as exc:
            raise refusal(exc) from exc
        self._begun += 1
        return BriefDownload(dest, folder, key, facts, self._ids + self._begun.to_bytes(8, "big"))

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> Upload:
        """See the port."""
        raise NotPermitted("this store must be told the destination")

    def open_upload(
        self, key: UploadKey, facts: Facts, attempt: int, reader: bool = False
    ) -> Upload | StoredFile:
        """See the port."""
        raise NotPermitted("this store takes files of at most one block")

    def commit(self, batch: Sequence[Work]) -> None:
        """See the port: bytes, sync, names, sync. Only ``Finish`` has a meaning here.

        Durability: when this returns, everything with a good outcome survives a power cut.
        """
        self._check_usable()
        try:
            settled = [work for work in batch if isinstance(work, Finish) and self._settled(work)]
            ready = self._sync_bytes(settled)
            named = [work for work in ready if self._named(work)]
            self._sync_folders(named)
        except StoreFailed as exc:
            self._failed = exc
            raise
        for work in named:
            work.outcome = StoredFile(
                work.upload.key.sourceid,
                work.upload.file_id,
                work.root,
                work.filesize,
                work.facts.filename.text,
            )

    # -- the folders

    def _folder_of(self, dest: Path) -> Folder:
        """The folder of a destination; one fd of its device stays open, so that ``syncfs`` reports what failed meanwhile.

        Raises:
            OSError: it cannot be looked into.
        """
        path = os.path.dirname(dest) or os.curdir
        folder = self._folders.get(path)
        if folder is not None:
            return folder
        device = os.stat(path).st_dev
        if _HAS_SYNCFS and device not in self._devices:
            self._devices[device] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if len(self._folders) >= FOLDERS_MAX:
            self._folders.clear()
        folder = self._folders[path] = Folder(path, device, frozenset(_names_not_taken(path)))
        return folder

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise StoreFailed(str(self._failed))

    # -- a batch

    def _settled(self, work: Finish) -> bool:
        work.outcome = None
        try:
            check_brief(work)
            _download_of(work).settle()
            return True
        except (OSError, BlockprotoError) as exc:
            work.outcome = _of_one_file(exc)
            return False

    def _sync_bytes(self, works: list[Finish]) -> list[Finish]:
        """Sync every file; returns those that are durable."""
        devices = {_download_of(work).folder.device for work in works}
        if len(works) > SYNC_EACH_MAX * len(devices) and _HAS_SYNCFS:
            for work in works:
                _download_of(work).rest()
            self._syncfs(devices)
            return works
        return [work for work in works if self._try(work, _download_of(work).sync, syncing=True)]

    def _named(self, work: Finish) -> bool:
        return self._try(work, _download_of(work).give_name)

    def _try(self, work: Finish, step: Callable[[], None], *, syncing: bool = False) -> bool:
        """Take one step with a file; when it fails, its bytes go and that is its outcome."""
        try:
            step()
            return True
        except OSError as exc:
            if syncing:
                raise StoreFailed(f"the medium reported: {exc.strerror}") from exc
            work.outcome = _of_one_file(exc)
            return False

    def _sync_folders(self, works: list[Finish]) -> None:
        folders = {_download_of(work).folder.path: _download_of(work).folder.device for work in works}
        if len(folders) > SYNC_EACH_MAX and _HAS_SYNCFS:
            self._syncfs(set(folders.values()))
            return
        for folder in folders:
            try:
                sync_folder(folder)
            except OSError as exc:
                raise StoreFailed(f"the medium reported: {exc.strerror}") from exc

    def _syncfs(self, devices: set[int]) -> None:
        from .disk import syncfs

        for device in devices:
            try:
                syncfs(self._devices[device])
            except OSError as exc:
                raise StoreFailed(f"the medium reported: {exc.strerror}") from exc


def _download_of(work: Finish) -> BriefDownload:
    assert isinstance(work.upload, BriefDownload)
    return work.upload


def _of_one_file(error: OSError | BlockprotoError) -> BlockprotoError:
    """What went wrong with one file; raises it if the medium can no longer be trusted."""
    found = outcome_of(error) if isinstance(error, BlockprotoError) else refusal(error)
    if isinstance(found, StoreFailed):
        raise found from error
    return NotPermitted("the folder of the destination is gone") if isinstance(found, UnknownFile) else found


def _names_not_taken(folder: str) -> Iterator[str]:
    """The names in a folder that an ordinary download has to judge.

    On the way the partials go that an earlier run left when it was killed; one that is a day old is nobody's.
    """
    before = time.time() - ORPHAN_S
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield entry.name
            elif _PARTIAL.fullmatch(entry.name):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_ctime < before:
                        os.unlink(entry.path)
            elif entry.name.endswith(PARTIAL_ENDING):
                yield entry.name.removesuffix(PARTIAL_ENDING)
