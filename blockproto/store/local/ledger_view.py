"""One transaction of the ledger, as records: what is read and written in it, and in which tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from struct import error as struct_error
from typing import cast

import lmdb

from ...common.blocks import BlockSet
from ...errors import NameRefused, NewerLedger, StoreFailed
from .. import Prefix, UploadKey
from .expiry_clock import ClockRecord
from .records import (
    CLOCK_KEY,
    PAGE_BLOCKS,
    STAMP_LENGTH,
    STATE_ID_KEY,
    STATE_KEY,
    UNSYNCED_KEY,
    Finalising,
    Loss,
    ReceiptRecord,
    State,
    UploadRecord,
    bitmap_key,
    digest_key,
    held_runs,
    mark,
    name_hash,
    number_of,
    pack_prefixes,
    sealed,
    unpack_prefixes,
    upload_key,
)

FURTHER_MAX = 1 << 20
"""How many further file ids of one file are forgotten at once; what is left does not count, and the sweep finds it."""

LOSSES_MAX = 1000
"""How many of the losses found by starts are remembered; the latest are kept."""

SEALED_AT_ONCE = 4096
"""Receipts that are in memory at once when many are sealed."""

TRIM_MAX = 2048
"""How many records of finished uploads one transaction removes at most."""

_DIGESTS_LENGTH = STAMP_LENGTH + 64

_Items = list[tuple[bytes, bytes]]


class View:
    """One transaction, as records.

    Args:
        txn: an open LMDB transaction; stays the caller's.
    """

    def __init__(self, txn: lmdb.Transaction) -> None:
        self._txn = txn

    def end(self) -> None:
        """End a read transaction, and let go of it."""
        self._txn.abort()
        del self._txn

    def _get(self, key: bytes) -> bytes | None:
        return self._txn.get(key)  # type: ignore[return-value]  # this is what every look-up costs; without buffers it is bytes

    # -- one record

    def state(self) -> State:
        """The store's state."""
        record = self._get(STATE_KEY)
        if record is None:
            raise StoreFailed("the ledger has lost its state")
        try:
            return State.unpack(record)
        except (ValueError, struct_error) as exc:
            if State.is_newer(record):
                raise NewerLedger(f"a newer version wrote the ledger: {exc}") from exc
            raise StoreFailed(f"the ledger is not one of ours: {exc}") from exc

    def put_state(self, state: State) -> None:
        """Record the store's state."""
        self._txn.put(STATE_KEY, state.pack())

    def state_id(self) -> bytes | None:
        """The state's id (16 bytes); None in a ledger that is new, or of format 1."""
        return self._get(STATE_ID_KEY)

    def put_state_id(self, state_id: bytes) -> None:
        """Record the state's id, once."""
        self._txn.put(STATE_ID_KEY, state_id)

    def clock(self) -> ClockRecord | None:
        """When the clock was looked at last."""
        record = self._get(CLOCK_KEY)
        return None if record is None else ClockRecord.unpack(record)

    def put_clock(self, clock: ClockRecord) -> None:
        """Record when the clock was looked at."""
        self._txn.put(CLOCK_KEY, clock.pack())

    def losses(self) -> list[Loss]:
        """What starts have found lost, the earliest first."""
        return [Loss.unpack(record) for _, record in self._with(b"l")]

    def add_losses(self, losses: Iterable[Loss]) -> None:
        """Remember losses; of all only the latest ``LOSSES_MAX``."""
        keys = [key for key, _ in self._with(b"l")]
        first = int.from_bytes(keys[-1][1:], "big") + 1 if keys else 0
        for number, loss in enumerate(losses, first):
            keys.append(b"l" + number.to_bytes(8, "big"))
            self._txn.put(keys[-1], loss.pack())
        for key in keys[:-LOSSES_MAX]:
            self._txn.delete(key)

    def drop_losses(self) -> None:
        """Forget them."""
        for key, _ in list(self._with(b"l")):
            self._txn.delete(key)

    def upload(self, key: UploadKey) -> UploadRecord | None:
        """An unfinished upload."""
        at = upload_key(key)
        record = self._get(at)
        return None if record is None else UploadRecord.unpack(at, record)

    def put_upload(self, upload: UploadRecord) -> None:
        """Record an unfinished upload."""
        self._txn.put(upload_key(upload.key), upload.pack())

    def receipt(self, file_id: bytes) -> ReceiptRecord | None:
        """The receipt of a file id."""
        record = self._get(b"i" + file_id)
        return None if record is None else ReceiptRecord.unpack(file_id, record)

    def file_id_of(self, name: str) -> bytes | None:
        """The id of the file that was last committed under a name."""
        return self._get(b"n" + name_hash(name))

    def known_of(self, file_ids: Iterable[bytes], names: Iterable[str]) -> tuple[set[bytes], set[str]]:
        """Which of many file ids have a receipt, and which of many names a file id."""
        by_key = {b"n" + name_hash(name): name for name in names}
        with self._txn.cursor() as cursor:
            found = cast("_Items", cursor.getmulti([b"i" + file_id for file_id in file_ids]))
            named = cast("_Items", cursor.getmulti(by_key))
        return {key[1:] for key, _ in found}, {by_key[key] for key, _ in named}

    def put_receipt(self, receipt: ReceiptRecord, finalising: Finalising | None) -> None:
        """Record a receipt, and with ``finalising`` that the file is only being given its name."""
        self._txn.put(b"i" + receipt.file_id, receipt.pack())
        self._txn.put(b"n" + name_hash(receipt.stored_as), receipt.file_id)
        if finalising is not None:
            self._txn.put(b"f" + receipt.file_id, finalising.pack())

    def put_receipts(self, receipts: Iterable[tuple[bytes, str, bytes]]) -> None:
        """Record many receipts at once, in order of their keys: (file id, name, record) of each."""
        records: list[tuple[bytes, bytes]] = []
        for file_id, name, record in receipts:
            records.append((b"i" + file_id, record))
            records.append((b"n" + name_hash(name), file_id))
        records.sort()
        with self._txn.cursor() as cursor:
            cursor.putmulti(records)

    def change_receipt(self, receipt: ReceiptRecord) -> None:
        """Record a receipt anew whose name stays what it is."""
        self._txn.put(b"i" + receipt.file_id, receipt.pack())

    def seal_receipts(self, bounds: Mapping[bytes, int]) -> None:
        """Record until when receipts vouch for their roots: ctimes (ns) by file id; if not known yet."""
        keys = iter(sorted(b"i" + file_id for file_id in bounds))
        with self._txn.cursor() as cursor:
            while some := list(islice(keys, SEALED_AT_ONCE)):
                found = cast("_Items", cursor.getmulti(some))
                cursor.putmulti([(key, sealed(record, bounds[key[1:]])) for key, record in found])

    def put_further(self, receipt: ReceiptRecord) -> None:
        """Record a receipt of a file whose name has a receipt already."""
        self.change_receipt(receipt)
        self._txn.put(b"e" + name_hash(receipt.stored_as) + receipt.file_id, b"")

    def further(self, name: str, limit: int) -> list[bytes]:
        """Up to ``limit`` further file ids of a name's file."""
        keys = (key for key, _ in self._with(b"e" + name_hash(name)))
        return [key[17:] for key in islice(keys, limit)]

    def drop_further(self, name: str) -> None:
        """Another file gets the name: the further ids are none of its own."""
        self._delete_with(b"e" + name_hash(name), FURTHER_MAX)

    def drop_receipt(self, receipt: ReceiptRecord) -> None:
        """Forget a receipt; its name's digests go with the last one, and another one's id takes its place before."""
        self._txn.delete(b"i" + receipt.file_id)
        self._txn.delete(b"f" + receipt.file_id)
        name = name_hash(receipt.stored_as)
        self._txn.delete(b"e" + name + receipt.file_id)
        if self._get(b"n" + name) != receipt.file_id:
            return
        heirs = self.further(receipt.stored_as, 1)
        if heirs:
            self._txn.delete(b"e" + name + heirs[0])
            self._txn.put(b"n" + name, heirs[0])
        else:
            self._txn.delete(b"n" + name)
            self._txn.delete(b"c" + name)

    def undo_receipt(self, receipt: ReceiptRecord, former: bytes | None) -> None:
        """Forget a receipt whose file did not get its name; ``former`` is the file id that the name has still."""
        if former is None:
            self.drop_receipt(receipt)
            return
        self._txn.delete(b"i" + receipt.file_id)
        self._txn.delete(b"f" + receipt.file_id)
        self._txn.put(b"n" + name_hash(receipt.stored_as), former)

    def drop_former(self, receipt: ReceiptRecord, former: bytes) -> None:
        """Another file has the name of ``former``: its receipts go, or they would count for a file that has its inode."""
        for one in (former, *self.further(receipt.stored_as, FURTHER_MAX)):
            old = None if one == receipt.file_id else self.receipt(one)
            if old is not None and old.stored_as == receipt.stored_as:
                self._txn.delete(b"i" + one)
        self.drop_further(receipt.stored_as)

    def drop_name(self, name: str) -> None:
        """Forget everything about the file of a name."""
        at = name_hash(name)
        file_id = self._get(b"n" + at)
        if file_id is not None:
            for one in (file_id, *self.further(name, FURTHER_MAX)):
                self._txn.delete(b"i" + one)
            self._txn.delete(b"n" + at)
            self.drop_further(name)
        self._txn.delete(b"c" + at)

    def drop_finalising(self, file_id: bytes) -> None:
        """The final name is there and durable."""
        self._txn.delete(b"f" + file_id)

    def unsynced(self) -> list[bytes] | None:
        """None, or the last batch gave names that may not be synced yet: the ids of what was not complete before that."""
        ids = self._get(UNSYNCED_KEY)
        return None if ids is None else [ids[at : at + 16] for at in range(0, len(ids), 16)]

    def put_unsynced(self, file_ids: bytes | None) -> None:
        """Record that: those ids one behind the other, or None."""
        if file_ids is None:
            self._txn.delete(UNSYNCED_KEY)
        else:
            self._txn.put(UNSYNCED_KEY, file_ids)

    def digests_of(self, name: str, stamp: bytes) -> tuple[bytes | None, bytes | None]:
        """(BLAKE3, root) of a name's file as far as they are known for that stamp."""
        record = self._get(b"c" + name_hash(name))
        if record is None or len(record) != _DIGESTS_LENGTH or record[:STAMP_LENGTH] != stamp:
            return None, None
        b3sum, root = record[STAMP_LENGTH:-32], record[-32:]
        return (b3sum if any(b3sum) else None), (root if any(root) else None)

    def put_digests(self, name: str, stamp: bytes, b3sum: bytes | None, root: bytes | None) -> None:
        """Record digests of a name's file; what is known for the same stamp stays."""
        known_b3sum, known_root = self.digests_of(name, stamp)
        record = stamp + (b3sum or known_b3sum or bytes(32)) + (root or known_root or bytes(32))
        self._txn.put(b"c" + name_hash(name), record)

    # -- blocks of an upload

    def digest(self, storage_id: bytes, blockno: int) -> bytes | None:
        """The digest of a held block."""
        return self._get(digest_key(storage_id, blockno))

    def digests(self, storage_id: bytes) -> Iterator[tuple[int, bytes]]:
        """(blockno, digest) of every held block, rising."""
        return ((number_of(key), digest) for key, digest in self._with(b"d" + storage_id))

    def held(self, storage_id: bytes) -> BlockSet:
        """The held blocks."""
        pages = ((number_of(key), bitmap) for key, bitmap in self._with(b"b" + storage_id))
        return BlockSet(held_runs(pages))

    def add_blocks(self, storage_id: bytes, digests: Mapping[int, bytes]) -> None:
        """Record held blocks: their digests and their bits."""
        for blockno in sorted(digests):
            self._txn.put(digest_key(storage_id, blockno), digests[blockno])
        self._mark(storage_id, digests, True)

    def drop_blocks(self, storage_id: bytes, blocknos: Iterable[int]) -> int:
        """Forget held blocks; returns how many of them were held."""
        dropped = [blockno for blockno in blocknos if self._txn.delete(digest_key(storage_id, blockno))]
        self._mark(storage_id, dropped, False)
        return len(dropped)

    def _mark(self, storage_id: bytes, blocknos: Iterable[int], held: bool) -> None:
        pages: dict[int, bytearray] = {}
        for blockno in blocknos:
            page = blockno // PAGE_BLOCKS
            if page not in pages:
                record = self._get(bitmap_key(storage_id, page))
                pages[page] = bytearray(record or bytes(PAGE_BLOCKS // 8))
            mark(pages[page], blockno, held)
        for page, bitmap in pages.items():
            self._txn.put(bitmap_key(storage_id, page), bytes(bitmap))

    def prefixes(self, storage_id: bytes) -> dict[int, Prefix]:
        """The prefixes of unfinished blocks."""
        return unpack_prefixes(self._get(b"p" + storage_id) or b"")

    def put_prefixes(self, storage_id: bytes, prefixes: Mapping[int, Prefix]) -> None:
        """Record the prefixes of unfinished blocks in place of those before."""
        if prefixes:
            self._txn.put(b"p" + storage_id, pack_prefixes(prefixes))
        else:
            self._txn.delete(b"p" + storage_id)

    def drop_upload(self, key: UploadKey, storage_id: bytes) -> None:
        """Forget an unfinished upload; its blocks' records go little by little, with ``trim``."""
        self._txn.delete(upload_key(key))
        self._txn.delete(b"p" + storage_id)
        self._txn.put(b"g" + storage_id, b"")

    def trim(self) -> None:
        """Remove up to ``TRIM_MAX`` records of blocks whose upload is gone."""
        room = TRIM_MAX
        for key in [key for key, _ in self._with(b"g")]:
            for kind in (b"b", b"d"):
                room -= self._delete_with(kind + key[1:], room)
            if room <= 0:
                return
            self._txn.delete(key)

    # -- many records

    def uploads(self, principal: bytes = b"", after: bytes | None = None) -> Iterator[UploadRecord]:
        """Unfinished uploads in order of their keys, from key ``after`` on; of one principal, or of all.

        What is another's is not even decoded: how long a list takes tells nothing of it.
        """
        for key, record in self._with(b"u" + principal, after):
            with suppress(NameRefused):  # of a name that was taken once: the next start drops it
                yield UploadRecord.unpack(key, record)

    def all_uploads(self) -> Iterator[tuple[tuple[UploadKey, bytes], UploadRecord | NameRefused]]:
        """((key, storage id), record), or why its name is not taken any more."""
        for at, packed in self._with(b"u"):
            key = UploadKey(at[1:17], at[17:33]), UploadRecord.storage_id_in(packed)
            try:
                record = UploadRecord.unpack(at, packed)
            except NameRefused as exc:
                yield key, exc
            else:
                yield key, record

    def storage_ids(self) -> set[bytes]:
        """Of every partial that belongs to this ledger."""
        unfinished = {UploadRecord.storage_id_in(record) for _, record in self._with(b"u")}
        return unfinished | {finalising.storage_id for _, finalising in self.all_finalising()}

    def receipts(self, after: bytes = b"i") -> Iterator[ReceiptRecord]:
        """Receipts in order of their keys, from key ``after`` on."""
        return (ReceiptRecord.unpack(key[1:], record) for key, record in self._with(b"i", after))

    def all_finalising(self) -> Iterator[tuple[bytes, Finalising]]:
        """(file_id, commit under way)."""
        return ((key[1:], Finalising.unpack(record)) for key, record in self._with(b"f"))

    def items(self, kind: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(key, record) of one kind, as they are."""
        return self._with(kind)

    def _with(self, prefix: bytes, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor() as cursor:
            there = cursor.set_range(prefix if after is None else after)
            while there:
                key, record = cast("tuple[bytes, bytes]", cursor.item())
                if not key.startswith(prefix):
                    return
                yield key, record
                there = cursor.next()

    def _delete_with(self, prefix: bytes, limit: int) -> int:
        deleted = 0
        with self._txn.cursor() as cursor:
            there = cursor.set_range(prefix)
            while there and deleted < limit and bytes(cursor.key()).startswith(prefix):
                there = cursor.delete()
                deleted += 1
        return deleted
