"""What crosses the wire in the older dialects: first bytes, lines, and whole transcripts (dialects.json).

A transcript is a list of ``Say``: who says which bytes, and what happens then. Written from spec/dialects.md alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from encode import Field, join, pattern

HELLO = b"hello, blocks\n"
PREFACE = bytes.fromhex("ff424b500d0a1a0a")
SOURCEID = b"4611686018427387904"
CLOSES = "closes"


@dataclass
class Say:
    """One step: bytes that one side says (or CLOSES), as they are or field by field."""

    speaker: str
    raw: bytes | str
    says: str
    fields: list[Field] = field(default_factory=list)
    connection: int = 1


@dataclass
class Transcript:
    """One or several connections from their first to their last byte."""

    name: str
    dialect: str
    explain: str
    clauses: list[str]
    steps: list[Say]
    stored: dict[str, bytes]
    chosen: list[str] = field(default_factory=list)


def fields_say(speaker: str, fields: list[Field], says: str, connection: int = 1) -> Say:
    """A step whose bytes are explained field by field."""
    return Say(speaker, join(fields), says, fields, connection)


def openings() -> list[dict[str, Any]]:
    """First bytes, and which protocol they are of when both dialects are enabled."""
    rows = [
        ("native", PREFACE, "native"),
        ("native-first-byte", b"\xff", "native"),
        ("native-damaged", b"\xff\x42\x4b\x51", "native"),
        ("tls", bytes.fromhex("16030100c8010000c40303"), "tls"),
        ("sourceid", b"Content-Length=14;filename=hello.txt;sourceid=\r\n", "sourceid"),
        ("sourceid-cut", b"Content-Length=14;filename=he", "more"),
        ("sourceid-long", b"content-length = 1;filename=" + b"x" * 50, "sourceid"),
        ("sourceid-extra-field-first", b"v=1;sourceid=7;Content-Length=1;filename=a\n", "sourceid"),
        ("text-with-nul", b"Content-Length=14" + bytes(53) + b"\r\n;x" * 3, "none"),
        ("http", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "none"),
        ("ssh", b"SSH-2.0-OpenSSH_9.6\r\n", "none"),
        ("long-text-without-a-key", b"a" * 84, "none"),
    ]
    return [{"name": name, "bytes": raw.hex(), "spoken": spoken} for name, raw, spoken in rows]


def lines() -> list[dict[str, Any]]:
    """Lines of dialect sourceid with their ends, and what they mean; or the code that refuses them."""
    gbk = "照片;1.jpg".encode("gb18030")
    taken: list[tuple[str, bytes, tuple[str, int, str]]] = [
        ("usual", b"Content-Length=14;filename=hello.txt;sourceid=\r\n", ("hello.txt", 14, "")),
        ("known-id", b"Content-Length=14;filename=hello.txt;sourceid=77\r\n", ("hello.txt", 14, "77")),
        ("line-feed", b"Content-Length=14;filename=hello.txt;sourceid=77\n", ("hello.txt", 14, "77")),
        ("percent", b"Content-Length=14;filename=hello.txt;sourceid=77%", ("hello.txt", 14, "77")),
        ("percent-no-id", b"Content-Length=14;filename=hello.txt;sourceid=%", ("hello.txt", 14, "")),
        ("slashes", b"Content-Length=14;filename=hello.txt;sourceid=77/r/n", ("hello.txt", 14, "77")),
        ("slashes-and-line-feed", b"Content-Length=14;filename=a;sourceid=77/r/n\n", ("a", 14, "77")),
        ("odd-keys", b" CONTENT-length = 14 ; filenname = a ; SourceId = x-7 \r\n", ("a", 14, "x-7")),
        ("other-order", b"sourceid=7;filename=a;Content-Length=14\r\n", ("a", 14, "7")),
        ("extra-fields", b"v=1;Content-Length=14;filename=a;sourceid=7;app=mine\r\n", ("a", 14, "7")),
        ("semicolon", b"Content-Length=14;filename=a;b=c.txt;sourceid=7\r\n", ("a;b=c.txt", 14, "7")),
        ("key-in-name", b"Content-Length=14;filename=a;sourceid=5;sourceid=7\r\n", ("a;sourceid=5", 14, "7")),
        ("percent-in-name", b"Content-Length=14;filename=100%;sourceid=7\r\n", ("100%", 14, "7")),
        ("slashes-in-name", b"Content-Length=14;filename=/r/n.txt;sourceid=7\r\n", ("n.txt", 14, "7")),
        ("utf-8", "Content-Length=14;filename=照片.jpg;sourceid=7\n".encode(), ("照片.jpg", 14, "7")),
        ("gbk", b"Content-Length=14;filename=" + gbk + b";sourceid=7\n", ("照片;1.jpg", 14, "7")),
        ("path", b"Content-Length=14;filename=../../up.txt;sourceid=\n", ("up.txt", 14, "")),
        ("path-windows", b"Content-Length=14;filename=C:\\x\\up.txt;sourceid=\n", ("up.txt", 14, "")),
        ("empty-file", b"Content-Length=0;filename=a;sourceid=\n", ("a", 0, "")),
        ("no-sourceid", b"Content-Length=14;filename=a.txt\r\n", ("a.txt", 14, "")),
        ("no-sourceid-other-order", b"filename=a.txt;Content-Length=14\n", ("a.txt", 14, "")),
        ("no-sourceid-semicolon", b"Content-Length=14;filename=a;b.txt;\r\n", ("a;b.txt", 14, "")),
        ("greatest", b"Content-Length=4503599625273344;filename=a;sourceid=\n", ("a", 4503599625273344, "")),
    ]
    refused: list[tuple[str, bytes, str]] = [
        ("no-filename", b"Content-Length=14;sourceid=\n", "MALFORMED"),
        ("nothing-but-a-length", b"Content-Length=14\n", "MALFORMED"),
        ("no-length", b"filename=a;sourceid=\n", "MALFORMED"),
        ("length-empty", b"Content-Length=;filename=a;sourceid=\n", "MALFORMED"),
        ("length-negative", b"Content-Length=-1;filename=a;sourceid=\n", "MALFORMED"),
        ("length-no-number", b"Content-Length=14 MB;filename=a;sourceid=\n", "MALFORMED"),
        ("length-absurd", b"Content-Length=4503599625273345;filename=a;sourceid=\n", "BAD_FACTS"),
        ("length-endless", b"Content-Length=" + b"9" * 400 + b";filename=a;sourceid=\n", "MALFORMED"),
        ("id-too-long", b"Content-Length=14;filename=a;sourceid=" + b"7" * 65 + b"\n", "MALFORMED"),
        ("id-with-blank", b"Content-Length=14;filename=a;sourceid=7 7\n", "MALFORMED"),
        ("name-empty", b"Content-Length=14;filename=;sourceid=\n", "NAME_REFUSED"),
        ("name-dots", b"Content-Length=14;filename=x/..;sourceid=\n", "NAME_REFUSED"),
        ("name-reserved", b"Content-Length=14;filename=.blockproto;sourceid=\n", "NAME_REFUSED"),
        ("name-no-encoding", b"Content-Length=14;filename=\xff\xff;sourceid=\n", "NAME_REFUSED"),
        ("name-control", b"Content-Length=14;filename=a\x1b[2J;sourceid=\n", "NAME_REFUSED"),
    ]
    rows = [
        {
            "name": name,
            "bytes": raw.hex(),
            "filename": filename,
            "filesize": str(size),
            "sourceid": sourceid,
            "refused": None,
        }
        for name, raw, (filename, size, sourceid) in taken
    ]
    return rows + [
        {
            "name": name,
            "bytes": raw.hex(),
            "filename": None,
            "filesize": None,
            "sourceid": None,
            "refused": code,
        }
        for name, raw, code in refused
    ]


def _request(filesize: int, name: bytes, sourceid: bytes = b"") -> bytes:
    return b"Content-Length=%d;filename=%s;sourceid=%s\r\n" % (filesize, name, sourceid)


def _reply(position: int, sourceid: bytes = SOURCEID) -> bytes:
    return b"sourceid=%s;position=%d\r\n" % (sourceid, position)


def sourceid_transcripts() -> list[Transcript]:
    """Whole connections of dialect sourceid."""
    content = pattern(1_500_000)
    return [
        Transcript(
            "sourceid/new",
            "sourceid",
            "A small file, from the first byte to the last.",
            ["BP1-SID-002", "BP1-SID-008", "BP1-SID-012", "BP1-SID-017"],
            [
                Say("client", _request(14, b"hello.txt"), "what it has; no id yet"),
                Say("server", _reply(0), "an id to come back with, and where to begin"),
                Say("client", HELLO, "all bytes"),
                Say("client", CLOSES, "at once, and reads no more"),
            ],
            {"hello.txt": HELLO},
            ["sourceid"],
        ),
        Transcript(
            "sourceid/resumed",
            "sourceid",
            "The line breaks in the middle of the second block; the id brings the upload back.",
            ["BP1-SID-009", "BP1-SID-011", "BP1-SID-013", "BP1-DIA-012"],
            [
                Say(
                    "client",
                    _request(1_500_000, b"film.mp4", SOURCEID),
                    "an id that the server need not know",
                ),
                Say("server", _reply(0), "it is adopted"),
                Say("client", content[:1_100_000], "a part"),
                Say("client", CLOSES, "the line breaks"),
                Say("client", _request(1_500_000, b"film.mp4", SOURCEID), "the same again", connection=2),
                Say("server", _reply(1_100_000), "what is durable, the begun block included", connection=2),
                Say("client", content[1_100_000:], "the rest", connection=2),
                Say("client", CLOSES, "done", connection=2),
                Say(
                    "client",
                    _request(1_500_000, b"film.mp4", SOURCEID),
                    "once more, to be sure",
                    connection=3,
                ),
                Say("server", _reply(1_500_000), "it is all here", connection=3),
                Say("client", CLOSES, "nothing to send", connection=3),
            ],
            {"film.mp4": content},
        ),
        Transcript(
            "sourceid/refused",
            "sourceid",
            "A name that cannot be kept.",
            ["BP1-SID-015"],
            [
                Say("client", _request(14, b".."), "no name"),
                Say(
                    "server",
                    b"error=20;name=NAME_REFUSED;text=the name '..' has the component '..' "
                    b"(rule dot-component, profile wire)\r\n",
                    "one line, then half-close",
                ),
                Say("client", CLOSES, "nothing was made"),
            ],
            {},
            ["text"],
        ),
    ]


def transcripts() -> list[Transcript]:
    """All of them."""
    return sourceid_transcripts()
