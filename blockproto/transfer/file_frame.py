"""One frame of files, as it came: which of its files can be stored, and why the others cannot.

Names are judged together where that is enough, and one by one where it is not. Each file's bytes are held against its
digest.

Spec: BP1-FIL-004, BP1-FIL-005.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from ..common.blocks import digest_of
from ..common.file_table import MODE_UNSAID, MTIME_UNSAID
from ..common.names import SafeName, are_plain, join_plain, leaves_room
from ..errors import BadFacts, BlockprotoError, DigestMismatch, NameRefused
from ..identity.realm import Realm
from ..store import FOLDER_FILETYPE, Facts, IfExists, UploadKey, WholeFile
from ..wire import ZERO_ID, Files, judge_filetype

Judged = WholeFile | BlockprotoError
"""A file that can be stored, or why it cannot."""


def judge_frame(message: Files, content: memoryview, realm: Realm) -> list[Judged]:
    """The files of a frame, in their order.

    Args:
        message: the frame.
        content: its payload, which must not change as long as the files are used.
        realm: who sends it.
    """
    rule = IfExists(message.if_exists)
    filetypes = [_judged_filetype(filetype) for filetype in message.filetypes]
    judged: list[Judged] = []
    at = 0
    for record, name in zip(message.table.records, _names(message, realm), strict=True):
        sourceid, digest, filesize, mtime_ns, mode, _, filetype, _ = record
        view = content[at : at + filesize]
        at += filesize
        kind = filetypes[filetype]
        if isinstance(name, NameRefused):
            judged.append(name)
        elif isinstance(kind, BadFacts):
            judged.append(kind)
        elif filesize and kind == FOLDER_FILETYPE:
            judged.append(BadFacts("a folder has no bytes: its filesize is 0"))
        elif digest_of(view) != digest:
            judged.append(DigestMismatch("the file did not arrive whole"))
        else:
            facts = Facts(
                name,
                kind,
                filesize,
                None if mtime_ns == MTIME_UNSAID else mtime_ns,
                None if mode == MODE_UNSAID else mode,
                rule,
            )
            sourceid = secrets.token_bytes(16) if sourceid == ZERO_ID else sourceid
            judged.append(WholeFile(UploadKey(realm.principal, sourceid), facts, digest, view))
    return judged


def _judged_filetype(filetype: str) -> str | BadFacts:
    try:
        judge_filetype(filetype)
    except BadFacts as exc:
        return exc.with_traceback(None)
    return filetype


def _names(message: Files, realm: Realm) -> Iterator[SafeName | NameRefused]:
    """The names of the files as the store knows them."""
    folders, names = message.folders, message.table.names
    plain = are_plain(names)
    above = [_above(folder, realm) if plain else None for folder in folders]
    for record, name in zip(message.table.records, names, strict=True):
        start = above[record[5]]
        if start is not None:
            yield join_plain(start, name)
            continue
        folder = folders[record[5]]
        try:
            yield realm.inward(f"{folder}/{name}" if folder else name)
        except NameRefused as exc:
            yield exc.with_traceback(None)


def _above(folder: str, realm: Realm) -> str | None:
    """What stands before the plain names in a folder; None where each has to be judged with it."""
    try:
        above = f"{realm.inward(folder).text}/" if folder else realm.above
    except NameRefused:
        return None
    return above if leaves_room(above) else None
