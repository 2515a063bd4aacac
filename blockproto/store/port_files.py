"""The role of files: finished ones, with the capabilities of the place that keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from ..common.names import SafeName
from .facts import Facts, FileEntry
from .port_decisions import Decisions


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a place of finished files keeps; whoever needs more asks for it instead of trying.

    Attributes:
        modes: permission bits, as stated.
        folders: folders are entries of their own, also those in which nothing lies.
        replaced_readable_s: for how many seconds at least an opened file gives its own bytes after its name got others;
            0: that is tried, and SourceChanged where it fails; infinite: as long as it is open.
    """

    modes: bool
    folders: bool
    replaced_readable_s: float


LEFT_OUT_NAMES_MAX = 32
"""Names that are kept of those that are left out for one reason."""


class Reason(IntEnum):
    """Why a listing passes over what is there; the numbers are those of the wire."""

    LINK = 1
    SPECIAL = 2
    NAME = 3
    UNREADABLE = 4


class LeftOut:
    """What one page passed over.

    Attributes:
        counts: how many, for each reason there is.
        names: whole paths in the served folder of the first ``LEFT_OUT_NAMES_MAX`` of them, as bytes.
        waiting: what was passed over since the page's last entry: for each reason how many, and the first names.
    """

    def __init__(self) -> None:
        self.counts: dict[Reason, int] = {}
        self.names: dict[Reason, list[bytes]] = {}
        self.waiting: dict[Reason, tuple[int, list[bytes]]] = {}

    def add(self, reason: Reason, count: int, names: list[bytes]) -> None:
        """What was passed over, with the names of the first; it counts once ``keep`` is called."""
        before, first = self.waiting.get(reason, (0, []))
        self.waiting[reason] = before + count, (first + names)[:LEFT_OUT_NAMES_MAX]

    def drop(self) -> None:
        """None of it: it lies behind the page's last entry."""
        self.waiting.clear()

    def keep(self) -> None:
        """All of it belongs to this page: an entry behind it is on the page, or the listing ends with it."""
        for reason, (count, names) in self.waiting.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            kept = self.names.setdefault(reason, [])
            kept += names[: LEFT_OUT_NAMES_MAX - len(kept)]
        self.waiting.clear()


class StoredReader(Protocol):
    """A finished file opened for reading; it gives the bytes it was opened with, or SourceChanged, and never others.

    How long it can after its name got another file, ``Capabilities.replaced_readable_s`` says.
    """

    entry: FileEntry

    def read_into(self, position: int, view: memoryview) -> int:
        """Fill ``view`` from byte ``position`` on; returns how many bytes there were."""

    def unchanged(self) -> bool:
        """Whether the file still has the version it was opened with."""

    def sync(self) -> None:
        """Make durable what is there under its name. Raises StoreFailed when the medium reported an error."""

    def close(self) -> None:
        """Let go of the file. Harmless when repeated."""


class Files(Protocol):
    """Finished files: look at them, list them, read them.

    Attributes:
        capabilities: what it keeps of what is said of them.
    """

    capabilities: Capabilities

    def may_be_there(self, facts: Facts) -> bool:
        """Whether ``Adopt`` may find something: a quick look, without reading."""

    def stat(self, filename: SafeName) -> FileEntry:
        """One entry. Raises UnknownFile."""

    def files(
        self, folder: str, recursive: bool, cursor: str, limit: int, left_out: LeftOut | None = None
    ) -> tuple[list[FileEntry], str]:
        """Up to ``limit`` entries of ``folder`` in byte order of their names, after ``cursor``.

        ``folder`` "" is the whole served folder. Returns the entries and the next cursor ("" after the last
        page). ``left_out`` is told what the page passed over, each thing once over all pages. Raises UnknownFile if there
        is no such folder.
        """

    def open_file(
        self, filename: SafeName | None, file_id: bytes | None, within: SafeName | None = None
    ) -> StoredReader:
        """Open a finished file by name, or by id where that is None.

        An id of a file that does not lie in the folder ``within`` is as unknown as one of nothing: after the same work, and
        the file is not looked at.

        Raises:
            UnknownFile, NotPermitted.
        """


class FileStore(Decisions, Files, Protocol):
    """An upload store that also serves its finished files."""
