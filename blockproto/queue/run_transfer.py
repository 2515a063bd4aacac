"""Run one transfer of the queue over a client: upload or download a file, or replace a folder by its files.

A file that an earlier run had completed, and was killed before it wrote that down, is not sent again: for an upload the
server is asked first, and a download is found by its size and time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..client import Client, discard_download
from ..client_side.walk import Found, walk
from ..common.names import SafeName
from ..errors import (
    BlockprotoError,
    ConnectionLost,
    GoingAway,
    NameRefused,
    NotPermitted,
    SourceChanged,
    UnknownUpload,
)
from ..results import LeftOut, Receipt, UploadJob
from ..transfer.send_source import OnProgress
from ..transfer.threads import run_in_thread
from .entry import PRIORITIES, Direction, QueuedTransfer, Wanted

Stored = tuple[str, int]
"""The name it was stored under, and its size in bytes."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a folder: the transfers that replace it, and what was left out."""

    entries: list[Wanted] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def missed(self) -> BlockprotoError | None:
        """The error of a folder of which something could not be read or sent; None if it is complete."""
        missed = [part for part in self.left_out if part.missed]
        if not missed:
            return None
        first, count = missed[0], sum(part.count for part in missed)
        text = f"{count:,} of what is in it did not come"
        text += f"; {first.names[0] or 'the folder itself'}: {first.why}" if first.names else f": {first.why}"
        return NameRefused(text) if first.reason == "name" else NotPermitted(text)


OnFound = Callable[[int, str | None], Awaitable[None]]
"""Called with the size and, for an upload, the sourceid, before the first byte moves."""


async def carry(
    client: Client, one: QueuedTransfer, on_found: OnFound, progress: OnProgress
) -> Stored | Contents:
    """Run a transfer: returns what was stored, or the contents of a folder.

    Raises:
        BlockprotoError, OSError: it failed.

    Cancellation: what has arrived is kept, and the same call resumes.
    """
    if one.direction is Direction.UPLOAD:
        return await _upload(client, one, on_found, progress)
    return await _download(client, one, on_found, progress)


async def tidy(client: Client, one: QueuedTransfer) -> None:
    """Remove what a cancelled transfer has left: the server's part of an upload, the part here of a download.

    Raises:
        BlockprotoError: the server cannot be asked, or refuses.
    """
    if one.direction is Direction.DOWNLOAD:
        await run_in_thread(lambda: discard_download(client, one.name, one.path))
    elif one.sourceid is not None:
        with suppress(UnknownUpload):  # nothing is there any more, or nothing was yet
            await client.cancel_upload(one.sourceid)


# ---- up


async def _upload(
    client: Client, one: QueuedTransfer, on_found: OnFound, progress: OnProgress
) -> Stored | Contents:
    facts = await run_in_thread(one.path.stat)
    if stat.S_ISDIR(facts.st_mode):
        if one.folder_id is None:
            return await run_in_thread(lambda: _files_here(one))
        return await _make_folder(client, one)
    await client.learn_earlier_uploads()
    sourceid = client.sourceid_of(one.path, one.name, facts)
    if one.sourceid is not None:
        with suppress(ConnectionLost, GoingAway):  # then the upload asks, when there is a connection again
            there = await client.already_there(UploadJob(one.path, one.name, one.if_exists))
            if there is not None:
                return there.stored_as, there.filesize
    await on_found(facts.st_size, sourceid.hex())
    receipt = await client.upload(
        one.path, name=one.name, if_exists=one.if_exists, priority=one.priority, progress=progress
    )
    return receipt.stored_as, receipt.filesize


def _files_here(one: QueuedTransfer) -> Contents:
    """The files in a folder here, and its empty folders; links and special files are left out, as with ``put``."""
    left_out = []

    def leave_out(path: str, _why: str) -> None:
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # else it is of ours: a download in progress
            left_out.append(LeftOut("link" if stat.S_ISLNK(mode) else "special", 1, (path,)))

    def fail(_path: str, error: OSError) -> None:
        raise error

    walked = walk(one.path, one.name, leave_out, fail)
    return Contents(
        [_part_of(one, found.name, Path(found.path)) for found in walked if _travels(found)], left_out
    )


def _travels(found: Found) -> bool:
    return not found.folder or found.empty


async def _make_folder(client: Client, one: QueuedTransfer) -> Stored:
    job = UploadJob(one.path, one.name, one.if_exists)
    async with aclosing(client.upload_all([job])) as ended:
        async for _, outcome in ended:
            if isinstance(outcome, Receipt):
                return outcome.stored_as, 0
            raise outcome
    raise AssertionError("upload_all yields every job")


# ---- down


async def _download(
    client: Client, one: QueuedTransfer, on_found: OnFound, progress: OnProgress
) -> Stored | Contents:
    entry = await client.stat(one.name)
    if entry.folder:
        return await _files_there(client, one)
    if one.folder_id is not None:
        await run_in_thread(lambda: one.path.parent.mkdir(parents=True, exist_ok=True))
    await on_found(entry.filesize, None)
    try:
        receipt = await client.download_known(
            entry, one.path, progress, if_exists=one.if_exists, priority=one.priority
        )
    except SourceChanged:  # it was replaced after the listing
        receipt = await client.download(
            one.name, one.path, if_exists=one.if_exists, priority=one.priority, progress=progress
        )
    return receipt.stored_as, receipt.filesize


async def _files_there(client: Client, one: QueuedTransfer) -> Contents:
    """The files below a folder of the server, each with its path here; the server's names are checked first."""
    found = Contents()
    depth = len(one.name.split("/"))
    listing = client.listing(one.name, recursive=True, on_left_out=found.left_out.append)
    async with aclosing(listing) as entries:
        async for entry in entries:
            components = SafeName.parse(entry.filename).components
            if "/".join(components[:depth]) != one.name or len(components) <= depth:
                raise NameRefused("the server named a file outside of what was asked for")
            place = one.path.joinpath(*components[depth:])
            if entry.folder:
                await run_in_thread(partial(place.mkdir, parents=True, exist_ok=True))
            else:
                found.entries.append(_part_of(one, entry.filename, place))
    return found


def _part_of(folder: QueuedTransfer, name: str, path: Path) -> Wanted:
    priority = PRIORITIES.index(folder.priority)
    return Wanted(folder.direction, folder.server, name, path, folder.if_exists, priority)
