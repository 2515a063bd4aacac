"""The queue on disk: one SQLite file that any number of processes read and change.

Every change is one transaction, durable when it returns (WAL, synchronous FULL). Each raises ``revision``, so that a
watcher asks only for what is newer than what it has seen; whether any process has changed something, SQLite tells from
shared memory (``PRAGMA data_version``).

Blocking code: changes sync the disk and belong in a thread; ``newer`` and ``version`` are quick.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from ..errors import BlockprotoError, NotPermitted, StoreFailed, StoreFull
from .entry import PRIORITIES, Direction, QueuedTransfer, TransferState, Wanted

FORMAT = 1
BUSY_S = 10.0
"""How long (s) a change waits for that of another process."""
ENDED_MAX = 1000
"""How many transfers that are done or cancelled are kept, the newest ones."""

_TABLES = """
CREATE TABLE clock (revision INTEGER NOT NULL);
INSERT INTO clock VALUES (0);
CREATE TABLE transfers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    folder_id INTEGER,
    direction TEXT NOT NULL,
    server TEXT NOT NULL,
    name TEXT NOT NULL,
    path BLOB NOT NULL,
    if_exists TEXT NOT NULL,
    priority INTEGER NOT NULL,
    place REAL NOT NULL,
    state TEXT NOT NULL,
    position INTEGER NOT NULL DEFAULT 0,
    filesize INTEGER,
    became INTEGER,
    sourceid TEXT,
    stored_as TEXT,
    error TEXT,
    code INTEGER,
    retryable INTEGER NOT NULL DEFAULT 0,
    untidy INTEGER NOT NULL DEFAULT 0,
    added_ms INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    revision INTEGER NOT NULL
);
CREATE INDEX by_state ON transfers (state, priority, place, id);
CREATE INDEX by_revision ON transfers (revision);
CREATE INDEX by_folder ON transfers (folder_id);
CREATE INDEX by_target ON transfers (server, name);
"""
_COLUMNS = (
    "id, folder_id, direction, server, name, path, if_exists, priority, place, state, position, filesize, became, sourceid, "
    "stored_as, error, code, retryable, added_ms, changed_ms, revision"
)
_STAMP = "changed_ms = :now, revision = (SELECT revision FROM clock)"
_RUNNING, _WAITING = TransferState.RUNNING.value, TransferState.WAITING.value


class Journal:
    """An open journal; made if it is not there.

    Args:
        path: the file. Its folder is made, for its user alone.

    Raises:
        NotPermitted: it cannot be opened, or is not a queue.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changing = threading.Lock()
        self._reading = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._writer, self._reader = self._connect(), self._connect()
        except (OSError, sqlite3.Error) as exc:
            raise NotPermitted(f"the queue '{path}' cannot be opened: {exc}") from exc

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("BEGIN IMMEDIATE")
        format_ = database.execute("PRAGMA user_version").fetchone()[0]
        if format_ == 0:
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {FORMAT}")
        database.execute("COMMIT")
        if format_ not in (0, FORMAT):
            raise sqlite3.DatabaseError(f"its format is {format_}, this program knows {FORMAT}")
        return database

    def close(self) -> None:
        """Close it."""
        with self._changing:
            self._writer.close()
            self._reader.close()

    # ---- looking ----------------------------------------------------------------------------------------------

    def version(self) -> int:
        """A number that differs after every change by any process."""
        with self._reading:
            return int(self._reader.execute("PRAGMA data_version").fetchone()[0])

    def newer(self, revision: int) -> list[QueuedTransfer]:
        """What changed after ``revision``, in order."""
        return self._select("revision > ? ORDER BY revision, id", (revision,))

    def all(self) -> list[QueuedTransfer]:
        """All transfers, in the order in which they run."""
        return self._select("TRUE ORDER BY priority, place, id")

    def servers(self) -> list[str]:
        """The servers for which transfers wait."""
        with self._reading:
            rows = self._reader.execute("SELECT DISTINCT server FROM transfers WHERE state = 'waiting'")
            return [row["server"] for row in rows.fetchall()]

    def next(self, server: str, priority: int, most: int) -> list[QueuedTransfer]:
        """The first ``most`` transfers of one priority that wait for a server."""
        where = "state = ? AND server = ? AND priority = ? ORDER BY place, id LIMIT ?"
        return self._select(where, (_WAITING, server, priority, most))

    def untidy(self) -> list[QueuedTransfer]:
        """Cancelled transfers that had begun, and may have left something."""
        return self._select("untidy AND state = ?", (TransferState.CANCELLED.value,))

    def _select(self, where: str, values: Sequence[object] = ()) -> list[QueuedTransfer]:
        # One at a time: while a thread reads, another one on the same connection would see what was true when it began.
        with self._reading:
            return _selected(self._reader, where, values)

    # ---- changing ---------------------------------------------------------------------------------------------

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction with a new revision; raises StoreFull or StoreFailed when it cannot be written."""
        with self._changing:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                self._writer.execute("UPDATE clock SET revision = revision + 1")
                yield self._writer
                self._writer.execute("COMMIT")
            except sqlite3.Error as exc:
                full = exc.sqlite_errorcode == sqlite3.SQLITE_FULL
                raise (StoreFull if full else StoreFailed)(f"the queue '{self.path}': {exc}") from exc
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def add(self, wanted: Iterable[Wanted]) -> list[int]:
        """Add transfers at the end of their priorities; returns their numbers.

        One that is there already and has not ended is not added again; one that failed waits again.
        """
        with self._change() as database:
            return [self._add(database, one, None, None) for one in wanted]

    def expand(
        self, folder: QueuedTransfer, entries: Sequence[Wanted], missed: BlockprotoError | None
    ) -> None:
        """Replace a folder whose turn has come by its files, at its place in the queue.

        The folder is done then, or has failed if something of it was ``missed``; its files run all the same.
        """
        folder_id = folder.folder_id or folder.id
        with self._change() as database:
            for one in entries:
                self._add(database, one, folder_id, folder.place)
            database.execute(
                "UPDATE transfers SET state = :state, became = :count, untidy = 0, error = :error, code = :code, "
                f"retryable = 0, {_STAMP} WHERE id = :id",
                {
                    "state": (TransferState.DONE if missed is None else TransferState.FAILED).value,
                    "count": len(entries),
                    "error": None if missed is None else str(missed),
                    "code": None if missed is None else int(missed.code),
                    "id": folder.id,
                    "now": _now_ms(),
                },
            )

    def _add(
        self, database: sqlite3.Connection, one: Wanted, folder_id: int | None, place: float | None
    ) -> int:
        values = {
            "direction": one.direction.value, "server": one.server, "name": one.name, "path": os.fsencode(one.path),
            "if_exists": one.if_exists, "priority": one.priority, "folder_id": folder_id, "place": place, "now": _now_ms(),
        }  # fmt: skip
        there = database.execute(
            "SELECT id FROM transfers WHERE server = :server AND name = :name AND path = :path AND direction = :direction "
            "AND (state IN ('waiting', 'paused', 'failed') OR state = 'running' AND if_exists = :if_exists)",
            values,
        ).fetchone()
        if there is not None:
            database.execute(
                "UPDATE transfers SET state = CASE state WHEN 'failed' THEN 'waiting' ELSE state END, "
                f"if_exists = :if_exists, {_STAMP} WHERE id = :id AND (state = 'failed' OR if_exists != :if_exists)",
                values | {"id": there["id"]},
            )
            return int(there["id"])
        cursor = database.execute(
            "INSERT INTO transfers (folder_id, direction, server, name, path, if_exists, priority, place, state, added_ms, "
            "changed_ms, revision) VALUES (:folder_id, :direction, :server, :name, :path, :if_exists, :priority, "
            "coalesce(:place, (SELECT coalesce(max(place), 0) + 1 FROM transfers)), 'waiting', :now, :now, "
            "(SELECT revision FROM clock))",
            values,
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def change(
        self, ids: Sequence[int] | None, before: Iterable[TransferState], after: TransferState
    ) -> list[int]:
        """Set the state of those of ``ids`` (None: all), and of the files of their folders, that are in one of ``before``.

        Returns the numbers of those that changed.
        """
        with self._change() as database:
            chosen = self._chosen(database, ids, before)
            database.executemany(
                f"UPDATE transfers SET state = :state, error = NULL, code = NULL, {_STAMP} WHERE id = :id",
                [{"state": after.value, "id": id_, "now": _now_ms()} for id_ in chosen],
            )
        return chosen

    def _chosen(
        self, database: sqlite3.Connection, ids: Sequence[int] | None, states: Iterable[TransferState]
    ) -> list[int]:
        wanted = {state.value for state in states}
        if ids is None:
            rows = database.execute("SELECT id, state FROM transfers ORDER BY id").fetchall()
            return [row["id"] for row in rows if row["state"] in wanted]
        chosen: dict[int, None] = {}
        for id_ in ids:
            rows = database.execute(
                "SELECT id, state FROM transfers WHERE id = ? OR folder_id = ? ORDER BY id", (id_, id_)
            ).fetchall()
            if all(row["id"] != id_ for row in rows):
                raise ValueError(f"there is no transfer {id_} in the queue")
            chosen.update((row["id"], None) for row in rows if row["state"] in wanted)
        return list(chosen)

    def prioritise(self, ids: Sequence[int], priority: int) -> None:
        """Set the priority of transfers, and of the files of folders among them; those that run wait again."""
        with self._change() as database:
            database.executemany(
                "UPDATE transfers SET state = CASE state WHEN 'running' THEN 'waiting' ELSE state END, "
                f"priority = :priority, {_STAMP} WHERE id = :id AND priority != :priority",
                [
                    {"priority": priority, "id": id_, "now": _now_ms()}
                    for id_ in self._chosen(database, ids, TransferState)
                ],
            )

    def move(self, ids: Sequence[int], *, first: bool, beside: int | None) -> None:
        """Move transfers together, in this order: ``first`` of all or last, or just before or after ``beside``."""
        with self._change() as database:
            chosen = self._chosen(database, ids, TransferState)
            if beside is not None:
                self._chosen(database, [beside], ())  # says so if there is none
            order = [
                row["id"]
                for row in database.execute("SELECT id FROM transfers ORDER BY place, id")
                if row["id"] not in set(chosen)
            ]
            if beside in chosen:
                raise ValueError(f"transfer {beside} cannot be moved beside itself")
            at = order.index(beside) + (not first) if beside is not None else (0 if first else len(order))
            order[at:at] = chosen
            moved = set(chosen)
            now = _now_ms()
            database.executemany(
                "UPDATE transfers SET place = ? WHERE id = ?",
                [(place, id_) for place, id_ in enumerate(order)],
            )
            database.executemany(
                f"UPDATE transfers SET {_STAMP} WHERE id = :id", [{"id": id_, "now": now} for id_ in moved]
            )

    # ---- what the runner writes down --------------------------------------------------------------------------

    def recover(self) -> None:
        """Let transfers of a killed process wait again, and forget the oldest that have ended."""
        with self._change() as database:
            database.execute(
                f"UPDATE transfers SET state = 'waiting', {_STAMP} WHERE state = 'running'",
                {"now": _now_ms()},
            )
            database.execute(
                "DELETE FROM transfers WHERE state IN ('done', 'cancelled') AND NOT untidy AND id NOT IN (SELECT id FROM "
                "transfers WHERE state IN ('done', 'cancelled') ORDER BY revision DESC, id DESC LIMIT ?)",
                (ENDED_MAX,),
            )

    def begin(self, ids: Sequence[int]) -> list[QueuedTransfer]:
        """Set those that still wait to running; returns them as they are now."""
        with self._change() as database:
            statement = (
                f"UPDATE transfers SET state = 'running', {_STAMP} WHERE id = :id AND state = 'waiting'"
            )
            database.executemany(statement, [{"id": id_, "now": _now_ms()} for id_ in ids])
            running = f"state = '{_RUNNING}' AND id IN ({','.join('?' * len(ids))})"
            return _selected(database, running, ids)

    def put_back(self, ids: Sequence[int]) -> None:
        """Set those that run to waiting."""
        self._each("UPDATE transfers SET state = 'waiting', {} WHERE id = :id AND state = 'running'", ids)

    def tidied(self, id_: int) -> None:
        """Note that what a cancelled transfer had left has been removed."""
        self._each("UPDATE transfers SET untidy = 0, {} WHERE id = :id", [id_])

    def _each(self, statement: str, ids: Sequence[int]) -> None:
        with self._change() as database:
            now = _now_ms()
            database.executemany(statement.format(_STAMP), [{"id": id_, "now": now} for id_ in ids])

    def found(self, id_: int, filesize: int, sourceid: str | None) -> None:
        """Note what a transfer is about to move; from now on it may leave something when it is cancelled."""
        with self._change() as database:
            database.execute(
                f"UPDATE transfers SET filesize = :filesize, sourceid = :sourceid, untidy = 1, {_STAMP} WHERE id = :id",
                {"filesize": filesize, "sourceid": sourceid, "id": id_, "now": _now_ms()},
            )

    def advance(self, positions: Mapping[int, int]) -> None:
        """Note the positions of transfers."""
        with self._change() as database:
            now = _now_ms()
            database.executemany(
                f"UPDATE transfers SET position = :position, {_STAMP} WHERE id = :id",
                [{"id": id_, "position": position, "now": now} for id_, position in positions.items()],
            )

    def done(self, id_: int, stored_as: str, filesize: int) -> None:
        """Note that a transfer is complete; a request to stop it has come too late."""
        with self._change() as database:
            database.execute(
                f"UPDATE transfers SET state = 'done', stored_as = :stored_as, filesize = :filesize, position = :filesize, "
                f"error = NULL, code = NULL, untidy = 0, {_STAMP} WHERE id = :id",
                {"stored_as": stored_as, "filesize": filesize, "id": id_, "now": _now_ms()},
            )

    def failed(self, id_: int, error: str, code: int | None, retryable: bool) -> None:
        """Note that a transfer failed, unless it was paused or cancelled before."""
        with self._change() as database:
            database.execute(
                f"UPDATE transfers SET state = 'failed', error = :error, code = :code, retryable = :retryable, {_STAMP} "
                "WHERE id = :id AND state = 'running'",
                {"error": error, "code": code, "retryable": retryable, "id": id_, "now": _now_ms()},
            )


def _selected(database: sqlite3.Connection, where: str, values: Sequence[object]) -> list[QueuedTransfer]:
    with closing(database.execute(f"SELECT {_COLUMNS} FROM transfers WHERE {where}", values)) as rows:
        return [_transfer(row) for row in rows]


def _transfer(row: sqlite3.Row) -> QueuedTransfer:
    values = dict(row)
    return QueuedTransfer(
        **values
        | {
            "direction": Direction(values["direction"]),
            "path": Path(os.fsdecode(values["path"])),
            "priority": PRIORITIES[values["priority"]],
            "state": TransferState(values["state"]),
            "retryable": bool(values["retryable"]),
        }
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
