"""Quota: how many bytes a principal's files and uploads have together, held against its quota.

    used = the files in the realm's folder, as they were looked at last, and what was committed since
    reserved = the filesize of every unfinished upload (of one of unknown size: up to its furthest block, or what it has)
    used + reserved ≤ quota

``LiveUploads`` reserves for whoever opens an upload, in whatever protocol, so that what does not fit is refused before
its bytes come. What counts is the committer: it asks here before anything becomes durable (``admit``), and tells what
became of it (``settle``). A work that is not covered by what its upload has reserved is covered now or not done.

An upload whose stream is open, or whose works are under way, keeps what was reserved for it, also before the store has
anything of it: many begun at once cannot have more together than one after another.

Looking takes a walk through the folder, so it is done for the first upload, after a removal, and before anything is refused:
what others made room for counts then. Where something is not known for sure, more is counted and never less.

Spec: BP1-PRN-005.
"""

from __future__ import annotations

from collections import Counter

import trio

from ..common.blocks import BLOCK_LENGTH
from ..errors import QuotaExceeded, UnknownFile
from ..identity.realm import Realm
from ..store import BlockDone, Discard, FileStore, Finish, Outcome, StoredFile, UploadEntry, UploadKey, Work
from .threads import Kind, run_in_thread

_PAGE = 1000
_LOOKS = 3
"""How often it is looked again because something was committed meanwhile."""


class QuotaAccount:
    """What one principal has.

    Args:
        realm: its realm, which has a quota.
    """

    def __init__(self, realm: Realm) -> None:
        self.realm = realm
        self.used: int | None = None
        self.stored = 0
        self.reserved: dict[UploadKey, int] = {}
        self.streams: Counter[UploadKey] = Counter()
        self.works: Counter[UploadKey] = Counter()
        self.same: dict[UploadKey, UploadKey] = {}
        self.looking = trio.Lock()

    @property
    def quota(self) -> int:
        """Bytes that it may have."""
        assert self.realm.quota is not None
        return self.realm.quota

    @property
    def busy(self) -> set[UploadKey]:
        """What keeps its reservation whatever the store has of it."""
        return {self.key_of(key) for key in self.streams.keys() | self.works.keys()}

    def key_of(self, key: UploadKey) -> UploadKey:
        """Under which key is counted what ``key`` has."""
        return self.same.get(key, key)

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


class Quotas:
    """The quotas of all principals of a store.

    Args:
        store: where files are.
    """

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._quotas: dict[bytes, QuotaAccount] = {}

    def hold(self, realm: Realm) -> None:
        """Hold a principal to its quota from now on, whatever way it uses; one that has none is free."""
        if realm.quota is not None:
            self._quotas.setdefault(realm.principal, QuotaAccount(realm)).realm = realm

    # ---- what those who open uploads say --------------------------------------------------------------------------

    def begin(self, key: UploadKey) -> None:
        """A stream brings an upload: what is reserved for it stays so until ``end``."""
        account = self._quotas.get(key.principal)
        if account is not None:
            account.streams[key] += 1

    def end(self, key: UploadKey) -> None:
        """A stream has ended; what the store has nothing of is forgotten with the next look."""
        account = self._quotas.get(key.principal)
        if account is not None:
            _less(account.streams, key)

    def count_as_one(self, key: UploadKey, other: UploadKey) -> None:
        """Only one of two uploads can become a file, and it is not known yet which: ``other`` needs no room beside it."""
        account = self._quotas.get(key.principal)
        if account is not None:
            account.same[other] = key
            account.used = None

    def count_apart(self, other: UploadKey) -> None:
        """The end of ``count_as_one``. Harmless when repeated."""
        account = self._quotas.get(other.principal)
        if account is not None and account.same.pop(other, None) is not None:
            account.used = None

    def covers(self, key: UploadKey, length: int) -> bool:
        """Reserve ``length`` bytes for an upload, if that can be decided without looking; False: ``reserve`` looks."""
        account = self._quotas.get(key.principal)
        return account is None or (account.used is not None and account.cover(account.key_of(key), length))

    async def reserve(self, key: UploadKey, length: int) -> None:
        """Let an upload have ``length`` bytes; if it has more already, it keeps them.

        Raises:
            QuotaExceeded: they do not fit; what was reserved stays so.
        """
        account = self._quotas.get(key.principal)
        if account is None:
            return
        async with account.looking:
            if self.covers(key, length):
                return
            await self._look(account)
            if not account.cover(account.key_of(key), length):
                raise self._exceeded(account, account.key_of(key), length)

    def _exceeded(self, account: QuotaAccount, key: UploadKey, length: int) -> QuotaExceeded:
        return QuotaExceeded(
            f"{length} bytes do not fit the quota of {account.quota}", current=max(0, account.room(key))
        )

    # ---- what the committer asks and tells ----------------------------------------------------------------------

    def admit(self, work: Work) -> QuotaExceeded | None:
        """A work is going to be done: why its bytes may not become durable, or None. ``settle`` follows."""
        if not isinstance(work, BlockDone | Finish):
            return None
        key = work.upload.key
        account = self._quotas.get(key.principal)
        if account is None:
            return None
        account.works[key] += 1
        key, length = account.key_of(key), _durable_after(work)
        return None if account.cover(key, length) else self._exceeded(account, key, length)

    def settle(self, work: Work, outcome: Outcome) -> None:
        """A work was done, or not: see the outcome."""
        if isinstance(work, Discard):
            account = self._quotas.get(work.key.principal)
            if account is not None and outcome is None and account.key_of(work.key) not in account.busy:
                account.reserved.pop(account.key_of(work.key), None)
            return
        if not isinstance(work, BlockDone | Finish):
            return
        key = work.upload.key
        account = self._quotas.get(key.principal)
        if account is None:
            return
        _less(account.works, key)
        if isinstance(work, Finish) and isinstance(outcome, StoredFile):
            account.reserved.pop(account.key_of(key), None)
            if work.veto is None and not outcome.there and not outcome.left:
                account.stored += outcome.filesize
                if account.used is not None:
                    account.used += outcome.filesize

    async def is_there(self, key: UploadKey) -> bool:
        """Whether the upload was committed, and its file still is what was."""
        return bool(await run_in_thread(lambda: self._store.receipts(key.principal, [key.sourceid])))

    def used(self) -> dict[bytes, int]:
        """How many bytes each principal has that a quota was looked at for, by its 16 bytes; reserved ones too."""
        return {
            principal: (account.used or 0) + sum(account.reserved.values())
            for principal, account in self._quotas.items()
        }

    def changed(self, realm: Realm) -> None:
        """Something was removed: look again before the next upload."""
        account = self._quotas.get(realm.principal)
        if account is not None:
            account.used = None

    async def _look(self, account: QuotaAccount) -> None:
        """Count what there is; what is committed meanwhile may be counted twice, and never not at all."""
        for _ in range(_LOOKS):
            before = account.stored
            used, begun = await run_in_thread(lambda: self._measure(account.realm), Kind.LIST)
            if account.stored == before:
                break
        account.used = used + account.stored - before
        kept = {key: account.reserved[key] for key in account.busy if key in account.reserved}
        for key, length in begun.items():
            kept[account.key_of(key)] = max(length, kept.get(account.key_of(key), 0))
        account.reserved = kept

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


def _less(counts: Counter[UploadKey], key: UploadKey) -> None:
    """One less of ``key``; who came before the quota did is not counted."""
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


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
