"""One file going up: OPEN and resume over the client's connections, or a small one at once.

Spec: BP1-RES, BP1-BLK (files without OPEN).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from ..common.blocks import BRIEF_LENGTH_MAX, blocknum_of
from ..errors import BlockprotoError, ConnectionLost, SourceChanged, Superseded, UnknownUpload
from ..results import Receipt
from ..store import Facts
from ..transfer.send_source import OnProgress
from ..transfer.send_stream import SendStream
from ..transfer.sender import Sender
from ..wire import Committed, Open, Priority, Remove, RemoveKind
from .connections import Discarded, Resumed, Retries
from .context import Context
from .receipts import brief_receipt, sent_receipt
from .request import ask_once
from .sources import FileSource, StreamSource, reader_of
from .upload_brief import send_brief

DISCARD_S = 2.0
"""How long (s) a failed upload that no later call can resume waits until the server has removed what it has of it."""


class Uploader:
    """Sends single files and streams.

    Args:
        context: what the client's transfers share.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._connections = context.connections
        self._attempts = context.attempts

    async def file(
        self,
        source: FileSource,
        sourceid: bytes,
        progress: OnProgress | None,
        root: bytes | None,
        priority: Priority = Priority.NORMAL,
        *,
        checksum: bool = False,
    ) -> Receipt:
        """Upload with OPEN and resume, and remember what the file contains. With its ``root`` OPEN asks for it first.

        Raises:
            SourceChanged: what was committed under this sourceid before is another content of the file.
        """
        receipt = await self.source(source, sourceid, progress, priority, root=root)
        if receipt.outcome == "left" or receipt.root is None:
            return receipt
        digests = self._context.digests
        if receipt.outcome == "there" and root is None:  # of an earlier run: is it still the same content?
            root = await digests.root(source.path, source.stat, checksum=checksum)
            if root.hex() != receipt.root:
                raise SourceChanged(f"{receipt.filename} was committed before with other bytes")
        if source.unchanged():
            digests.learn(source.stat, bytes.fromhex(receipt.root))
        return receipt

    async def source(
        self,
        source: FileSource | StreamSource,
        sourceid: bytes,
        progress: OnProgress | None,
        priority: Priority = Priority.NORMAL,
        retries: Retries | None = None,
        root: bytes | None = None,
    ) -> Receipt:
        """Upload with OPEN and resume, and reconnect after a lost connection; errors and cancellation as ``Client.upload``.

        With the file's ``root``, OPEN asks whether that content is there already (BP1-RES-029).
        """
        retries = retries or Retries(self._connections)
        sending = Sender(source, sourceid, priority=priority, on_progress=progress, root=root)
        begun = time.perf_counter()
        asked_for = (
            True  # a user has just asked for it: the first OPEN may exceed a greater attempt (BP1-RES-027)
        )
        while True:
            before = sending.plan.reached
            try:
                used = await self._once(sending)
            except BlockprotoError as exc:
                if isinstance(exc, SourceChanged) and await self._look_again(source, sourceid):
                    sending = _read_anew(sending, progress)
                    continue
                if (
                    isinstance(exc, Superseded)
                    and exc.current is not None
                    and asked_for
                    and sending.plan.reached < 0
                ):
                    asked_for = False
                    self._attempts.pass_by(exc.current)
                    continue
                asked_for = False
                if sending.plan.reached > before:
                    retries.progressed(sending.plan.reached - before)
                await retries.wait(exc)
            else:
                self._connections.worked()
                return _upload_receipt(sending, used, time.perf_counter() - begun)

    async def _look_again(self, source: FileSource | StreamSource, sourceid: bytes) -> bool:
        """Whether a file that seemed to change has the same size and time, so that it is worth reading it again.

        Of a file that is another one by now, the server removes what it has: no later call would resume it.
        """
        if not isinstance(source, FileSource):
            return False
        if source.is_another():
            await self._discard(sourceid)
            return False
        return source.look_again()

    async def _once(self, sending: Sender) -> int:
        """One attempt over all connections that can be made; returns how many took part."""
        wanted = self._connections.count
        if sending.source.end is not None:
            wanted = max(1, min(wanted, blocknum_of(sending.source.end)))
        elif sending.source.window_bytes is not None:
            wanted = 1
        message = _open_message(sending, self._attempts.next())
        resumed = sending.plan.reached >= 0
        send_streams: list[SendStream] = []
        sending.begin_again(send_streams)
        try:
            send_streams.append(await self._open_send_stream(0, sending, message, ahead=True))
            if sending.committed is not None:
                sending.check_committed(sending.committed)
                return len(send_streams)
            if resumed:
                self._connections.tell(Resumed(sending.progress.filename, sending.plan.bytes_there))
            joins = [
                partial(self._open_send_stream, index, sending, message, joins=True)
                for index in range(1, wanted)
            ]
            await sending.run(send_streams, partial(self._replace, sending, message), joins)
            return len(send_streams)
        finally:
            if sending.committed is None:
                for send_stream in send_streams:
                    send_stream.release()

    async def _open_send_stream(
        self, index: int, sending: Sender, message: Open, *, joins: bool = False, ahead: bool = False
    ) -> SendStream:
        send_stream = SendStream(await self._connections.connection(index), sending)
        try:
            await (send_stream.join(message) if joins else send_stream.open(message, ahead=ahead))
        except BaseException:  # else its messages would be taken for answers to the next attempt
            send_stream.release()
            raise
        return send_stream

    async def _replace(self, sending: Sender, message: Open, lost: SendStream) -> SendStream:
        """A stream that joins in place of ``lost``: on a new connection, or else on another one (BP1-RES-025)."""
        at = self._connections.index_of(lost.connection)
        why: BlockprotoError = lost.lost or ConnectionLost()
        for index in (at, *(index for index in range(self._connections.count) if index != at)):
            try:
                return await self._open_send_stream(index, sending, message, joins=True)
            except BlockprotoError as exc:
                if not exc.retryable:
                    raise
                why = exc
        raise why

    async def brief(
        self, source: FileSource, sourceid: bytes, progress: OnProgress | None, priority: Priority
    ) -> Receipt:
        """Upload a file of at most one block without asking first, in one round trip.

        After a lost connection it is sent as a longer file is, so that it can resume.
        """
        size = source.stat.st_size
        memory = memoryview(bytearray(size))
        content = bytes(await source.read_block(0, memory)) if size else b""
        if not source.unchanged():
            raise SourceChanged(f"{source.path} changed while it was being read")
        begun = time.perf_counter()
        send = partial(self._send_brief, sourceid, source.facts, content, priority)
        retries = Retries(self._connections)
        while True:
            try:
                committed = await send()
                break
            except BlockprotoError as exc:
                await retries.wait(exc)
                if size > BRIEF_LENGTH_MAX and isinstance(exc, ConnectionLost):
                    # with OPEN: over a connection that keeps breaking sooner, it would never arrive whole
                    return await self.source(source, sourceid, progress, priority, retries)
        self._connections.worked()
        return brief_receipt(source.facts, committed, begun)

    async def _send_brief(
        self, sourceid: bytes, facts: Facts, content: bytes, priority: Priority
    ) -> Committed:
        ended: list[Committed | BlockprotoError] = []
        heard = trio.Event()

        def done(outcome: Committed | BlockprotoError) -> None:
            ended.append(outcome)
            heard.set()

        await send_brief(await self._connections.connection(), sourceid, facts, content, done, priority)
        await heard.wait()
        if isinstance(ended[0], BlockprotoError):
            raise ended[0]
        return ended[0]

    async def stream(
        self,
        source: Any,
        facts: Facts,
        progress: OnProgress | None,
        priority: Priority,
    ) -> Receipt:
        """Upload a stream whose end is not known; if that fails or is cancelled, the server removes what it has of it.

        ``Discarded`` tells how much that was, if it was anything, and whether the server could be told.
        """
        opened = StreamSource(reader_of(source), facts)
        sourceid = os.urandom(16)
        receipt: Receipt | None = None
        try:
            receipt = await self.source(opened, sourceid, progress, priority)
            return receipt
        finally:  # whatever ended it: a cancelled nursery raises a group, not trio.Cancelled
            opened.close()
            if receipt is None:
                removed = await self._discard(sourceid)
                if opened.durable_length:
                    name, length = facts.filename.text, opened.durable_length
                    self._connections.tell(Discarded(name, sourceid.hex(), length, removed))

    async def _discard(self, sourceid: bytes) -> bool:
        """Have the server remove an upload that no later call can resume; whether it could be reached in time."""
        with trio.move_on_after(DISCARD_S, shield=True), suppress(BlockprotoError):
            with suppress(UnknownUpload):
                await ask_once(self._connections, Remove(kind=RemoveKind.UPLOAD, id=sourceid))
            return True
        return False


def _open_message(sending: Sender, attempt: int) -> Open:
    facts = sending.source.facts
    return Open(
        sourceid=sending.sourceid,
        attempt=attempt,
        filesize=facts.filesize,
        blocknum=None if facts.filesize is None else blocknum_of(facts.filesize),
        filename=facts.filename.text,
        filetype=facts.filetype,
        priority=sending.priority,
        if_exists=facts.if_exists,
        mtime_ns=facts.mtime_ns,
        mode=facts.mode,
        root=sending.plan.root,
    )


def _read_anew(before: Sender, progress: OnProgress | None) -> Sender:
    """A new sender for the same upload: it hashes again what the receiver holds, and repairs it."""
    sending = Sender(
        before.source, before.sourceid, priority=before.priority, on_progress=progress
    )  # no root: it moved
    sending.progress, sending.plan.travelled = before.progress, before.plan.travelled
    sending.plan.held_before = before.plan.held_before
    return sending


def _upload_receipt(sending: Sender, connections: int, elapsed_s: float) -> Receipt:
    committed = sending.committed
    assert committed is not None
    blocknum = blocknum_of(committed.filesize)
    blocks_sent = min(len(sending.plan.travelled), blocknum)
    return sent_receipt(
        sending.source.facts,
        committed,
        blocks_sent=blocks_sent,
        payload=sending.progress.payload_bytes_sent,
        connections=connections,
        elapsed_s=elapsed_s,
        at_once=sending.plan.held_before is None,
    )
