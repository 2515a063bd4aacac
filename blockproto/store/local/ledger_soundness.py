"""Whether a ledger's file is whole: before it is mapped, and for ``blockproto check``.

A file that was cut short (restored in part, copied to a full disk) is mapped like any other, and touching what is missing
ends the process without a word (SIGBUS). How long it has to be is not known from outside: pages at its end that were never
written are missing in healthy ones, too. So where it is shorter than its pages, each page that is reachable is looked for.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from ...errors import StoreFailed

_META = struct.Struct("=IIQQ")  # magic, version, address, map size
_MAGIC = 0xBEEFC0DE
_PAGE_HEADER = 16
_DATABASE = struct.Struct("=IHHQQQQQ")
_LAST = struct.Struct("=QQ")  # last page, transaction id
_METAS = 2
_PAGE_LENGTH_MAX = 65_536


def damage_of(ledger_folder: Path) -> list[str]:
    """What LMDB's own structural check finds, a sentence each; nothing is mapped."""
    try:
        from lmdb import verify
    except ImportError:
        return []
    try:
        return [f"the ledger is damaged: {problem}" for problem in verify.verify(str(ledger_folder))]  # type: ignore[no-untyped-call]
    except verify.VerifyError as exc:
        return [f"the ledger is damaged: {exc}"]


def require_whole(ledger_folder: Path, partials: Path) -> None:
    """Look whether a ledger that is there can be mapped.

    Args:
        ledger_folder: the folder with ``data.mdb``, or without it.
        partials: where the bytes of unfinished uploads lie: with some of them, a ledger was there.

    Raises:
        StoreFailed: it was cut short, or emptied.
        OSError: as the system reports it.
    """
    try:
        with open(ledger_folder / "data.mdb", "rb") as file:
            length = os.fstat(file.fileno()).st_size
            begin = file.read(_METAS * _PAGE_LENGTH_MAX)
    except FileNotFoundError:
        return
    if length == 0:
        if any(partials.glob("[0-9a-f]*/*")):
            raise StoreFailed(
                "the ledger is empty, and bytes of unfinished uploads are there: it was cut short; restore "
                f"{ledger_folder} from a copy, or remove it to begin anew without these uploads"
            )
        return
    if length < _pages_end(begin) and (damage := damage_of(ledger_folder)):
        raise StoreFailed(f"{damage[0]}: its file was cut short; restore {ledger_folder} from a copy")


def _pages_end(begin: bytes) -> int:
    """Where the last page of the newest transaction would end, in bytes; beyond any file if no meta page can be read."""
    newest, end = -1, 1 << 62
    page_length = _DATABASE.unpack_from(begin.ljust(4096, b"\0"), _PAGE_HEADER + _META.size)[0]
    for number in range(_METAS if 512 <= page_length <= _PAGE_LENGTH_MAX else 0):
        at = number * page_length + _PAGE_HEADER
        if len(begin) < at + _META.size + 2 * _DATABASE.size + _LAST.size:
            return 1 << 62
        if _META.unpack_from(begin, at)[0] == _MAGIC:
            last_page, txn = _LAST.unpack_from(begin, at + _META.size + 2 * _DATABASE.size)
            if txn > newest:
                newest, end = txn, (last_page + 1) * page_length
    return end
