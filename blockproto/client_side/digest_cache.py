"""The cache of file digests that a client keeps between runs: fingerprint → root.

A row holds the files of a few inodes beside each other, because those of one folder mostly are: one question and one MAC for
dozens of files.

Rules:
    1. A row counts only if its MAC, keyed with the installation's secret, fits its place and its files. Damaged, foreign and
       stale rows are as good as missing.
    2. Its size is bounded: what was used longest ago is forgotten.
    3. A damaged cache is removed and begun again, and without a usable one the client works all the same. Either is logged
       once, as a warning; nothing but time is lost.

Several processes may use one cache at once, and any of them may be killed at any moment. Blocking code.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from hmac import compare_digest
from pathlib import Path
from typing import TypeVar

from blake3 import blake3

from .fingerprint import Fingerprint

log = logging.getLogger(__name__)

SIZE_MAX = 64 << 20
"""The size in bytes at which a cache forgets a tenth of its rows: a million files, or half of that where they lie apart."""
_BUSY_S = 2.0
_ROWS_AT_ONCE = 500
_DAY_S = 86_400
_FORMAT = 2
_U64 = (1 << 64) - 1
_INODE_BITS = 6
_BESIDE = (1 << _INODE_BITS) - 1
"""A row has as many inodes beside each other as one that is written again may cost, should they be met one by one."""
_FILE = struct.Struct(">BQQQ32s")
"""A file of a row: the last bits of its inode, size, modification and change time (modulo 2^64), root."""
_TABLE = (
    "CREATE TABLE digests (place BLOB PRIMARY KEY, files BLOB NOT NULL, mac BLOB NOT NULL, day INTEGER NOT NULL) "
    "WITHOUT ROWID"
)

_Place = tuple[int, int]
"""A device, and the common first bits of some inodes."""

T = TypeVar("T")


class DigestCache:
    """A cache on disk, opened when it is first used.

    Args:
        path: the file; its folder is made, for its user alone.
        secret: the installation's, 32 bytes.
    """

    def __init__(self, path: Path, secret: bytes) -> None:
        self._path = path
        self._secret = secret
        self._using = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._usable = True

    def recall(self, fingerprints: Sequence[Fingerprint]) -> dict[Fingerprint, bytes]:
        """The roots that are remembered, of those of these files that have not changed since."""
        return self._use(lambda database: self._recall(database, fingerprints)) or {}

    def remember(self, roots: Mapping[Fingerprint, bytes]) -> None:
        """Store these roots, also for other processes."""
        if roots:
            self._use(lambda database: self._remember(database, roots))

    def close(self) -> None:
        """Close it; harmless when repeated."""
        with self._using:
            database, self._database, self._usable = self._database, None, False
            if database is not None:
                with suppress(sqlite3.Error):
                    database.close()

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """The result of ``work`` on the database, or None without one. A damaged one is made again once, then given up."""
        with self._using:
            for again in (True, False):
                if not self._usable:
                    return None
                try:
                    if self._database is None:
                        self._database = self._open()
                    return work(self._database)
                except (sqlite3.Error, OSError) as exc:
                    self._failed(exc, again)
        return None

    def _failed(self, error: sqlite3.Error | OSError, again: bool) -> None:
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if damaged and again:
            log.warning(
                "what was remembered of files in '%s' is damaged, and begun anew: %s", self._path, error
            )
            with suppress(OSError):
                self._path.unlink()
            return
        log.warning(
            "what files contain cannot be remembered in '%s', and is read instead: %s", self._path, error
        )
        self._usable = False

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        database = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            # Nothing is synced: what a loss of power damages is begun anew (rule 3), and what it mixes up has no MAC.
            database.execute("PRAGMA synchronous = OFF")
            if _number(database, "user_version") != _FORMAT:
                with _change(database):
                    if _number(database, "user_version") != _FORMAT:
                        database.execute("DROP TABLE IF EXISTS digests")
                        database.execute(_TABLE)
                        database.execute(f"PRAGMA user_version = {_FORMAT}")
        except BaseException:
            database.close()
            raise
        return database

    def _recall(
        self, database: sqlite3.Connection, fingerprints: Sequence[Fingerprint]
    ) -> dict[Fingerprint, bytes]:
        wanted: dict[_Place, list[Fingerprint]] = {}
        for one in fingerprints:
            wanted.setdefault((one.dev, one.ino >> _INODE_BITS), []).append(one)
        roots: dict[Fingerprint, bytes] = {}
        used: list[tuple[int, bytes]] = []
        today = _today()
        for place, key, packed, day in self._rows(database, wanted):
            files = {file[0]: file[1:] for file in _FILE.iter_unpack(packed)}
            for one in wanted[place]:
                size, mtime, ctime, root = files.get(one.ino & _BESIDE, _NOTHING)
                if size == one.size and mtime == one.mtime_ns & _U64 and ctime == one.ctime_ns & _U64:
                    roots[one] = root
            used += [(today, key)] if day != today else []
        if used:
            with _change(database):
                database.executemany("UPDATE digests SET day = ? WHERE place = ?", used)
        return roots

    def _rows(
        self, database: sqlite3.Connection, places: Iterable[_Place]
    ) -> Iterator[tuple[_Place, bytes, bytes, int]]:
        """The rows of these places that count: place, key, files as they are packed, and the day when it was used."""
        by_key = {self._key(place): place for place in places}
        keys = list(by_key)
        for at in range(0, len(keys), _ROWS_AT_ONCE):
            page = keys[at : at + _ROWS_AT_ONCE]
            query = f"SELECT place, files, mac, day FROM digests WHERE place IN ({','.join('?' * len(page))})"
            with closing(database.execute(query, page)) as rows:
                for key, packed, mac, day in rows:
                    place = by_key[key]
                    if isinstance(packed, bytes) and compare_digest(self._mac(place, packed), bytes(mac)):
                        yield place, key, packed, day

    def _remember(self, database: sqlite3.Connection, roots: Mapping[Fingerprint, bytes]) -> None:
        today = _today()
        changed: dict[_Place, dict[int, bytes]] = {}
        for (dev, ino, size, mtime_ns, ctime_ns), root in roots.items():
            file = _FILE.pack(ino & _BESIDE, size, mtime_ns & _U64, ctime_ns & _U64, root)
            changed.setdefault((dev, ino >> _INODE_BITS), {})[ino & _BESIDE] = file
        with _change(database):
            for place, _, packed, _ in list(self._rows(database, changed)):
                before = [packed[at : at + _FILE.size] for at in range(0, len(packed), _FILE.size)]
                changed[place] = {file[0]: file for file in before} | changed[place]
            rows = []
            for place, files in changed.items():
                packed = b"".join(files.values())
                rows.append((self._key(place), packed, self._mac(place, packed), today))
            database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", rows)
            pages = _number(database, "page_count") - _number(database, "freelist_count")
            if pages * _number(database, "page_size") > SIZE_MAX:
                database.execute(
                    "DELETE FROM digests WHERE place IN (SELECT place FROM digests ORDER BY day "
                    "LIMIT (SELECT count(*) / 10 + 1 FROM digests))"
                )

    def _key(self, place: _Place) -> bytes:
        """The key of a row: nobody learns from a memory which files there are."""
        return blake3(_packed(place), key=self._secret).digest(16)

    def _mac(self, place: _Place, files: bytes) -> bytes:
        return blake3(b"files" + _packed(place) + files, key=self._secret).digest(16)


_NOTHING = -1, 0, 0, b""


def _packed(place: _Place) -> bytes:
    return (place[0] & _U64).to_bytes(8, "big") + (place[1] & _U64).to_bytes(8, "big")


@contextmanager
def _change(database: sqlite3.Connection) -> Iterator[None]:
    """One transaction: done, or undone when it fails."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def _number(database: sqlite3.Connection, pragma: str) -> int:
    return int(database.execute(f"PRAGMA {pragma}").fetchone()[0])


def _today() -> int:
    return int(time.time() // _DAY_S)
