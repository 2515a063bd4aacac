"""EXT: versions and extension. What is unknown is skipped or refused, as its bits say."""

from __future__ import annotations

from ... import wire
from ...errors import Code
from .. import forge, moves
from ..case import Chapter, Side
from ..target import Trial
from ..verdicts import require
from .blk import begun, refused_stream

cases = Chapter("ext", Side.SERVER)


# ---- message types


@cases.table(
    "type/must-understand-{}",
    "EXT-001",
    {"0xfe": 0xFE, "0x93": 0x93, "0xff": 0xFF},
    why="What must be understood and is not has to be told, or the sender believes it was done.",
)
def critical_type(trial: Trial, type_: int) -> None:
    """An unknown type of 0x80 or more on a new stream: UNSUPPORTED for that stream; the connection goes on."""
    peer = trial.dial()
    peer.opened(1)
    peer.send(forge.unknown_frame(type_, stream=1, head=b"future"))
    refused_stream(peer, Code.UNSUPPORTED)


@cases.add(
    "type/must-understand-on-the-connection",
    "EXT-001 ERR-001",
    why="On stream 0 there is no stream to end.",
)
def critical_on_connection(trial: Trial) -> None:
    """An unknown type of 0x80 or more on stream 0."""
    peer = trial.dial()
    peer.send(forge.unknown_frame(0xFE, head=b"future"))
    peer.expect_refusal(Code.UNSUPPORTED)


@cases.add(
    "type/must-understand-in-an-upload",
    "EXT-001 STR-007",
    why="An extension that is tried on an open stream must not cost the other streams.",
)
def critical_in_upload(trial: Trial) -> None:
    """An unknown type of 0x80 or more on a stream with an upload ends that stream; the upload stays."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 0)
    peer.expect_acked(1, 0)
    peer.send(forge.unknown_frame(0xFE, stream=1))
    refused_stream(peer, Code.UNSUPPORTED)
    opened = moves.begin(peer, sample, 3)
    require(opened.position == 1 << 20, "the upload is gone", got=str(opened))


@cases.table(
    "type/skipped-{}",
    "EXT-002 EXT-006",
    {
        "27": (27, 0, 0),
        "58-on-a-stream": (58, 7, 0),
        "89-on-an-even-stream": (89, 2, 0),
        "120-on-the-last-stream": (120, 0xFFFF_FFFF, 0),
        "with-all-flags": (27, 0, 0xFFFF),
        "private-0x70": (0x70, 0, 0),
        "0x00": (0, 0, 0),
        "0x7f": (0x7F, 1, 0),
    },
    why="What can be skipped is how a protocol grows; a server that is strict here stops all growth.",
)
def skipped_type(trial: Trial, what: tuple[int, int, int]) -> None:
    """An unknown type below 0x80, with head and payload, on any stream: skipped whole."""
    type_, stream, flags = what
    peer, sample = trial.dial(), trial.sample(10)
    peer.send(forge.unknown_frame(type_, stream, b"head of a later version", b"and its payload", flags))
    peer.ping()
    moves.brief(peer, sample, 1)


@cases.add(
    "type/skipped-in-the-middle-of-a-block",
    "EXT-002 BLK-006",
    why="A frame that is skipped changes no state: the block goes on behind it.",
)
def skipped_in_block(trial: Trial) -> None:
    """Unknown frames between the pieces of a block, on its stream; their payload counts for nothing."""
    peer, sample = begun(trial, 50_000)
    moves.send_block(peer, sample, 0, stop=20_000)
    for type_ in wire.GREASE_TYPES:
        peer.send(forge.unknown_frame(type_, 1, b"x", bytes(30_000)))
    peer.say(1, sample.piece(0, 20_000), sample.content[20_000:])
    moves.commit(peer, sample)
    require(
        all(credit.received <= 50_000 for _, credit in peer.credits),
        "payload of skipped frames counts for credit",
    )


# ---- TLVs


@cases.table(
    "tlv/must-understand-in-{}",
    "EXT-003",
    {"open": "open", "list": "list", "fetch": "fetch", "block": "block"},
    why="A condition that the receiver does not know must not be taken for fulfilled.",
)
def critical_tlv(trial: Trial, kind: str) -> None:
    """An unknown TLV of type 0x8000 or more: UNSUPPORTED for the stream, and nothing was done."""
    peer, sample = trial.dial(), trial.sample(10)
    messages: dict[str, wire.Message] = {
        "open": sample.open(),
        "list": wire.List(1),
        "fetch": wire.Fetch("x"),
        "block": sample.brief(),
    }
    raw = forge.frame(1, messages[kind], sample.content if kind == "block" else b"")
    peer.opened(1)
    peer.count(1, 10 if kind == "block" else 0)
    peer.send(forge.rebuilt(raw, tail=forge.tlv(0x8001, b"condition")))
    refused_stream(peer, Code.UNSUPPORTED)
    moves.require_absent(trial, sample.filename, "a file with an unknown condition is stored")


@cases.add(
    "tlv/must-understand-in-ping",
    "EXT-003 ERR-001",
    why="On stream 0 there is no stream to end.",
)
def critical_tlv_in_ping(trial: Trial) -> None:
    """An unknown TLV of type 0x8000 or more in PING."""
    peer = trial.dial()
    peer.send(forge.rebuilt(forge.frame(0, wire.Ping(bytes(8), 0)), tail=forge.tlv(0xFFFF)))
    peer.expect_refusal(Code.UNSUPPORTED)


@cases.table(
    "tlv/skipped-in-{}",
    "EXT-003 EXT-006 FRM-014",
    {
        "ping": "ping",
        "open": "open",
        "block": "block",
        "commit": "commit",
        "list": "list",
        "cancel": "cancel",
    },
    why="Grease today is an extension tomorrow.",
)
def skipped_tlv(trial: Trial, kind: str) -> None:
    """Unknown TLVs below 0x8000, in rising order, among known ones: the message is as if they were not there."""
    peer, sample = trial.dial(), trial.sample(10)
    grease = (
        forge.tlv(0) + forge.tlv(27, b"x") + forge.tlv(58) + forge.tlv(0x7F00, b"private") + forge.tlv(0x7FFF)
    )
    raw: dict[str, tuple[bytes, ...]] = {
        "ping": (forge.frame(0, wire.Ping(b"greased!", 0)),),
        "open": (forge.frame(1, sample.open()),),
        "block": (forge.frame(1, sample.brief(), sample.content),),
        "commit": (
            forge.frame(1, sample.open()),
            forge.frame(1, sample.head(0), sample.content),
            forge.frame(1, sample.commit()),
        ),
        "list": (forge.frame(1, wire.List(wire.ListKind.RECEIPTS)),),
        "cancel": (forge.frame(1, sample.open()), forge.frame(1, wire.Cancel(31))),
    }
    peer.opened(1)
    peer.count(1, 10)
    *before, last = raw[kind]
    peer.send(b"".join(before) + forge.rebuilt(last, tail=grease))
    if kind == "ping":
        peer.wait_answer(b"greased!")
        return
    if kind in {"open", "commit", "cancel"}:
        peer.expect(wire.Opened, 1)
    if kind in {"block", "commit"}:
        moves.expect_committed(peer, sample)
    elif kind == "list":
        peer.expect(wire.Result, 1)
    elif kind == "cancel":
        peer.expect_error(Code.CANCELLED, stream=1)
    peer.ping()


@cases.add(
    "tlv/of-another-message",
    "EXT-005 EXT-003",
    why="A TLV means something in one message only; in another it is as unknown as any.",
)
def tlv_of_another(trial: Trial) -> None:
    """HELD_ROOT with a wrong length in PING, and IDS in OPEN: skipped."""
    peer, sample = trial.dial(), trial.sample(10)
    peer.send(forge.rebuilt(forge.frame(0, wire.Ping(b"of other", 0)), tail=forge.tlv(5, b"short")))
    peer.wait_answer(b"of other")
    peer.opened(1)
    peer.send(forge.rebuilt(forge.frame(1, sample.open()), tail=forge.tlv(6, b"no sixteen")))
    peer.expect(wire.Opened, 1)


# ---- flags


@cases.table(
    "flag/must-understand-{}",
    "EXT-004",
    {"0x1000": 0x1000, "0x2000": 0x2000, "0x4000": 0x4000, "0x8000": 0x8000},
    why="A flag that changes what a message means must not be passed over.",
)
def critical_flag(trial: Trial, flag: int) -> None:
    """Bits 12 to 15 on OPEN: UNSUPPORTED for the stream."""
    peer, sample = trial.dial(), trial.sample(10)
    peer.opened(1)
    peer.send(forge.rebuilt(forge.frame(1, sample.open()), flags=flag))
    refused_stream(peer, Code.UNSUPPORTED)


@cases.add("flag/must-understand-in-ping", "EXT-004 ERR-001", why="On stream 0 there is no stream to end.")
def critical_flag_in_ping(trial: Trial) -> None:
    """Bit 15 on PING."""
    peer = trial.dial()
    peer.send(forge.rebuilt(forge.frame(0, wire.Ping(bytes(8), 0)), flags=0x8000))
    peer.expect_refusal(Code.UNSUPPORTED)


@cases.table(
    "flag/ignored-{}",
    "EXT-004 EXT-006",
    {"grease": 0x0800, "all-of-them": 0x0FFE},
    why="Flags that nobody knows yet are how small things are added later.",
)
def ignored_flag(trial: Trial, flags: int) -> None:
    """Unknown bits below bit 12, on PING and OPEN."""
    peer, sample = trial.dial(), trial.sample(10)
    peer.send(forge.rebuilt(forge.frame(0, wire.Ping(b"greased!", 0)), flags=flags & ~1))
    peer.wait_answer(b"greased!")
    peer.opened(1)
    peer.send(forge.rebuilt(forge.frame(1, sample.open()), flags=flags))
    peer.expect(wire.Opened, 1)
    peer.ping()


@cases.add(
    "flag/of-another-message",
    "EXT-005",
    why="Bit 0 is END in BLOCK and nothing in FETCH.",
)
def flag_of_another(trial: Trial) -> None:
    """FETCH with the bits that are END and COMMIT elsewhere."""
    peer, sample = trial.dial(), trial.sample(10)
    moves.brief(peer, sample)
    peer.opened(3)
    peer.send(forge.rebuilt(forge.frame(3, wire.Fetch(sample.filename)), flags=3))
    peer.expect(wire.Open, 3, filename=sample.filename)


@cases.add(
    "grease/in-everything-at-once",
    "EXT-006 EXT-002 EXT-003 EXT-004",
    why="A real client sends grease with every message; an upload must not notice.",
    layer=2,
)
def everywhere(trial: Trial) -> None:
    """A whole upload whose every frame has a grease flag and TLV, with unknown frames in between."""
    peer, sample = trial.dial(), trial.sample(30_000)

    def greased(stream: int, message: wire.Message, payload: bytes = b"") -> bytes:
        raw = peer.frame(stream, message, payload)
        return forge.unknown_frame(58, stream, b"\1\2\3") + forge.rebuilt(
            raw, flags=wire.GREASE_FLAG, tail=forge.tlv(0x7FFF - (0x7FFF - 27) % 31, b"grease")
        )

    peer.send(greased(1, sample.open()))
    peer.expect(wire.Opened, 1)
    peer.send(greased(1, sample.head(0, ends=False), sample.content[:10_000]))
    peer.send(greased(1, sample.piece(0, 10_000), sample.content[10_000:]))
    peer.send(greased(1, sample.commit()))
    moves.expect_committed(peer, sample)
