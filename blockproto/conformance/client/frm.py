"""FRM for clients: the frame. What is broken comes from a server in the middle of a job."""

from __future__ import annotations

from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from .. import forge
from ..case import Chapter, Side
from . import taking
from .trial import Trial

cases = Chapter("client/frm", Side.CLIENT)

BIG = 1 << 63


@cases.add(
    "segments/of-one-byte",
    "FRM-002 FRM-001 FRM-003",
    why="A client that takes what one read gives it for a frame works on fast lines only.",
)
def one_byte_segments(trial: Trial) -> None:
    """A whole upload; everything that the server says comes a byte at a time."""
    sample = trial.sample(BLOCK_LENGTH + 5)
    trial.upload(sample)
    visit = trial.visit(welcome=False)
    visit.small_segments()
    visit.welcome()
    taking.take_upload(visit, trial.shelf, sample)
    trial.stored(sample)


@cases.table(
    "check/flipped-{}",
    "FRM-010 FRM-003",
    {"flags": 5, "stream": 11, "check": 15, "root-in-the-head": 50, "last-byte-of-the-head": -1},
    why="A client that does not compare the check takes for success what a broken line has changed.",
)
def flipped(trial: Trial, offset: int) -> None:
    """COMMITTED with one bit that is not what it was when the check was computed."""
    visit, upload = trial.uploading()
    raw = bytearray(forge.frame(upload.stream, upload.committed()))
    raw[offset] ^= 0x01
    visit.send(bytes(raw))
    visit.expect_refusal(Code.BAD_CHECK)
    trial.not_done()


@cases.table(
    "judging/{}",
    "FRM-004 FRM-005 FRM-010",
    {"lengths-before-the-check": Code.MALFORMED, "the-check-before-the-layout": Code.BAD_CHECK},
    why="Where the order is left open, two implementations name the same fault differently and nobody finds it.",
)
def judging(trial: Trial, code: Code) -> None:
    """Two faults in one frame: the first step names the error."""
    visit, upload = trial.uploading()
    raw = forge.frame(upload.stream, wire.Ack(0))
    if code is Code.MALFORMED:
        raw = forge.rebuilt(raw, length=3, head_length=10, check=1)
    else:
        raw = forge.rebuilt(raw, head=b"\0", check=1)
    visit.send(raw)
    visit.expect_refusal(code)
    trial.not_done()


@cases.add(
    "lengths/head-longer-than-the-frame",
    "FRM-005",
    why="The payload would have a negative length.",
)
def head_longer(trial: Trial) -> None:
    """head_length is greater than length."""
    visit, upload = trial.uploading()
    visit.force(forge.rebuilt(forge.frame(upload.stream, wire.Ack(0)), length=9))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.add(
    "lengths/head-of-a-piece-longer-than-the-frame",
    "FRM-005",
    why="The payload would have a negative length.",
)
def head_of_piece_longer(trial: Trial) -> None:
    """The same in a message that may have a payload."""
    visit, download = trial.downloading()
    visit.say(download.stream, download.open())
    visit.say(download.stream, download.head(0, ends=False), download.block(0)[:10])
    visit.send(forge.rebuilt(forge.frame(download.stream, download.piece(0, 10, ends=False), b"x"), length=3))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.table(
    "payload/in-{}",
    "FRM-007",
    {"ack": wire.Ack(0), "ping": wire.Ping(bytes(8), 0), "opened": None},
    why="Bytes that no message has are the end of the framing.",
)
def payload_where_none_is(trial: Trial, message: wire.Message | None) -> None:
    """A payload behind a message that has none."""
    visit, upload = trial.uploading()
    stream = 0 if isinstance(message, wire.Ping) else upload.stream
    visit.force(forge.rebuilt(forge.frame(stream, message or upload.opened()), payload=b"x"))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.add(
    "payload/longer-than-the-clients-limit",
    "FRM-007 HEL-010",
    why="A client that takes more than it said can be made to set any memory aside.",
)
def payload_too_long(trial: Trial) -> None:
    """BLOCK with one byte more than the piece_length_max of the client's HELLO; the bytes themselves do not matter."""
    visit, download = trial.downloading(3 * BLOCK_LENGTH)
    assert visit.hello is not None
    visit.say(download.stream, download.open())
    raw = forge.frame(download.stream, download.head(0, ends=False), b"x")
    length = wire.decode_header(raw).head_length + visit.hello.piece_length_max + 1
    visit.force(forge.rebuilt(raw, length=length))
    visit.expect_refusal(Code.TOO_LARGE)
    trial.not_done()


@cases.add(
    "unknown/longer-than-65536",
    "FRM-008",
    why="Unknown frames are skipped, but not without a limit.",
)
def unknown_too_long(trial: Trial) -> None:
    """A frame of an unknown type below 0x80 with a length over the limit; 65,536 are still skipped."""
    visit, _ = trial.uploading()
    visit.force(forge.unknown_frame(0x40, payload=bytes(65_536)))
    visit.alive()
    visit.force(forge.unknown_frame(0x40, payload=bytes(65_537)))
    visit.expect_refusal(Code.TOO_LARGE)
    trial.not_done()


@cases.table(
    "layout/{}",
    "FRM-012",
    {
        "head-too-short": {"head": bytes(9)},
        "byte-behind-the-last-field": {"tail": b"\0"},
        "tlv-past-the-end": {"tail": b"\0\x1b\0\x05\0"},
        "list-past-the-end": {"head": bytes(8) + b"\0\x02" + bytes(8)},
    },
    why="What is left over belongs to nobody; what is missing was never said.",
)
def layout(trial: Trial, parts: dict[str, bytes]) -> None:
    """ACK whose fields do not consume the head exactly."""
    visit, upload = trial.uploading()
    visit.say(upload.stream, upload.opened())
    visit.force(forge.rebuilt(forge.frame(upload.stream, wire.Ack(0)), **parts))  # type: ignore[arg-type]
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.add(
    "layout/ping-of-eleven-bytes",
    "FRM-012",
    why="What is missing at the end of the fixed fields was never said.",
)
def short_ping(trial: Trial) -> None:
    """PING, which has nothing but fixed fields, ends a byte too early."""
    visit, _ = trial.uploading()
    visit.send(forge.rebuilt(forge.frame(0, wire.Ping(bytes(8), 0)), head=bytes(11)))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.add(
    "text/not-utf-8",
    "FRM-013",
    why="A server in another language may send any bytes as text for people.",
)
def not_utf8(trial: Trial) -> None:
    """The agent of HELLO and the text of an ERROR are no UTF-8: neither ends the connection."""
    sample = trial.sample(BLOCK_LENGTH + 5)
    trial.upload(sample)
    visit = trial.visit(welcome=False)
    visit.welcome(wire.Hello(agent="\udcff\udcfe"))
    upload = taking.open_upload(visit, trial.shelf, sample)
    visit.alive()
    visit.say(upload.stream, wire.Error(Code.NOT_PERMITTED, Scope.STREAM, False, "\udcff"))
    trial.repeats = True
    trial.refused("NOT_PERMITTED")


TLVS: dict[str, tuple[str, bytes]] = {
    "twice": ("opened", forge.tlv(27) + forge.tlv(27)),
    "falling": ("opened", forge.tlv(58) + forge.tlv(27)),
    "held-root-of-31-bytes": ("opened", forge.tlv(5, bytes(31))),
    "b3sum-of-33-bytes": ("committed", forge.tlv(3, bytes(33))),
}


@cases.table("tlv/{}", "FRM-014", TLVS, why="Who takes the first and who takes the last of two disagree.")
def tlv(trial: Trial, row: tuple[str, bytes]) -> None:
    """TLVs that do not rise, or have another length than their type."""
    kind, tail = row
    visit, upload = trial.uploading()
    message = upload.opened() if kind == "opened" else upload.committed()
    visit.force(forge.rebuilt(forge.frame(upload.stream, message), tail=tail))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


NUMBERS: dict[str, tuple[type[wire.Message], str, int]] = {
    "position-of-ack-2-to-63": (wire.Ack, "position", BIG),
    "position-of-ack-all-ones": (wire.Ack, "position", 2 * BIG - 1),
    "incarnation-of-opened-2-to-63": (wire.Opened, "incarnation", BIG),
    "expires-of-opened-2-to-63": (wire.Opened, "expires_ms", BIG),
    "filesize-of-committed-all-ones": (wire.Committed, "filesize", 2 * BIG - 1),
}


@cases.table("number/{}", "FRM-015", NUMBERS, why="A language without unsigned numbers reads a negative one.")
def number(trial: Trial, row: tuple[type[wire.Message], str, int]) -> None:
    """A u64 of 2^63 or more, or all ones where nothing can be unknown."""
    kind, name, value = row
    visit, upload = trial.uploading()
    messages: dict[Any, wire.Message] = {
        wire.Ack: wire.Ack(0),
        wire.Opened: upload.opened(),
        wire.Committed: upload.committed(),
    }
    if kind is wire.Ack:
        visit.say(upload.stream, upload.opened())
    raw = forge.frame(upload.stream, messages[kind])
    visit.force(forge.patched(raw, forge.offset_of(kind, name), value.to_bytes(8, "big")))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


def pairs(*found: tuple[int, int]) -> bytes:
    """A count and that many pairs, which need not be well formed."""
    body = b"".join(first.to_bytes(4, "big") + second.to_bytes(4, "big") for first, second in found)
    return len(found).to_bytes(2, "big") + body


@cases.table(
    "runs/{}",
    "FRM-016",
    {
        "of-no-block": pairs((0, 0)),
        "touching": pairs((0, 1), (1, 1)),
        "overlapping": pairs((0, 2), (1, 2)),
        "falling": pairs((5, 1), (0, 1)),
        "past-the-last-blockno": pairs((0xFFFFFFFE, 2)),
    },
    why="Runs that are not in order make a receiver count blocks twice.",
)
def bad_runs(trial: Trial, runs: bytes) -> None:
    """Runs in ACK that are no runs."""
    visit, upload = trial.uploading()
    visit.say(upload.stream, upload.opened())
    visit.force(forge.rebuilt(forge.frame(upload.stream, wire.Ack(0)), head=bytes(8) + runs))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.table(
    "prefixes/{}",
    "FRM-017",
    {
        "of-no-byte": pairs((0, 0)),
        "longer-than-a-block": pairs((0, BLOCK_LENGTH + 1)),
        "falling": pairs((1, 5), (0, 5)),
        "twice": pairs((0, 5), (0, 5)),
    },
    why="A prefix that is none makes the sender begin at a place that is not there.",
)
def bad_prefixes(trial: Trial, prefixes: bytes) -> None:
    """Prefixes in OPENED that are none."""
    visit, upload = trial.uploading()
    raw = forge.frame(upload.stream, upload.opened())
    head = raw[wire.HEADER_LENGTH :]
    visit.force(forge.rebuilt(raw, head=head[:-2] + prefixes))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.add("digests/falling", "FRM-017", why="Pages that do not rise can name a block twice.")
def bad_digests(trial: Trial) -> None:
    """A server that sends a file says HAVE with blocknos that do not rise."""
    visit, download = trial.downloading()
    visit.say(download.stream, download.open())
    head = b"\0\x02" + b"".join(no.to_bytes(4, "big") + bytes(32) for no in (1, 0))
    visit.force(forge.rebuilt(forge.frame(download.stream, wire.Have(())), head=head))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.table(
    "item/{}",
    "FRM-018",
    {"byte-too-many": b"\0", "tlv-that-runs-past-it": b"\0\x1b\0\x09"},
    why="An item is a head of its own: what is left over in it belongs to nobody.",
)
def bad_item(trial: Trial, tail: bytes) -> None:
    """RESULT with an item that its fields do not consume exactly."""
    sample = trial.sample(5)
    trial.shelf.offer(sample)
    visit, stream = trial.asking()
    item = trial.shelf.item(sample.filename)
    _, encoded = item.LAYOUT.encode(item)
    body = encoded + tail
    head = b"\x01\0\x01" + len(body).to_bytes(2, "big") + body + b"\0\0"
    visit.force(forge.rebuilt(forge.frame(stream, wire.Result(1)), head=head))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.table(
    "choice/scope-{}",
    "FRM-019",
    {"0": 0, "4": 4},
    why="A scope that is none says nothing about what ends.",
)
def bad_scope(trial: Trial, scope: int) -> None:
    """ERROR with a scope outside 1 to 3."""
    visit, upload = trial.uploading()
    error = forge.frame(upload.stream, wire.Error(Code.BUSY, Scope.STREAM, True))
    visit.force(forge.patched(error, forge.offset_of(wire.Error, "scope"), bytes([scope])))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.add("choice/priority-3", "FRM-019", why="A priority that is none has no share of the line.")
def bad_priority(trial: Trial) -> None:
    """OPEN that answers FETCH has a priority above 2."""
    visit, download = trial.downloading()
    raw = forge.frame(download.stream, download.open())
    visit.force(forge.patched(raw, forge.offset_of(wire.Open, "priority"), b"\x03"))
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.add(
    "choice/kind-9-of-result", "FRM-019", why="A kind of a later version has items that nobody can read."
)
def bad_kind(trial: Trial) -> None:
    """RESULT of an unknown kind is refused, and the connection goes on."""
    visit, stream = trial.asking()
    visit.force(forge.rebuilt(forge.frame(stream, wire.Result(1)), head=b"\x09\0\0\0\0"))
    visit.expect_error(Code.UNSUPPORTED, stream=stream)
    visit.opened(stream)
    trial.not_done()


ELSEWHERE: dict[str, tuple[Any, bool]] = {
    "ack-on-0": (wire.Ack(0), False),
    "opened-on-0": (None, False),
    "error-of-a-stream-on-0": (wire.Error(Code.BUSY, Scope.STREAM, True), False),
    "ping-on-a-stream": (wire.Ping(bytes(8), 0), True),
    "goaway-on-a-stream": (wire.GoAway(Code.GOING_AWAY, 0, 0), True),
    "error-of-the-connection-on-a-stream": (wire.Error(Code.BUSY, Scope.CONNECTION, True), True),
}


@cases.table(
    "stream/{}",
    "FRM-020",
    ELSEWHERE,
    why="A message on the wrong stream is about something that is not there.",
)
def elsewhere(trial: Trial, row: tuple[Any, bool]) -> None:
    """A message on a stream where it does not belong."""
    message, on_stream = row
    visit, upload = trial.uploading()
    visit.force(forge.frame(upload.stream if on_stream else 0, message or upload.opened()))
    visit.expect_refusal(Code.UNEXPECTED)
    trial.not_done()
