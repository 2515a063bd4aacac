"""Every way to fail: one table from wire code to meaning, and one exception class for each kind.

An error says, in this order: who is to blame (the class), what it stops (``Scope``), and whether trying the same again
can help (``retryable``). The text is for people; nothing is ever decided from it.

Rules:
    1. Foreign exceptions are translated at one border each (struct in ``wire``, lmdb and OS errors in ``store``,
       Trio in ``connection``), always with ``from``. Anything else is a bug: ``connection/unexpected_errors`` logs it and
       ends what it belongs to, a stream or a connection, never the server.
    2. Every error that crosses the wire has a row in ``ERRORS``; the spec's table has the same rows.

Spec: BP1-ERR.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Scope(IntEnum):
    """What an error stops."""

    BLOCK = 1
    STREAM = 2
    CONNECTION = 3


class Code(IntEnum):
    """The ``code`` of an ERROR message (u16)."""

    MALFORMED = 1
    TOO_LARGE = 2
    BAD_CHECK = 3
    UNEXPECTED = 4
    UNSUPPORTED_VERSION = 5
    UNSUPPORTED = 6
    CREDIT_EXCEEDED = 7
    TIMEOUT = 8
    TOO_MANY_STREAMS = 9
    NOT_BLOCKPROTO = 10
    NAME_REFUSED = 20
    FILE_EXISTS = 21
    UNKNOWN_FILE = 22
    UNKNOWN_UPLOAD = 23
    SUPERSEDED = 24
    SOURCE_CHANGED = 25
    DIGEST_MISMATCH = 26
    DIGESTS_DIFFER = 27
    BAD_FACTS = 28
    STORE_FULL = 29
    STORE_FAILED = 30
    CANCELLED = 31
    NOT_PERMITTED = 32
    BUSY = 33
    GOING_AWAY = 34
    NOT_EMPTY = 35
    INTERNAL = 36
    HOOK_REFUSED = 37
    UNAUTHENTICATED = 40
    FORBIDDEN = 41
    QUOTA = 42
    CREDENTIAL_EXPIRED = 43


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One row of the error table: the scope and retryability a code has, and what to do about it."""

    scope: Scope
    retryable: bool
    meaning: str
    advice: str


_C, _S, _B = Scope.CONNECTION, Scope.STREAM, Scope.BLOCK

ERRORS: dict[Code, ErrorRow] = {
    Code.MALFORMED: ErrorRow(
        _C, False, "a frame does not follow its layout", "report it to the peer's author"
    ),
    Code.TOO_LARGE: ErrorRow(_C, False, "a length is over its limit", "keep within the limits of HELLO"),
    Code.BAD_CHECK: ErrorRow(
        _C, True, "a frame's check does not match its bytes", "connect again and resume"
    ),
    Code.UNEXPECTED: ErrorRow(
        _C, False, "a message is not legal in this state", "report it to the peer's author"
    ),
    Code.UNSUPPORTED_VERSION: ErrorRow(_C, False, "no version in common", "update the older side"),
    Code.UNSUPPORTED: ErrorRow(_S, False, "a must-understand thing is not understood", "do without it"),
    Code.CREDIT_EXCEEDED: ErrorRow(_C, False, "more payload than was allowed", "wait for CREDIT"),
    Code.TIMEOUT: ErrorRow(_C, True, "nothing was heard in time", "connect again and resume"),
    Code.TOO_MANY_STREAMS: ErrorRow(_C, False, "more open streams than allowed", "keep within streams_max"),
    Code.NOT_BLOCKPROTO: ErrorRow(_C, False, "the first bytes are not blockproto", "check address and port"),
    Code.NAME_REFUSED: ErrorRow(_S, False, "the name breaks a rule", "choose another name"),
    Code.FILE_EXISTS: ErrorRow(_S, False, "the name is taken", "choose another name, keep both or replace"),
    Code.UNKNOWN_FILE: ErrorRow(_S, False, "there is no such file", "list what is there"),
    Code.UNKNOWN_UPLOAD: ErrorRow(_S, False, "there is no such upload", "list the uploads"),
    Code.SUPERSEDED: ErrorRow(_S, False, "a newer attempt took the upload over", "leave it to the newer one"),
    Code.SOURCE_CHANGED: ErrorRow(_S, False, "the file is not the one that was begun", "start it anew"),
    Code.DIGEST_MISMATCH: ErrorRow(_B, True, "a block arrived damaged", "send the block again"),
    Code.DIGESTS_DIFFER: ErrorRow(
        _B, True, "the root is not that of the held blocks", "send HAVE, repair, COMMIT"
    ),
    Code.BAD_FACTS: ErrorRow(
        _S, False, "filesize, blocknum, blockno and position disagree", "correct the sender"
    ),
    Code.STORE_FULL: ErrorRow(_S, True, "there is no room", "make room, then resume"),
    Code.STORE_FAILED: ErrorRow(_C, False, "the disk reported an error", "look at the server's disk"),
    Code.CANCELLED: ErrorRow(_S, False, "the transfer was cancelled", "start it again if that was not meant"),
    Code.NOT_PERMITTED: ErrorRow(_S, False, "the folder does not allow it", "look at the folder's rights"),
    Code.BUSY: ErrorRow(_S, True, "too much is going on", "try again a little later"),
    Code.GOING_AWAY: ErrorRow(_S, True, "the server is stopping", "connect again and resume"),
    Code.NOT_EMPTY: ErrorRow(_S, False, "the folder is not empty", "remove it recursively"),
    Code.INTERNAL: ErrorRow(
        _S, False, "an error that nobody expected", "look at the log of the side that says it, and report it"
    ),
    Code.HOOK_REFUSED: ErrorRow(
        _S, False, "a hook of the server refuses the file", "ask whoever runs the server why"
    ),
    Code.UNAUTHENTICATED: ErrorRow(
        _S, False, "there is no credential, or it is not accepted", "give a token that the server knows"
    ),
    Code.FORBIDDEN: ErrorRow(_S, False, "the principal may not do that", "ask for the right to it"),
    Code.QUOTA: ErrorRow(
        _S, False, "it does not fit the principal's quota", "remove something, or ask for more room"
    ),
    Code.CREDENTIAL_EXPIRED: ErrorRow(_S, False, "the credential has ended", "get a new token"),
}

assert set(ERRORS) == set(Code)


class BlockprotoError(Exception):
    """The base of every error this package raises on purpose.

    Attributes:
        code: the row of the error table, also what crosses the wire.
        retryable: whether the same request can succeed later.
        retry_after_ms: how long to wait before that, in milliseconds (0: no hint).
        blockno: the block it is about, or None.
        current: the value the peer holds where that helps (SUPERSEDED: its attempt), or None.
        remote: whether the peer said it, of its own disk and folders; else it is of this side.
    """

    code: Code = Code.MALFORMED
    remote = False

    def __init__(
        self,
        text: str = "",
        *,
        code: Code | None = None,
        retryable: bool | None = None,
        retry_after_ms: int = 0,
        blockno: int | None = None,
        current: int | None = None,
    ) -> None:
        if code is not None:
            self.code = code
        self.retryable = ERRORS[self.code].retryable if retryable is None else retryable
        self.retry_after_ms = retry_after_ms
        self.blockno = blockno
        self.current = current
        super().__init__(text or ERRORS[self.code].meaning)


class ProtocolError(BlockprotoError):
    """Somebody broke the protocol; the connection ends."""


class LocalProtocolError(ProtocolError):
    """Our own caller asked for something the protocol forbids: a bug on this side."""

    code = Code.UNEXPECTED


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol."""


class MalformedFrame(RemoteProtocolError):
    """The peer's bytes do not follow their layout."""

    code = Code.MALFORMED


class FrameTooLarge(RemoteProtocolError):
    """The peer announced more than the limit of that type."""

    code = Code.TOO_LARGE


class BadCheck(RemoteProtocolError):
    """A frame's CRC does not match: the line damages bytes."""

    code = Code.BAD_CHECK


class UnexpectedMessage(RemoteProtocolError):
    """The peer sent a message that is not legal in this state."""

    code = Code.UNEXPECTED


class UnsupportedVersion(RemoteProtocolError):
    """The peer speaks no version that we speak."""

    code = Code.UNSUPPORTED_VERSION


class CreditExceeded(RemoteProtocolError):
    """The peer sent more payload than it was allowed."""

    code = Code.CREDIT_EXCEEDED


class TooManyStreams(RemoteProtocolError):
    """The peer opened more streams than it was allowed."""

    code = Code.TOO_MANY_STREAMS


class NotBlockproto(RemoteProtocolError):
    """The first bytes are not the preface."""

    code = Code.NOT_BLOCKPROTO


class SpeaksTls(NotBlockproto):
    """The server speaks TLS where it was spoken to without."""


class TransferError(BlockprotoError):
    """One file stopped; the connection stays usable."""


class Refused(TransferError):
    """The peer or the store said no before or instead of taking bytes; ``code`` says why."""

    code = Code.NOT_PERMITTED


class TooFewFiles(Refused):
    """This process may not open one more file: fewer at a time may do, waiting alone does not help."""

    code = Code.BUSY


class Unsupported(TransferError):
    """A request needs something the other side must understand and does not."""

    code = Code.UNSUPPORTED


class NameRefused(TransferError):
    """A name breaks a rule of its profile.

    Attributes:
        rule: the rule's short name as in the spec, for example ``control-character``.
        profile: ``wire`` or ``portable``.
    """

    code = Code.NAME_REFUSED

    def __init__(
        self,
        text: str = "",
        *,
        rule: str = "",
        profile: str = "wire",
        code: Code | None = None,
        retryable: bool | None = None,
        retry_after_ms: int = 0,
        blockno: int | None = None,
        current: int | None = None,
    ) -> None:
        self.rule = rule
        self.profile = profile
        super().__init__(
            text,
            code=code,
            retryable=retryable,
            retry_after_ms=retry_after_ms,
            blockno=blockno,
            current=current,
        )


class BadFacts(TransferError):
    """filesize, blocknum, blockno and position do not fit each other."""

    code = Code.BAD_FACTS


class RangeOutside(BadFacts):
    """This side was asked for a range that begins behind the last byte of the file."""


class DigestMismatch(TransferError):
    """A block's bytes do not have the digest that came with them."""

    code = Code.DIGEST_MISMATCH


def stored_damaged() -> DigestMismatch:
    """What is said of a stored file whose bytes are not those that were committed; asking again does not help."""
    return DigestMismatch(
        "the stored file is damaged on the server: its bytes are not those that were committed",
        retryable=False,
    )


class DigestsDiffer(TransferError):
    """The root at COMMIT is not that of the blocks held."""

    code = Code.DIGESTS_DIFFER


class SourceChanged(TransferError):
    """The file is not the one the upload was begun with."""

    code = Code.SOURCE_CHANGED


class Superseded(TransferError):
    """A greater attempt owns the upload; ``current`` is that attempt."""

    code = Code.SUPERSEDED


class Cancelled(TransferError):
    """Either side stopped the transfer on purpose."""

    code = Code.CANCELLED


class GoingAway(TransferError):
    """The peer is stopping and starts nothing new."""

    code = Code.GOING_AWAY


class InternalError(TransferError):
    """An error that nobody expected, a bug on the side that says so; the log there has its traceback."""

    code = Code.INTERNAL


class HookRefused(TransferError):
    """A hook of the server does not let the file have its name; what was sent with OPEN stays, and can be committed later.

    ``retryable``: no hook said so; one failed, or had not answered when its time was over.
    """

    code = Code.HOOK_REFUSED


class Unauthenticated(TransferError):
    """Nobody has said who is asking, or not with a credential that is accepted."""

    code = Code.UNAUTHENTICATED


class Untrusted(Unauthenticated):
    """The server is not the one, or not known to be: nothing was sent to it. The text says what to do."""


class Forbidden(TransferError):
    """The principal has not the scope that the request needs."""

    code = Code.FORBIDDEN


class QuotaExceeded(TransferError):
    """The upload does not fit the principal's quota; ``current`` is how many bytes are left."""

    code = Code.QUOTA


class CredentialExpired(TransferError):
    """The credential was right and has ended."""

    code = Code.CREDENTIAL_EXPIRED


class ConnectionLost(BlockprotoError):
    """The connection ended or could not be made; what was acknowledged is kept and the transfer can be resumed."""

    code = Code.TIMEOUT


class NotListening(ConnectionLost):
    """The machine is there, and nothing listens on that port."""


class StoreError(BlockprotoError):
    """The store could not do its work."""

    code = Code.STORE_FAILED


class StoreFailed(StoreError):
    """The medium or the ledger reported an error; nothing may be acknowledged any more."""

    code = Code.STORE_FAILED


class NewerLedger(StoreFailed):
    """A newer version wrote this ledger."""


class StoreFull(StoreError):
    """There is no room; what is durable stays, and the upload can be resumed once there is room."""

    code = Code.STORE_FULL


class UnknownFile(StoreError):
    """There is no file of that name or id."""

    code = Code.UNKNOWN_FILE


class UnknownUpload(StoreError):
    """There is no unfinished upload of that sourceid."""

    code = Code.UNKNOWN_UPLOAD


class FileExists(StoreError):
    """The name is taken and the upload asked to be refused then."""

    code = Code.FILE_EXISTS


class NotPermitted(StoreError):
    """The folder's rights or kind do not allow it."""

    code = Code.NOT_PERMITTED


class InTheWay(NotPermitted):
    """Something on this machine stands where a download should go, and is neither written nor replaced."""


class NotEmpty(StoreError):
    """A folder still has entries."""

    code = Code.NOT_EMPTY


class StoreInUse(StoreError):
    """Another process has the store open."""

    code = Code.BUSY


_BY_CODE: dict[Code, type[BlockprotoError]] = {
    cls.code: cls
    for cls in (
        MalformedFrame, FrameTooLarge, BadCheck, UnexpectedMessage, UnsupportedVersion, CreditExceeded,
        TooManyStreams, NotBlockproto, Unsupported, BadFacts, DigestMismatch, DigestsDiffer, SourceChanged,
        Superseded, Cancelled, GoingAway, NameRefused, StoreFailed, StoreFull, UnknownFile, UnknownUpload,
        FileExists, NotPermitted, NotEmpty, InternalError, HookRefused, Unauthenticated, Forbidden, QuotaExceeded,
        CredentialExpired, ConnectionLost,
    )
}  # fmt: skip


def is_of_this_machine(error: BaseException) -> bool:
    """Whether an error is about the disk or the folders here; a server has some, too."""
    return isinstance(error, OSError) or (isinstance(error, NotPermitted | StoreFailed) and not error.remote)


def error_from_code(
    code: int,
    text: str,
    *,
    retryable: bool,
    retry_after_ms: int = 0,
    blockno: int | None = None,
    current: int | None = None,
) -> BlockprotoError:
    """Build the exception for an ERROR message; a code we do not know becomes ``Refused`` with the peer's text."""
    known = Code(code) if code in Code._value2member_map_ else None
    cls = _BY_CODE.get(known, Refused) if known is not None else Refused
    error = cls(
        text, code=known, retryable=retryable, retry_after_ms=retry_after_ms, blockno=blockno, current=current
    )
    error.remote = True
    return error
