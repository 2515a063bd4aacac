"""Quota: limit the bytes that a principal's files and uploads have together.

    used = the files in the realm's folder at the last look, and what was committed since
    reserved = the filesize of every unfinished upload (of unknown size: up to its last block, or what it has on disk)
    used + reserved ≤ quota

``LiveUploads`` reserves bytes when an upload is opened, in any protocol, so that one that does not fit is refused before
its bytes come. The committer enforces the quota: it asks before anything becomes durable (``admit``) and reports the outcome
(``settle``). A work that exceeds its upload's reservation extends it, or is not done.

An upload keeps its reservation while a stream or a work of it is under way, even before the store has anything of it. So
uploads that begin at the same time get no more together than one after another.

A look walks through the folder, so it happens only for the first upload, after a removal, and before a refusal, so that room
made by others counts. In doubt too much is counted, never too little.

Spec: BP1-PRN-005.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import trio

from ..common.blocks import BLOCK_LENGTH
from ..errors import QuotaExceeded, UnknownFile
from ..identity.realm import Realm
from ..store import (
    BlockDone,
    Discard,
    FileStore,
    Finish,
    Outcome,
    StoredFile,
    StoreFiles,
    UploadEntry,
    UploadKey,
    Work,
)
from .threads import Kind, run_in_thread

_PAGE = 1000
_LOOKS = 3
"""How often to look again because something was committed meanwhile."""


class QuotaAccount:
    """The account of one principal.

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
        """The bytes that it may have."""
        assert self.realm.quota is not None
        return self.realm.quota

    @property
    def busy(self) -> set[UploadKey]:
        """The uploads that keep their reservation whatever the store has of them."""
        return {self.key_of(key) for key in self.streams.keys() | self.works.keys()}

    def key_of(self, key: UploadKey) -> UploadKey:
        """The key under which an upload is counted."""
        return self.same.get(key, key)

    def room(self, key: UploadKey) -> int:
        """Bytes that ``key`` may have; negative if the quota is exceeded already, or nothing was looked at yet."""
        if self.used is None:
            return -1
        others = sum(length for other, length in self.reserved.items() if other != key)
        return self.quota - self.used - others

    def cover(self, key: UploadKey, length: int) -> bool:
        """Reserve ``length`` bytes for an upload, unless it has them; False if they do not fit."""
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
        """Hold a principal to its quota, if it has one, from now on."""
        if realm.quota is not None:
            self._quotas.setdefault(realm.principal, QuotaAccount(realm)).realm = realm

    # ---- for those who open uploads -------------------------------------------------------------------------------

    def begin(self, key: UploadKey) -> None:
        """A stream sends an upload, which keeps its reservation until ``end``."""
        account = self._quotas.get(key.principal)
        if account is not None:
            account.streams[key] += 1

    def end(self, key: UploadKey) -> None:
        """A stream has ended; the next look forgets the reservation if the store has nothing of the upload."""
        account = self._quotas.get(key.principal)
        if account is not None:
            _less(account.streams, key)

    def count_as_one(self, key: UploadKey, other: UploadKey) -> None:
        """Count two uploads once, of which only one can become a file."""
        account = self._quotas.get(key.principal)
        if account is not None:
            account.same[other] = key
            account.used = None

    def count_apart(self, other: UploadKey) -> None:
        """Undo ``count_as_one``. Harmless when repeated."""
        account = self._quotas.get(other.principal)
        if account is not None and account.same.pop(other, None) is not None:
            account.used = None

    def covers(self, key: UploadKey, length: int) -> bool:
        """Reserve ``length`` bytes for an upload without looking; False: call ``reserve``, which looks."""
        account = self._quotas.get(key.principal)
        return account is None or (account.used is not None and account.cover(account.key_of(key), length))

    async def reserve(self, key: UploadKey, length: int) -> None:
        """Reserve ``length`` bytes for an upload; if it has more, it keeps them.

        Raises:
            QuotaExceeded: they do not fit; an earlier reservation stays.

        Cancellation: nothing more is reserved.
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

    def holds(self, principal: bytes) -> bool:
        """Whether a principal has a quota."""
        return principal in self._quotas

    async def reserve_many(self, wanted: Sequence[tuple[UploadKey, int]]) -> dict[UploadKey, QuotaExceeded]:
        """``begin`` and ``reserve`` for many files of one principal, with one look for all that does not fit.

        A file that is there already needs no room.

        Returns:
            Those that do not fit, with the reason; for the others ``end`` is to be called.
        """
        principal = wanted[0][0].principal
        exceeded: dict[UploadKey, QuotaExceeded] = {}
        begun: list[UploadKey] = []
        try:
            for key, length in wanted:
                self.begin(key)
                begun.append(key)
                try:
                    await self._reserve_one_of(key, length, looked=bool(exceeded))
                except QuotaExceeded as exc:
                    exceeded[key] = exc.with_traceback(None)
            if exceeded:
                ids = [key.sourceid for key in exceeded]
                for stored in await run_in_thread(lambda: self._store.receipts(principal, ids)):
                    exceeded.pop(UploadKey(principal, stored.sourceid))
        except BaseException:
            for key in begun:
                self.end(key)
            raise
        for key in begun:
            if key in exceeded:
                self.end(key)
        return exceeded

    async def _reserve_one_of(self, key: UploadKey, length: int, *, looked: bool) -> None:
        """``reserve``; who has looked already for another of the same files does not look again. Raises QuotaExceeded."""
        account = self._quotas[key.principal]
        if self.covers(key, length):
            return
        if looked and account.used is not None:
            raise self._exceeded(account, account.key_of(key), length)
        await self.reserve(key, length)

    def _exceeded(self, account: QuotaAccount, key: UploadKey, length: int) -> QuotaExceeded:
        return QuotaExceeded(
            f"{length} bytes do not fit the quota of {account.quota}", current=max(0, account.room(key))
        )

    # ---- for the committer --------------------------------------------------------------------------------------

    def admit(self, work: Work) -> QuotaExceeded | None:
        """Why the bytes of a work may not become durable, or None; ``settle`` has to follow."""
        if not isinstance(work, BlockDone | Finish):
            return None
        key = work.upload.key
        account = self._quotas.get(key.principal)
        return None if account is None else self._admit(account, key, _durable_after(work))

    def admit_files(self, work: StoreFiles) -> StoreFiles:
        """Several whole files are going to be stored: the work with a veto on each that may not. ``settle`` follows."""
        account = self._quotas.get(work.principal)
        if account is None:
            return work
        vetoes = [self._admit(account, file.key, file.length) for file in work.files]
        if not any(vetoes):
            return work
        files = zip(work.files, vetoes, strict=True)
        return replace(work, files=tuple(file._replace(veto=veto) for file, veto in files))

    def _admit(self, account: QuotaAccount, key: UploadKey, length: int) -> QuotaExceeded | None:
        account.works[key] += 1
        key = account.key_of(key)
        return None if account.cover(key, length) else self._exceeded(account, key, length)

    def settle(self, work: Work, outcome: Outcome) -> None:
        """Count what became of a work."""
        if isinstance(work, Discard):
            account = self._quotas.get(work.key.principal)
            if account is not None and outcome is None and account.key_of(work.key) not in account.busy:
                account.reserved.pop(account.key_of(work.key), None)
            return
        if isinstance(work, StoreFiles):
            account = self._quotas.get(work.principal)
            if account is not None and isinstance(outcome, tuple):
                for file, one in zip(work.files, outcome, strict=True):
                    _settle(account, file.key, one, vetoed=file.veto is not None)
            return
        if not isinstance(work, BlockDone | Finish):
            return
        key = work.upload.key
        account = self._quotas.get(key.principal)
        if account is None:
            return
        if isinstance(work, Finish):
            _settle(account, key, outcome, vetoed=work.veto is not None)
        else:
            _less(account.works, key)

    async def is_there(self, key: UploadKey) -> bool:
        """Whether the upload was committed and its file has not changed since."""
        return bool(await run_in_thread(lambda: self._store.receipts(key.principal, [key.sourceid])))

    def used(self) -> dict[bytes, int]:
        """The bytes of each principal with a quota, reserved ones included, by its 16 bytes."""
        return {
            principal: (account.used or 0) + sum(account.reserved.values())
            for principal, account in self._quotas.items()
        }

    def changed(self, realm: Realm) -> None:
        """Look again before the next upload: something was removed."""
        account = self._quotas.get(realm.principal)
        if account is not None:
            account.used = None

    async def _look(self, account: QuotaAccount) -> None:
        """Count what there is; what is committed meanwhile may be counted twice, but is never missed."""
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


def _settle(account: QuotaAccount, key: UploadKey, outcome: Outcome, *, vetoed: bool) -> None:
    """A file was stored, or not."""
    _less(account.works, key)
    if not isinstance(outcome, StoredFile):
        return
    account.reserved.pop(account.key_of(key), None)
    if not vetoed and not outcome.there and not outcome.left:
        account.stored += outcome.filesize
        if account.used is not None:
            account.used += outcome.filesize


def _less(counts: Counter[UploadKey], key: UploadKey) -> None:
    """Count one less of ``key``, if it was counted at all."""
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


def _durable_after(work: BlockDone | Finish) -> int:
    """The bytes that the upload has once the work is done."""
    if isinstance(work, Finish):
        return sum(block.length for block in work.blocks)  # the other blocks are durable already
    filesize = work.upload.facts.filesize
    return (work.blockno + 1) * BLOCK_LENGTH if filesize is None else filesize


def _length_of(upload: UploadEntry) -> int:
    """The bytes that an unfinished upload has, or will have if its size is known."""
    if upload.filesize is not None:
        return upload.filesize
    return max(upload.position, upload.held_count * BLOCK_LENGTH, upload.taken)
