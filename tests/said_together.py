"""What a client can say on one stream, legal and illegal, as frames that can be put into one segment in any order.

    words = vocabulary(stream)        name → header, head and payload
    segment = b"".join(words[name] for name in ("fetch", "error-stream"))

The files they are about are ``HELD`` (finished, big), ``SMALL`` (finished, brief), ``BIG`` and ``TINY`` (to be uploaded).
"""

from __future__ import annotations

from fuzz import sealed
from peers import MIB, M, Sample, bytes_of

from blockproto.errors import Code, Scope
from blockproto.wire import (
    ZERO_ID,
    Ack,
    Auth,
    Cancel,
    Committed,
    Credit,
    Error,
    Fetch,
    Have,
    Hello,
    List,
    ListKind,
    Message,
    Opened,
    Piece,
    Ping,
    Priority,
    Remove,
    RemoveKind,
    Result,
    encode_frame,
)

HELD = Sample(bytes_of(2 * MIB + 7, 3), "held.bin", sourceid=b"held big file id")
SMALL = Sample(b"a small file", "small.txt", sourceid=b"held small  file")
BIG = Sample(bytes_of(2 * MIB + 5, 4), "big.bin", sourceid=b"a big upload  id")
TINY = Sample(b"tiny", "tiny.txt", sourceid=b"a tiny upload id")
STREAMED = Sample(BIG.content, "streamed.bin", sourceid=b"of unknown  size", known=False)
GOOD = Sample(b"good", "good.txt", sourceid=b"the good file id")

FIRST = (
    "open",
    "open-unknown",
    "open-no-id",
    "tiny",
    "block-begun",
    "fetch",
    "fetch-brief",
    "fetch-range",
    "list",
    "remove",
)
"""Words that begin a stream and are answered later: what follows may overtake the answer."""


def vocabulary(stream: int) -> dict[str, bytes]:
    """Everything, by name."""
    said = {
        name: encode_frame(stream, message, len(payload)) + payload
        for name, (message, payload) in _said().items()
    }
    critical = (0x80FF).to_bytes(2, "big") + b"\0\0"
    for name in ("fetch", "open", "list", "commit"):
        head = said[name][16:] + critical
        said[f"{name}-critical"] = sealed(len(head) << 8 | said[name][3], 0, head, stream)
    said["unknown-type"] = sealed(4 << 8 | 0x70, 0, b"none", stream)
    said["critical-type"] = sealed(4 << 8 | 0xEE, 0, b"none", stream)
    said["error-connection"] = encode_frame(0, _error(Code.CANCELLED, Scope.CONNECTION))
    return said


def _error(code: int, scope: Scope) -> Error:
    return Error(code=code, scope=scope, retryable=False, text="said in the same segment", blockno=0)


def _made_wrongly(message: M, **wrong: object) -> M:
    """A message as ours cannot be made: it judges itself."""
    for name, value in wrong.items():
        object.__setattr__(message, name, value)
    return message


def _said() -> dict[str, tuple[Message, bytes]]:
    past_the_end = _made_wrongly(BIG.block(2)[0], blockno=99, position=99 * MIB, digest=None)
    begun, half = BIG.block(0, 0, 1000, end=False)
    plain: dict[str, Message] = {
        "open": BIG.open(),
        "open-again": BIG.open(2),
        "open-unknown": STREAMED.open(),
        "open-no-id": BIG.open(sourceid=ZERO_ID),
        "open-bad-name": BIG.open(filename="../up"),
        "open-there": HELD.open(),
        "commit": BIG.commit(),
        "commit-wrong": BIG.commit(root=bytes(32)),
        "have": Have(()),
        "have-wrong": Have(((0, bytes(32)), (1, bytes(32)))),
        "have-more": Have(((0, bytes(32)),), more=True),
        "cancel": Cancel(reason=Code.CANCELLED, text="", discard=False),
        "cancel-discard": Cancel(reason=Code.CANCELLED, text="", discard=True),
        "error-stream": _error(Code.CANCELLED, Scope.STREAM),
        "error-mismatch": _error(Code.DIGEST_MISMATCH, Scope.BLOCK),
        "error-differ": _error(Code.DIGESTS_DIFFER, Scope.BLOCK),
        "error-unknown-code": _error(999, Scope.STREAM),
        "error-failed": _error(Code.STORE_FAILED, Scope.STREAM),
        "fetch": Fetch(HELD.filename),
        "fetch-first": Fetch(HELD.filename, priority=Priority.INTERACTIVE),
        "fetch-brief": Fetch(SMALL.filename, length=1000),
        "fetch-range": Fetch(HELD.filename, first=5, length=MIB),
        "fetch-past": Fetch(HELD.filename, first=1 << 40),
        "fetch-nothing": Fetch("not there"),
        "fetch-id": Fetch("", file_id=b"0123456789abcdef"),
        "fetch-version": Fetch(HELD.filename, version=b"0123456789abcdef"),
        "fetch-held": Fetch(HELD.filename, held=((0, 2),), prefixes=((2, 3),)),
        "list": List(kind=ListKind.FILES),
        "list-exact": List(kind=ListKind.FILES, name=HELD.filename, exact=True, b3sum=True),
        "list-uploads": List(kind=ListKind.UPLOADS),
        "list-receipts": List(kind=ListKind.RECEIPTS, ids=(HELD.sourceid, TINY.sourceid)),
        "list-strange": _made_wrongly(List(kind=ListKind.FILES), kind=99),
        "remove": Remove(RemoveKind.FILE, filename="tiny.txt"),
        "remove-upload": Remove(RemoveKind.UPLOAD, id=BIG.sourceid),
        "remove-strange": _made_wrongly(Remove(RemoveKind.FILE, filename="x"), kind=99),
        "auth": Auth("bp_nobody_knows_this_token"),
        "opened": Opened(HELD.sourceid, bytes(16), 1, 0, 1, None),
        "opened-holding": Opened(ZERO_ID, bytes(16), 0, 0, 1, None, held=((0, 3),)),
        "ack": Ack(0, ((0, 1),)),
        "ack-beyond": Ack(1 << 50, ((4000, 90),)),
        "credit": Credit(1 << 30, 0),
        "committed": Committed(ZERO_ID, bytes(16), HELD.root, len(HELD.content), ""),
        "committed-wrong": Committed(bytes(16), bytes(16), bytes(32), 0, "x"),
        "result": Result(kind=ListKind.FILES),
        "hello": Hello(),
        "ping": Ping(bytes(8), 0),
    }
    return {name: (message, b"") for name, message in plain.items()} | {
        "tiny": TINY.block(0, commit=True),
        "tiny-wrong": TINY.block(0, commit=True, digest=bytes(32)),
        "tiny-end": TINY.block(0),
        "block": BIG.block(0),
        "block-last": BIG.block(2),
        "block-wrong": BIG.block(0, digest=bytes(32)),
        "block-begun": (begun, half),
        "block-past": (past_the_end, b""),
        "block-other": HELD.block(0),
        "block-unknown": STREAMED.block(1),
        "piece": BIG.piece(0, 1000, 2000, end=False),
        "piece-end": BIG.piece(0, 1000),
        "piece-elsewhere": (Piece(17, None), b"x"),
    }
