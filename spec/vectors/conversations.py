"""The conversation vectors: whole exchanges, frame by frame, in an order in which they can happen.

What the receiver chooses (file ids, incarnation, expiry …) is named in ``chosen``; whoever replays a conversation against
a real peer compares the other values only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from blake3 import blake3
from encode import BLOCK_LENGTH, Frame, frame, root_of
from frames import (
    ATTEMPT,
    EMPTY_DIGEST,
    EXPIRES_MS,
    FILE_ID,
    HELLO_CONTENT,
    HELLO_DIGEST,
    INCARNATION,
    MTIME_NS,
    NOTES,
    PHOTO,
    PHOTO_DIGESTS,
    PHOTO_NAME,
    PHOTO_ROOT,
    SMALL_SOURCEID,
    SOURCEID,
    VERSION,
    ZERO,
    hello,
    notes,
    server_hello,
    wanted,
)  # fmt: skip


class Step(NamedTuple):
    """One thing that is sent. ``frame`` is None for the preface."""

    speaker: str
    says: str
    frame: Frame | None
    chosen: tuple[str, ...] = ()
    connection: int = 1


class Conversation(NamedTuple):
    """An exchange.

    ``greeted``: preface and HELLO of both sides came before the first step. ``after``: what was said to the same server
    before, each on connections of its own that have ended since. ``condition``: what else must happen, or None.
    """

    name: str
    explain: str
    clauses: list[str]
    steps: list[Step]
    greeted: bool = True
    after: tuple[str, ...] = ()
    condition: str | None = None


def client(says: str, said: Frame | None, *, connection: int = 1) -> Step:
    """The client sends a frame."""
    return Step("client", says, said, (), connection)


def server(says: str, said: Frame | None, *chosen: str, connection: int = 1) -> Step:
    """The server sends a frame; ``chosen``: values that another server would choose otherwise."""
    return Step("server", says, said, chosen, connection)


def photo_open(stream: int, attempt: int, **changed: Any) -> Frame:
    """OPEN of the photo that most conversations are about."""
    values: dict[str, Any] = {
        "sourceid": SOURCEID, "attempt": attempt, "filesize": len(PHOTO), "blocknum": 3, "priority": 1,
        "if_exists": 0, "filename": PHOTO_NAME, "filetype": "image/jpeg",
    }  # fmt: skip
    return frame("OPEN", stream, tlvs={"MTIME": MTIME_NS}, **(values | changed))


def photo_opened(stream: int, attempt: int, position: int, **changed: Any) -> Frame:
    """The answer to it."""
    values: dict[str, Any] = {
        "sourceid": SOURCEID, "file_id": FILE_ID, "attempt": attempt, "position": position,
        "incarnation": INCARNATION, "expires_ms": EXPIRES_MS, "held": [], "prefixes": [],
    }  # fmt: skip
    return frame("OPENED", stream, **(values | changed))


def photo_block(
    stream: int,
    blockno: int,
    first: int = 0,
    last: int | None = None,
    *,
    sourceid: bytes = SOURCEID,
    digest: bytes | None = None,
) -> Frame:
    """BLOCK with the bytes [first, last) of a block of the photo; with END if they reach the block's end."""
    begin = blockno * BLOCK_LENGTH
    end = min(begin + BLOCK_LENGTH, len(PHOTO))
    upto = end if last is None else begin + last
    ends = upto == end
    return frame(
        "BLOCK", stream, flags=["END"] if ends else [], sourceid=sourceid, filesize=len(PHOTO), blocknum=3,
        blockno=blockno, position=begin + first, filename=PHOTO_NAME, filetype="image/jpeg",
        digest=digest or PHOTO_DIGESTS[blockno], payload=PHOTO[begin + first : upto],
    )  # fmt: skip


def photo_commit(stream: int, sourceid: bytes = SOURCEID) -> Frame:
    """COMMIT of the photo."""
    return frame("COMMIT", stream, sourceid=sourceid, root=PHOTO_ROOT, filesize=len(PHOTO), blocknum=3)


def photo_committed(stream: int) -> Frame:
    """COMMITTED of the photo."""
    return frame("COMMITTED", stream, sourceid=SOURCEID, file_id=FILE_ID, root=PHOTO_ROOT, filesize=len(PHOTO),
                 stored_as=PHOTO_NAME)  # fmt: skip


def stop(stream: int, code: int, scope: int = 2, **changed: Any) -> Frame:
    """An ERROR."""
    values: dict[str, Any] = {
        "code": code, "scope": scope, "retryable": 0, "retry_after_ms": 0, "blockno": None, "current": None, "text": "",
    }  # fmt: skip
    return frame("ERROR", stream, **(values | changed))


FETCHED_CHOICES = ("sourceid", "VERSION", "FILE_ID", "MODE")
OPENED_CHOICES = ("file_id", "incarnation", "expires_ms")
BRIEF = {"sourceid": SMALL_SOURCEID, "filesize": 14, "blocknum": 1, "blockno": 0, "position": 0, "filename": "hello.txt",
         "filetype": "text/plain"}  # fmt: skip


def brief(stream: int) -> Frame:
    """hello.txt as one BLOCK."""
    return frame(
        "BLOCK", stream, flags=["END", "COMMIT"], digest=HELLO_DIGEST, payload=HELLO_CONTENT, **BRIEF
    )


def brief_committed(stream: int) -> Frame:
    """COMMITTED of hello.txt."""
    return frame("COMMITTED", stream, sourceid=SMALL_SOURCEID, file_id=FILE_ID, root=HELLO_DIGEST, filesize=14,
                 stored_as="hello.txt")  # fmt: skip


def _small_upload() -> Conversation:
    return Conversation(
        "small-upload", "A file of 14 bytes: one round trip after the connection stands.",
        ["BP1-HEL-001", "BP1-HEL-002", "BP1-BLK-014", "BP1-COM-006"],
        [
            client("ff 42 4b 50 0d 0a 1a 0a", None),
            client("versions and limits", hello("blockproto")),
            client("hello.txt, all of it, with END and COMMIT", brief(1)),
            server("ff 42 4b 50 0d 0a 1a 0a", None),
            server("versions and limits", server_hello(), "agent"),
            server("stored as hello.txt, durable", brief_committed(1), "file_id"),
        ], greeted=False,
    )  # fmt: skip


def _small_upload_repeated() -> Conversation:
    return Conversation(
        "small-upload-repeated", "The same brief file again, on another stream: the same answer, nothing stored twice.",
        ["BP1-COM-010", "BP1-BLK-019"],
        [
            client("hello.txt", brief(1)),
            server("stored", brief_committed(1), "file_id"),
            client("hello.txt again, same sourceid", brief(3)),
            server("the same answer", brief_committed(3), "file_id"),
        ],
    )  # fmt: skip


def _upload() -> Conversation:
    return Conversation(
        "upload", "Three blocks with OPEN; COMMIT follows the last block at once.",
        ["BP1-RES-009", "BP1-BLK-005", "BP1-RES-019", "BP1-COM-001", "BP1-COM-004"],
        [
            client("sourceid, attempt, facts", photo_open(1, ATTEMPT)),
            server("nothing is held yet", photo_opened(1, ATTEMPT, 0), *OPENED_CHOICES),
            client("block 0, whole, END", photo_block(1, 0)),
            client("block 1, whole, END", photo_block(1, 1)),
            server("block 0 is durable", frame("ACK", 1, position=BLOCK_LENGTH, held=[(0, 1)])),
            client("block 2, five bytes, END", photo_block(1, 2)),
            client("root over three digests", photo_commit(1)),
            server("everything is durable", frame("ACK", 1, position=len(PHOTO), held=[(1, 2)])),
            server("complete, under its name", photo_committed(1), "file_id"),
        ],
    )  # fmt: skip


def _interrupted() -> Conversation:
    return Conversation(
        "interrupted",
        "The connection ends in the middle of block 1.",
        ["BP1-RES-014", "BP1-RES-021"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("nothing is held", photo_opened(1, ATTEMPT, 0), *OPENED_CHOICES),
            client("block 0", photo_block(1, 0)),
            client("the first 300,000 bytes of block 1", photo_block(1, 1, 0, 300_000)),
            server("block 0 is durable", frame("ACK", 1, position=BLOCK_LENGTH, held=[(0, 1)])),
        ],
    )


def _held(name: str, count: int, spoilt: bool = False) -> Conversation:
    blocks = [photo_block(1, blockno) for blockno in range(count)]
    if spoilt:
        other = bytes(BLOCK_LENGTH)
        blocks[1] = photo_block(1, 1, digest=blake3(other).digest())._replace(payload=other)
    position = min(count * BLOCK_LENGTH, len(PHOTO))
    return Conversation(
        name,
        f"{count} blocks are sent{', block 1 with other bytes than the photo has' if spoilt else ''}; no COMMIT.",
        ["BP1-RES-019", "BP1-RES-021"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("nothing is held", photo_opened(1, ATTEMPT, 0), *OPENED_CHOICES),
            *(client(f"block {blockno}", said) for blockno, said in enumerate(blocks)),
            server(f"{count} blocks are durable", frame("ACK", 1, position=position, held=[(0, count)])),
        ],
    )


def _resume() -> Conversation:
    return Conversation(
        "resume", "After a lost connection: the upload goes on inside block 1.",
        ["BP1-RES-006", "BP1-RES-013", "BP1-RES-016"],
        [
            client("same sourceid, greater attempt", photo_open(1, ATTEMPT + 5)),
            server("block 0 is held, 300,000 bytes of block 1 are there",
                   photo_opened(1, ATTEMPT + 5, BLOCK_LENGTH, held=[(0, 1)], prefixes=[(1, 300_000)],
                                tlvs={"HELD_ROOT": blake3(PHOTO_DIGESTS[0]).digest()}), "HELD_ROOT", *OPENED_CHOICES),
            client("the rest of block 1, END", photo_block(1, 1, 300_000)),
            client("block 2, END", photo_block(1, 2)),
            client("root", photo_commit(1)),
            server("everything is durable", frame("ACK", 1, position=len(PHOTO), held=[(1, 2)])),
            server("complete", photo_committed(1), "file_id"),
        ],
        after=("interrupted",),
    )  # fmt: skip


def _takeover() -> Conversation:
    return Conversation(
        "takeover", "A second connection takes the upload over while the first still stands.",
        ["BP1-RES-006", "BP1-RES-010", "BP1-STR-008"],
        [
            client("attempt 1,700,000,000,000", photo_open(1, ATTEMPT)),
            server("nothing is held", photo_opened(1, ATTEMPT, 0), *OPENED_CHOICES),
            client("the first 100 bytes of block 0", photo_block(1, 0, 0, 100)),
            client("a greater attempt", photo_open(1, ATTEMPT + 1), connection=2),
            server("superseded; current is the new attempt", stop(1, 24, current=ATTEMPT + 1)),
            server("100 bytes of block 0 are there", photo_opened(1, ATTEMPT + 1, 0, prefixes=[(0, 100)]),
                   "prefixes", *OPENED_CHOICES, connection=2),
            client("late: dropped without an answer", frame("PIECE", 1, position=100, payload=PHOTO[100:200])),
            client("the smaller attempt tries again", photo_open(3, ATTEMPT)),
            server("superseded, nothing changed", stop(3, 24, current=ATTEMPT + 1)),
        ],
    )  # fmt: skip


def _join() -> Conversation:
    return Conversation(
        "join", "Two connections with the same attempt share the blocks; COMMIT overtakes a block.",
        ["BP1-RES-006", "BP1-COM-004", "BP1-COM-007"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("nothing is held", photo_opened(1, ATTEMPT, 0), *OPENED_CHOICES),
            client("the same attempt: join", photo_open(1, ATTEMPT), connection=2),
            server("the same answer", photo_opened(1, ATTEMPT, 0), *OPENED_CHOICES, connection=2),
            client("block 0", photo_block(1, 0)),
            client("block 2", photo_block(1, 2)),
            client("commit: it waits for block 1", photo_commit(1)),
            client("block 1", photo_block(1, 1), connection=2),
            server("everything is durable", frame("ACK", 1, position=len(PHOTO), held=[(0, 3)])),
            server("the same on the other stream", frame("ACK", 1, position=len(PHOTO), held=[(0, 3)]), connection=2),
            server("complete", photo_committed(1), "file_id"),
            server("complete, on every stream of the upload", photo_committed(1), "file_id", connection=2),
        ],
    )  # fmt: skip


def _already_there() -> Conversation:
    return Conversation(
        "already-there", "OPEN of an upload that was committed is answered by COMMITTED; what came after it is dropped.",
        ["BP1-RES-008", "BP1-RES-012", "BP1-STR-008"],
        [
            client("sourceid of a committed upload", photo_open(1, ATTEMPT + 9)),
            client("block 2, without waiting", photo_block(1, 2)),
            server("here it is already", photo_committed(1), "file_id"),
            client("crossed with COMMITTED: dropped", photo_commit(1)),
        ],
        after=("upload",),
    )  # fmt: skip


def _damaged_block() -> Conversation:
    return Conversation(
        "damaged-block", "A block whose bytes were damaged on the way is sent again.", ["BP1-BLK-011", "BP1-COM-004"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("blocks 0 and 1 are held", photo_opened(1, ATTEMPT, 2 * BLOCK_LENGTH, held=[(0, 2)]),
                   *OPENED_CHOICES),
            client("block 2, with other bytes than its digest", photo_block(1, 2)._replace(payload=b"wrong")),
            client("root", photo_commit(1)),
            server("send block 2 again", stop(1, 26, 1, retryable=1, blockno=2)),
            client("block 2", photo_block(1, 2)),
            server("everything is durable", frame("ACK", 1, position=len(PHOTO), held=[(2, 1)])),
            server("complete", photo_committed(1), "file_id"),
        ],
        after=("two-blocks-held",),
    )  # fmt: skip


def _repair() -> Conversation:
    return Conversation(
        "repair", "The file's block 1 is not the one that was sent; HAVE finds it, and it travels again.",
        ["BP1-DIG-005", "BP1-DIG-006", "BP1-DIG-007", "BP1-DIG-008"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("all three blocks are held", photo_opened(1, ATTEMPT, len(PHOTO), held=[(0, 3)]), *OPENED_CHOICES),
            client("root", photo_commit(1)),
            server("that is not the root of what is held", stop(1, 27, 1, retryable=1)),
            client("digests of blocks 0 and 1, MORE",
                   frame("HAVE", 1, flags=["MORE"], digests=list(enumerate(PHOTO_DIGESTS[:2])))),
            client("digest of block 2", frame("HAVE", 1, digests=[(2, PHOTO_DIGESTS[2])])),
            server("blocks 0 and 2 are held", photo_opened(1, ATTEMPT, BLOCK_LENGTH, held=[(0, 1), (2, 1)]),
                   *OPENED_CHOICES),
            client("block 1", photo_block(1, 1)),
            client("root, again", photo_commit(1)),
            server("everything is durable", frame("ACK", 1, position=len(PHOTO), held=[(1, 1)])),
            server("complete", photo_committed(1), "file_id"),
        ],
        after=("three-blocks-held-one-spoilt",),
    )  # fmt: skip


def _unknown_size() -> Conversation:
    content = HELLO_CONTENT * 2
    digest = blake3(content).digest()
    facts = {
        "sourceid": ZERO,
        "filesize": None,
        "blocknum": None,
        "filename": "note.txt",
        "filetype": "text/plain",
    }
    chosen = bytes.fromhex("c405e4") + bytes(13)
    return Conversation(
        "unknown-size", "Bytes that are sent as they come: the size is known at COMMIT, the sourceid is the server's.",
        ["BP1-BLK-003", "BP1-BLK-009", "BP1-RES-003"],
        [
            client("sourceid zeros, size unknown", frame("OPEN", 1, attempt=1, priority=0, if_exists=0, **facts)),
            client("the first 14 bytes", frame("BLOCK", 1, blockno=0, position=0, payload=HELLO_CONTENT, **facts)),
            server("a sourceid was chosen", photo_opened(1, 1, 0, sourceid=chosen), "sourceid", *OPENED_CHOICES),
            client("14 bytes more", frame("PIECE", 1, position=14, payload=HELLO_CONTENT)),
            client("that was all: END without bytes", frame("PIECE", 1, flags=["END"], position=28, digest=digest)),
            client("root and size", frame("COMMIT", 1, sourceid=ZERO, root=digest, filesize=28, blocknum=1)),
            server("durable", frame("ACK", 1, position=28, held=[(0, 1)])),
            server("complete", frame("COMMITTED", 1, sourceid=chosen, file_id=FILE_ID, root=digest, filesize=28,
                                     stored_as="note.txt"), "sourceid", "file_id"),
        ],
    )  # fmt: skip


def _download() -> Conversation:
    sent = [photo_block(1, blockno, sourceid=ZERO) for blockno in range(3)]
    return Conversation(
        "download", "FETCH of a whole file; the fetcher is the receiver.",
        ["BP1-FET-003", "BP1-FET-006", "BP1-FET-008", "BP1-FET-012"],
        [
            client("by name, from the start", frame("FETCH", 1, file_id=ZERO, first=0, length=None, version=ZERO,
                                                    priority=1, held=[], prefixes=[], filename=PHOTO_NAME)),
            server("facts and version", _fetched(1), *FETCHED_CHOICES),
            server("block 0", sent[0]),
            server("block 1", sent[1]),
            client("block 0 is durable here", frame("ACK", 1, position=BLOCK_LENGTH, held=[(0, 1)])),
            server("block 2", sent[2]),
            server("root", photo_commit(1, ZERO), "sourceid"),
            client("everything is durable", frame("ACK", 1, position=len(PHOTO), held=[(1, 2)])),
            client("complete here", frame("COMMITTED", 1, sourceid=ZERO, file_id=FILE_ID, root=PHOTO_ROOT,
                                          filesize=len(PHOTO), stored_as="")),
        ],
        after=("upload",),
    )  # fmt: skip


def _fetched(stream: int) -> Frame:
    return frame("OPEN", stream, sourceid=ZERO, attempt=0, filesize=len(PHOTO), blocknum=3, priority=1, if_exists=0,
                 filename=PHOTO_NAME, filetype="image/jpeg",
                 tlvs={"MTIME": MTIME_NS, "ROOT": PHOTO_ROOT, "VERSION": VERSION, "FILE_ID": FILE_ID})  # fmt: skip


def _ranged_fetch() -> Conversation:
    first, length = BLOCK_LENGTH - 10, 20
    parts = [PHOTO[first:BLOCK_LENGTH], PHOTO[BLOCK_LENGTH : first + length]]
    digests = [blake3(part).digest() for part in parts]
    root = root_of(digests)
    blocks = [
        frame("BLOCK", 1, flags=["END"], sourceid=ZERO, filesize=len(PHOTO), blocknum=3, blockno=blockno,
              position=max(first, blockno * BLOCK_LENGTH), filename=PHOTO_NAME, filetype="image/jpeg",
              digest=digests[blockno], payload=parts[blockno])
        for blockno in range(2)
    ]  # fmt: skip
    return Conversation(
        "ranged-fetch", "20 bytes across the border of blocks 0 and 1.", ["BP1-FET-005", "BP1-FET-010"],
        [
            client("20 bytes from 1,048,566 on", frame("FETCH", 1, file_id=ZERO, first=first, length=length,
                                                       version=ZERO, priority=1, held=[], prefixes=[],
                                                       filename=PHOTO_NAME)),
            server("facts of the whole file", _fetched(1), *FETCHED_CHOICES),
            server("block 0: its last 10 bytes, END", blocks[0]),
            server("block 1: its first 10 bytes, END", blocks[1]),
            server("root over two digests; whole file's size",
                   frame("COMMIT", 1, sourceid=ZERO, root=root, filesize=len(PHOTO), blocknum=3), "sourceid"),
            client("durable up to 1,048,586", frame("ACK", 1, position=first + length, held=[(0, 2)])),
            client("complete here", frame("COMMITTED", 1, sourceid=ZERO, file_id=FILE_ID, root=root,
                                          filesize=len(PHOTO), stored_as="")),
        ],
        after=("upload",),
    )  # fmt: skip


def _follow() -> Conversation:
    opening = frame("OPEN", 3, sourceid=ZERO, attempt=0, filesize=len(PHOTO), blocknum=3, priority=1, if_exists=0,
                    filename=PHOTO_NAME, filetype="image/jpeg",
                    tlvs={"MTIME": MTIME_NS, "VERSION": FILE_ID, "FILE_ID": FILE_ID})  # fmt: skip
    read = [photo_block(3, blockno, sourceid=ZERO) for blockno in range(3)]
    return Conversation(
        "follow", "FETCH of an upload that is not finished yet, and its end.",
        ["BP1-FET-015", "BP1-FET-016", "BP1-FET-017", "BP1-FET-018", "BP1-FET-019"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("nothing is held yet, but there is a file id", photo_opened(1, ATTEMPT, 0), *OPENED_CHOICES),
            client("block 0", photo_block(1, 0)),
            server("block 0 is durable", frame("ACK", 1, position=BLOCK_LENGTH, held=[(0, 1)])),
            client("by that file id, from the start",
                   frame("FETCH", 3, file_id=FILE_ID, first=0, length=None, version=FILE_ID, priority=1, held=[],
                         prefixes=[], filename="")),
            server("facts of the upload; the file id is the version", opening, *FETCHED_CHOICES),
            server("block 0", read[0]),
            client("block 1", photo_block(1, 1)),
            client("block 2", photo_block(1, 2)),
            client("root", photo_commit(1)),
            server("everything is durable", frame("ACK", 1, position=len(PHOTO), held=[(1, 2)])),
            server("complete", photo_committed(1), "file_id"),
            server("block 1", read[1]),
            server("block 2", read[2]),
            server("root: the upload was committed", photo_commit(3, ZERO), "sourceid"),
            client("complete here", frame("COMMITTED", 3, sourceid=ZERO, file_id=FILE_ID, root=PHOTO_ROOT,
                                          filesize=len(PHOTO), stored_as="")),
        ],
        condition="the server hands out unfinished uploads (a MAY); the client asks for the file id that OPENED named",
    )  # fmt: skip


def _listing() -> Conversation:
    item = {"kind": 1, "filesize": 14, "mtime_ns": MTIME_NS, "mode": 0o644, "file_id": FILE_ID, "version": VERSION,
            "filename": "hello.txt", "filetype": "text/plain", "tlvs": {"ROOT": HELLO_DIGEST}}  # fmt: skip
    return Conversation(
        "listing", "A question and its answer on stream 3 in the middle of a block on stream 1.",
        ["BP1-STR-001", "BP1-STR-006", "BP1-LST-001", "BP1-LST-002"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("blocks 0 and 1 are held", photo_opened(1, ATTEMPT, 2 * BLOCK_LENGTH, held=[(0, 2)]),
                   *OPENED_CHOICES),
            client("two of the five bytes of block 2", photo_block(1, 2, 0, 2)),
            client("what is in the served folder?", frame("LIST", 3, kind=1, limit=100, name="", cursor="")),
            server("hello.txt; that is all", frame("RESULT", 3, kind=1, items=[item], cursor=""), "items"),
            client("the other three bytes, END", frame("PIECE", 1, flags=["END"], position=2 * BLOCK_LENGTH + 2,
                                                       digest=PHOTO_DIGESTS[2], payload=PHOTO[2 * BLOCK_LENGTH + 2 :])),
            server("block 2 is durable", frame("ACK", 1, position=len(PHOTO), held=[(2, 1)])),
        ],
        after=("small-upload", "two-blocks-held"),
    )  # fmt: skip


def _empty_and_folder() -> Conversation:
    empty = {
        "sourceid": ZERO,
        "filesize": 0,
        "blocknum": 0,
        "blockno": 0,
        "position": 0,
        "digest": EMPTY_DIGEST,
    }
    done = {"sourceid": SOURCEID, "file_id": FILE_ID, "root": EMPTY_DIGEST, "filesize": 0}
    return Conversation(
        "empty-and-folder", "An empty file and a folder, sent without waiting for one another.",
        ["BP1-BLK-004", "BP1-BLK-016"],
        [
            client("an empty file", frame("BLOCK", 1, flags=["END", "COMMIT"], filename="a/empty", filetype="", **empty)),
            client("a folder", frame("BLOCK", 3, flags=["END", "COMMIT"], filename="b", filetype="inode/directory",
                                     **empty)),
            server("the file is there", frame("COMMITTED", 1, stored_as="a/empty", **done), "sourceid", "file_id"),
            server("the folder is there", frame("COMMITTED", 3, stored_as="b", **done), "sourceid", "file_id"),
        ],
    )  # fmt: skip


def _too_late() -> Conversation:
    return Conversation(
        "cancel-too-late", "CANCEL crosses COMMITTED: the file is there, and that is the answer.",
        ["BP1-COM-018", "BP1-STR-015"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("everything is held", photo_opened(1, ATTEMPT, len(PHOTO), held=[(0, 3)]), *OPENED_CHOICES),
            client("root", photo_commit(1)),
            client("stop!", frame("CANCEL", 1, reason=31, text="")),
            server("too late", photo_committed(1), "file_id"),
        ],
        after=("three-blocks-held",), condition="the server cannot stop the commit any more when CANCEL comes",
    )  # fmt: skip


def _cancel() -> Conversation:
    return Conversation(
        "cancel", "A sender stops and has everything thrown away.", ["BP1-COM-016", "BP1-COM-017"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("nothing is held", photo_opened(1, ATTEMPT, 0), *OPENED_CHOICES),
            client("block 2", photo_block(1, 2)),
            client("stop and discard", frame("CANCEL", 1, flags=["DISCARD"], reason=31, text="")),
            server("gone", stop(1, 31)),
        ],
    )  # fmt: skip


def _sender_gives_up() -> Conversation:
    return Conversation(
        "sender-gives-up",
        "A sender ends its stream with ERROR; the upload stays, and so does the connection.",
        ["BP1-STR-006", "BP1-RES-021", "BP1-ERR-005"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("nothing is held", photo_opened(1, ATTEMPT, 0), *OPENED_CHOICES),
            client("block 2", photo_block(1, 2)),
            client("no more of it", stop(1, 31)),
            client("the same attempt again", photo_open(3, ATTEMPT)),
            server(
                "the upload is there", photo_opened(3, ATTEMPT, 0, held=[(2, 1)]), "held", *OPENED_CHOICES
            ),
        ],
    )


def _differ_on_one() -> Conversation:
    wrong = frame("COMMIT", 1, sourceid=SOURCEID, root=bytes(32), filesize=len(PHOTO), blocknum=3)
    return Conversation(
        "differ-on-one-of-two",
        "Two streams of an upload; DIGESTS_DIFFER goes only to the one that said COMMIT.",
        ["BP1-DIG-005", "BP1-COM-007"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("everything is held", photo_opened(1, ATTEMPT, len(PHOTO), held=[(0, 3)]), *OPENED_CHOICES),
            client("the same attempt: join", photo_open(1, ATTEMPT), connection=2),
            server("the same answer", photo_opened(1, ATTEMPT, len(PHOTO), held=[(0, 3)]),
                   *OPENED_CHOICES, connection=2),
            client("a root that is wrong", wrong),
            server("not what is held", stop(1, 27, 1, retryable=1)),
            client("the right root", photo_commit(1), connection=2),
            server("complete", photo_committed(1), "file_id", connection=2),
            server("complete, here too", photo_committed(1), "file_id"),
        ],
        after=("three-blocks-held",),
    )  # fmt: skip


def _goaway() -> Conversation:
    return Conversation(
        "goaway", "The server stops; a stream that crosses the message is refused.", ["BP1-END-008", "BP1-END-009"],
        [
            client("attempt", photo_open(1, ATTEMPT)),
            server("nothing is held", photo_opened(1, ATTEMPT, 0), *OPENED_CHOICES),
            client("block 0", photo_block(1, 0)),
            server("closing in 2 s", frame("GOAWAY", 0, code=34, grace_ms=2_000, retry_after_ms=1_000, text=""),
                   "grace_ms", "retry_after_ms"),
            client("crossed with GOAWAY", frame("LIST", 3, kind=1, limit=100, name="", cursor="")),
            server("block 0 is durable", frame("ACK", 1, position=BLOCK_LENGTH, held=[(0, 1)])),
            server("not any more", stop(3, 34, retryable=1, retry_after_ms=1_000), "retry_after_ms"),
        ],
        condition="the server is told to stop before it sends GOAWAY",
    )  # fmt: skip


def _many_files() -> Conversation:
    return Conversation(
        "many-files", "Three files and their folder in one frame, and one answer.",
        ["BP1-FIL-002", "BP1-FIL-006", "BP1-FIL-009"],
        [
            client("three files and their folder; no more follows", notes()),
            server("all four are there, durable",
                   frame("STORED", 1, flags=["LAST"], number=1, statuses=[0] * 4, outcomes=[])),
        ],
    )  # fmt: skip


def _many_files_damaged() -> Conversation:
    first = notes(flags=[])
    refused = {"code": 26, "retryable": 1, "retry_after_ms": 0, "current": None, "text": ""}
    return Conversation(
        "many-files-damaged", "A file that arrives damaged is refused alone, and sent again in another frame.",
        ["BP1-FIL-003", "BP1-FIL-005", "BP1-FIL-009"],
        [
            client("three files and their folder", first),
            server("all four are there", frame("STORED", 1, number=1, statuses=[0] * 4, outcomes=[])),
            client("the third file arrives damaged, under a name that is free",
                   notes(number=7, flags=[], payload=b"thrxe\n", **_third("drei.txt"))),
            server("that one is refused", frame("STORED", 1, number=7, statuses=[4], outcomes=[refused]), "text"),
            client("it is sent again; no more follows", notes(number=8, payload=NOTES[2], **_third("drei.txt"))),
            server("it is there too", frame("STORED", 1, flags=["LAST"], number=8, statuses=[0], outcomes=[])),
        ],
    )  # fmt: skip


def _many_files_fetched() -> Conversation:
    """Two files come back, in the version that they have; one that is not there is left out."""
    facts = {"digest": bytes(32), "mtime_ns": -(1 << 63), "mode": 0xFFFF, "folder": 0, "filetype": 0}
    asked = [{"sourceid": ZERO, "filesize": size, **facts} for size in (4, 1, 6)]
    came = [
        {"sourceid": VERSION, "digest": blake3(content).digest(), "filesize": len(content), "mtime_ns": MTIME_NS,
         "mode": 0o644, "folder": 0, "filetype": at}
        for at, content in ((0, NOTES[0]), (0, NOTES[2]))
    ]  # fmt: skip
    return Conversation(
        "many-files-fetched", "Three files are asked for; two come, and one is not there.",
        ["BP1-FIL-018", "BP1-FIL-019", "BP1-FIL-020"],
        [
            client("three files", wanted(files=asked, names=["one.txt", "gone", "三.txt"])),
            server("two of them", notes(number=0, folders=["notes"], filetypes=["text/plain"], files=came,
                                        names=["one.txt", "三.txt"], payload=NOTES[0] + NOTES[2]), "files"),
            client("both are durable here", frame("STORED", 1, flags=["LAST"], number=0, statuses=[0] * 2, outcomes=[])),
        ],
        after=("many-files",),
    )  # fmt: skip


def _third(name: str) -> dict[str, Any]:
    """The third file of the notes alone, as an upload of its own."""
    record = {"sourceid": ZERO[:15] + b"\x03", "digest": blake3(NOTES[2]).digest(), "filesize": len(NOTES[2]),
              "mtime_ns": MTIME_NS, "mode": 0o644, "folder": 0, "filetype": 0}  # fmt: skip
    return {"folders": ["notes"], "filetypes": ["text/plain"], "files": [record], "names": [name]}


def conversations() -> list[Conversation]:
    """All conversations; what one comes after stands before it."""
    return [
        _small_upload(), _small_upload_repeated(), _upload(), _interrupted(), _resume(), _takeover(), _join(),
        _already_there(), _held("two-blocks-held", 2), _damaged_block(),
        _held("three-blocks-held-one-spoilt", 3, spoilt=True), _repair(), _unknown_size(), _download(),
        _ranged_fetch(), _follow(), _listing(), _empty_and_folder(), _held("three-blocks-held", 3), _too_late(), _cancel(),
        _sender_gives_up(), _differ_on_one(), _goaway(), _many_files(), _many_files_damaged(),
        _many_files_fetched(),
    ]  # fmt: skip
