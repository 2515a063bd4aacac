"""What crosses the wire in dialect struct82: headers in the four forms, replies, answers, and whole transcripts.

Written from chapter S82 of spec/dialects.md alone.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from blake3 import blake3
from dialects import CLOSES, HELLO, Say, Transcript, fields_say
from encode import Field, pattern

MIB = 1 << 20


class Form(NamedTuple):
    """One of the four ways to write a header: ``<`` or ``>``, and the bytes between names and numbers."""

    name: str
    order: str
    padding: int


FORMS = [
    Form("packed-little", "<", 0),
    Form("packed-big", ">", 0),
    Form("aligned-little", "<", 2),
    Form("aligned-big", ">", 2),
]


class File(NamedTuple):
    """A file as a sender names it."""

    filename: bytes
    filetype: bytes
    content: bytes
    blocknum: int


NOTE = File(b"hello.txt", b"text", HELLO, 1)
FILM = File(b"film.mp4", b"video/mp4", pattern(2 * MIB + 5), 3)


def header(form: Form, file: File, blockno: int) -> list[Field]:
    """The fields of a header."""

    def text(name: str, raw: bytes, length: int) -> list[Field]:
        padding = [Field(name, bytes(length - len(raw)), "NUL")] if len(raw) < length else []
        return [Field(name, raw, raw.decode("ascii", errors="replace")), *padding]

    def number(name: str, value: int, meaning: str = "") -> Field:
        return Field(name, struct.pack(form.order + "i", value), meaning or f"{value:,}")

    padding = [Field("(alignment)", bytes(form.padding), "any value")] if form.padding else []
    return [
        *text("filename", file.filename, 50),
        *text("filetype", file.filetype, 20),
        *padding,
        number("filesize", len(file.content)),
        number("blocknum", file.blocknum),
        number("blockno", blockno, "-1: which blocks are held?" if blockno == -1 else ""),
    ]


def reply(form: Form, code: int, blockno: int, held: int, complete: int, digest: bytes) -> list[Field]:
    """The fields of a reply."""
    numbers = {"code": code, "blockno": blockno, "held": held, "complete": complete}
    fields = [
        Field(name, struct.pack(form.order + "i", value), str(value)) for name, value in numbers.items()
    ]
    what = "nothing" if not any(digest) else "the root of what is held" if blockno == -1 else "of the block"
    return [*fields, Field("digest", digest, what)]


def answer(form: Form, file: File, held: list[int], shown: set[int], stored_as: bytes = b"") -> list[Field]:
    """The fields of an answer: reply, bitmap, and the name of a complete file.

    Args:
        form: of the question.
        file: which it is about.
        held: which blocks are held, counted from 0.
        shown: the blocknos whose bits are set.
        stored_as: the name if it is complete.
    """
    bitmap = bytearray(file.blocknum // 8 + 1)
    for blockno in shown:
        bitmap[blockno // 8] |= 1 << blockno % 8
    digests = [digest(file, index) for index in held]
    root = digests[0] if len(digests) == 1 else blake3(b"".join(digests)).digest()
    fields = reply(form, 0, -1, len(held), int(bool(stored_as)), root)
    fields.append(Field("bitmap", bytes(bitmap), f"blocknos {sorted(shown)}" if shown else "no block"))
    if stored_as:
        fields.append(Field("stored_as", stored_as, stored_as.decode()))
        fields.append(Field("stored_as", bytes(256 - len(stored_as)), "NUL"))
    return fields


def payload(file: File, index: int) -> bytes:
    """The bytes of a block counted from 0."""
    return file.content[index * MIB : (index + 1) * MIB]


def digest(file: File, index: int) -> bytes:
    """Its digest."""
    return blake3(payload(file, index)).digest()


def block(form: Form, file: File, blockno: int, first: int, connection: int = 1) -> list[Say]:
    """The steps that send a block."""
    says = f"block {blockno}, numbered from {first}"
    return [
        fields_say("client", header(form, file, blockno), says, connection),
        Say("client", payload(file, blockno - first), "its bytes", connection=connection),
    ]


def _form_transcript(form: Form) -> Transcript:
    return Transcript(
        f"struct82/{form.name}",
        "struct82",
        f"A small file whose header is {form.name.replace('-', ', ')} endian, from a client that never reads.",
        ["BP1-S82-001", "BP1-S82-003", "BP1-S82-024"],
        [*block(form, NOTE, 0, 0), Say("client", CLOSES, "and reads nothing")],
        {"hello.txt": HELLO},
    )


def struct82_transcripts() -> list[Transcript]:
    """Whole connections."""
    little, big = FORMS[0], FORMS[3]
    other = NOTE._replace(content=HELLO[::-1])
    nothing = File(b"nothing.txt", b"text", b"", 0)
    odd = [
        field if field.name != "(alignment)" else Field(field.name, b"\x0f\xff", "any value")
        for field in header(FORMS[2], NOTE, 0)
    ]
    return [
        *map(_form_transcript, FORMS),
        Transcript(
            "struct82/asked",
            "struct82",
            "A client that asks, so that it is answered: nothing is held, the block is durable, the file is complete.",
            ["BP1-S82-020", "BP1-S82-022", "BP1-S82-023", "BP1-S82-025"],
            [
                fields_say("client", header(little, NOTE, -1), "a question"),
                fields_say("server", answer(little, NOTE, [], set()), "nothing is held"),
                *block(little, NOTE, 0, 0),
                fields_say("server", reply(little, 0, 0, 1, 1, digest(NOTE, 0)), "durable, and complete"),
                fields_say("client", header(little, NOTE, -1), "under which name?"),
                fields_say(
                    "server", answer(little, NOTE, [0], {0, 1}, b"hello.txt"), "complete: every bit is set"
                ),
                Say("client", CLOSES, "done"),
            ],
            {"hello.txt": HELLO},
        ),
        Transcript(
            "struct82/resumed",
            "struct82",
            "Blocks numbered from 1, out of order; the line breaks, and another connection asks what is held.",
            ["BP1-S82-012", "BP1-S82-014", "BP1-S82-017", "BP1-S82-020", "BP1-S82-022"],
            [
                fields_say("client", header(big, FILM, -1), "a question"),
                fields_say("server", answer(big, FILM, [], set()), "nothing is held"),
                *block(big, FILM, 3, 1),
                fields_say("server", reply(big, 0, 3, 1, 0, digest(FILM, 2)), "durable"),
                *block(big, FILM, 1, 1),
                fields_say("server", reply(big, 0, 1, 2, 0, digest(FILM, 0)), "durable"),
                Say("client", CLOSES, "the line breaks"),
                fields_say("client", header(big, FILM, -1), "what is held?", 2),
                fields_say(
                    "server", answer(big, FILM, [0, 2], {0, 1, 3}), "blocks 1 and 3; 0 has no bytes", 2
                ),
                *block(big, FILM, 2, 1, 2),
                fields_say("server", reply(big, 0, 2, 3, 1, digest(FILM, 1)), "durable, and complete", 2),
                fields_say("client", header(big, FILM, -1), "and now?", 2),
                fields_say("server", answer(big, FILM, [0, 1, 2], {0, 1, 2, 3}, b"film.mp4"), "complete", 2),
                Say("client", CLOSES, "done", connection=2),
            ],
            {"film.mp4": FILM.content},
        ),
        Transcript(
            "struct82/refused",
            "struct82",
            "A name that cannot be kept is refused block by block; the connection goes on.",
            ["BP1-S82-010", "BP1-S82-026"],
            [
                fields_say("client", header(little, NOTE._replace(filename=b".."), -1), "a question"),
                fields_say(
                    "server", reply(little, 20, -1, 0, 0, bytes(32)), "NAME_REFUSED; no bitmap follows"
                ),
                *block(little, NOTE._replace(filename=b".."), 0, 0),
                fields_say("server", reply(little, 20, 0, 0, 0, bytes(32)), "NAME_REFUSED"),
                *block(little, NOTE, 0, 0),
                fields_say("server", reply(little, 0, 0, 1, 1, digest(NOTE, 0)), "another file: complete"),
                Say("client", CLOSES, "done"),
            ],
            {"hello.txt": HELLO},
        ),
        Transcript(
            "struct82/changed",
            "struct82",
            "The file is complete; a block of it with other bytes is of another file: both are kept.",
            ["BP1-S82-032"],
            [
                *block(little, NOTE, 0, 0),
                fields_say("client", header(little, NOTE, -1), "a question"),
                fields_say("server", answer(little, NOTE, [0], {0, 1}, b"hello.txt"), "complete"),
                *block(little, other, 0, 0),
                fields_say("server", reply(little, 0, 0, 1, 1, digest(other, 0)), "durable, and complete"),
                fields_say("client", header(little, other, -1), "under which name?"),
                fields_say(
                    "server", answer(little, other, [0], {0, 1}, b"hello (1).txt"), "beside the first"
                ),
                Say("client", CLOSES, "done"),
            ],
            {"hello.txt": HELLO, "hello (1).txt": HELLO[::-1]},
        ),
        Transcript(
            "struct82/empty-between",
            "struct82",
            "An empty file between two others, on one connection.",
            ["BP1-S82-036"],
            [
                *block(big, NOTE, 0, 0),
                fields_say("client", header(big, nothing, 0), "an empty file; no bytes follow"),
                *block(big, other._replace(filename=b"other.txt"), 0, 0),
                Say("client", CLOSES, "and reads nothing"),
            ],
            {"hello.txt": HELLO, "nothing.txt": b"", "other.txt": HELLO[::-1]},
        ),
        Transcript(
            "struct82/two-readings",
            "struct82",
            "Aligned, little endian, with 0F FF in the gap: packed, big endian it would be a file of 255.9 MiB.",
            ["BP1-S82-035"],
            [
                fields_say("client", odd, "block 0, numbered from 0"),
                Say("client", HELLO, "its bytes"),
                fields_say(
                    "client", header(FORMS[2], other._replace(filename=b"other.txt"), 0), "another header"
                ),
                Say("client", HELLO[::-1], "its bytes"),
                Say("client", CLOSES, "and reads nothing"),
            ],
            {"hello.txt": HELLO, "other.txt": HELLO[::-1]},
        ),
    ]


def openings() -> list[dict[str, Any]]:
    """First bytes, and which protocol they are of when both dialects are enabled."""
    full = NOTE._replace(filename=b"n" * 50, filetype=b"t" * 20)
    text = NOTE._replace(filename=b"sourceid=".ljust(50, b"n"), filetype=b"t" * 20)
    rows = [(form.name, header(form, NOTE, 0), "struct82") for form in FORMS]
    rows += [(f"{form.name}-question", header(form, NOTE, -1), "struct82") for form in FORMS]
    rows += [
        ("no-nul-in-the-names", header(FORMS[0], full, 0), "struct82"),
        ("no-nul-and-a-key", header(FORMS[0], text, 0), "sourceid"),
        ("a-key-and-nul", header(FORMS[0], NOTE._replace(filename=b"sourceid=7"), 0), "struct82"),
        ("cut", header(FORMS[3], NOTE, 0)[:-1], "more"),
        ("numbers-that-do-not-fit", header(FORMS[1], NOTE._replace(blocknum=2), 0), "none"),
    ]
    return [
        {"name": f"struct82-{name}", "bytes": b"".join(field.raw for field in fields).hex(), "spoken": spoken}
        for name, fields, spoken in rows
    ]


def headers() -> list[dict[str, Any]]:
    """Single headers in every form and what they say, or null where no form fits."""
    rows = []
    files = [
        ("usual", NOTE, 0),
        ("question", NOTE, -1),
        ("name-of-50-bytes", NOTE._replace(filename=b"n" * 50, filetype=b"t" * 20), 1),
        ("full-blocks-rounded-up", NOTE._replace(content=bytes(2 * MIB), blocknum=2), 1),
        ("full-blocks-one-more", NOTE._replace(content=bytes(2 * MIB), blocknum=3), 3),
        ("empty", NOTE._replace(content=b"", blocknum=1), 0),
        ("empty-question", NOTE._replace(content=b"", blocknum=1), -1),
    ]
    for form in FORMS:
        for name, file, blockno in files:
            raw = b"".join(field.raw for field in header(form, file, blockno))
            values = {
                "filename": file.filename.hex(),
                "filetype": file.filetype.hex(),
                "filesize": len(file.content),
                "blocknum": file.blocknum,
                "blockno": blockno,
            }
            rows.append(
                {"name": f"{form.name}/{name}", "form": form.name, "bytes": raw.hex(), "values": values}
            )
    wrong = [
        ("empty-of-two-blocks", NOTE._replace(content=b"", blocknum=2), 0),
        ("blocknum-too-great", NOTE._replace(blocknum=2), 0),
        ("blocknum-zero", NOTE._replace(blocknum=0), 0),
        ("blockno-behind-blocknum", NOTE, 2),
        ("blockno-minus-two", NOTE, -2),
    ]
    for form in FORMS:
        for name, file, blockno in wrong:
            raw = b"".join(field.raw for field in header(form, file, blockno)).ljust(84, b"x")
            rows.append({"name": f"{form.name}/{name}", "form": None, "bytes": raw.hex(), "values": None})
    return rows
