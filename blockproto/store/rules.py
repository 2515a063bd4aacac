"""What every store must decide alike: which receipt answers, which cursor counts, and the next free name.

Pure functions over plain values, so that stores cannot differ; those of an unfinished upload are in ``upload_state.py``.

Spec: spec/store.md §3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..common.names import COMPONENT_LENGTH_MAX, FILENAME_LENGTH_MAX, NUMBERS_MAX, SafeName, numbered
from ..errors import (
    BlockprotoError,
    NameRefused,
    NotPermitted,
    SourceChanged,
)
from . import StoredFile

EXPIRY_MS = 30 * 24 * 3600 * 1000
"""How long an unfinished upload is kept after it was last opened, in milliseconds (BP1-RES-022)."""

TRIED_IN_TURN = 16
"""How many names with a number are asked for one after another before numbers are skipped."""

RECEIPT_GRACE_MS = 24 * 3600 * 1000
"""How long at least a receipt is kept, in milliseconds, also when its file is gone (BP1-COM)."""


def is_within(name: str, folder: SafeName | None) -> bool:
    """Whether a name of the store lies in a folder; in None, which is the root, all do."""
    return folder is None or name.startswith(folder.text + "/")


def sourceid_after(cursor: str) -> bytes:
    """The sourceid that a listing of uploads goes on after; no bytes for the first page.

    Raises:
        NotPermitted: no listing ever gave that cursor (BP1-LST-003).
    """
    if not re.fullmatch(r"([0-9a-f]{32})?", cursor):
        raise NotPermitted("the cursor is none of ours")
    return bytes.fromhex(cursor)


def check_receipt(receipt: StoredFile, root: bytes, filesize: int) -> StoredFile:
    """The receipt of an upload that was committed before, if it is of the bytes that come now.

    Raises:
        SourceChanged: the same sourceid was committed with other bytes.
    """
    if (receipt.root, receipt.filesize) != (root, filesize):
        raise SourceChanged("this sourceid was committed with other bytes")
    return receipt


def free_names(filename: SafeName) -> Iterator[SafeName]:
    """The names to try in turn when ``filename`` is taken: "name (1).ext", "name (2).ext" and so on."""
    return (free_name(filename, number) for number in range(1, NUMBERS_MAX))


def free_name(filename: SafeName, number: int) -> SafeName:
    """One of them. Raises NameRefused: there is no room for a number."""
    *folders, name = filename.components
    above = sum(len(part.encode()) + 1 for part in folders)
    free = numbered(name, number, min(COMPONENT_LENGTH_MAX, FILENAME_LENGTH_MAX - above))
    return SafeName.parse("/".join([*folders, free]))


def first_free(
    filename: SafeName,
    is_free: Callable[[SafeName], bool],
    name_of: Callable[[SafeName, int], SafeName] = free_name,
) -> SafeName:
    """The first of ``free_names`` that is free; behind many that are taken, one whose predecessor is.

    It asks for ``TRIED_IN_TURN`` names and then for as many as the number of those taken has bits, twice. ``name_of`` makes
    them, as ``free_name`` does.

    Raises:
        NameRefused: there is no room for a number, or no number.
    """
    for number in range(1, TRIED_IN_TURN):
        if is_free(name := name_of(filename, number)):
            return name
    taken, number = TRIED_IN_TURN - 1, TRIED_IN_TURN
    while not is_free(name := name_of(filename, number)):
        taken, number = number, 2 * number
        if number > NUMBERS_MAX:
            raise NameRefused("there are too many files of that name", rule="length")
    while number - taken > 1:
        middle = (taken + number) // 2
        if is_free(between := name_of(filename, middle)):
            number, name = middle, between
        else:
            taken = middle
    return name


def outcome_of(error: BlockprotoError) -> BlockprotoError:
    """An error as the outcome of a work: without its traceback, which would keep a whole batch alive."""
    return error.with_traceback(None)
