"""The cache of file digests that a client keeps between runs: fingerprint → root.

Rules:
    1. A row counts only if its MAC, keyed with the installation's secret, fits fingerprint and root. Damaged, foreign and
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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from hmac import compare_digest
from pathlib import Path
from typing import TypeVar

from blake3 import blake3

from .fingerprint import Fingerprint

log = logging.getLogger(__name__)

SIZE_MAX = 64 << 20
"""The size in bytes at which a cache forgets a tenth of its rows: about 600,000 files."""
_BUSY_S = 2.0
_ROWS_AT_ONCE = 500
_DAY_S = 86_400
_FORMAT = 1
_U64 = (1 << 64) - 1
_TABLE = (
    "CREATE TABLE digests (file BLOB PRIMARY KEY, root BLOB NOT NULL, mac BLOB NOT NULL, day INTEGER NOT NULL) "
    "WITHOUT ROWID"
)

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
        by_file = {self._file(one): one for one in fingerprints}
        files = list(by_file)
        roots: dict[Fingerprint, bytes] = {}
        used: list[tuple[int, bytes]] = []
        today = _today()
        for at in range(0, len(files), _ROWS_AT_ONCE):
            page = files[at : at + _ROWS_AT_ONCE]
            query = f"SELECT file, root, mac, day FROM digests WHERE file IN ({','.join('?' * len(page))})"
            with closing(database.execute(query, page)) as rows:
                for file, root, mac, day in rows:
                    one = by_file[file]
                    if isinstance(root, bytes) and compare_digest(self._mac(one, root), bytes(mac)):
                        roots[one] = root
                        used += [(today, file)] if day != today else []
        if used:
            with _change(database):
                database.executemany("UPDATE digests SET day = ? WHERE file = ?", used)
        return roots

    def _remember(self, database: sqlite3.Connection, roots: Mapping[Fingerprint, bytes]) -> None:
        today = _today()
        rows = [(self._file(one), root, self._mac(one, root), today) for one, root in roots.items()]
        with _change(database):
            database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", rows)
            pages = _number(database, "page_count") - _number(database, "freelist_count")
            if pages * _number(database, "page_size") > SIZE_MAX:
                database.execute(
                    "DELETE FROM digests WHERE file IN (SELECT file FROM digests ORDER BY day "
                    "LIMIT (SELECT count(*) / 10 + 1 FROM digests))"
                )

    def _file(self, one: Fingerprint) -> bytes:
        """The key of a file's row: nobody learns from a memory which files there are."""
        place = (one.dev & _U64).to_bytes(8, "big") + (one.ino & _U64).to_bytes(8, "big")
        return blake3(place, key=self._secret).digest(16)

    def _mac(self, one: Fingerprint, root: bytes) -> bytes:
        return blake3(one.packed() + root, key=self._secret).digest(16)


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
