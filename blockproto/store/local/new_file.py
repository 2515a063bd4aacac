"""NewFile: a whole file on the way to its name; NewFiles: how such files are made and get their names.

without a name   O_TMPFILE in the folder of the name, then linkat(2) through /proc/self/fd, which never overwrites
to replace       the same, linked into the folder of partials, then rename(2) over what has the name
as a partial     where the file system makes no files without a name, or there is no /proc: created in the folder of
                 partials, then renamed as the partial of any upload
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from ...errors import BlockprotoError
from .. import Facts, StoredFile, StoreFiles, WholeFile
from ..folder_io import (
    create_file,
    create_unnamed,
    give_name,
    move_new,
    move_over,
    open_own_fds,
    remove_file,
    write_all,
)
from .context import LocalContext
from .name_choice import Wanted
from .partial_file import FILE_MODE, settle_file
from .records import Identity, ReceiptRecord, UploadRecord, pack_receipt


@dataclass(slots=True, eq=False)
class NewFile:
    """A file of a batch that gets its name: open, with all its bytes, its mode and its mtime.

    There are thousands of them in a batch, so the receipt of one is an object only where somebody asks for it.

    Attributes:
        file, work: what asks for it.
        at: which of the work's files it is.
        file_id: of the upload.
        name: which it gets.
        over: it replaces what has the name.
        former: the file id that the name had before.
        left: the record of an unfinished upload that is superfluous now, or None.
        committed_ms: when, Unix ms.
        identity: what it will be known by.
        fd: its descriptor; -1: closed.
        partial: its name in the folder of partials, if it has one there.
        error: why it did not get its name.
    """

    file: WholeFile
    work: StoreFiles
    at: int
    file_id: bytes
    name: str
    over: bool
    former: bytes | None
    left: UploadRecord | None
    committed_ms: int
    identity: Identity
    fd: int
    partial: bytes | None
    error: BlockprotoError | None = None

    @property
    def root(self) -> bytes:
        """Of its bytes."""
        return self.file.root

    @property
    def finalising(self) -> None:
        """Recovery finishes no such file: one without a name is gone."""
        return None

    @property
    def wanted(self) -> Wanted:
        """What it is to be."""
        return wanted_by(self.work, self.file, self.file_id)

    @property
    def receipt(self) -> ReceiptRecord:
        """What is recorded before the name is there."""
        file, identity = self.file, self.identity
        return ReceiptRecord(
            file.key,
            self.file_id,
            file.root,
            identity.size,
            identity,
            self.committed_ms,
            self.name,
            file.facts.filetype,
            file.facts.if_exists,
        )

    def take(self, name: str, former: bytes | None, *, over: bool) -> None:
        """It gets another name than was planned."""
        self.name, self.former, self.over = name, former, over

    def record(self) -> bytes:
        """The receipt as it is recorded."""
        file = self.file
        facts = file.facts
        return pack_receipt(
            file.key,
            file.root,
            self.identity,
            self.committed_ms,
            self.name,
            facts.filetype,
            facts.if_exists,
        )

    def stored(self) -> StoredFile:
        """The receipt as the port has it."""
        file = self.file
        size, name = self.identity.size, self.name
        return StoredFile(file.key.sourceid, self.file_id, file.root, size, name, new=True)


def wanted_by(work: StoreFiles, file: WholeFile, file_id: bytes) -> Wanted:
    """What a file of a work is to be."""
    length, rounds = file.length, work.rounds
    return Wanted(file.key, file_id, file.facts, file.root, length, work.reader, rounds, work.unasked)


def make_unnamed(
    folder_fd: int, facts: Facts, content: bytes | memoryview
) -> tuple[int, os.stat_result] | None:
    """Make a file without a name, with its bytes, mode and mtime.

    Args:
        folder_fd: the folder in which it is to get its name, or one above.
        facts: its mode and mtime, where stated.
        content: its bytes.

    Returns:
        Its descriptor, and what it is; None where the file system makes no such files.

    Raises:
        OSError: as the system reports it; nothing is left.
    """
    fd = create_unnamed(folder_fd, _mode_of(facts))
    if fd is None:
        return None
    try:
        return fd, _fill(fd, facts, content)
    except BaseException:
        os.close(fd)
        raise


def _mode_of(facts: Facts) -> int:
    return FILE_MODE if facts.mode is None else facts.mode


def _fill(fd: int, facts: Facts, content: bytes | memoryview) -> os.stat_result:
    if content:
        write_all(fd, 0, content)
    return settle_file(fd, facts, len(content), cut=False)


class NewFiles:
    """Makes the new files of one batch and gives them their names.

    Args:
        context: the store's.
    """

    def __init__(self, context: LocalContext) -> None:
        self._context = context
        self._own_fds: int | None = None
        self._unnamed = context.makes_unnamed

    def make(
        self, folder_fd: int, facts: Facts, content: bytes | memoryview
    ) -> tuple[int, bytes | None, os.stat_result]:
        """Make a file with its bytes, mode and mtime.

        Args:
            folder_fd: the folder in which it is to get its name.
            facts: its mode and mtime, where stated.
            content: its bytes.

        Returns:
            Its descriptor; its name in the folder of partials, if it has one; and what it is.

        Raises:
            OSError: as the system reports it; nothing is left.
        """
        if self.makes_unnamed:
            made = make_unnamed(folder_fd, facts, content)
            if made is not None:
                return made[0], None, made[1]
            self._unnamed = self._context.makes_unnamed = False
        partial = _random_name()
        fd = create_file(self._context.partials_fd, partial, _mode_of(facts))
        try:
            return fd, partial, _fill(fd, facts, content)
        except BaseException:
            self.drop(fd, partial)
            raise

    @property
    def makes_unnamed(self) -> bool:
        """Whether files without a name can be made and get one, as far as that is known."""
        if self._unnamed and self._own_fds is None:
            self._own_fds = open_own_fds()
            self._unnamed = self._own_fds is not None
        return self._unnamed

    def give_name(self, new: NewFile, folder_fd: int, last: bytes) -> None:
        """Give a file its name.

        Args:
            new: the file.
            folder_fd: where.
            last: the last component of its name.

        Raises:
            FileExistsError: the name is taken, and nothing changed.
            OSError: as the system reports it.
        """
        partials_fd = self._context.partials_fd
        if new.partial is None:
            assert self._own_fds is not None
            if not new.over:
                give_name(self._own_fds, new.fd, folder_fd, last)
                return
            partial = _random_name()
            give_name(self._own_fds, new.fd, partials_fd, partial)
            new.partial = partial
        move = move_over if new.over else move_new
        move(partials_fd, new.partial, folder_fd, last)
        new.partial = None

    def drop(self, fd: int, partial: bytes | None) -> None:
        """Close a file; one that did not get its name goes."""
        os.close(fd)
        if partial is not None:
            with suppress(OSError):
                remove_file(self._context.partials_fd, partial)

    def close(self, files: Iterable[NewFile]) -> None:
        """Close ``files``, and let go of what was needed for their names; harmless when repeated."""
        for new in files:
            if new.fd >= 0:
                self.drop(new.fd, new.partial)
                new.fd, new.partial = -1, None
        fd, self._own_fds = self._own_fds, None
        if fd is not None:
            os.close(fd)


def _random_name() -> bytes:
    return secrets.token_hex(16).encode()
