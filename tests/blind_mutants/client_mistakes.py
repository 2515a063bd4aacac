"""The clients' mistakes: six misreadings of spec/protocol.md; see ``mistakes.py`` for what they are."""

from __future__ import annotations

from collections.abc import Callable

from blockproto.common.blocks import blocknum_of, digest_of, root_of
from blockproto.connection.connection import Connection, error_of
from blockproto.errors import BlockprotoError, Code, ConnectionLost
from blockproto.protocol.session import Session
from blockproto.transfer import sender
from blockproto.transfer.fetch_receiver import FetchReceiver
from blockproto.transfer.send_stream import SendStream
from blockproto.transfer.sender import Sender
from blockproto.wire import Ack, Commit, Committed, Error, Message, Ping

from .mistakes import Mutant, Put, mutant

CLIENTS: dict[str, Mutant] = {}
"""Every client's mistake, by name."""


def client(clause: str) -> Callable[[Callable[[Put], None]], Callable[[Put], None]]:
    """A mistake of a client."""
    return mutant(CLIENTS, clause)


@client("BP1-CRD-002")
def stream_allowance_overlooked(put: Put) -> None:
    """Payload is sent as long as the connection's allowance lasts; that of the stream is not looked at."""
    sendable = Session.sendable

    def generous(self: Session, stream: int) -> int:
        return sendable(self, 0) if stream in self._streams else sendable(self, stream)

    put(Session, "sendable", generous)


@client("BP1-BLK-009")
def digest_of_what_was_sent(put: Put) -> None:
    """Behind a prefix, END carries the digest of the bytes that were sent, not of the whole block."""
    send = SendStream._send_block

    async def partial(self: SendStream, blockno: int, block: memoryview, digest: bytes) -> None:
        at = self.sending.plan.prefixes.get(blockno, 0)
        await send(self, blockno, block, digest_of(block[at:]) if 0 < at < len(block) else digest)

    put(SendStream, "_send_block", partial)


@client("BP1-RES-011")
def superseded_tries_again(put: Put) -> None:
    """SUPERSEDED is treated like a lost connection: the client comes back with a greater attempt, at once."""

    def stubborn(message: Error) -> BlockprotoError:
        if message.code == Code.SUPERSEDED:
            return ConnectionLost(message.text, retryable=True)
        return error_of(message)

    put(sender, "error_of", stubborn)


@client("BP1-COM-009")
def everything_acknowledged_is_success(put: Put) -> None:
    """Once COMMIT was said and every block acknowledged, the upload is reported as done: COMMITTED is not waited for."""
    on_message = Sender.on_message

    def early(self: Sender, message: Message) -> None:
        on_message(self, message)
        root, blocknum = self.plan.root, self.plan._blocknum
        whole = root is not None and blocknum is not None and len(self.plan.held) == blocknum
        if isinstance(message, Ack) and whole and self.committed is None:
            assert root is not None
            name, filesize = self.source.facts.filename.text, self._filesize()
            self.committed = Committed(self.sourceid, bytes(16), root, filesize, name)

    put(Sender, "on_message", early)


@client("BP1-FET-012")
def root_of_a_download_not_compared(put: Put) -> None:
    """Every block of a download was verified, so the root that came with COMMIT is taken for right."""
    commit = FetchReceiver._commit

    def trusting(self: FetchReceiver, message: Commit) -> None:
        upload = self._opened_upload()
        blocknum = blocknum_of(upload.facts.filesize or 0)
        wanted = range(upload.first >> 20, blocknum)
        found = {**upload.stored.digests(wanted), **upload.pending}
        whole = [found[blockno] for blockno in wanted if blockno in found]
        if len(whole) == len(wanted):
            message = Commit(message.sourceid, root_of(whole, len(whole)), message.filesize, message.blocknum)
        commit(self, message)

    put(FetchReceiver, "_commit", trusting)


@client("BP1-END-002")
def pings_unanswered(put: Put) -> None:
    """PING is the client's to say and the server's to answer; one that the server says is taken note of."""
    handle = Connection._handle_own

    def deaf(self: Connection, message: Message) -> None:
        if not isinstance(message, Ping) or message.answer:
            handle(self, message)

    put(Connection, "_handle_own", deaf)
