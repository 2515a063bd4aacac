"""Budgets: how many bytes a principal's files and uploads have together, held against its quota.

    used = the files in the realm's folder, as they were looked at last, and what was committed since
    reserved = the filesize of every unfinished upload (of one of unknown size: up to its furthest block, or what it has)
    used + reserved ≤ quota

Streams reserve early, so that what does not fit is refused before its bytes come. What counts is the committer: it asks here
before anything becomes durable (``admit``), whatever door it came through, and tells what became of it (``settle``). A work
that is not covered by what its upload has reserved is covered now or not done.

An upload whose stream is open, or whose works are under way, keeps what was reserved for it, also before the store has
anything of it: many begun at once cannot have more together than one after another.

Looking takes a walk through the folder, so it is done for the first upload, after a removal, and before anything is refused:
what others made room for counts then. Where something is not known for sure, more is counted and never less.

Spec: BP1-PRN-005.
"""

from __future__ import annotations

from collections import Counter

import trio

from ..blocks import BLOCK_LENGTH
from ..errors import QuotaExceeded, UnknownFile
from ..realm import Realm
from ..store import BlockDone, Discard, FileStore, Finish, StoredFile, UploadEntry, UploadKey, Work
from .committing import Kind, run_in_thread

_PAGE = 1000
_LOOKS = 3
"""How often it is looked again because something was committed meanwhile."""


class Budget:
    """What one principal has."""

    def __init__(self) -> None:
        self.quota = 0
        self.used: int | None = None
        self.stored = 0
        self.reserved: dict[UploadKey, int] = {}
        self.streams: Counter[UploadKey] = Counter()
        self.works: Counter[UploadKey] = Counter()
        self.looking = trio.Lock()

    def room(self, key: UploadKey) -> int:
        """Bytes that ``key`` may have; negative if the quota is overdrawn already, or nobody has looked."""
        if self.used is None:
            return -1
        others = sum(length for other, length in self.reserved.items() if other != key)
        return self.quota - self.used - others

    def cover(self, key: UploadKey, length: int) -> bool:
        """Reserve ``length`` bytes for an upload, if it has not as many and they fit."""
        if length > self.reserved.get(key, 0):
            if length > self.room(key):
                return False
            self.reserved[key] = length
        return True


class Budgets:
    """The budgets of all principals of a store.

    Args:
        store: where files are.
    """

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._budgets: dict[bytes, Budget] = {}

    def of(self, realm: Realm) -> Budget:
        """The budget of a principal that has a quota; from now on it is held against it, whatever door it uses."""
        assert realm.quota is not None
        budget = self._budgets.setdefault(realm.principal, Budget())
        budget.quota = realm.quota
        return budget

    async def reserve(self, realm: Realm, key: UploadKey, length: int) -> None:
        """Let an upload have ``length`` bytes; if it has more already, it keeps them.

        Raises:
            QuotaExceeded: they do not fit; what was reserved stays so.
        """
        budget = self.of(realm)
        async with budget.looking:
            if budget.used is None or not budget.cover(key, length):
                await self._look(realm, budget)
            if not budget.cover(key, length):
                raise self._exceeded(budget, key, length)

    def _exceeded(self, budget: Budget, key: UploadKey, length: int) -> QuotaExceeded:
        return QuotaExceeded(
            f"{length} bytes do not fit the quota of {budget.quota}", current=max(0, budget.room(key))
        )

    # ---- what the committer asks and tells ----------------------------------------------------------------------

    def admit(self, work: Work) -> QuotaExceeded | None:
        """A work is going to be done: why its bytes may not become durable, or None. ``settle`` follows."""
        if not isinstance(work, BlockDone | Finish):
            return None
        key = work.upload.key
        budget = self._budgets.get(key.principal)
        if budget is None:
            return None
        budget.works[key] += 1
        length = _durable_after(work)
        return None if budget.cover(key, length) else self._exceeded(budget, key, length)

    def settle(self, work: Work) -> None:
        """A work was done, or not: see its outcome."""
        if isinstance(work, Discard):
            budget = self._budgets.get(work.key.principal)
            if budget is not None and work.outcome is None:
                budget.reserved.pop(work.key, None)
            return
        if not isinstance(work, BlockDone | Finish):
            return
        key = work.upload.key
        budget = self._budgets.get(key.principal)
        if budget is None:
            return
        budget.works[key] -= 1
        if budget.works[key] <= 0:
            del budget.works[key]
        if isinstance(work, Finish) and isinstance(work.outcome, StoredFile):
            budget.reserved.pop(key, None)
            if work.veto is None and not work.outcome.there and not work.outcome.left:
                budget.stored += work.outcome.filesize
                if budget.used is not None:
                    budget.used += work.outcome.filesize

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
        """Count what there is; what is committed meanwhile may be counted twice, and never not at all."""
        for _ in range(_LOOKS):
            before = budget.stored
            used, begun = await run_in_thread(lambda: self._measure(realm), Kind.LIST)
            if budget.stored == before:
                break
        budget.used = used + budget.stored - before
        busy = budget.streams.keys() | budget.works.keys()
        kept = {key: budget.reserved[key] for key in busy if key in budget.reserved}
        budget.reserved = kept | {key: max(length, kept.get(key, 0)) for key, length in begun.items()}

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
                begun[upload.key] = _length_of(upload)
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

    def leave(self) -> None:
        """The stream has ended; what the store has nothing of is forgotten with the next look. Harmless when repeated."""
        key, self._key = self._key, None
        if self._budgets is None or key is None:
            return
        streams = self._budgets.of(self._realm).streams
        streams[key] -= 1
        if not streams[key]:
            del streams[key]


def _durable_after(work: BlockDone | Finish) -> int:
    """The bytes that its upload may have once the work is done."""
    if isinstance(work, Finish):
        return sum(block.length for block in work.blocks)  # those of other uploads are durable already
    filesize = work.upload.facts.filesize
    return (work.blockno + 1) * BLOCK_LENGTH if filesize is None else filesize


def _length_of(upload: UploadEntry) -> int:
    """The bytes that an unfinished upload has, or will have where that is known."""
    if upload.filesize is not None:
        return upload.filesize
    return max(upload.position, upload.held_count * BLOCK_LENGTH, upload.taken)
