"""``blockproto get … -``: the content of files on stdout, one after the other.

A file comes in stretches, each of which is fetched and verified before it is written. All that is written is of one version
of the file; if the file changes, or the connection stays lost, the exit code says that the output is not complete. It also
does where the whole has not the root that the server knows: something damaged was written.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import trio

from .. import BlockprotoError, Client, FileInfo
from ..common.blocks import BLOCK_LENGTH, digest_of, root_of
from ..errors import RangeOutside, UnknownFile, stored_damaged
from .access import connect_as_told
from .address import Address, advice_about
from .output import Status, about, fail
from .span import Span

STRETCH_LENGTH = 32 << 20
"""Bytes that are fetched before they are written."""


async def get_to_stdout(
    addresses: list[Address], span: Span | None, retry_for_s: float | None, log: Path | None
) -> int:
    """Write the content of files to stdout; returns the exit code. The first that fails ends it."""
    for address in addresses:
        with about(address.text):
            async with connect_as_told(address.server, retry_for_s=retry_for_s, log=log) as client:
                status = await _write(client, address, span)
        if status is not Status.DONE:
            return status
    return Status.DONE


async def _write(client: Client, address: Address, span: Span | None) -> Status:
    if not address.path:
        raise click.UsageError(f"'{address.text}' is a folder: '-' takes the content of files")
    try:
        entry = await client.stat(address.path)
        if entry.folder:
            raise UnknownFile("it is a folder, and '-' takes the content of files")
        digests: list[bytes] = []
        with tempfile.TemporaryDirectory(prefix="blockproto-") as folder:
            for first, last in _stretches(entry, span):
                dest = Path(folder) / str(first)
                await client.download_known(entry, dest, None, span=(first, last))
                await trio.to_thread.run_sync(_copy, dest, digests)
                dest.unlink()
        if span is None and entry.root not in (None, root_of(digests, len(digests)).hex()):
            raise stored_damaged()
    except BlockprotoError as error:
        return fail(error, address.text, advice_about(address, error))
    return Status.DONE


def _stretches(entry: FileInfo, span: Span | None) -> Iterator[tuple[int, int]]:
    """The first and last positions of the stretches, in order; none of an empty file."""
    first, last = (0, entry.filesize - 1) if span is None else span.of(entry.filesize)
    if span is not None and first >= entry.filesize:
        raise RangeOutside(f"the range begins at {first}, the file has {entry.filesize} bytes")
    last = min(last, entry.filesize - 1)
    while first <= last:
        end = min(last, first + STRETCH_LENGTH - first % STRETCH_LENGTH - 1)
        yield first, end
        first = end + 1


def _copy(path: Path, digests: list[bytes]) -> None:
    """Write a stretch to stdout, and add the digests of its blocks; a stretch of the whole file begins with a block."""
    with path.open("rb") as file:
        while piece := file.read(BLOCK_LENGTH):
            digests.append(digest_of(piece))
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
