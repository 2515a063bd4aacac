"""Works: what a store is asked to decide, one immutable object each, and what can become of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..common.names import SafeName
from ..errors import BlockprotoError, Code
from .facts import Facts, Prefix, StoredFile, UploadKey
from .port_bytes import Upload


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


class Unfinished(BlockprotoError):
    """A part of a work was done, as much as may keep others waiting. Submit it again, as one that was ``begun``."""

    code = Code.BUSY

    def __init__(self) -> None:
        super().__init__("more is left to be done")


ROUNDS_MAX = 8
"""How often a work is submitted again because of ``Undecided``; then what could not be compared is another file."""


class AskFirst(BlockprotoError):
    """The file would get its name now, and nobody has asked the hooks before it (``unasked``): nothing was done.

    Attributes:
        file_id: of the upload (16 bytes).

    The work is to be submitted again once they have agreed, with ``unasked`` False.
    """

    code = Code.BUSY

    def __init__(self, file_id: bytes) -> None:
        super().__init__("the hooks have not been asked yet")
        self.file_id = file_id


FileOutcome = StoredFile | BlockprotoError
"""What became of a file: a receipt, or why there is none."""

Outcome = FileOutcome | tuple[FileOutcome, ...] | None
"""What became of a work: a receipt (Finish), None (done), or why not; of each file, where there are several."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockDone:
    """Make a verified block durable and record it. Outcome: None, or Superseded, StoreFull."""

    upload: Upload
    attempt: int
    blockno: int
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Finish:
    """Commit the file once all its blocks are in the ledger or in this batch.

    ``filesize`` means the same as in ``Facts``. ``blocks`` holds (length, digest) of the only block when the
    file was sent without OPEN; its bytes were written with ``upload.write``. Outcome: StoredFile; or
    DigestsDiffer, FileExists, Superseded, NotPermitted, StoreFull, BadFacts, SourceChanged, Undecided, AskFirst. Repeating
    it after it succeeded gives the same StoredFile.

    With ``reader`` its principal may read, and a file under the name that has its size and root is its file
    (BP1-COM-021, 022); without, nothing is compared. ``rounds`` counts how often it was ``Undecided``.

    ``veto`` says why no more bytes may be stored: where the file is not there already, that is the outcome. ``unasked``
    says that hooks have to agree before the file gets a name, or becomes one that is there: then, where nothing else is
    against it, the outcome is AskFirst; a receipt and what is left need no hook.
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
    unasked: bool = False


class WholeFile(NamedTuple):
    """One file of a ``StoreFiles``: all its bytes, at most one block, or a folder, which has none.

    Attributes:
        key: what it belongs to.
        facts: what its sender says of it; ``filesize`` is the length of ``content``.
        root: its root; the caller has verified that it is the BLAKE3 of ``content``.
        content: its bytes. They must not change before the outcome is known, or the store has released them (``prepare``).
        veto: why no more bytes may be stored, as for ``Finish``.
    """

    key: UploadKey
    facts: Facts
    root: bytes
    content: bytes | memoryview
    veto: BlockprotoError | None = None

    @property
    def length(self) -> int:
        """How many bytes it has, also when they were released."""
        return self.facts.filesize or 0


@dataclass(frozen=True, slots=True, eq=False)
class StoreFiles:
    """Store several whole files of one principal. Outcome: one of each file, in their order; one that fails fails alone.

    The outcome of a file is that of its ``Finish``, but never DigestsDiffer or Superseded. ``reader``, ``rounds`` and
    ``unasked`` mean the same as there, for each of the files; those whose outcome is Undecided or AskFirst are to be
    submitted again, by themselves. ``prepared`` is what the store's ``prepare`` returned.
    """

    principal: bytes
    files: tuple[WholeFile, ...]
    reader: bool = False
    rounds: int = 0
    unasked: bool = False
    prepared: object = None


@dataclass(frozen=True, slots=True, eq=False)
class Adopt:
    """Let an upload be a file that is there, if by its rule it is, without its bytes (BP1-RES-029).

    ``root`` is what the sender claims of its file of ``facts.filesize`` bytes; its principal may read. Outcome:
    StoredFile (``there`` or ``left``; what was held of the upload is gone), None: there is no such file, and nothing
    was done; or FileExists, NotPermitted, StoreFull, Undecided, AskFirst. ``unasked`` as in ``Finish``.
    """

    key: UploadKey
    root: bytes
    facts: Facts
    reader: bool = True
    rounds: int = 0
    unasked: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Forget:
    """Drop blocks from the ledger, durably: their sender withdrew them (repair). Outcome: None, or Superseded.

    The incarnation stays: nobody else has to doubt what was acknowledged.
    """

    upload: Upload
    attempt: int
    blocknos: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class KeepPrefixes:
    """Record the prefixes of unfinished blocks (replaces those recorded before). Outcome: None."""

    upload: Upload
    attempt: int
    prefixes: dict[int, Prefix]


@dataclass(frozen=True, slots=True, eq=False)
class Discard:
    """Remove an unfinished upload, its bytes and its records. Outcome: None, or UnknownUpload.

    With ``expired_ms`` (Unix ms) only if it expires at that time or before: an upload that was taken up again
    meanwhile stays.
    """

    key: UploadKey
    expired_ms: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Remove:
    """Remove a finished file or folder and its receipts.

    Outcome: None, UnknownFile, NotEmpty, NotPermitted; or Unfinished, where a recursive one has removed a part. With
    ``begun`` it has done so before, and a folder that is gone meanwhile is no error.
    """

    filename: SafeName | None
    file_id: bytes | None = None
    recursive: bool = False
    begun: bool = False


@dataclass(frozen=True, slots=True, eq=False)
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


@dataclass(frozen=True, slots=True, eq=False)
class Tidy:
    """Do what is owed to the ledger, and drop those ``receipts`` (file ids) whose file is gone.

    Outcome: None.
    """

    receipts: tuple[bytes, ...] = ()


Work = BlockDone | Finish | StoreFiles | Adopt | Forget | KeepPrefixes | Discard | Remove | RecordB3sum | Tidy

Decided = tuple[Work, Outcome]
"""A work with what became of it."""
