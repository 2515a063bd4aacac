"""DIALECTS: the two older wire formats on the same port, by their main rows. Only for servers that answer them both.

Their files have no folder, so each case removes what it stored, by a native connection.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code
from .. import moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import Failed, require

cases = Chapter("dialects", Side.SERVER)
LINE_MAX = 4_096
REPLY = 48


def dialled(trial: Trial) -> Peer:
    """A connection on which nothing was said yet."""
    return trial.dial(greet=False)


def plain_sample(trial: Trial, filesize: int) -> Sample:
    """A file whose name fits both dialects: without a folder, at most 50 bytes."""
    name = "conform-" + trial.sourceid().hex()[:16] + ".bin"
    return trial.sample(filesize, filename=name, filetype="text")


def stored(trial: Trial, sample: Sample, name: str = "") -> None:
    """Wait until the file is there, called ``name`` or as it was sent, hold it against what was sent, and remove it."""
    name = name or sample.filename
    peer = trial.dial()
    deadline = time.monotonic() + trial.patience.answer_s
    stream = 1
    while moves.stat(peer, name, stream) is None:
        if time.monotonic() > deadline:
            raise Failed("a file that was sent whole does not appear")
        peer.ping()
        stream += 2
    moves.fetch(peer, stream + 2, wire.Fetch(name), sample)
    peer.say(stream + 4, wire.Remove(wire.RemoveKind.FILE, filename=name))
    peer.expect(wire.Result, stream + 4)


# ---- sourceid


def line_of(sample: Sample, sourceid: str = "") -> bytes:
    """What a client of the dialect sourceid says first."""
    return f"Content-Length={sample.filesize};filename={sample.filename};sourceid={sourceid}\r\n".encode()


def answer(peer: Peer) -> tuple[str, int]:
    """The answer's id and position."""
    line = b""
    while not line.endswith(b"\n"):
        line += peer.raw(1, "the end of the answer's line")
        require(len(line) <= LINE_MAX, "the answer is no line", got=line[:80].hex(" "))
    fields = line.removesuffix(b"\r\n").decode("ascii", "replace").split(";")
    if len(fields) != 2 or not fields[0].startswith("sourceid=") or not fields[1].startswith("position="):
        raise Failed("the answer is not `sourceid=…;position=…`", got=ascii(line), clause="BP1-SID-008")
    return fields[0].removeprefix("sourceid="), int(fields[1].removeprefix("position="))


@cases.table(
    "sourceid/new-{}",
    "SID-008 SID-002 DIA-007",
    {"file": 3_000, "file-of-two-blocks": BLOCK_LENGTH + 7},
    why="The clients in the field read the answer by place and never read again.",
    layer=2,
)
def sourceid_new(trial: Trial, filesize: int) -> None:
    """A line, an answer with an id and position 0, the bytes, the end: the file is there."""
    peer, sample = dialled(trial), plain_sample(trial, filesize)
    peer.send(line_of(sample))
    sourceid, position = answer(peer)
    require(sourceid.isdecimal() and int(sourceid) > 0, "a new id is no positive number", got=sourceid)
    require(position == 0, "a new upload begins elsewhere than at 0", got=str(position))
    peer.send(sample.content)
    peer.close()
    stored(trial, sample)


@cases.add(
    "sourceid/resumed",
    "SID-009 SID-011 SID-013 DIA-012",
    why="What arrived before the line broke must not travel again, or bad lines never finish.",
    layer=2,
)
def sourceid_resumed(trial: Trial) -> None:
    """An adopted id; after a break the position is what came; when it is whole, the position is the file's size."""
    sample = plain_sample(trial, 200_000)
    first = dialled(trial)
    first.send(line_of(sample, "4242"))
    require(answer(first) == ("4242", 0), "an id that the client brought is not adopted")
    first.send(sample.content[:120_000])
    first.close()
    position, peer = until(trial, sample, lambda found: found > 0)
    require(position <= 120_000, "the position is beyond what was sent", got=str(position))
    peer.send(sample.content[position:])
    peer.close()
    position, peer = until(trial, sample, lambda found: found == sample.filesize)
    stored(trial, sample)


def until(trial: Trial, sample: Sample, holds: Callable[[int], bool]) -> tuple[int, Peer]:
    """Ask on new connections until the position is as it must become: a server hears of an end a moment later."""
    deadline = time.monotonic() + trial.patience.answer_s
    while True:
        peer = dialled(trial)
        peer.send(line_of(sample, "4242"))
        _, position = answer(peer)
        if holds(position):
            return position, peer
        peer.close()
        if time.monotonic() > deadline:
            raise Failed("what was sent before is not there", got=f"position {position}")


@cases.table(
    "sourceid/refused-{}",
    "SID-015 SID-007",
    {
        "length-of-letters": ("Content-Length=many;filename=a;sourceid=\r\n", Code.MALFORMED),
        "no-filename": ("Content-Length=5;sourceid=\r\n", Code.MALFORMED),
        "dot-dot": ("Content-Length=5;filename=..;sourceid=\r\n", Code.NAME_REFUSED),
    },
    why="A person who looks with a terminal must see one line that says why.",
)
def sourceid_refused(trial: Trial, what: tuple[str, Code]) -> None:
    """A request that cannot be served: one line with the code, then the end."""
    line, code = what
    peer = dialled(trial)
    peer.send(line.encode())
    said = b""
    while not said.endswith(b"\n"):
        said += peer.raw(1, "the end of the line")
        require(len(said) <= LINE_MAX, "the refusal is no line", got=said[:80].hex(" "))
    expected = f"error={int(code)};name={code.name};".encode()
    require(said.startswith(expected), "another refusal came", expected=ascii(expected), got=ascii(said))


@cases.add(
    "sourceid/one-byte-at-a-time",
    "DIA-003 SID-003",
    why="Who is speaking must not depend on how the network cuts the first bytes.",
)
def sourceid_bytes(trial: Trial) -> None:
    """The line in segments of one byte."""
    peer, sample = dialled(trial), plain_sample(trial, 10)
    for byte in line_of(sample):
        peer.send(bytes([byte]))
    answer(peer)
    peer.send(sample.content)
    peer.close()
    stored(trial, sample)


# ---- struct82


@dataclass(frozen=True)
class Form:
    """How a C compiler and a processor lay the header out."""

    aligned: bool
    big: bool

    def header(self, sample: Sample, blockno: int) -> bytes:
        """The header of a block, or with blockno −1 a question."""
        order = ">" if self.big else "<"
        names = struct.pack("50s20s", sample.filename.encode(), sample.filetype.encode())
        padding = b"\0\0" if self.aligned else b""
        return names + padding + struct.pack(f"{order}iii", sample.filesize, sample.blocknum, blockno)

    def reply(self, raw: bytes) -> tuple[int, int, int, int]:
        """code, blockno, held, complete."""
        return struct.unpack(f"{'>' if self.big else '<'}iiii", raw[:16])


FORMS = {
    "packed-little": Form(False, False),
    "packed-big": Form(False, True),
    "aligned-little": Form(True, False),
    "aligned-big": Form(True, True),
}


@cases.table(
    "struct82/silent-{}",
    "S82-003 S82-020 DIA-007",
    FORMS,
    why="Nothing in the header says how it is laid out; the oldest programs never read an answer.",
    layer=2,
)
def struct82_silent(trial: Trial, form: Form) -> None:
    """A header and the bytes of the one block, then the end: the file is there."""
    peer, sample = dialled(trial), plain_sample(trial, 3_000)
    peer.send(form.header(sample, 0) + sample.content)
    peer.close()
    stored(trial, sample)


@cases.table(
    "struct82/asked-{}",
    "S82-020 S82-021 S82-022 S82-023",
    FORMS,
    why="Who asks is told of each block when it is durable, in the order of its own bytes.",
    layer=2,
)
def struct82_asked(trial: Trial, form: Form) -> None:
    """A question, the block, a question: nothing held; durable and complete; every bit set, and the name."""
    peer, sample = dialled(trial), plain_sample(trial, 3_000)
    peer.send(form.header(sample, -1))
    first = form.reply(peer.raw(REPLY, "a reply"))
    require(first == (0, -1, 0, 0), "the first answer says that something is held", got=str(first))
    peer.raw(1, "the bitmap")
    peer.send(form.header(sample, 0) + sample.content)
    reply = peer.raw(REPLY, "a reply")
    require(
        form.reply(reply) == (0, 0, 1, 1),
        "the reply to the block is not 0, 0, 1, 1",
        got=str(form.reply(reply)),
    )
    require(reply[16:] == sample.digest(0), "the digest is not that of the block", got=reply[16:].hex())
    peer.send(form.header(sample, -1))
    last = form.reply(peer.raw(REPLY, "a reply"))
    require(last == (0, -1, 1, 1), "the last answer does not say that the file is complete", got=str(last))
    require(
        peer.raw(1, "the bitmap") == b"\x03",
        "the bitmap does not have every bit that stands for a block or for nothing",
    )
    name = peer.raw(256, "the name").rstrip(b"\0").decode("utf-8", "replace")
    require(name == sample.filename, "the answer names another file", got=ascii(name))
    peer.close()
    stored(trial, sample)


@cases.add(
    "struct82/numbered-from-1",
    "S82-015 S82-014 S82-012",
    why="Half of the programs count from 1; the header does not say which half.",
    layer=2,
)
def struct82_from_one(trial: Trial) -> None:
    """Three blocks numbered 1 to 3, the last one first: the number that is blocknum settles it."""
    form = Form(True, True)
    peer, sample = dialled(trial), plain_sample(trial, 2 * BLOCK_LENGTH + 5)
    for blockno in (3, 1, 2):
        peer.send(form.header(sample, blockno) + sample.block(blockno - 1))
    peer.close()
    stored(trial, sample)


@cases.add(
    "struct82/a-refused-name-and-another-file",
    "S82-010 S82-026",
    why="One bad name must not cost the files behind it.",
)
def struct82_refused(trial: Trial) -> None:
    """A question and a block with the name `..` are refused; the next file on the connection is stored."""
    form = FORMS["packed-little"]
    peer, sample = dialled(trial), plain_sample(trial, 14)
    bad = sample.with_(filename="..")
    for blockno, content in ((-1, b""), (0, bad.content)):
        peer.send(form.header(bad, blockno) + content)
        reply = form.reply(peer.raw(REPLY, "a reply"))
        require(reply == (int(Code.NAME_REFUSED), blockno, 0, 0), "a bad name is not refused", got=str(reply))
    peer.send(form.header(sample, 0) + sample.content)
    reply = form.reply(peer.raw(REPLY, "a reply"))
    require(reply == (0, 0, 1, 1), "the file behind a refused one is not stored", got=str(reply))
    stored(trial, sample)


@cases.add(
    "struct82/other-bytes-for-a-complete-file",
    "S82-032 S82-031",
    why="Two files with the same name, type and size are two files: neither is lost, and neither is written over.",
)
def struct82_changed(trial: Trial) -> None:
    """The same block again is durable, and stored once; other bytes are another file, beside the first."""
    form = FORMS["packed-big"]
    peer, sample = dialled(trial), plain_sample(trial, 500)
    other = sample.with_(seed=sample.seed + 1)
    peer.send(form.header(sample, -1))
    peer.raw(REPLY + 1, "a reply")
    for one in (sample, sample, other):
        peer.send(form.header(one, 0) + one.content)
        reply = form.reply(peer.raw(REPLY, "a reply"))
        require(reply == (0, 0, 1, 1), "a whole file is not stored", expected="(0, 0, 1, 1)", got=str(reply))
    peer.send(form.header(other, -1))
    peer.raw(REPLY + 1, "a reply")
    name = peer.raw(256, "the name").rstrip(b"\0").decode("utf-8", "replace")
    require(name != sample.filename, "two files are said to have one name", got=ascii(name))
    stored(trial, sample)
    stored(trial, other, name)


@cases.table(
    "struct82/empty-file-between-two-{}",
    "S82-036",
    FORMS,
    why="A program that sends a folder meets an empty file: the files behind it must not be lost.",
    layer=2,
)
def struct82_empty(trial: Trial, form: Form) -> None:
    """A file, a header with filesize 0, another file, on one connection: all three are there."""
    peer = dialled(trial)
    samples = [plain_sample(trial, filesize) for filesize in (14, 0, 15)]
    for sample in samples:
        peer.send(form.header(sample, 0) + sample.content)
    peer.close()
    for sample in samples:
        stored(trial, sample)


@cases.table(
    "struct82/two-readings-{}",
    "S82-035 S82-001",
    {"end-of-stream": False, "another-header": True},
    why="A compiler leaves in the gap what was in memory; 0F FF there looks like the size of a great file.",
    layer=2,
)
def struct82_two_readings(trial: Trial, followed: bool) -> None:
    """Aligned and little endian with 0F FF in the gap, then the end or another file: every file is there."""
    peer, form = dialled(trial), FORMS["aligned-little"]
    samples = [plain_sample(trial, 14), plain_sample(trial, 15)][: 1 + followed]
    for sample in samples:
        head = form.header(sample, 0)
        peer.send(head[:70] + b"\x0f\xff" + head[72:] + sample.content)
    peer.close()
    for sample in samples:
        stored(trial, sample)


# ---- beside each other


@cases.add(
    "native/beside-both",
    "DIA-006 DIA-002",
    why="Old programs on a port must cost the new ones nothing.",
    layer=2,
)
def beside_both(trial: Trial) -> None:
    """A native upload in the middle of one in each dialect."""
    sourceid, struct82 = plain_sample(trial, 50_000), plain_sample(trial, 50_000)
    first, second, native = dialled(trial), dialled(trial), trial.dial()
    first.send(line_of(sourceid))
    answer(first)
    first.send(sourceid.content[:20_000])
    form = FORMS["packed-little"]
    second.send(form.header(struct82, 0) + struct82.content[:20_000])
    sample = trial.sample(100_000)
    moves.upload(native, sample)
    moves.fetch(native, 3, wire.Fetch(sample.filename), sample)
    first.send(sourceid.content[20_000:])
    second.send(struct82.content[20_000:])
    first.close()
    second.close()
    for one in (sourceid, struct82):
        stored(trial, one)
