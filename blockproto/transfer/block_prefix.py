"""Check the prefix of a resumed block: hash the bytes that are here again before the block continues from them.

Spec: BP1-RES-013.
"""

from __future__ import annotations

from typing import Protocol

from blake3 import blake3

from ..store import Prefix, Upload
from .threads import Kind, run_in_thread

_HASH_LENGTH = 128 * 1024
"""Bytes read and hashed at once."""


class PrefixHolder(Protocol):
    """Keeps the prefixes of unfinished blocks."""

    @property
    def stored(self) -> Upload:
        """The store's side of the upload, which has the bytes."""

    @property
    def prefixes(self) -> dict[int, Prefix]:
        """The prefix of each abandoned block, by blockno."""

    def drop_prefix(self, blockno: int) -> None:
        """Forget the prefix of a block."""


async def continue_prefix(
    holder: PrefixHolder, blockno: int, begin: int, length: int, hasher: blake3
) -> bool:
    """Feed ``hasher`` the first ``length`` bytes of a block; whether the block can continue from them.

    With ``length`` 0 it always can, and a remembered prefix is forgotten; so is one whose bytes have changed.

    Args:
        holder: keeps the prefix.
        blockno: which block.
        begin: the position of the block's first byte.
        length: bytes of it that the sender does not send again.
        hasher: a new one.

    Raises:
        NoThread, StoreError: the bytes cannot be read.

    Cancellation: a read under way is waited for; nothing has changed.
    """
    prefix = holder.prefixes.get(blockno)
    if length == 0:
        holder.drop_prefix(blockno)
        return True
    if prefix is None or prefix.length != length:
        return False
    read = await run_in_thread(lambda: _hash_again(holder.stored, begin, length, hasher), Kind.READ)
    if read != length or hasher.digest() != prefix.digest:
        holder.drop_prefix(blockno)
        return False
    return True


def _hash_again(stored: Upload, begin: int, length: int, hasher: blake3) -> int:
    """Hash ``length`` bytes from position ``begin`` on; returns how many there were."""
    memory = memoryview(bytearray(min(length, _HASH_LENGTH)))
    for at in range(0, length, _HASH_LENGTH):
        view = memory[: min(_HASH_LENGTH, length - at)]
        read = stored.read_into(begin + at, view)
        hasher.update(view[:read])
        if read != len(view):
            return at + read
    return length
