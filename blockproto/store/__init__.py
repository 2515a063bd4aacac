"""The store port: what the engine needs from anything that keeps files, and nothing of how it is kept.

Two roles, because a client that downloads needs only the first: an ``UploadStore`` takes blocks and commits
files, a ``FileStore`` also lists, reads and removes finished ones. Ordinary blocking code; the engine calls
it in worker threads (``write`` and ``read_into`` also inline while they are quick).

The order that keeps the promise (spec/store.md): bytes are written in place, their digest is verified by the
caller, the data is synced, then the ledger is written and synced, then ``commit`` returns and the caller may
acknowledge. A final name appears only complete and verified.

Rules:
    1. ``commit`` is called by one caller at a time and does everything of its batch in that one call, on one
       thread.
    2. ``commit`` sets ``outcome`` on every work of its batch; it raises only ``StoreFailed``, after which the
       store is unusable and nothing may be acknowledged.
    3. A block in the ledger is never written again. ``UploadStore`` does not check that for ``write``; its
       caller does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from pathlib import Path
from typing import Protocol

from ..common.blocks import BlockSet
from ..common.names import SafeName
from ..errors import BlockprotoError, Code

FOLDER_FILETYPE = "inode/directory"
"""The filetype of a folder entry (BP1-BLK)."""


MODE_BITS = 0o777
"""What of a stated mode is applied to files and folders."""


class IfExists(IntEnum):
    """What to do when the name is taken at commit."""

    KEEP = 0
    REFUSE = 1
    REPLACE = 2
    SKIP = 3
    UPDATE = 4


class Verdict(Enum):
    """What becomes of a file that comes under a name another regular file has.

    Attributes:
        THERE: it is that file: nothing is stored.
        COMPARE: their contents decide: ask again when they are known.
        REPLACE: it takes the place of the other.
        NEXT: it gets the next name that is free.
        REFUSE: it does not come.
        LEAVE: it does not come either, and that is what was asked for.
    """

    THERE = auto()
    COMPARE = auto()
    REPLACE = auto()
    NEXT = auto()
    REFUSE = auto()
    LEAVE = auto()


def judge_taken(if_exists: IfExists, *, equal: bool | None, newer: bool) -> Verdict:
    """What to do when a regular file has the name.

    Args:
        if_exists: the rule.
        equal: whether that file has the same content; None while nobody knows.
        newer: whether what comes is strictly newer than what is there.
    """
    if if_exists is IfExists.SKIP:
        return Verdict.LEAVE
    if if_exists is IfExists.UPDATE:
        return Verdict.REPLACE if newer else Verdict.LEAVE
    if equal is None:
        return Verdict.COMPARE
    if equal:
        return Verdict.THERE
    return {
        IfExists.KEEP: Verdict.NEXT,
        IfExists.REFUSE: Verdict.REFUSE,
        IfExists.REPLACE: Verdict.REPLACE,
    }[if_exists]


@dataclass(frozen=True, slots=True)
class UploadKey:
    """What an upload belongs to: the principal (16 bytes, zeros: anonymous) and its sourceid (16 bytes)."""

    principal: bytes
    sourceid: bytes


@dataclass(frozen=True, slots=True)
class Facts:
    """What the sender says of its file.

    Attributes:
        filename: the name it shall get.
        filetype: MIME type; ``inode/directory`` for a folder.
        filesize: bytes, or None while unknown. For a ranged download where the range ends: blocks
            keep their blockno and position in the whole file, and the store was told where the range begins.
        mtime_ns: modification time in nanoseconds since 1970, or None.
        mode: permission bits 0..0o777, or None; of what was stated only these nine are kept, so that no file and no folder
            ever gets a set-user-id, set-group-id or sticky bit.
        if_exists: what to do when the name is taken.
    """

    filename: SafeName
    filetype: str
    filesize: int | None
    mtime_ns: int | None = None
    mode: int | None = None
    if_exists: IfExists = IfExists.KEEP

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode & ~MODE_BITS:
            object.__setattr__(self, "mode", self.mode & MODE_BITS)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of an unfinished block: how many bytes are there, and their digest so far (32 bytes)."""

    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The receipt of a committed upload; repeated verbatim for the same COMMIT for at least a day.

    Attributes:
        there: the file was there already with these bytes; nothing was stored (BP1-COM-021).
        left: what has the name was left as it is (BP1-COM-025): there is no receipt, and ``file_id``, ``root`` and
            ``filesize`` are those of what is there, zeros where they are not known or not to be told.
    """

    sourceid: bytes
    file_id: bytes
    root: bytes
    filesize: int
    stored_as: str
    b3sum: bytes | None = None
    there: bool = False
    left: bool = False


class Undecided(BlockprotoError):
    """Whether a file that is there is the same is not known yet (BP1-COM-024): nothing was done.

    Attributes:
        names: files to read first (``read_digests``, ``RecordB3sum``); none: the batch itself has to be done first.

    The work is to be submitted again after that, with ``rounds`` one more.
    """

    code = Code.BUSY

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        super().__init__("what is there under the name is still being compared")
        self.names = names


ROUNDS_MAX = 8
"""How often a work is submitted again because of ``Undecided``; then what could not be compared is another file."""


class Upload(Protocol):
    """An unfinished upload the store has opened: its facts, what is durable of it, and its bytes.

    ``held``, ``short_end`` (where a short block of an upload of unknown size says that the file ends), ``prefixes``
    and ``attempt`` are a snapshot for the engine, which keeps them up to date itself from then on; the store decides only
    by its ledger. One thread at a time may call ``write`` or ``read_into`` of one byte range.
    """

    key: UploadKey
    facts: Facts
    file_id: bytes
    attempt: int
    expires_ms: int | None
    held: BlockSet
    short_end: int | None
    prefixes: dict[int, Prefix]

    @property
    def in_memory(self) -> bool:
        """Whether the next bytes go to memory: writing them waits for no disk."""

    def write(self, position: int, piece: memoryview) -> None:
        """Write ``piece`` at byte ``position``; creates the partial on the first byte.

        Raises:
            StoreFull: no room; what was written before stays.
            StoreFailed: the medium reported an error.
            NotPermitted: the folder does not take a file.
        """

    def read_into(self, position: int, view: memoryview) -> int:
        """Fill ``view`` from byte ``position`` on, to hash a prefix again.

        Returns how many bytes there were.
        """

    def digest(self, blockno: int) -> bytes | None:
        """The digest the ledger has for a block, or None: to judge a block sent again, and for repair."""

    def close(self) -> None:
        """Let go of what is open; the upload stays in the store. Harmless when repeated.

        Harmless too while ``write`` or ``read_into`` runs in another thread: the descriptor it uses is not closed before it
        has ended. A write that begins later raises UnknownUpload or writes as if nothing were, but never into another file.
        """


Outcome = StoredFile | BlockprotoError | None
"""What became of a work: a receipt (Finish), None (done), or why not."""


@dataclass(slots=True, eq=False)
class BlockDone:
    """Make a verified block durable and record it. Outcome: None, or Superseded, StoreFull.

    ``veto`` says why it may not: such a work never reaches a store.
    """

    upload: Upload
    attempt: int
    blockno: int
    length: int
    digest: bytes
    veto: BlockprotoError | None = None
    outcome: Outcome = None


@dataclass(slots=True, eq=False)
class Finish:
    """Commit the file once all its blocks are in the ledger or in this batch.

    ``filesize`` means the same as in ``Facts``. ``blocks`` holds (length, digest) of the only block when the
    file was sent without OPEN; its bytes were written with ``upload.write``. Outcome: StoredFile; or
    DigestsDiffer, FileExists, Superseded, NotPermitted, StoreFull, BadFacts, SourceChanged, Undecided. Repeating it
    after it succeeded gives the same StoredFile.

    With ``reader`` its principal may read, and a file under the name that has its size and root is its file
    (BP1-COM-021, 022); without, nothing is compared. ``rounds`` counts how often it was ``Undecided``.

    ``veto`` says why no more bytes may be stored: where the file is not there already, that is the outcome.
    """

    upload: Upload
    attempt: int
    root: bytes
    filesize: int
    facts: Facts
    blocks: tuple[BlockDone, ...] = ()
    reader: bool = False
    rounds: int = 0
    veto: BlockprotoError | None = None
    outcome: Outcome = None


@dataclass(slots=True, eq=False)
class Adopt:
    """Let an upload be a file that is there, if by its rule it is, without its bytes (BP1-RES-029).

    ``root`` is what the sender claims of its file of ``facts.filesize`` bytes; its principal may read. Outcome:
    StoredFile (``there`` or ``left``; what was held of the upload is gone), None: there is no such file, and nothing
    was done; or FileExists, NotPermitted, StoreFull, Undecided.
    """

    key: UploadKey
    root: bytes
    facts: Facts
    reader: bool = True
    rounds: int = 0
    outcome: Outcome = None


@dataclass(slots=True, eq=False)
class Forget:
    """Drop blocks from the ledger, durably: their sender withdrew them (repair). Outcome: None, or Superseded.

    The incarnation stays: nobody else has to doubt what was acknowledged.
    """

    upload: Upload
    attempt: int
    blocknos: tuple[int, ...]
    outcome: Outcome = None


@dataclass(slots=True, eq=False)
class KeepPrefixes:
    """Record the prefixes of unfinished blocks (replaces those recorded before). Outcome: None."""

    upload: Upload
    attempt: int
    prefixes: dict[int, Prefix]
    outcome: Outcome = None


@dataclass(slots=True, eq=False)
class Discard:
    """Remove an unfinished upload, its bytes and its records. Outcome: None, or UnknownUpload.

    With ``expired_ms`` (Unix ms) only if it expires at that time or before: an upload that was taken up again
    meanwhile stays.
    """

    key: UploadKey
    expired_ms: int | None = None
    outcome: Outcome = None


@dataclass(slots=True, eq=False)
class Remove:
    """Remove a finished file or folder and its receipts.

    Outcome: None, UnknownFile, NotEmpty, NotPermitted.
    """

    filename: SafeName | None
    file_id: bytes | None = None
    recursive: bool = False
    outcome: Outcome = None


@dataclass(slots=True, eq=False)
class RecordB3sum:
    """Remember the BLAKE3 of a finished file, and its root, if it has that ``version`` still. Outcome: None, UnknownFile.

    With ``stamp`` (``FileEntry.stamp``) nobody has touched it since either: who read it says so. Who gives a ``root`` has
    made the file durable before it was read (``StoredReader.sync``).
    """

    filename: SafeName
    version: bytes
    b3sum: bytes | None = None
    root: bytes | None = None
    stamp: bytes | None = None
    outcome: Outcome = None


@dataclass(slots=True, eq=False)
class Tidy:
    """Do what is owed to the ledger, and drop those ``receipts`` (file ids) whose file is gone.

    Outcome: None.
    """

    receipts: tuple[bytes, ...] = ()
    outcome: Outcome = None


Work = BlockDone | Finish | Adopt | Forget | KeepPrefixes | Discard | Remove | RecordB3sum | Tidy


class UploadStore(Protocol):
    """A place that takes uploads."""

    @property
    def incarnation(self) -> int:
        """Raised whenever something that was durable is not any more, and never otherwise."""

    def open_upload(
        self, key: UploadKey, facts: Facts, attempt: int, reader: bool = False
    ) -> Upload | StoredFile:
        """Find or begin an upload; nothing is created before its first byte.

        Args:
            key: what it belongs to.
            facts: what its sender says of it.
            attempt: which attempt asks.
            reader: its principal may read: a file of its size under the name may be its own (BP1-COM-021).

        Returns:
            The receipt if that key was committed with the same ``if_exists`` and its file is still what was committed
            (BP1-COM-027); what was ``left``, where that is known already (BP1-COM-026); else the upload, with the facts
            it was begun with (the caller compares them) and ``attempt`` as recorded (0 if new).

        Raises:
            StoreFull: not enough free space for what is missing.
            FileExists: the name is taken, and ``facts`` ask to be refused then (BP1-COM-020).
            NotPermitted: something has the name that ``facts`` cannot replace.
        """

    def check_parent(self, name: SafeName) -> None:
        """Refuse at once a name that could not be given at the end (BP1-COM-028).

        Raises:
            NotPermitted: it lies in something that is no folder, or in a folder that may not be entered.
        """

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> Upload:
        """Begin a file of at most one block that comes without OPEN; quick enough to be called inline.

        Nothing is looked up and nothing recorded: whether that key was committed before is found by the
        ``Finish`` that follows, which then answers the old receipt and drops the new bytes. Without a
        ``Finish`` that succeeded, ``close`` removes what was written.
        """

    def commit(self, batch: Sequence[Work]) -> None:
        """Do all of ``batch``, durably, in order within an upload; see the module's rules."""

    def close(self) -> None:
        """Write what is still owed to the ledger and let go of everything; as ``Upload.close`` while a write runs."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a download goes on this machine.

    Attributes:
        path: of the file to make.
        label: 16 hex digits that name what is in progress beside it: ``.blockproto-LABEL.part``.
        below: the folder behind which no component of ``path`` may be a link; None: links are followed.
        made: files (device, inode number) that this run has made and that nothing of it may replace.
    """

    path: Path
    label: str
    below: Path | None = None
    made: set[tuple[int, int]] = field(default_factory=set, compare=False)


class LocalFiles(Protocol):
    """The finished files of this machine, where downloads go."""

    def look(self, dest: Destination, name: str) -> os.stat_result | None:
        """What stands under ``name`` in the folder of ``dest``, a link itself included; None if nothing does.

        Raises:
            NotPermitted, OSError: the folder cannot be looked into; none at all is no error.
        """

    def set_facts(self, dest: Destination, name: str, mode: int, mtime_ns: int) -> None:
        """Set permission bits and modification time of a regular file there. Raises NotPermitted, OSError."""


class DownloadStore(UploadStore, Protocol):
    """A place that takes many downloads of at most one block, each to a path of its own; it commits ``Finish`` only."""

    def takes(self, dest: Destination) -> bool:
        """Whether nothing is there that an ordinary download of ``dest`` would go on with, or has to judge."""

    def begin_at(self, dest: Destination, key: UploadKey, facts: Facts) -> Upload:
        """Begin a file that will be ``dest``; as ``begin_brief``, but the caller closes it after every ``Finish``.

        Raises:
            NotPermitted: the folder is not there or does not take a file.
        """


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A finished file or folder as it is now.

    Attributes:
        filename: its path in the served folder.
        folder: whether it is a folder.
        filesize: bytes.
        mtime_ns: nanoseconds since 1970.
        mode: permission bits.
        version: 16 bytes that change whenever the file does.
        stamp: the version, and what changes whenever anything about the file does: the key of cached digests.
        file_id: 16 bytes; zeros if it was not uploaded through us.
        filetype: MIME type as uploaded, else guessed from the name.
        root, b3sum: digests where known and still true.
    """

    filename: SafeName
    folder: bool
    filesize: int
    mtime_ns: int
    mode: int
    version: bytes
    file_id: bytes = bytes(16)
    filetype: str = "application/octet-stream"
    root: bytes | None = None
    b3sum: bytes | None = None
    stamp: bytes = b""


@dataclass(frozen=True, slots=True)
class UploadEntry:
    """An unfinished upload as the ledger has it.

    ``taken`` is how many bytes of the disk it has, if its size is unknown.
    """

    key: UploadKey
    file_id: bytes
    filename: SafeName
    filetype: str
    filesize: int | None
    position: int
    held_count: int
    expires_ms: int | None
    taken: int = 0


class StoredReader(Protocol):
    """A finished file opened for reading; it keeps the same bytes even if the name is replaced meanwhile."""

    entry: FileEntry

    def read_into(self, position: int, view: memoryview) -> int:
        """Fill ``view`` from byte ``position`` on; returns how many bytes there were."""

    def unchanged(self) -> bool:
        """Whether the file still has the version it was opened with."""

    def sync(self) -> None:
        """Make durable what is there under its name. Raises StoreFailed when the medium reported an error."""

    def close(self) -> None:
        """Let go of the file. Harmless when repeated."""


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


class FileStore(UploadStore, Protocol):
    """An upload store that also serves its finished files."""

    def receipts(
        self, principal: bytes, sourceids: Iterable[bytes], if_exists: IfExists | None = None
    ) -> list[StoredFile]:
        """The receipts among ``sourceids`` whose files are still what was committed; of one rule, or of any (None)."""

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

    def uploads(self, principal: bytes, cursor: str, limit: int) -> tuple[list[UploadEntry], str]:
        """Unfinished uploads of a principal, as ``files`` pages them. Raises NotPermitted for a cursor of somebody else."""

    def upload_of(self, principal: bytes, file_id: bytes) -> UploadEntry | None:
        """The unfinished upload of a principal that will be the file of that id, or None.

        The work does not grow with the number of uploads, and is the same for an id of somebody else's.
        """

    def sweep(self, now_ms: int) -> Sequence[Work]:
        """The works that remove what expired, for the next ``commit``; few at once, call it again for more.

        Each call looks at the next part of the ledger and begins again after the last.
        """

    def expiry_now_ms(self) -> int:
        """The time by which uploads expire (Unix ms): the wall clock's, or 0 while that is doubted and nothing expires."""
