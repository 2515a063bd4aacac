"""The frame vectors: every message, minimal and maximal, with TLVs and with reserved values (GREASE)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from blake3 import blake3
from encode import BLOCK_LENGTH, EMPTY_DIGEST, Field, Frame, frame, header_fields, join, pattern, root_of

SOURCEID = bytes.fromhex("5eed0102030405060708090a0b0c0d0e")
SMALL_SOURCEID = bytes.fromhex("5eedf1f2f3f4f5f6f7f8f9fafbfcfdfe")
FILE_ID = bytes.fromhex("f11e0102030405060708090a0b0c0d0e")
VERSION = bytes.fromhex("0e0d0c0b0a0908070605040302010e5e")
ZERO = bytes(16)
MTIME_NS = 1_700_000_000_123_456_789
ATTEMPT = 1_700_000_000_000
EXPIRES_MS = 1_702_592_000_000
INCARNATION = 1
UINT63 = (1 << 63) - 1

HELLO_CONTENT = b"hello, blocks\n"
HELLO_DIGEST = blake3(HELLO_CONTENT).digest()
PHOTO = pattern(2 * BLOCK_LENGTH + 5)
PHOTO_DIGESTS = [blake3(PHOTO[at : at + BLOCK_LENGTH]).digest() for at in range(0, len(PHOTO), BLOCK_LENGTH)]
PHOTO_ROOT = root_of(PHOTO_DIGESTS)
PHOTO_NAME = "photos/2024/sea.jpg"


class Vector(NamedTuple):
    """One frame and what it shows. ``canonical``: an encoder that knows the values gives exactly these bytes."""

    name: str
    explain: str
    clauses: list[str]
    frame: Frame
    canonical: bool = True


def hello(agent: str = "", **changed: int) -> Frame:
    """HELLO with the values this project's own programs send."""
    values: dict[str, int] = {
        "version_lowest": 1, "version_highest": 1, "head_length_max": 65_535, "piece_length_max": 1 << 20,
        "streams_max": 2_048, "connection_allowance": 16 << 20, "stream_allowance": 4 << 20,
        "undurable_max": 64 << 20, "features": 0,
    }  # fmt: skip
    return frame("HELLO", 0, **(values | changed), agent=agent)


def server_hello() -> Frame:
    """What this project's own server says: it knows AUTH (bit 0), if_exists 3 and 4 (2), FILES (3) and WANTED (4)."""
    return hello("blockproto", features=29)


def least_hello() -> Frame:
    """HELLO with the least value of every field."""
    return hello(
        head_length_max=4_096, piece_length_max=65_536, streams_max=256,
        connection_allowance=1 << 20, stream_allowance=256 << 10, undurable_max=1 << 20,
    )  # fmt: skip


def unknown_frame(type_: int, stream: int, head: bytes, payload: bytes = b"", flags: int = 0) -> Frame:
    """A frame of a type that version 1 does not define."""
    fields = header_fields(type_, stream, head, len(payload), flags=flags)
    return Frame("UNKNOWN", stream, [], {}, {}, [*fields, Field("head", head, "skipped")], payload)


def with_extra(original: Frame, extra: bytes, flags: int = 0) -> Frame:
    """The same message with unknown TLVs after it and unknown flag bits set."""
    head = join(original.fields[6:]) + extra
    bits = int.from_bytes(original.fields[2].raw, "big") | flags
    fields = header_fields(
        original.fields[1].raw[0], original.stream, head, len(original.payload), flags=bits
    )
    tail = [Field("unknown TLVs", extra, "skipped")] if extra else []
    return original._replace(fields=[*fields, *original.fields[6:], *tail])


def _greeting() -> Iterator[Vector]:
    yield Vector("hello/usual", "The HELLO of this project's own server where no token is needed.",
                 ["BP1-HEL-001", "BP1-HEL-009"], server_hello())  # fmt: skip
    yield Vector("hello/least", "Every value is the least that is legal.", ["BP1-HEL-009"], least_hello())
    yield Vector("hello/greatest", "The greatest values; the agent has 255 bytes.", ["BP1-HEL-009", "BP1-HEL-011"],
                 hello("a" * 255, streams_max=(1 << 32) - 1, connection_allowance=UINT63, stream_allowance=UINT63,
                       undurable_max=UINT63, features=0))  # fmt: skip
    yield Vector("hello/later-version", "A peer that speaks versions 1 to 7; version 1 is used.", ["BP1-HEL-006"],
                 hello("later/7", version_highest=7))  # fmt: skip


def _open() -> Iterator[Vector]:
    yield Vector("open/minimal", "An empty name is refused later, by its own rule; the frame is well-formed.",
                 ["BP1-FRM-012", "BP1-NAM-004"],
                 frame("OPEN", 1, sourceid=ZERO, attempt=0, filesize=0, blocknum=0, priority=0, if_exists=0,
                       filename="", filetype=""))  # fmt: skip
    yield Vector("open/photo", "Three blocks, the last of five bytes.", ["BP1-RES-001", "BP1-BLK-002"],
                 frame("OPEN", 3, sourceid=SOURCEID, attempt=ATTEMPT, filesize=len(PHOTO), blocknum=3, priority=1,
                       if_exists=2, filename=PHOTO_NAME, filetype="image/jpeg",
                       tlvs={"MTIME": MTIME_NS, "MODE": 0o644}))  # fmt: skip
    yield Vector("open/skip-with-root", "Not if the name is taken; the root is known already.",
                 ["BP1-COM-025", "BP1-RES-029"],
                 frame("OPEN", 3, sourceid=SOURCEID, attempt=ATTEMPT, filesize=len(PHOTO), blocknum=3, priority=1,
                       if_exists=3, filename=PHOTO_NAME, filetype="image/jpeg",
                       tlvs={"MTIME": MTIME_NS, "ROOT": PHOTO_ROOT}))  # fmt: skip
    yield Vector("open/update", "Only if what has the name is older.", ["BP1-COM-025"],
                 frame("OPEN", 3, sourceid=SOURCEID, attempt=ATTEMPT, filesize=len(PHOTO), blocknum=3, priority=1,
                       if_exists=4, filename=PHOTO_NAME, filetype="image/jpeg",
                       tlvs={"MTIME": MTIME_NS}))  # fmt: skip
    yield Vector("open/unknown-size", "filesize and blocknum both unknown.", ["BP1-BLK-003"],
                 frame("OPEN", 5, sourceid=ZERO, attempt=1, filesize=None, blocknum=None, priority=0, if_exists=1,
                       filename="语音 1.opus", filetype="audio/ogg"))  # fmt: skip
    yield Vector("open/fetched", "The answer to FETCH, with every TLV that OPEN may have, in rising order.",
                 ["BP1-FET-003", "BP1-FRM-014"],
                 frame("OPEN", 7, sourceid=ZERO, attempt=0, filesize=len(PHOTO), blocknum=3, priority=2, if_exists=0,
                       filename=PHOTO_NAME, filetype="image/jpeg",
                       tlvs={"MTIME": -1, "MODE": 0o777, "B3SUM": blake3(PHOTO).digest(), "ROOT": PHOTO_ROOT,
                             "VERSION": VERSION, "FILE_ID": FILE_ID}))  # fmt: skip
    yield Vector("open/greatest", "The greatest file: 2^32 - 2 blocks; the longest name: 1,023 bytes.",
                 ["BP1-BLK-002", "BP1-NAM-003"],
                 frame("OPEN", (1 << 32) - 1, sourceid=b"\xff" * 16, attempt=UINT63,
                       filesize=((1 << 32) - 2) << 20, blocknum=(1 << 32) - 2, priority=2, if_exists=2,
                       filename="/".join(letter * 255 for letter in "abcd"),
                       filetype="x" * 127 + "/" + "y" * 127))  # fmt: skip
    yield Vector("opened/new", "Nothing is held yet; the upload does not expire.", ["BP1-RES-009"],
                 frame("OPENED", 3, sourceid=SOURCEID, file_id=FILE_ID, attempt=ATTEMPT, position=0,
                       incarnation=INCARNATION, expires_ms=None, held=[], prefixes=[]))  # fmt: skip
    yield Vector("opened/resume", "Block 0 is durable, and 300,000 bytes of block 1 are there.",
                 ["BP1-RES-009", "BP1-RES-013", "BP1-DIG-004"],
                 frame("OPENED", 3, sourceid=SOURCEID, file_id=FILE_ID, attempt=ATTEMPT + 5, position=BLOCK_LENGTH,
                       incarnation=INCARNATION, expires_ms=EXPIRES_MS, held=[(0, 1)], prefixes=[(1, 300_000)],
                       tlvs={"HELD_ROOT": blake3(PHOTO_DIGESTS[0]).digest()}))  # fmt: skip
    runs = [(block, 1) for block in range(1, 201, 2)]
    yield Vector("opened/many-runs", "Every second block; position 0: block 0 is missing.", ["BP1-FRM-016", "BP1-RES-016"],
                 frame("OPENED", 3, sourceid=SOURCEID, file_id=FILE_ID, attempt=UINT63, position=0, incarnation=UINT63,
                       expires_ms=UINT63, held=runs, prefixes=[(0, 1), (2, BLOCK_LENGTH)]))  # fmt: skip


def _bytes() -> Iterator[Vector]:
    common = {"sourceid": SOURCEID, "filesize": len(PHOTO), "blocknum": 3, "filename": PHOTO_NAME,
              "filetype": "image/jpeg"}  # fmt: skip
    small = {"sourceid": SOURCEID, "filesize": 14, "blocknum": 1, "blockno": 0, "position": 0,
             "filename": "hello.txt", "filetype": "text/plain"}  # fmt: skip
    yield Vector(
        "block/whole-file",
        "A file of 14 bytes in one frame: END and COMMIT.",
        ["BP1-BLK-014", "BP1-COM-002"],
        frame("BLOCK", 1, flags=["END", "COMMIT"], **small, digest=HELLO_DIGEST, payload=HELLO_CONTENT),
    )
    yield Vector("block/whole-file-with-facts", "The same with every TLV that BLOCK may have.", ["BP1-BLK-015"],
                 frame("BLOCK", 1, flags=["END", "COMMIT"], **small, digest=HELLO_DIGEST, payload=HELLO_CONTENT,
                       tlvs={"MTIME": MTIME_NS, "MODE": 0o600, "PRIORITY": 0, "IF_EXISTS": 2}))  # fmt: skip
    yield Vector("block/empty-file", "An empty file: blocknum 0, blockno 0, no payload.", ["BP1-BLK-004"],
                 frame("BLOCK", 1, flags=["END", "COMMIT"], sourceid=SOURCEID, filesize=0, blocknum=0, blockno=0,
                       position=0, filename="empty", filetype="", digest=EMPTY_DIGEST))  # fmt: skip
    yield Vector("block/folder", "A folder is an empty file of filetype inode/directory.", ["BP1-BLK-016"],
                 frame("BLOCK", 9, flags=["END", "COMMIT"], sourceid=SOURCEID, filesize=0, blocknum=0, blockno=0,
                       position=0, filename="photos/2024", filetype="inode/directory", digest=EMPTY_DIGEST,
                       tlvs={"MODE": 0o755}))  # fmt: skip
    yield Vector("block/first-piece", "The first 100 bytes of block 1; PIECE frames follow.", ["BP1-BLK-005"],
                 frame("BLOCK", 3, **common, blockno=1, position=BLOCK_LENGTH,
                       payload=PHOTO[BLOCK_LENGTH : BLOCK_LENGTH + 100]))  # fmt: skip
    yield Vector("block/whole-block", "A whole block of 1 MiB in one frame.", ["BP1-BLK-005", "BP1-BLK-009"],
                 frame("BLOCK", 3, flags=["END"], **common, blockno=0, position=0, digest=PHOTO_DIGESTS[0],
                       payload=PHOTO[:BLOCK_LENGTH]))  # fmt: skip
    yield Vector("block/last", "The last block has five bytes.", ["BP1-BLK-001"],
                 frame("BLOCK", 3, flags=["END"], **common, blockno=2, position=2 * BLOCK_LENGTH,
                       digest=PHOTO_DIGESTS[2], payload=PHOTO[2 * BLOCK_LENGTH :]))  # fmt: skip
    yield Vector("block/after-a-prefix", "Goes on where 300,000 bytes of block 1 are held.", ["BP1-RES-013"],
                 frame("BLOCK", 3, **common, blockno=1, position=BLOCK_LENGTH + 300_000,
                       payload=PHOTO[BLOCK_LENGTH + 300_000 : BLOCK_LENGTH + 300_064]))  # fmt: skip
    yield Vector("block/unknown-size", "The beginning of a recording; no byte is there yet.", ["BP1-BLK-003"],
                 frame("BLOCK", 5, sourceid=ZERO, filesize=None, blocknum=None, blockno=0, position=0,
                       filename="语音 1.opus", filetype="audio/ogg"))  # fmt: skip
    yield Vector(
        "piece/middle",
        "100 bytes in the middle of block 1.",
        ["BP1-BLK-006"],
        frame(
            "PIECE", 3, position=BLOCK_LENGTH + 100, payload=PHOTO[BLOCK_LENGTH + 100 : BLOCK_LENGTH + 200]
        ),
    )
    yield Vector(
        "piece/end-without-bytes",
        "Ends a block whose bytes have all been sent.",
        ["BP1-BLK-009"],
        frame("PIECE", 3, flags=["END"], position=2 * BLOCK_LENGTH, digest=PHOTO_DIGESTS[1]),
    )
    yield Vector("piece/end-and-commit", "The last byte of a brief file that began with BLOCK.", ["BP1-COM-002"],
                 frame("PIECE", 1, flags=["END", "COMMIT"], position=13, digest=HELLO_DIGEST,
                       payload=HELLO_CONTENT[13:]))  # fmt: skip


def _answers() -> Iterator[Vector]:
    yield Vector(
        "ack/nothing", "Nothing is durable yet.", ["BP1-RES-016"], frame("ACK", 3, position=0, held=[])
    )
    yield Vector("ack/block-1", "Block 1 is durable, block 0 is not.", ["BP1-RES-016", "BP1-RES-018"],
                 frame("ACK", 3, position=0, held=[(1, 1)]))  # fmt: skip
    yield Vector("ack/all", "Everything is durable: position is filesize.", ["BP1-RES-016"],
                 frame("ACK", 3, position=len(PHOTO), held=[(0, 3)]))  # fmt: skip
    yield Vector("credit/stream", "16 MiB more than the 300,000 bytes received.", ["BP1-CRD-005"],
                 frame("CREDIT", 3, allowance=(16 << 20) + 300_000, received=300_000))  # fmt: skip
    yield Vector("credit/connection", "Stream 0 is the connection.", ["BP1-CRD-005"],
                 frame("CREDIT", 0, allowance=(32 << 20) + 1_348_576, received=1_348_576))  # fmt: skip
    yield Vector("credit/priority", "A fetcher makes its stream bulk.", ["BP1-CRD-010"],
                 frame("CREDIT", 3, allowance=UINT63, received=UINT63, tlvs={"PRIORITY": 2}))  # fmt: skip
    yield Vector("have/none", "The last page has no digests; OPENED is still the answer.", ["BP1-DIG-006"],
                 frame("HAVE", 3, digests=[]))  # fmt: skip
    yield Vector("have/page", "A page of two digests; another follows.", ["BP1-DIG-006"],
                 frame("HAVE", 3, flags=["MORE"], digests=list(enumerate(PHOTO_DIGESTS[:2]))))  # fmt: skip
    yield Vector("commit/photo", "The root over three digests.", ["BP1-COM-001", "BP1-DIG-001"],
                 frame("COMMIT", 3, sourceid=SOURCEID, root=PHOTO_ROOT, filesize=len(PHOTO), blocknum=3))  # fmt: skip
    yield Vector("commit/facts", "With every TLV that COMMIT may have.", ["BP1-COM-001"],
                 frame("COMMIT", 3, sourceid=SOURCEID, root=PHOTO_ROOT, filesize=len(PHOTO), blocknum=3,
                       tlvs={"MTIME": MTIME_NS, "MODE": 0o400, "B3SUM": blake3(PHOTO).digest()}))  # fmt: skip
    yield Vector("committed/hello", "Stored under another name: keep both.", ["BP1-COM-006", "BP1-COM-014"],
                 frame("COMMITTED", 1, sourceid=SOURCEID, file_id=FILE_ID, root=HELLO_DIGEST, filesize=14,
                       stored_as="hello (1).txt"))  # fmt: skip
    yield Vector("committed/there", "The file was there already, under another name that was tried.",
                 ["BP1-COM-021", "BP1-COM-023"],
                 frame("COMMITTED", 1, flags=["THERE"], sourceid=SOURCEID, file_id=FILE_ID, root=HELLO_DIGEST,
                       filesize=14, stored_as="hello (1).txt"))  # fmt: skip
    yield Vector("committed/left", "What has the name was left; the principal may not read it.",
                 ["BP1-COM-025", "BP1-PRN-010"],
                 frame("COMMITTED", 1, flags=["LEFT"], sourceid=SOURCEID, file_id=ZERO, root=bytes(32), filesize=0,
                       stored_as="hello.txt"))  # fmt: skip
    yield Vector("committed/b3sum", "The receiver knows the BLAKE3 of the whole file too.", ["BP1-DIG-003"],
                 frame("COMMITTED", 3, sourceid=SOURCEID, file_id=FILE_ID, root=PHOTO_ROOT, filesize=len(PHOTO),
                       stored_as=PHOTO_NAME, tlvs={"B3SUM": blake3(PHOTO).digest()}))  # fmt: skip


NOTES = [b"one\n", b"", b"three\n"]
"""What three small files have in them."""


def notes(stream: int = 1, number: int = 1, **changed: Any) -> Frame:
    """FILES with three files of one folder and the folder itself; the last name is not ASCII."""
    facts = {"mtime_ns": MTIME_NS, "mode": 0o644, "folder": 1}
    records: list[dict[str, Any]] = [
        {"sourceid": SOURCEID[:15] + bytes([at]), "digest": blake3(content).digest(), "filesize": len(content),
         "filetype": at % 2, **facts}
        for at, content in enumerate(NOTES)
    ]  # fmt: skip
    records.append({"sourceid": SOURCEID[:15] + b"\x09", "digest": EMPTY_DIGEST, "filesize": 0, "mtime_ns": MTIME_NS,
                    "mode": 0o755, "folder": 0, "filetype": 2})  # fmt: skip
    values: dict[str, Any] = {
        "number": number, "if_exists": 0, "folders": ["", "notes"], "filetypes": ["text/plain", "", "inode/directory"],
        "files": records, "names": ["one.txt", "nothing", "三.txt", "notes"], "flags": ["LAST"],
        "payload": b"".join(NOTES),
    }  # fmt: skip
    return frame("FILES", stream, **(values | changed))


def wanted(stream: int = 1, **changed: Any) -> Frame:
    """FILES with WANTED: two files of one folder, the second in any version."""
    facts = {"digest": bytes(32), "mtime_ns": -(1 << 63), "mode": 0xFFFF, "folder": 0, "filetype": 0}
    records = [{"sourceid": VERSION, "filesize": 4, **facts}, {"sourceid": ZERO, "filesize": 6, **facts}]
    values: dict[str, Any] = {
        "number": 0, "if_exists": 0, "folders": ["notes"], "filetypes": [""], "files": records,
        "names": ["one.txt", "三.txt"], "flags": ["LAST", "WANTED"], "payload": b"",
    }  # fmt: skip
    return frame("FILES", stream, **(values | changed))


def _many() -> Iterator[Vector]:
    yield Vector("files/notes", "Three files of one folder, one of them empty, and the folder; nothing more comes.",
                 ["BP1-FIL-002", "BP1-FIL-004", "BP1-FIL-009"], notes())  # fmt: skip
    yield Vector("files/facts-not-said", "A file in the served folder, without time and mode; if its name is taken, refuse.",
                 ["BP1-FIL-002"],
                 notes(3, 0xFFFFFFFF, if_exists=1, folders=[""], filetypes=[""], names=["a"], flags=[], payload=b"a",
                       files=[{"sourceid": ZERO, "digest": blake3(b"a").digest(), "filesize": 1,
                               "mtime_ns": -(1 << 63), "mode": 0xFFFF, "folder": 0, "filetype": 0}]))  # fmt: skip
    yield Vector("files/nothing-more", "No file: what was said before is all.", ["BP1-FIL-009"],
                 notes(1, 2, folders=[], filetypes=[], files=[], names=[], payload=b""))  # fmt: skip
    yield Vector("files/wanted", "Two files are asked for, one in any version.", ["BP1-FIL-018"], wanted())
    yield Vector("stored/all", "All as they were asked for, and nothing more comes.", ["BP1-FIL-006", "BP1-FIL-009"],
                 frame("STORED", 1, flags=["LAST"], number=1, statuses=[0, 0, 0, 0], outcomes=[]))  # fmt: skip
    item = {
        "file_id": FILE_ID,
        "root": blake3(NOTES[0]).digest(),
        "filesize": 4,
        "stored_as": "notes/one (1).txt",
    }
    yield Vector("stored/each-status", "Stored, under another name, there, left, and refused.", ["BP1-FIL-006"],
                 frame("STORED", 1, number=1, statuses=[0, 1, 2, 3, 4], outcomes=[
                     item, item | {"tlvs": {"B3SUM": blake3(NOTES[0]).digest()}},
                     {"file_id": ZERO, "root": bytes(32), "filesize": 0, "stored_as": "notes/one.txt"},
                     {"code": 26, "retryable": 1, "retry_after_ms": 0, "current": None, "text": "damaged"},
                 ]))  # fmt: skip
    yield Vector("stored/nothing-left", "Every frame was answered before LAST came.", ["BP1-FIL-009"],
                 frame("STORED", 1, flags=["LAST"], number=2, statuses=[], outcomes=[]))  # fmt: skip


def _questions() -> Iterator[Vector]:
    yield Vector("fetch/by-name", "The whole file, any version.", ["BP1-FET-001"],
                 frame("FETCH", 7, file_id=ZERO, first=0, length=None, version=ZERO, priority=1, held=[], prefixes=[],
                       filename=PHOTO_NAME))  # fmt: skip
    yield Vector("fetch/resume-a-range", "By id: 1 MiB from byte 1,048,570 on of one version; block 0 is held.",
                 ["BP1-FET-005", "BP1-FET-009"],
                 frame("FETCH", 7, file_id=FILE_ID, first=BLOCK_LENGTH - 6, length=BLOCK_LENGTH, version=VERSION,
                       priority=0, held=[(0, 1)], prefixes=[(1, 4_096)], filename=""))  # fmt: skip
    yield Vector("list/served-folder", "The first page of the served folder itself.", ["BP1-LST-001"],
                 frame("LIST", 1, kind=1, limit=1_000, name="", cursor=""))  # fmt: skip
    yield Vector(
        "list/next-page",
        "Everything under a folder, after a cursor.",
        ["BP1-LST-001", "BP1-LST-004"],
        frame("LIST", 1, flags=["RECURSIVE"], kind=1, limit=1_000, name="photos", cursor=PHOTO_NAME),
    )
    yield Vector("list/stat-b3sum", "One entry; compute its BLAKE3 and wait for it.", ["BP1-LST-007"],
                 frame("LIST", 1, flags=["EXACT", "B3SUM"], kind=1, limit=1, name=PHOTO_NAME, cursor=""))  # fmt: skip
    yield Vector("list/uploads", "The unfinished uploads.", ["BP1-LST-005"],
                 frame("LIST", 1, kind=2, limit=65_535, name="", cursor=""))  # fmt: skip
    yield Vector("list/receipts", "Which of two sourceids are committed?", ["BP1-LST-008"],
                 frame("LIST", 1, kind=3, limit=2, name="", cursor="", tlvs={"IDS": [SOURCEID, FILE_ID]}))  # fmt: skip
    yield Vector("list/receipts-of-a-rule", "Which of two sourceids were committed with replace?", ["BP1-LST-015"],
                 frame("LIST", 1, kind=3, limit=2, name="", cursor="",
                       tlvs={"IDS": [SOURCEID, FILE_ID], "IF_EXISTS": 2}))  # fmt: skip
    yield Vector("remove/file", "A file by its name.", ["BP1-LST-010"],
                 frame("REMOVE", 1, kind=1, id=ZERO, filename="hello.txt"))  # fmt: skip
    yield Vector("remove/folder", "A folder and everything in it.", ["BP1-LST-012"],
                 frame("REMOVE", 1, flags=["RECURSIVE"], kind=1, id=ZERO, filename="photos"))  # fmt: skip
    yield Vector("remove/upload", "An unfinished upload, from elsewhere.", ["BP1-LST-013"],
                 frame("REMOVE", 1, kind=2, id=SOURCEID, filename=""))  # fmt: skip


def _results() -> Iterator[Vector]:
    file_item = {"kind": 1, "filesize": len(PHOTO), "mtime_ns": MTIME_NS, "mode": 0o644, "file_id": FILE_ID,
                 "version": VERSION, "filename": PHOTO_NAME, "filetype": "image/jpeg",
                 "tlvs": {"B3SUM": blake3(PHOTO).digest(), "ROOT": PHOTO_ROOT}}  # fmt: skip
    folder_item = {"kind": 2, "filesize": 0, "mtime_ns": -1, "mode": 0o755, "file_id": ZERO, "version": VERSION,
                   "filename": "photos", "filetype": "inode/directory"}  # fmt: skip
    upload_item = {"sourceid": SOURCEID, "file_id": FILE_ID, "filesize": len(PHOTO), "blocknum": 3,
                   "position": BLOCK_LENGTH, "held_count": 1, "expires_ms": EXPIRES_MS, "filename": PHOTO_NAME,
                   "filetype": "image/jpeg"}  # fmt: skip
    receipt_item = {"sourceid": SOURCEID, "file_id": FILE_ID, "root": HELLO_DIGEST, "filesize": 14,
                    "stored_as": "hello (1).txt", "tlvs": {"B3SUM": HELLO_DIGEST}}  # fmt: skip
    yield Vector("result/removed", "REMOVE is done: no items, no cursor.", ["BP1-LST-011"],
                 frame("RESULT", 1, kind=1, items=[], cursor=""))  # fmt: skip
    yield Vector("result/files", "A folder and a file; there is another page.", ["BP1-LST-002", "BP1-LST-004"],
                 frame("RESULT", 1, kind=1, items=[folder_item, file_item], cursor=PHOTO_NAME))  # fmt: skip
    yield Vector("result/files-left-out", "A folder, and what was passed over: a link, and three that cannot be called.",
                 ["BP1-LST-017"],
                 frame("RESULT", 1, kind=1, items=[folder_item], cursor="photos",
                       tlvs={"LEFT_OUT": [{"reason": 1, "count": 1, "names": ["latest"]},
                                          {"reason": 3, "count": 3, "names": ["caf\\xe9", "naïve\\x0a"]}]}))  # fmt: skip
    yield Vector("result/files-left-out-only", "Nothing to list, and a folder that could not be read, not named.",
                 ["BP1-LST-017"],
                 frame("RESULT", 1, kind=1, items=[], cursor="",
                       tlvs={"LEFT_OUT": [{"reason": 4, "count": 1, "names": []}]}))  # fmt: skip
    yield Vector(
        "result/uploads",
        "One of known size, one of unknown size that does not expire.",
        ["BP1-LST-005"],
        frame(
            "RESULT",
            1,
            kind=2,
            cursor="",
            items=[upload_item, upload_item | {"filesize": None, "blocknum": None, "expires_ms": None}],
        ),
    )
    yield Vector("result/receipts", "One receipt, with b3sum.", ["BP1-LST-008"],
                 frame("RESULT", 1, kind=3, items=[receipt_item], cursor=""))  # fmt: skip


def _ends() -> Iterator[Vector]:
    yield Vector("cancel/keep", "Stop; what is held stays.", ["BP1-COM-016"],
                 frame("CANCEL", 3, reason=31, text=""))  # fmt: skip
    yield Vector("cancel/discard", "Stop and throw away what is held.", ["BP1-COM-016", "BP1-COM-017"],
                 frame("CANCEL", 3, flags=["DISCARD"], reason=25, text="the file changed"))  # fmt: skip
    yield Vector("ping/question", "I shall be heard from within 15 seconds.", ["BP1-END-003"],
                 frame("PING", 0, opaque=bytes(range(8)), next_s=15))  # fmt: skip
    yield Vector("ping/answer", "The same eight bytes; no promise.", ["BP1-END-002"],
                 frame("PING", 0, flags=["ANSWER"], opaque=bytes(range(8)), next_s=0))  # fmt: skip
    yield Vector("error/block", "Block 1 arrived damaged: send it again.", ["BP1-ERR-002", "BP1-BLK-011"],
                 frame("ERROR", 3, code=26, scope=1, retryable=1, retry_after_ms=0, blockno=1, current=None,
                       text="a block arrived damaged"))  # fmt: skip
    yield Vector("error/stream", "A newer attempt has the upload.", ["BP1-ERR-002", "BP1-RES-006"],
                 frame("ERROR", 3, code=24, scope=2, retryable=0, retry_after_ms=0, blockno=None, current=ATTEMPT + 5,
                       text=""))  # fmt: skip
    yield Vector("error/connection", "The frame check did not match.", ["BP1-ERR-002", "BP1-FRM-010"],
                 frame("ERROR", 0, code=3, scope=3, retryable=1, retry_after_ms=0, blockno=None, current=None,
                       text="check"))  # fmt: skip
    yield Vector("error/unknown-code", "A code of a later version is handled by its scope.", ["BP1-ERR-004"],
                 frame("ERROR", 3, code=65_535, scope=2, retryable=1, retry_after_ms=60_000, blockno=None, current=None,
                       text="wait a minute"))  # fmt: skip
    yield Vector("error/name", "A name that would leave the folder.", ["BP1-ERR-007", "BP1-NAM-004"],
                 frame("ERROR", 3, code=20, scope=2, retryable=0, retry_after_ms=0, blockno=None, current=None,
                       text="the name '../up' has the component '..' (rule dot-component, profile wire)"))  # fmt: skip
    yield Vector("goaway/usual", "Stopping; come back after a second.", ["BP1-END-008"],
                 frame("GOAWAY", 0, code=34, grace_ms=2_000, retry_after_ms=1_000, text="restart"))  # fmt: skip


def _grease() -> Iterator[Vector]:
    for number in (27, 58, 89, 120):
        yield Vector(f"grease/message-{number}", "A reserved message type: skip head and payload.",
                     ["BP1-EXT-002", "BP1-EXT-006"],
                     unknown_frame(number, 0, b"\x00" * (number % 7), b"\xa5" * (number % 3)), False)  # fmt: skip
    ping = frame("PING", 0, opaque=bytes(8), next_s=0)
    yield Vector("grease/flag-bit-11", "A reserved flag bit: ignore it.", ["BP1-EXT-004", "BP1-EXT-006"],
                 with_extra(ping, b"", 0x0800), False)  # fmt: skip
    yield Vector("grease/every-ignorable-flag", "Bits 1 to 11 mean nothing in PING.", ["BP1-EXT-004"],
                 with_extra(ping, b"", 0x0FFE), False)  # fmt: skip
    yield Vector(
        "grease/tlv-27",
        "A reserved TLV with three bytes: skip it.",
        ["BP1-EXT-003", "BP1-EXT-006"],
        with_extra(frame("ACK", 3, position=0, held=[]), bytes.fromhex("001b0003aabbcc")),
        False,
    )
    yield Vector("grease/tlvs-among-known", "Unknown TLVs before, between and after known ones.", ["BP1-EXT-003"],
                 _open_with_unknown_tlvs(), False)  # fmt: skip
    root_in_ack = bytes.fromhex("00040003aabbcc")
    yield Vector("grease/tlv-of-another-message", "ROOT is not defined for ACK: there it is unknown.", ["BP1-EXT-005"],
                 with_extra(frame("ACK", 3, position=0, held=[]), root_in_ack), False)  # fmt: skip


def _open_with_unknown_tlvs() -> Frame:
    return frame("OPEN", 3, sourceid=SOURCEID, attempt=ATTEMPT, filesize=0, blocknum=0, priority=1, if_exists=0,
                 filename="a", filetype="", tlvs={"0": b"", "MTIME": MTIME_NS, "MODE": 0o644, "27": b"\x01",
                                                  "58": b"", "32767": b"\x02" * 5})  # fmt: skip


def vectors() -> list[Vector]:
    """All frame vectors, in the order of the spec."""
    parts = (_greeting, _open, _bytes, _answers, _many, _questions, _results, _ends, _grease)
    return [vector for part in parts for vector in part()]
