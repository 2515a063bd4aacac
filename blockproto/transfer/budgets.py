"""Budgets: how many bytes a principal's files and uploads have together, held against its quota.

    used = the files in the realm's folder, as they were looked at last, and what was committed since
    reserved = the filesize of every unfinished upload (of one of unknown size: what has come)
    used + reserved ≤ quota

An upload whose stream is open keeps what was reserved for it, also before the store has anything of it: many begun at once
cannot have more together than one after another.

Looking takes a walk through the folder, so it is done for the first upload, after a removal, and before anything is refused:
what others made room for counts then.

Spec: BP1-PRN-005.
"""

from __future__ import annotations

from collections import Counter

import trio

from ..errors import QuotaExceeded, UnknownFile
from ..realm import Realm
from ..store import FileStore, UploadKey
from .committing import run_in_thread

_PAGE = 1000


class Budget:
    """What one principal has."""

    def __init__(self) -> None:
        self.used: int | None = None
        self.reserved: dict[UploadKey, int] = {}
        self.streams: Counter[UploadKey] = Counter()
        self.looking = trio.Lock()

    def room(self, realm: Realm, key: UploadKey) -> int:
        """Bytes that ``key`` may have; negative if the quota is overdrawn already."""
        assert realm.quota is not None
        assert self.used is not None
        others = sum(length for other, length in self.reserved.items() if other != key)
        return realm.quota - self.used - others


class Budgets:
    """The budgets of all principals of a store.

    Args:
        store: where files are.
    """

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._budgets: dict[bytes, Budget] = {}

    def of(self, realm: Realm) -> Budget:
        """The budget of a principal that has a quota."""
        return self._budgets.setdefault(realm.principal, Budget())

    async def reserve(self, realm: Realm, key: UploadKey, length: int) -> None:
        """Let an upload have ``length`` bytes; more or fewer than before, if it was reserved for before.

        Raises:
            QuotaExceeded: they do not fit; what was reserved stays so.
        """
        budget = self.of(realm)
        async with budget.looking:
            if budget.used is None or length > budget.room(realm, key):
                await self._look(realm, budget)
            room = budget.room(realm, key)
            if length > room:
                raise QuotaExceeded(
                    f"{length} bytes do not fit the quota of {realm.quota}", current=max(0, room)
                )
            budget.reserved[key] = length

    async def is_there(self, key: UploadKey) -> bool:
        """Whether the upload was committed, and its file still is what was."""
        return bool(await run_in_thread(lambda: self._store.receipts(key.principal, [key.sourceid])))

    def used(self) -> dict[bytes, int]:
        """How many bytes each principal has that a quota was looked at for, by its 16 bytes; reserved ones too."""
        return {
            principal: (budget.used or 0) + sum(budget.reserved.values())
            for principal, budget in self._budgets.items()
        }

    def changed(self, realm: Realm) -> None:
        """Something was removed: look again before the next upload."""
        budget = self._budgets.get(realm.principal)
        if budget is not None:
            budget.used = None

    async def _look(self, realm: Realm, budget: Budget) -> None:
        used, begun = await run_in_thread(lambda: self._measure(realm))
        budget.used = used
        open_now = {key: budget.reserved[key] for key in budget.streams if key in budget.reserved}
        budget.reserved = open_now | {key: max(length, open_now.get(key, 0)) for key, length in begun.items()}

    def _measure(self, realm: Realm) -> tuple[int, dict[UploadKey, int]]:
        """The bytes of the files in the realm's folder, and those of each unfinished upload of its principal."""
        folder = "" if realm.folder is None else realm.folder.text
        used, cursor = 0, ""
        try:
            while True:
                entries, cursor = self._store.files(folder, True, cursor, _PAGE)
                used += sum(entry.filesize for entry in entries)
                if not cursor:
                    break
        except UnknownFile:
            used = 0  # the folder is made with the first file in it
        begun: dict[UploadKey, int] = {}
        while True:
            uploads, cursor = self._store.uploads(realm.principal, cursor, _PAGE)
            for upload in uploads:
                begun[upload.key] = upload.position if upload.filesize is None else upload.filesize
            if not cursor:
                return used, begun


class Reservation:
    """What one stream of an upload has reserved in its realm's budget; nothing, where there is no quota.

    Args:
        budgets: all budgets; None: there are no quotas here.
        realm: whose.
    """

    def __init__(self, budgets: Budgets | None, realm: Realm) -> None:
        self._budgets = budgets if realm.quota is not None else None
        self._realm = realm
        self._key: UploadKey | None = None

    async def take(self, key: UploadKey, length: int) -> None:
        """Have room for ``length`` bytes of that upload; one that is a file already needs none.

        Raises:
            QuotaExceeded: they do not fit.
        """
        if self._budgets is None:
            return
        if self._key is None:
            self._key = key
            self._budgets.of(self._realm).streams[key] += 1
        try:
            await self._budgets.reserve(self._realm, key, length)
        except QuotaExceeded:
            if not await self._budgets.is_there(key):
                raise

    def committed(self, filesize: int) -> None:
        """The upload became a file of so many bytes; harmless when repeated."""
        if self._budgets is None or self._key is None:
            return
        budget = self._budgets.of(self._realm)
        if budget.reserved.pop(self._key, None) is not None and budget.used is not None:
            budget.used += filesize

    def leave(self) -> None:
        """The stream has ended; what the store has nothing of is forgotten with the next look. Harmless when repeated."""
        key, self._key = self._key, None
        if self._budgets is None or key is None:
            return
        streams = self._budgets.of(self._realm).streams
        streams[key] -= 1
        if not streams[key]:
            del streams[key]
