"""The other vectors: the stream's transitions, digests and roots, and names."""

from __future__ import annotations

import zlib
from typing import Any

from blake3 import blake3
from encode import BLOCK_LENGTH, pattern, root_of

FLOW = ["open", "brief", "committing", "cancelling"]
FILES = ["files", "filed"]
LIVE = ["asked", "wanted", *FLOW, *FILES, "listed"]
SAME = "same"

# speaker, messages, states, next state: the rows of the table in chapter STR
TRANSITIONS: list[tuple[str, list[str], list[str], str]] = [
    ("sender", ["OPEN"], ["new", "wanted"], "open"),
    ("sender", ["BLOCK"], ["new"], "brief"),
    ("sender", ["BLOCK", "PIECE"], ["brief", "open", "committing"], SAME),
    ("sender", ["BLOCK with COMMIT"], ["new", "brief"], "committing"),
    ("sender", ["PIECE with COMMIT"], ["brief"], "committing"),
    ("sender", ["HAVE"], ["open", "committing"], SAME),
    ("sender", ["COMMIT"], ["open"], "committing"),
    ("sender", ["CANCEL"], ["open", "brief", "committing", *FILES], "cancelling"),
    ("sender", ["FILES"], ["new", "files", "listed"], "files"),
    ("sender", ["FILES with LAST"], ["new", "files", "listed"], "filed"),
    ("sender", ["RESULT"], ["asked"], "closed"),
    ("receiver", ["FETCH"], ["new"], "wanted"),
    ("receiver", ["FILES with WANTED"], ["new"], "listed"),
    ("receiver", ["LIST", "REMOVE"], ["new"], "asked"),
    ("receiver", ["CREDIT"], ["wanted", *FLOW, *FILES, "listed"], SAME),
    ("receiver", ["OPENED", "ACK", "ERROR (block)"], FLOW, SAME),
    ("receiver", ["ERROR (differ)"], ["committing"], "open"),
    ("receiver", ["ERROR (differ)"], ["cancelling"], SAME),
    ("receiver", ["COMMITTED"], FLOW, "closed"),
    ("receiver", ["STORED"], [*FILES, "cancelling"], SAME),
    ("receiver", ["STORED with LAST"], ["filed", "cancelling"], "closed"),
    ("both", ["ERROR (stream)"], LIVE, "closed"),
]

GOOD_NAMES = [
    "a", "hello.txt", "photos/2024/sea.jpg", "with space", " leading", "trailing ", ".hidden", "...", "..a", "a..", "a/.b/c",
    "12:30.log", "what?", "a*b", "quote\"d", "back\\slash", "<>|", "CON", "nul.txt", "COM1", "语音 1.opus", "naïve",
    "nai\u0308ve", "\U0001f600.png", "x\u202ey", "x\u2028y", "\ufeffbom", "~", "-rf", "a" * 255,
    "/".join(letter * 255 for letter in "abcd"), "é" * 127, "blockproto", ".blockprotocol",
    "/".join(["abcd"] * 205),
]  # fmt: skip

BAD_NAMES: list[tuple[str | bytes, str]] = [
    ("", "empty"),
    (b"\xff", "encoding"), (b"a\xc3", "encoding"), (b"\xc0\xaf", "encoding"), (b"\xed\xa0\x80", "encoding"),
    (b"caf\xe9", "encoding"), (b"\xf4\x90\x80\x80", "encoding"),
    ("/".join(["abcd"] * 204) + "/abcde", "name-length"), ("a/" * 512 + "a", "name-length"),
    ("a" * 256, "component-length"), ("x/" + "é" * 128, "component-length"),
    ("/", "absolute"), ("/etc/passwd", "absolute"),
    ("a/", "empty-component"), ("a//b", "empty-component"),
    (".", "dot-component"), ("..", "dot-component"), ("../a", "dot-component"), ("a/../b", "dot-component"),
    ("a/.", "dot-component"), ("a/..", "dot-component"), ("./a", "dot-component"),
    ("a\0b", "control-character"), ("\n", "control-character"), ("a\x1b[31mb", "control-character"),
    ("\x7f", "control-character"), ("\x80", "control-character"), ("a\u0085b", "control-character"),
    ("\x9f", "control-character"), ("\t", "control-character"), ("a/\r", "control-character"),
    (".blockproto", "reserved"), (".blockproto/ledger", "reserved"), (".BlockProto/x", "reserved"),
    (".BLOCKPROTO", "reserved"), ("．blockproto", "reserved"), (".ｂlockproto", "reserved"),
    (".blockproto.", "reserved"), (".blockproto ", "reserved"), (".block\u200dproto/a", "reserved"),
    ("a/.blockproto", "reserved"), ("a/.BLOCKPROTO/ledger", "reserved"), ("a/b/.blockproto./x", "reserved"),
]  # fmt: skip

PORTABLE_BAD_NAMES = [
    ("12:30.log", "forbidden-character"), ("what?", "forbidden-character"),
    ("a\\b", "forbidden-character"), ("a*b", "forbidden-character"), ('"', "forbidden-character"),
    ("<", "forbidden-character"), (">", "forbidden-character"), ("a|b", "forbidden-character"),
    ("a ", "edge"), ("a.", "edge"), ("a./b", "edge"), ("...", "edge"),
    ("CON", "device-name"), ("con.txt", "device-name"), ("a/Nul", "device-name"), ("COM1", "device-name"),
    ("lpt9.log", "device-name"),
]  # fmt: skip


def transitions() -> list[dict[str, Any]]:
    """The table as JSON: one row for each row of the spec."""
    return [
        {"speaker": speaker, "messages": messages, "in": states, "next": following}
        for speaker, messages, states, following in TRANSITIONS
    ]


def names() -> list[dict[str, Any]]:
    """Names and the verdict on each, in the profile wire and in portable."""
    rows: list[dict[str, Any]] = [_name(name, "wire", None) for name in GOOD_NAMES]
    rows += [_name(name, "wire", rule) for name, rule in BAD_NAMES]
    rows += [
        _name(name, "portable", None)
        for name in ("a", "hello.txt", "photos/2024/sea.jpg", "语音 1.opus", "naïve")
    ]
    rows += [_name(name, "portable", rule) for name, rule in PORTABLE_BAD_NAMES]
    return rows


def _name(name: str | bytes, profile: str, rule: str | None) -> dict[str, Any]:
    raw = name if isinstance(name, bytes) else name.encode()
    text = None if isinstance(name, bytes) else name
    return {"hex": raw.hex(), "text": text, "profile": profile, "refused": rule}


def digests() -> list[dict[str, Any]]:
    """Blocks, root and b3sum of files and of ranges; byte i of each file is i mod 251."""
    sizes = [0, 1, 250, 251, 1024, 1025, BLOCK_LENGTH - 1, BLOCK_LENGTH, BLOCK_LENGTH + 1, 2 * BLOCK_LENGTH,
             2 * BLOCK_LENGTH + 5, 5 * BLOCK_LENGTH]  # fmt: skip
    rows = [_digest_row(size, 0, size) for size in sizes]
    size = 2 * BLOCK_LENGTH + 5
    for first, length in (
        (BLOCK_LENGTH - 10, 20),
        (0, 1),
        (BLOCK_LENGTH, BLOCK_LENGTH),
        (1, size),
        (size - 1, 10),
        (7, 0),
    ):
        rows.append(_digest_row(size, first, length))
    return rows


def _digest_row(filesize: int, first: int, length: int) -> dict[str, Any]:
    content = pattern(filesize)
    end = min(first + length, filesize)
    blocks = []
    for blockno in range(-(-filesize // BLOCK_LENGTH)):
        begin, stop = max(first, blockno * BLOCK_LENGTH), min(end, (blockno + 1) * BLOCK_LENGTH)
        if begin < stop:
            digest = blake3(content[begin:stop]).digest()
            blocks.append(
                {"blockno": blockno, "position": begin, "length": stop - begin, "digest": digest.hex()}
            )
    raw = [bytes.fromhex(block["digest"]) for block in blocks]
    return {
        "filesize": filesize,
        "blocknum": -(-filesize // BLOCK_LENGTH),
        "first": first,
        "length": length,
        "blocks": blocks,
        "root": root_of(raw).hex(),
        "held_root": blake3(b"".join(raw)).hexdigest() if raw else None,
        "b3sum": blake3(content[first : max(first, end)]).hexdigest(),
    }


def checks() -> list[dict[str, Any]]:
    """CRC-32/ISO-HDLC of a few strings of bytes."""
    rows = [b"123456789", b"", b"\0", bytes(12), bytes(range(256))]
    return [{"hex": raw.hex(), "check": f"{zlib.crc32(raw):08x}"} for raw in rows]
