"""Refusals that take what came before, or a store: facts, states, credit, names, digests, attempts."""

from __future__ import annotations

from collections.abc import Iterator

from encode import BLOCK_LENGTH, TYPES, Frame, frame, raw_frame
from frames import (
    ATTEMPT,
    EMPTY_DIGEST,
    FILE_ID,
    HELLO_CONTENT,
    HELLO_DIGEST,
    PHOTO,
    PHOTO_DIGESTS,
    UINT63,
    ZERO,
)
from refusals import (
    Refusal,
    ack,
    brief,
    commit,
    fetch,
    list_files,
    photo_block,
    photo_open,
    piece,
    place_of,
    stop,
)

LAST = 2 * BLOCK_LENGTH


def _fact(name: str, clause: str, said: Frame, field: str, why: str, *before: Frame) -> Refusal:
    layer = "stream" if before else "frame"
    wrong = place_of(said, field, why)
    raws = tuple(frame.raw for frame in before)
    return Refusal(f"facts/{name}", clause, "BAD_FACTS", "stream", said.raw, wrong, layer, raws)


def _facts() -> Iterator[Refusal]:
    def sizes(name: str, clause: str, field: str, why: str, **changed: int | None) -> Refusal:
        return _fact(name, clause, photo_open(**changed), field, why)

    yield sizes("blocknum-too-low", "BP1-BLK-002", "blocknum", "2 blocks for 2 MiB + 5", blocknum=2)
    yield sizes("blocknum-too-high", "BP1-BLK-002", "blocknum", "3 blocks for 2 MiB", filesize=LAST)
    yield sizes("empty-file-with-a-block", "BP1-BLK-002", "blocknum", "for 0 bytes", filesize=0, blocknum=1)
    yield sizes("filesize-unknown-alone", "BP1-BLK-003", "filesize", "blocknum is known", filesize=None)
    yield sizes("blocknum-unknown-alone", "BP1-BLK-003", "blocknum", "filesize is known", blocknum=None)
    empty = {"filesize": 0, "blocknum": 0, "payload": b"", "digest": EMPTY_DIGEST}
    behind = brief(blockno=1, position=BLOCK_LENGTH, **empty)
    yield _fact("empty-file-blockno-1", "BP1-BLK-004", behind, "blockno", "1 of 0")
    opened = photo_open()
    last = photo_block(3, 3 * BLOCK_LENGTH)
    yield _fact("blockno-is-blocknum", "BP1-BLK-002", last, "blockno", "3 of 3", opened)


def _positions() -> Iterator[Refusal]:
    clause, opened = "BP1-BLK-008", photo_open()
    said = photo_block(1, BLOCK_LENGTH - 1, b"x")
    yield _fact("position-before-its-block", clause, said, "position", "block 1 begins behind it", opened)
    said = photo_block(0, BLOCK_LENGTH + 1)
    yield _fact("position-behind-its-block", clause, said, "position", "block 0 ends before it", opened)
    said = photo_block(0, BLOCK_LENGTH - 1, b"xy")
    yield _fact("payload-past-its-block", clause, said, "payload", "two bytes, room for one", opened)
    said = photo_block(2, LAST, b"sixsix")
    yield _fact("payload-past-the-file", clause, said, "payload", "six bytes of five", opened)
    clause, begun = "BP1-BLK-006", photo_block(0, 0, b"abc")
    yield _fact("piece-without-a-block", clause, piece(0, b"x"), "type", "nothing was begun", opened)
    yield _fact("piece-after-a-gap", clause, piece(4, b"x"), "position", "3 is next", opened, begun)
    yield _fact("piece-overlaps", clause, piece(2, b"x"), "position", "3 is next", opened, begun)
    ended = photo_block(2, LAST, PHOTO[LAST:], flags=["END"], digest=PHOTO_DIGESTS[2])
    yield _fact("piece-after-end", clause, piece(len(PHOTO)), "type", "the block has ended", opened, ended)


def _state(name: str, clause: str, raw: bytes, *before: Frame, judge: str = "server") -> Refusal:
    wrong = (3, 9, "type and stream")
    layer = "stream" if before else "frame"
    raws = tuple(frame.raw for frame in before)
    return Refusal(f"state/{name}", clause, "UNEXPECTED", "connection", raw, wrong, layer, raws, judge)


def _places() -> Iterator[Refusal]:
    clause = "BP1-FRM-020"
    yield _state("open-on-the-connection", clause, photo_open(0).raw)
    yield _state("ping-on-a-stream", clause, raw_frame(TYPES["PING"], 1, bytes(12)))
    yield _state("goaway-on-a-stream", clause, raw_frame(TYPES["GOAWAY"], 1, bytes(12)))
    yield _state("error-connection-on-a-stream", clause, stop(1, 3).raw, photo_open())
    yield _state("error-stream-on-the-connection", clause, stop(0, 2).raw)
    openers = (
        piece(0), ack(), frame("CREDIT", 1, allowance=1 << 20, received=0), frame("HAVE", 1, digests=[]), commit(),
        frame("CANCEL", 1, reason=31, text=""), stop(1, 2),
    )  # fmt: skip
    for said in openers:
        yield _state(f"{said.message.lower()}-opens-a-stream", "BP1-STR-002", said.raw)
    yield _state("client-on-an-even-stream", "BP1-STR-003", photo_open(2).raw)
    yield _state("server-on-an-odd-stream", "BP1-STR-003", ack().raw, judge="client")


def _states() -> Iterator[Refusal]:
    clause, opened = "BP1-STR-005", photo_open()
    yield _state("open-twice", clause, opened.raw, opened)
    yield _state("sender-acknowledges", clause, ack().raw, opened)
    credit = frame("CREDIT", 1, allowance=UINT63, received=0)
    yield _state("sender-grants-credit", "BP1-CRD-005", credit.raw, opened)
    small = photo_open(filesize=14, blocknum=1)
    yield _state("commit-flag-with-open", "BP1-BLK-017", brief().raw, small)
    begun = brief(flags=(), payload=HELLO_CONTENT[:3])
    message = commit(root=HELLO_DIGEST, filesize=14, blocknum=1)
    yield _state("commit-message-on-a-brief-stream", clause, message.raw, begun)
    yield _state("commit-twice", clause, commit().raw, opened, commit())
    cancel = frame("CANCEL", 1, reason=31, text="")
    yield _state("block-after-cancel", "BP1-COM-019", photo_block(0, 0).raw, opened, cancel)
    yield _state("sender-errs-about-a-block", "BP1-ERR-005", stop(1, 1).raw, opened)
    result = frame("RESULT", 1, kind=1, items=[], cursor="")
    yield _state("list-answered-by-the-asker", clause, result.raw, list_files())


def _credit() -> Iterator[Refusal]:
    length = 65_536
    bits = [PHOTO[at : at + length] for at in range(0, 4 * length, length)]
    sent = [photo_open(), photo_block(0, 0, bits[0])]
    sent += [piece(index * length, bit) for index, bit in enumerate(bits[1:], 1)]
    over = piece(4 * length, PHOTO[4 * length : 4 * length + 1])
    yield Refusal(
        "credit/stream-exceeded", "BP1-CRD-003", "CREDIT_EXCEEDED", "connection", over.raw,
        place_of(over, "payload", "one byte more than 262,144"), "stream", tuple(said.raw for said in sent),
        limits="least",
    )  # fmt: skip
    received = frame("CREDIT", 0, allowance=1 << 30, received=1)
    yield Refusal(
        "credit/more-received-than-sent", "BP1-CRD-008", "MALFORMED", "connection", received.raw,
        place_of(received, "received", "nothing was sent"),
    )  # fmt: skip
    joined = tuple(photo_open(stream=stream).raw for stream in range(1, 513, 2))
    one_more = list_files(513)
    yield Refusal(
        "credit/too-many-streams", "BP1-STR-009", "TOO_MANY_STREAMS", "connection", one_more.raw,
        place_of(one_more, "stream", "the 257th stream"), "stream", joined, limits="least",
    )  # fmt: skip


def _file(
    name: str,
    clause: str,
    code: str,
    said: Frame,
    field: str,
    why: str,
    *before: Frame,
    scope: str = "stream",
) -> Refusal:
    wrong = place_of(said, field, why)
    raws = tuple(frame.raw for frame in before)
    return Refusal(f"file/{name}", clause, code, scope, said.raw, wrong, "file", raws)


def _names() -> Iterator[Refusal]:
    bad = {
        "up": "../up",
        "absolute": "/etc/passwd",
        "reserved": ".blockproto/ledger",
        "empty-component": "a//b",
    }
    for name, filename in (bad | {"nul": "nul\0"}).items():
        said = photo_open(filename=filename)
        yield _file(f"name-{name}", "BP1-NAM-004", "NAME_REFUSED", said, "filename", repr(filename))
    said = photo_open(filename=b"caf\xe9")
    yield _file("name-not-utf8", "BP1-NAM-004", "NAME_REFUSED", said, "filename", "Latin-1, not UTF-8")
    said = photo_open(filename="")
    yield _file("name-empty", "BP1-NAM-004", "NAME_REFUSED", said, "filename length", "0")
    said = fetch("a/../b")
    yield _file("fetch-name", "BP1-NAM-004", "NAME_REFUSED", said, "filename", "dot-component")
    said = fetch("")
    yield _file("fetch-empty-name", "BP1-FET-001", "NAME_REFUSED", said, "filename length", "0")
    said = frame("REMOVE", 1, kind=1, id=ZERO, filename="")
    yield _file("remove-served-folder", "BP1-LST-012", "NAME_REFUSED", said, "filename length", "0")


def _unknown() -> Iterator[Refusal]:
    said = fetch("nowhere")
    yield _file("fetch-unknown", "BP1-FET-001", "UNKNOWN_FILE", said, "filename", "not there")
    said = list_files(name="nowhere")
    yield _file("list-unknown-folder", "BP1-LST-004", "UNKNOWN_FILE", said, "name", "not there")
    said = frame("REMOVE", 1, kind=1, id=ZERO, filename="nowhere")
    yield _file("remove-unknown-file", "BP1-LST-010", "UNKNOWN_FILE", said, "filename", "not there")
    said = frame("REMOVE", 1, kind=2, id=FILE_ID, filename="")
    yield _file("remove-unknown-upload", "BP1-LST-013", "UNKNOWN_UPLOAD", said, "id", "not there")


def _finished() -> Iterator[Refusal]:
    stored = brief()
    said = fetch("hello.txt", stream=3, first=14)
    yield _file("fetch-behind-the-end", "BP1-FET-005", "BAD_FACTS", said, "first", "of 14 bytes", stored)
    said = fetch("hello.txt", stream=3, version=FILE_ID)
    yield _file("fetch-another-version", "BP1-FET-002", "SOURCE_CHANGED", said, "version", "made up", stored)
    said = photo_open(3)
    yield _file("open-after-commit", "BP1-RES-008", "SOURCE_CHANGED", said, "filesize", "it was 14", stored)
    said = brief(3, sourceid=FILE_ID, filename="hello.txt/a")
    yield _file("file-as-a-folder", "BP1-COM-012", "NOT_PERMITTED", said, "filename", "under a file", stored)
    empty = {"filesize": 0, "blocknum": 0, "payload": b"", "digest": EMPTY_DIGEST}
    folder = brief(filename="d", filetype="inode/directory", **empty)
    said = fetch("d", stream=3)
    yield _file("fetch-folder", "BP1-FET-001", "NOT_PERMITTED", said, "filename", "a folder", folder)
    said = frame("REMOVE", 3, kind=1, id=ZERO, filename="d")
    inside = brief(filename="d/e")
    yield _file("remove-full-folder", "BP1-LST-012", "NOT_EMPTY", said, "filename", "holds e", inside)
    said = frame("LIST", 1, flags=["FOLLOW"], kind=1, limit=1, name="", cursor="")
    yield _file("follow", "BP1-LST-009", "UNSUPPORTED", said, "flags", "FOLLOW")


def _brief() -> Iterator[Refusal]:
    clause, code = "BP1-BLK-014", "BAD_FACTS"
    wrong = brief(digest=EMPTY_DIGEST)
    yield _file("brief-wrong-digest", "BP1-BLK-011", "DIGEST_MISMATCH", wrong, "digest", "of nothing")
    yield _file("brief-without-commit", clause, code, brief(flags=["END"]), "flags", "END alone")
    unknown = brief(filesize=None, blocknum=None)
    yield _file("brief-of-unknown-size", clause, code, unknown, "filesize", "unknown")
    yield _file("brief-of-three-blocks", clause, code, photo_block(0, 0), "blocknum", "3")
    begun = brief(flags=(), payload=HELLO_CONTENT[:3])
    yield _file("brief-twice", clause, code, brief(), "type", "BLOCK again", begun)
    early = brief(payload=HELLO_CONTENT[:13])
    yield _file("brief-ends-early", "BP1-BLK-009", code, early, "payload", "13 of 14 bytes")
    folder = brief(filetype="inode/directory")
    yield _file("folder-with-bytes", "BP1-BLK-016", code, folder, "filesize", "14")


def _agreement() -> Iterator[Refusal]:
    code, opened = "BAD_FACTS", photo_open()
    early = photo_block(0, 0, HELLO_CONTENT, flags=["END"], digest=HELLO_DIGEST)
    yield _file("end-before-the-end", "BP1-BLK-009", code, early, "flags", "END after 14 bytes", opened)
    said = photo_open(filetype="bild/ä")
    yield _file("filetype-not-ascii", "BP1-BLK-021", code, said, "filetype", "ä")
    said = photo_open(filetype="x" * 256)
    yield _file("filetype-too-long", "BP1-BLK-021", code, said, "filetype length", "256")
    said = photo_block(0, 0, b"x", sourceid=FILE_ID)
    yield _file("block-of-another-sourceid", "BP1-BLK-020", code, said, "sourceid", "another", opened)
    said = photo_block(0, 0, b"x", filesize=len(PHOTO) + 1)
    yield _file("block-of-another-size", "BP1-BLK-020", code, said, "filesize", "one byte more", opened)
    said = photo_block(0, 0, b"x", filename="q")
    yield _file("block-of-another-name", "BP1-BLK-020", code, said, "filename", "p was opened", opened)
    said = commit(sourceid=FILE_ID)
    yield _file("commit-of-another-sourceid", "BP1-COM-003", code, said, "sourceid", "another", opened)
    said = commit(filesize=14, blocknum=1)
    yield _file("commit-of-another-size", "BP1-COM-003", code, said, "filesize", "14", opened)


def _uploads() -> Iterator[Refusal]:
    opened = photo_open()
    behind = photo_block(2, LAST + 3, PHOTO[-2:], flags=["END"], digest=PHOTO_DIGESTS[2])
    yield _file(
        "block-behind-no-prefix", "BP1-RES-013", "DIGEST_MISMATCH", behind, "position",
        "nothing is there of block 2", opened, scope="block",
    )  # fmt: skip
    damaged = photo_block(2, LAST, b"wrong", flags=["END"], digest=PHOTO_DIGESTS[2])
    yield _file(
        "damaged-block", "BP1-BLK-011", "DIGEST_MISMATCH", damaged, "payload", "not what was hashed", opened,
        scope="block",
    )  # fmt: skip
    smaller = photo_open(3, attempt=ATTEMPT - 1)
    yield _file("smaller-attempt", "BP1-RES-006", "SUPERSEDED", smaller, "attempt", "one less", opened)
    resized = photo_open(3, filesize=len(PHOTO) - 1)
    yield _file("another-size", "BP1-RES-007", "SOURCE_CHANGED", resized, "filesize", "one byte less", opened)
    renamed = photo_open(3, filename="q")
    yield _file("another-name", "BP1-RES-007", "SOURCE_CHANGED", renamed, "filename", "p was opened", opened)
    other = brief(3, filesize=0, blocknum=0, payload=b"", digest=EMPTY_DIGEST)
    yield _file(
        "another-root", "BP1-COM-010", "SOURCE_CHANGED", other, "digest", "not the receipt's", brief()
    )


def refusals_of_streams() -> Iterator[Refusal]:
    """All of them."""
    parts = (
        _facts, _positions, _places, _states, _credit, _names, _unknown, _finished, _brief, _agreement, _uploads,
    )  # fmt: skip
    for part in parts:
        yield from part()
