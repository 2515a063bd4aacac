"""Upload one file or stream: ask first whether it is there, where that is worth a round trip, then send it.

Spec: BP1-BLK (a file without OPEN), BP1-RES, BP1-COM-021 to 027.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from functools import partial
from typing import Any

from ..common.blocks import BRIEF_LENGTH_MAX
from ..common.names import SafeName, refuse_in_progress
from ..errors import FileExists, SourceChanged
from ..results import Receipt, UploadJob
from ..store import Facts, IfExists
from ..transfer.send_source import OnProgress, tell_all_done
from ..wire import Priority
from .context import Context
from .option_names import as_spoken, if_exists_of
from .receipts import Arrived, left_receipt
from .sources import FileSource, filetype_of, reader_of
from .upload import Uploader
from .upload_decision import Prepared, UploadDecisions, prepare

ASKED_LENGTH_MIN = 64 << 20
"""Ask first about a file of at least this size: a shorter one is sent nearly as fast as the answer comes."""


class SingleUploads:
    """Sends single files and streams.

    Args:
        context: what the client's transfers share.
        uploader: sends.
    """

    def __init__(self, context: Context, uploader: Uploader) -> None:
        self._context = context
        self._uploader = uploader

    async def stream(
        self,
        source: Any,
        name: str | None,
        word: IfExists,
        filetype: str | None,
        priority: Priority,
        progress: OnProgress | None,
    ) -> Receipt:
        """Upload a stream whose end is not known; see ``Client.upload``."""
        reader_of(source)  # raises TypeError
        if name is None:
            raise ValueError("a stream has no name of its own: give one")
        refuse_in_progress(name)
        facts = Facts(SafeName.parse(name), filetype or filetype_of(name), None, None, None, word)
        spoken = await self._spoken(facts)
        receipt = await _or_left(facts, self._uploader.stream(source, spoken, progress, priority))
        if receipt.outcome != "left":  # else nobody knows how long the stream is
            tell_all_done(progress, receipt.filename, receipt.filesize, receipt.payload_bytes_sent)
        return receipt

    async def file(
        self,
        job: UploadJob,
        filetype: str | None,
        priority: Priority,
        checksum: bool,
        progress: OnProgress | None,
    ) -> Receipt:
        """Upload one file; see ``Client.upload``."""
        word = if_exists_of(job.if_exists)
        source = FileSource(job.path, job.name, word, filetype)
        try:
            facts = source.facts
            source.facts = await self._spoken(facts)
            another = partial(self._context.sourceid_of, job.path, job.name, source.stat)
            one = Prepared(job, source.facts, word, source.stat, another(b""), another)
            receipt = await _or_left(facts, self._file(one, source, priority, checksum, progress))
            tell_all_done(progress, receipt.filename, source.stat.st_size, receipt.payload_bytes_sent)
            return receipt
        finally:
            source.close()

    async def there(self, job: UploadJob) -> Receipt | None:
        """The receipt of a file that the server has already; None if it has not, or the file cannot be read.

        Raises:
            ConnectionLost, GoingAway: before that was known.
            BlockprotoError, OSError: the server or the file cannot be asked.
        """
        ended, _ = await UploadDecisions(self._context).decide([prepare(job, self._context.sourceid_of)])
        return next((outcome.receipt() for _, outcome in ended if isinstance(outcome, Arrived)), None)

    async def _file(
        self,
        one: Prepared,
        source: FileSource,
        priority: Priority,
        checksum: bool,
        progress: OnProgress | None,
    ) -> Receipt:
        if BRIEF_LENGTH_MAX < source.stat.st_size < ASKED_LENGTH_MIN and not checksum:
            one.root = next(iter((await self._context.digests.recall([source.stat])).values()), None)
        elif source.stat.st_size >= ASKED_LENGTH_MIN:
            there = await self._decide(one, checksum)
            if there is not None:
                return there
        try:
            return await self._send(one, source, priority, checksum, progress)
        except SourceChanged:
            if source.is_another():
                raise
            before = one.sourceid
            there = await self._decide(one, checksum)
            if one.sourceid == before:  # no earlier content of the file explains it
                raise
            if there is not None:
                return there
        return await self._send(one, source, priority, checksum, progress)

    async def _decide(self, one: Prepared, checksum: bool) -> Receipt | None:
        """The receipt of a file that the server has already; else None, and ``one`` is ready to be sent."""
        decisions = UploadDecisions(self._context, checksum=checksum)
        ended, _ = await self._context.connections.retrying(partial(decisions.decide, [one]))
        for _, outcome in ended:
            if isinstance(outcome, Arrived):
                return outcome.receipt()
            raise outcome
        return None

    async def _send(
        self,
        one: Prepared,
        source: FileSource,
        priority: Priority,
        checksum: bool,
        progress: OnProgress | None,
    ) -> Receipt:
        if source.stat.st_size <= BRIEF_LENGTH_MAX and one.root is None:
            return await self._uploader.brief(source, one.sourceid, progress, priority)
        return await self._uploader.file(
            source, one.sourceid, progress, one.root, priority, checksum=checksum
        )

    async def _spoken(self, facts: Facts) -> Facts:
        """``facts`` as this server can be told them; raises Unsupported."""
        if facts.if_exists <= IfExists.REPLACE:
            return facts
        features = await self._context.connections.retrying(self._context.features)
        return replace(facts, if_exists=as_spoken(facts.if_exists, features))


async def _or_left(facts: Facts, sending: Awaitable[Receipt]) -> Receipt:
    """Take FILE_EXISTS for "left" where ``skip`` was wanted: a server that does not know it was told ``refuse``."""
    try:
        return await sending
    except FileExists:
        if facts.if_exists is not IfExists.SKIP:
            raise
        return left_receipt(facts, None)
