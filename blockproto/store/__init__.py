"""The store port: what the engine needs from anything that keeps files, and nothing of how it is kept.

    facts.py           files and uploads as values
    works.py           what a store is asked to decide, and what became of it
    port_bytes.py      ``Upload``: takes pieces and gives them back
    port_decisions.py  ``UploadStore``: opens uploads and decides works, all that a download needs; ``Decisions``: a server's
    port_files.py      ``Files``: lists and reads finished files; ``FileStore``: all three roles
    downloads.py       where a client puts files on its own machine

Ordinary blocking code; the engine calls it in worker threads (``write`` and ``read_into`` also inline while they are
quick).

The order that keeps the promise (spec/store.md): bytes are written in place, their digest is verified by the
caller, the data is synced, then the ledger is written and synced, then ``decide`` returns and the caller may
acknowledge. A final name appears only complete and verified.

A block in the ledger is never written again. ``UploadStore`` does not check that for ``write``; its caller does.
"""

from __future__ import annotations

from .downloads import Destination, DownloadStore, LocalFiles
from .facts import (
    FOLDER_FILETYPE,
    MODE_BITS,
    Facts,
    FileEntry,
    IfExists,
    Prefix,
    StoredFile,
    UploadEntry,
    UploadKey,
)
from .name_rules import Verdict, judge_taken
from .port_bytes import Upload
from .port_decisions import Decisions, UploadStore
from .port_files import LEFT_OUT_NAMES_MAX, Capabilities, Files, FileStore, LeftOut, Reason, StoredReader
from .works import (
    ROUNDS_MAX,
    Adopt,
    AskFirst,
    BlockDone,
    Decided,
    Discard,
    FileOutcome,
    Finish,
    Forget,
    KeepPrefixes,
    Outcome,
    RecordB3sum,
    Remove,
    StoreFiles,
    Tidy,
    Undecided,
    Unfinished,
    WholeFile,
    Work,
)

__all__ = [
    "FOLDER_FILETYPE",
    "LEFT_OUT_NAMES_MAX",
    "MODE_BITS",
    "ROUNDS_MAX",
    "Adopt",
    "AskFirst",
    "BlockDone",
    "Capabilities",
    "Decided",
    "Decisions",
    "Destination",
    "Discard",
    "DownloadStore",
    "Facts",
    "FileEntry",
    "FileOutcome",
    "FileStore",
    "Files",
    "Finish",
    "Forget",
    "IfExists",
    "KeepPrefixes",
    "LeftOut",
    "LocalFiles",
    "Outcome",
    "Prefix",
    "Reason",
    "RecordB3sum",
    "Remove",
    "StoreFiles",
    "StoredFile",
    "StoredReader",
    "Tidy",
    "Undecided",
    "Unfinished",
    "Upload",
    "UploadEntry",
    "UploadKey",
    "UploadStore",
    "Verdict",
    "WholeFile",
    "Work",
    "judge_taken",
]
