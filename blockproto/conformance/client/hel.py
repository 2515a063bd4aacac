"""HEL for clients: preface and HELLO."""

from __future__ import annotations

from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code
from .. import forge
from ..case import Chapter, Side
from ..verdicts import require
from . import giving, taking
from .trial import Trial

cases = Chapter("client/hel", Side.CLIENT)

EARLY = wire.Hello(
    head_length_max=wire.HEAD_LENGTH_EARLY,
    piece_length_max=wire.PIECE_LENGTH_EARLY,
    streams_max=wire.STREAMS_EARLY,
    connection_allowance=wire.CONNECTION_ALLOWANCE_EARLY,
    stream_allowance=wire.STREAM_ALLOWANCE_EARLY,
    agent="blockproto-conform",
)
"""A HELLO that allows the least there is."""

UNKNOWN_FEATURES = (1 << 62) | (1 << 40) | (1 << 32)
"""Bits of features that no profile has defined."""

FAST_S = 0.03
"""Seconds between a block and its CREDIT, from which a client can measure how fast the line is."""


@cases.add(
    "client-speaks-first",
    "HEL-001 HEL-012",
    why="A server says nothing before the preface came: who waits for it waits for ever.",
)
def client_speaks_first(trial: Trial) -> None:
    """Preface and HELLO come before anything is said here; features has nothing but FILES."""
    sample = trial.sample(BLOCK_LENGTH + 5)
    trial.upload(sample)
    visit = trial.visit(welcome=False)
    hello = visit.expect_greeting()
    more = hello.features & ~(wire.FEATURE_FILES | wire.FEATURE_WANTED)
    require(not more, "features are set that no client sets", expected="0, or 8", got=hex(hello.features))
    visit.introduce()
    taking.take_upload(visit, trial.shelf, sample)
    trial.stored(sample)


@cases.table(
    "not-the-preface/{}",
    "HEL-004",
    {
        "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
        "last-byte-differs": wire.PREFACE[:-1] + b"\x0b" + wire.encode_frame(0, wire.Hello()),
        "line-ends-were-changed": wire.PREFACE.replace(b"\r\n", b"\n") + bytes(8),
        "tls-alert": b"\x15\x03\x03\0\x02\x02\x28\0",
    },
    why="A client that goes on speaks to somebody who does not understand it.",
)
def not_the_preface(trial: Trial, first: bytes) -> None:
    """The server's first bytes are not the preface: the client closes, and says no ERROR that nobody would understand."""
    sample = trial.sample(BLOCK_LENGTH + 5)
    trial.upload(sample)
    visit = trial.visit(welcome=False)
    visit.expect_greeting()
    visit.send(first)
    said = [heard for heard in visit.rest() if isinstance(heard.message, wire.Error)]
    require(not said, "the client says ERROR to what is not blockproto", got=", ".join(map(str, said)))
    trial.refused("NOT_BLOCKPROTO")


@cases.table(
    "first-frame/{}",
    "HEL-005",
    {
        "ping": forge.frame(0, wire.Ping(bytes(8), 0)),
        "unknown-type": forge.unknown_frame(27),
        "hello-on-a-stream": forge.rebuilt(forge.frame(0, wire.Hello()), stream=1),
    },
    why="Before HELLO nobody knows which limits hold.",
)
def first_frame(trial: Trial, first: bytes) -> None:
    """The first frame behind the preface is not HELLO."""
    trial.upload(trial.sample(BLOCK_LENGTH + 5))
    visit = trial.visit(welcome=False)
    visit.expect_greeting()
    visit.send(wire.PREFACE + first)
    visit.expect_refusal(Code.UNEXPECTED)
    trial.not_done()


@cases.add("second-hello", "HEL-005", why="Limits that change in the middle of a connection cannot be kept.")
def second_hello(trial: Trial) -> None:
    """HELLO comes twice."""
    visit, _ = trial.uploading()
    visit.send(forge.frame(0, wire.Hello()))
    visit.expect_refusal(Code.UNEXPECTED)
    trial.not_done()


def hello_bytes(**fields: int) -> bytes:
    """HELLO with fields that an honest one does not have."""
    raw = forge.frame(0, wire.Hello(agent="blockproto-conform"))
    sizes = {
        "version_lowest": 2,
        "version_highest": 2,
        "head_length_max": 2,
        "piece_length_max": 4,
        "streams_max": 4,
    }
    for name, value in fields.items():
        raw = forge.patched(raw, forge.offset_of(wire.Hello, name), value.to_bytes(sizes.get(name, 8), "big"))
    return raw


def greeted_with(trial: Trial, raw: bytes) -> Any:
    """A client that wants to upload is greeted with these bytes as HELLO."""
    trial.upload(trial.sample(BLOCK_LENGTH + 5))
    visit = trial.visit(welcome=False)
    visit.expect_greeting()
    visit.send(wire.PREFACE + raw)
    return visit


@cases.add(
    "version/none-in-common", "HEL-006", why="A client that goes on guesses what the server's messages mean."
)
def no_version(trial: Trial) -> None:
    """The server knows only versions 2 to 3."""
    visit = greeted_with(trial, hello_bytes(version_lowest=2, version_highest=3))
    visit.expect_refusal(Code.UNSUPPORTED_VERSION)
    trial.refused("UNSUPPORTED_VERSION")


@cases.add(
    "version/a-later-server-that-knows-1", "HEL-006", why="Otherwise no server could ever be updated first."
)
def later_server(trial: Trial) -> None:
    """The server knows versions 0 to 9: the version is 1."""
    sample = trial.sample(BLOCK_LENGTH + 5)
    trial.upload(sample)
    visit = trial.visit(hello=wire.Hello(0, 9))
    taking.take_upload(visit, trial.shelf, sample)
    trial.stored(sample)


@cases.add(
    "before-hello/only-version-1-within-the-early-limits",
    "HEL-007 HEL-010",
    why="What a client sends early must be right whatever the server's HELLO will say.",
)
def before_hello(trial: Trial) -> None:
    """The server's HELLO comes late: what the client says meanwhile keeps to the early limits, and to version 1."""
    sample = trial.sample(3 * BLOCK_LENGTH)
    trial.upload(sample)
    visit = trial.visit(welcome=False)
    visit.ours = EARLY
    visit.grants = False
    visit.expect_greeting()
    visit.put_back(visit.settled())
    visit.introduce(wire.Hello())
    visit.grants = True
    taking.take_upload(visit, trial.shelf, sample)
    trial.stored(sample)


@cases.add("version/lowest-above-highest", "HEL-008", why="Such a range has no version in it.")
def versions_reversed(trial: Trial) -> None:
    """version_lowest is greater than version_highest."""
    greeted_with(trial, hello_bytes(version_lowest=2, version_highest=1)).expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.table(
    "limit/{}",
    "HEL-009",
    {
        "head-length-below-4096": {"head_length_max": 4_095},
        "piece-length-below-65536": {"piece_length_max": 65_535},
        "piece-length-above-1048576": {"piece_length_max": BLOCK_LENGTH + 1},
        "streams-below-256": {"streams_max": 255},
        "connection-allowance-below-1048576": {"connection_allowance": (1 << 20) - 1},
        "stream-allowance-below-262144": {"stream_allowance": (1 << 18) - 1},
        "no-limit-by-zero": {"streams_max": 0},
    },
    why="Below the early limits, what was sent before HELLO would have been wrong afterwards.",
)
def limit(trial: Trial, fields: dict[str, int]) -> None:
    """A limit below the least, or a piece above the greatest."""
    greeted_with(trial, hello_bytes(**fields)).expect_refusal(Code.MALFORMED)
    trial.not_done()


@cases.add(
    "limits/the-least-there-are",
    "HEL-010 CRD-002 BLK-005",
    why="A client that only keeps to usual limits breaks small servers.",
)
def least_limits(trial: Trial) -> None:
    """Every limit of the server is the least: pieces, credit and streams keep to them in a whole upload."""
    sample = trial.sample(2 * BLOCK_LENGTH + 5)
    trial.upload(sample)
    visit = trial.visit(hello=EARLY)
    upload = taking.take_upload(visit, trial.shelf, sample)
    longest = max(len(heard.payload) for heard in upload.frames)
    require(longest <= wire.PIECE_LENGTH_EARLY, "a piece is longer than piece_length_max", got=str(longest))
    trial.stored(sample)


@cases.add(
    "limits/short-pieces-and-much-credit",
    "HEL-010",
    why="A client that looks at credit alone sends pieces that the server does not take.",
)
def short_pieces(trial: Trial) -> None:
    """piece_length_max is the least, and everything else says that the line is fast: no piece is longer."""
    sample = trial.sample(6 * BLOCK_LENGTH)
    trial.upload(sample)
    hello = wire.Hello(piece_length_max=wire.PIECE_LENGTH_EARLY, undurable_max=0)
    visit = trial.visit(hello=hello)
    upload = taking.open_upload(visit, trial.shelf, sample)
    for blockno in range(sample.blocknum):
        taking.take_blocks(visit, trial.shelf, upload, until=blockno + 1, acknowledge=False)
        visit.readable(FAST_S)
        visit.grant(0, visit.came() + hello.connection_allowance)
        visit.say(upload.stream, upload.acknowledged(blockno))
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(sample)


@cases.add(
    "limits/its-own-are-honoured",
    "HEL-010",
    why="What a client says it takes, a server will send.",
)
def own_limits(trial: Trial) -> None:
    """A download in pieces as long as the client's HELLO allows."""
    sample = trial.sample(2 * BLOCK_LENGTH + 5)
    trial.download(sample)
    giving.give_download(trial.visit(), trial.shelf, sample)
    trial.fetched(sample)


@cases.add(
    "features/unknown-bits-set",
    "HEL-012",
    why="A bit that means something to a later server must not disturb.",
)
def features(trial: Trial) -> None:
    """The server's features have bits that no profile has defined."""
    sample = trial.sample(BLOCK_LENGTH + 5)
    trial.upload(sample)
    visit = trial.visit(hello=wire.Hello(features=UNKNOWN_FEATURES))
    taking.take_upload(visit, trial.shelf, sample)
    trial.stored(sample)
