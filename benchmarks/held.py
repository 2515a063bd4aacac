"""A store that holds many blocks of an unfinished upload, made without sending them: the partial is sparse.

The store is told of each block as if its bytes had been written and verified, which is true of zeros in a sparse file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from blockproto.common.blocks import BLOCK_LENGTH, digest_of
from blockproto.common.names import SafeName
from blockproto.store import BlockDone, Facts, StoredFile, UploadKey
from blockproto.store.local.store import LocalStore

from .processes import CommandFailed
from .rawupload import FILETYPE, fresh_sourceid

ANONYMOUS = bytes(16)
BATCH = 512
ZEROS = bytes(BLOCK_LENGTH)


@dataclass(frozen=True, slots=True)
class HeldUpload:
    """An unfinished upload of zeros in a store that nobody has open.

    Attributes:
        sourceid, filename, filesize: of the upload.
        held: how many blocks are held.
        missing: the blocks that are not.
    """

    sourceid: bytes
    filename: str
    filesize: int
    held: int
    missing: tuple[int, ...]


def hold_blocks(folder: Path, filename: str, held: int, gap_every: int | None = None) -> HeldUpload:
    """Make an unfinished upload that holds ``held`` blocks.

    Args:
        folder: served; no server runs there.
        filename: of the upload.
        held: how many blocks.
        gap_every: every so many blocks one is missing; None: only the last is.

    Raises:
        CommandFailed: the store refused a block.
    """
    wanted = [blockno for blockno in range(2 * held) if gap_every is None or (blockno + 1) % gap_every][:held]
    blocknum = wanted[-1] + 2
    have = set(wanted)
    missing = tuple(blockno for blockno in range(blocknum) if blockno not in have)
    facts = Facts(SafeName.parse(filename), FILETYPE, blocknum * BLOCK_LENGTH)
    key = UploadKey(ANONYMOUS, fresh_sourceid())
    store = LocalStore.open(folder)
    try:
        _record(store, key, facts, wanted)
    finally:
        store.close()
    return HeldUpload(key.sourceid, filename, blocknum * BLOCK_LENGTH, held, missing)


def _record(store: LocalStore, key: UploadKey, facts: Facts, blocknos: list[int]) -> None:
    # The room for 100,000 blocks is not there and not needed: a sparse file takes none.
    with patch.object(LocalStore, "_check_room", lambda *_: None):
        upload = store.open_upload(key, facts, attempt=1)
    assert not isinstance(upload, StoredFile)
    digest = digest_of(ZEROS)
    try:
        upload.write((blocknos[-1] + 1) * BLOCK_LENGTH - 1, memoryview(b"\0"))
        for first in range(0, len(blocknos), BATCH):
            batch = [
                BlockDone(upload, 1, blockno, BLOCK_LENGTH, digest)
                for blockno in blocknos[first : first + BATCH]
            ]
            store.commit(batch)
            refused = [work.outcome for work in batch if work.outcome is not None]
            if refused:
                raise CommandFailed(f"the store refused a block: {refused[0]}")
    finally:
        upload.close()
