"""HEL: preface and HELLO."""

from __future__ import annotations

import time
from typing import Any

from ... import wire
from ...errors import Code
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..target import Trial
from ..verdicts import Closed, Failed, Hung, require

cases = Chapter("hel", Side.SERVER)
GREETING_S = 10.0
"""How long a side may take for preface and HELLO (BP1-HEL-014)."""


# ---- the preface


@cases.add(
    "preface/one-byte-at-a-time",
    "HEL-002",
    why="TCP keeps no borders: a server that reads the preface in one piece works on loopback only.",
)
def one_byte_at_a_time(trial: Trial) -> None:
    """Preface and HELLO come in segments of one byte."""
    peer = trial.dial(greet=False)
    for byte in wire.PREFACE + forge.frame(0, peer.ours):
        peer.send(bytes([byte]))
    peer.expect_greeting()
    peer.ping()


@cases.add(
    "preface/answered-before-hello",
    "HEL-002",
    why="A server that waits for the client's HELLO makes two careful sides wait for each other.",
)
def answered_before_hello(trial: Trial) -> None:
    """The preface alone is answered by preface and HELLO."""
    peer = trial.dial(greet=False)
    peer.send(wire.PREFACE)
    peer.expect_greeting()
    peer.send(forge.frame(0, peer.ours))
    peer.ping()


@cases.add(
    "preface/nothing-before-it-is-whole",
    "HEL-002 HEL-003",
    why="A server that greets whoever connects talks to port scanners, and to protocols that read its bytes as theirs.",
)
def nothing_before_it_is_whole(trial: Trial) -> None:
    """Seven bytes of the preface and a wrong one: the connection is closed, and no preface had come."""
    closed_without_greeting(trial, wire.PREFACE[:7] + b"\r")


@cases.table(
    "preface/not-{}",
    "HEL-003",
    {
        "ours-but-http": b"GET / HTTP/1.1\r\nHost: conform\r\n\r\n",
        "ours-but-ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
        "ours-but-text-mode": b"\xffBKP\n\x1a\n\0",
        "ours-but-seven-bits": b"\x7fBKP\r\n\x1a\n",
        "ours-but-utf-8": "ÿBKP\r\n\x1a\n".encode(),
        "ours-but-zeros": bytes(16),
        "ours-but-a-frame": forge.frame(0, wire.Hello(agent="no preface")),
    },
    why="Who is there does not speak blockproto and would take frames for its own; a line of text is all it may get.",
)
def not_the_preface(trial: Trial, raw: bytes) -> None:
    """Other first bytes: the server closes, without preface or frame."""
    closed_without_greeting(trial, raw)


@cases.add(
    "preface/not-ours-but-tls",
    "HEL-003",
    why="A TLS client that meets blockproto must not wait until its user gives up.",
    slow=True,
)
def not_ours_but_tls(trial: Trial) -> None:
    """A TLS record that says nothing useful; a server that speaks TLS on this port closes it too, in its own time."""
    closed_without_greeting(trial, b"\x16\x03\x01\0\5\1\0\0\1\0", GREETING_S)


def closed_without_greeting(trial: Trial, raw: bytes, more_s: float = 0.0) -> None:
    """Send first bytes that are not the preface; only a few words may come before the end."""
    peer = trial.dial(greet=False)
    peer.send(raw)
    try:
        came = peer.raw(1, "the end of the connection", time.monotonic() + more_s + trial.patience.answer_s)
    except Closed:
        return
    peer.give_up()  # it may read on for a little, so that its line of text arrives
    came += everything(peer)
    require(
        not came.startswith(wire.PREFACE[:1]),
        "a greeting came where there was no preface",
        got=came[:40].hex(" "),
    )
    require(not raw.startswith(came), "the bytes come back that were sent", got=came[:40].hex(" "))
    require(len(came) <= 1_000, "more than a line came where there was no preface", got=f"{len(came)} bytes")


def everything(peer: Peer, more_s: float = 0.0) -> bytes:
    """All bytes up to the end of the connection, which must come."""
    came = b""
    deadline = time.monotonic() + more_s + peer.patience.answer_s
    while True:
        try:
            came += peer.raw(1, "the end of the connection", deadline)
        except Hung:
            raise
        except Closed:
            return came


# ---- the first frame


@cases.table(
    "first-frame/{}",
    "HEL-005",
    {
        "ping": forge.frame(0, wire.Ping(bytes(8), 0)),
        "unknown-type": forge.unknown_frame(27, head=b"grease"),
        "unknown-must-understand-type": forge.unknown_frame(0xFE),
        "open": forge.frame(1, wire.Open(b"\1" * 16, 1, 0, 0, "conform", "")),
        "hello-on-a-stream": forge.frame(1, wire.Hello()),
        "goaway": forge.frame(0, wire.GoAway(34, 2_000, 0)),
    },
    why="A server that takes messages before HELLO does not know the limits of who speaks.",
)
def another_first_frame(trial: Trial, raw: bytes) -> None:
    """Another frame instead of HELLO; the server's own HELLO still comes before its ERROR."""
    peer = trial.dial(greet=False)
    peer.opened(1)
    peer.send(wire.PREFACE + raw)
    peer.expect_greeting()
    peer.expect_refusal(Code.UNEXPECTED)


@cases.table(
    "hello/twice-{}",
    "HEL-005",
    {"at-once": False, "after-a-ping": True},
    why="Limits that change in the middle of a connection are limits that nobody kept.",
)
def hello_twice(trial: Trial, later: bool) -> None:
    """A second HELLO."""
    peer = trial.dial(greet=False)
    if later:
        peer.greet()
        peer.ping()
        peer.send(forge.frame(0, wire.Hello()))
    else:
        peer.greet(behind=forge.frame(0, wire.Hello()))
    peer.expect_refusal(Code.UNEXPECTED)


@cases.add(
    "hello/what-a-server-says",
    "HEL-009 HEL-012",
    why="A HELLO below the least values is refused by every client that follows the spec.",
)
def what_a_server_says(trial: Trial) -> None:
    """The server's own HELLO keeps to the table: versions, least limits."""
    hello = trial.dial().hello
    assert hello is not None
    require(
        hello.version_lowest <= 1 <= hello.version_highest,
        "the server's HELLO does not name version 1",
        got=str(hello),
    )
    least = {
        "head_length_max": 4_096,
        "piece_length_max": 65_536,
        "streams_max": 256,
        "connection_allowance": 1 << 20,
        "stream_allowance": 1 << 18,
    }
    for name, value in least.items():
        require(
            getattr(hello, name) >= value, f"the server's {name} is below the least value", got=str(hello)
        )
    require(
        hello.piece_length_max <= 1 << 20, "the server's piece_length_max is above a block", got=str(hello)
    )


@cases.table(
    "version/{}",
    "HEL-006",
    {"1-to-65535": (1, 65_535), "0-to-1": (0, 1), "0-to-9": (0, 9)},
    why="A server that compares versions for equality refuses every client that is newer than itself.",
)
def common_version(trial: Trial, versions: tuple[int, int]) -> None:
    """Version 1 lies between the client's."""
    peer = trial.dial(greet=False)
    peer.greet(forge.unjudged(wire.Hello(), version_lowest=versions[0], version_highest=versions[1]))
    peer.ping()


@cases.table(
    "version/{}",
    "HEL-006",
    {"2-to-3": (2, 3), "0-only": (0, 0), "65535-only": (65_535, 65_535)},
    why="Without a common version every later byte is guesswork; the server's HELLO lets the client say what would do.",
)
def no_common_version(trial: Trial, versions: tuple[int, int]) -> None:
    """There is no version in common: refused, after the server's own HELLO."""
    peer = trial.dial(greet=False)
    peer.greet(forge.unjudged(wire.Hello(), version_lowest=versions[0], version_highest=versions[1]))
    peer.expect_refusal(Code.UNSUPPORTED_VERSION)


@cases.table(
    "hello/{}",
    "HEL-009",
    {
        "head-length-max-4095": {"head_length_max": 4_095},
        "piece-length-max-65535": {"piece_length_max": 65_535},
        "piece-length-max-over-a-block": {"piece_length_max": (1 << 20) + 1},
        "streams-max-255": {"streams_max": 255},
        "connection-allowance-too-low": {"connection_allowance": (1 << 20) - 1},
        "stream-allowance-too-low": {"stream_allowance": (1 << 18) - 1},
        "streams-max-0": {"streams_max": 0},
    },
    why="A limit of zero is a connection on which nothing can be said and both sides wait.",
)
def limits_out_of_range(trial: Trial, changes: dict[str, int]) -> None:
    """A HELLO with a value that the table does not allow."""
    greeted_and_refused(trial, forge.unjudged(wire.Hello(), **changes))


@cases.add(
    "hello/versions-swapped",
    "HEL-008",
    why="A range that ends before it begins holds no version.",
)
def versions_swapped(trial: Trial) -> None:
    """version_lowest is greater than version_highest."""
    greeted_and_refused(trial, forge.unjudged(wire.Hello(), version_lowest=2, version_highest=1))


def greeted_and_refused(trial: Trial, hello: wire.Hello) -> None:
    """A HELLO that is MALFORMED."""
    peer = trial.dial(greet=False)
    peer.greet(hello)
    peer.expect_refusal(Code.MALFORMED)


@cases.table(
    "hello/{}",
    "HEL-012 HEL-010",
    {
        "unknown-features": wire.Hello(features=0x7FFF_FFFF_FFFF_FFFF),
        "least-values": wire.Hello(
            head_length_max=4_096,
            piece_length_max=65_536,
            streams_max=256,
            connection_allowance=1 << 20,
            stream_allowance=1 << 18,
            undurable_max=1,
        ),
        "greatest-values": wire.Hello(
            streams_max=0xFFFF_FFFF,
            connection_allowance=2**63 - 1,
            stream_allowance=2**63 - 1,
            undurable_max=2**63 - 1,
        ),
        "no-agent": wire.Hello(agent=""),
        "long-agent": wire.Hello(agent="x" * 255),
    },
    why="What this version gives no meaning to must not stop it from talking to a later one.",
)
def legal_hello(trial: Trial, hello: wire.Hello) -> None:
    """A HELLO that is legal and unusual: an upload and a download of two blocks work."""
    peer, sample = trial.dial(hello=hello), trial.sample(1_200_000)
    moves.upload(peer, sample)
    moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)


# ---- what is said right behind HELLO


@cases.add(
    "pipelining/a-file-in-the-first-segment",
    "HEL-013 BLK-014",
    why="One round trip for a small file is what makes many of them quick.",
)
def a_file_in_the_first_segment(trial: Trial) -> None:
    """Preface, HELLO and a brief file at once."""
    peer, sample = trial.dial(greet=False), trial.sample(60_000)
    peer.greet(behind=peer.frame(1, sample.brief(), sample.content))
    moves.expect_committed(peer, sample)


@cases.add(
    "pipelining/dropped-behind-a-refused-hello",
    "HEL-013 HEL-006",
    why="What a client says in a version that was refused may mean something else there.",
)
def dropped_behind_a_refused_hello(trial: Trial) -> None:
    """A brief file behind a HELLO that is refused is not stored."""
    peer, sample = trial.dial(greet=False), trial.sample(100)
    behind = peer.frame(1, sample.brief(), sample.content)
    peer.greet(forge.unjudged(wire.Hello(), version_lowest=7, version_highest=9), behind)
    peer.expect_refusal(Code.UNSUPPORTED_VERSION)
    moves.require_absent(trial, sample.filename, "what followed a refused HELLO was acted upon")


# ---- in what time


def _trickle(peer: Peer, raw: bytes, until: float) -> None:
    """Send a byte every second, until the other side has had enough or time is up."""
    for byte in raw:
        peer.send(bytes([byte]))
        try:
            peer.raw(1_000, "the end", time.monotonic() + 1.0)
        except Hung:
            pass
        except Closed:
            return
        if time.monotonic() > until:
            raise Failed("a greeting that trickles keeps the connection open beyond 10 seconds")


@cases.table(
    "deadline/{}",
    "HEL-014",
    {
        "silence": (b"", False),
        "preface-and-silence": (wire.PREFACE, False),
        "half-a-hello": (wire.PREFACE + forge.frame(0, wire.Hello())[:40], False),
        "a-byte-a-second": (wire.PREFACE + forge.frame(0, wire.Hello()), True),
    },
    why="Connections that never greet are the cheapest way to fill a server.",
    layer=5,
    slow=True,
)
def deadline(trial: Trial, what: tuple[bytes, Any]) -> None:
    """Who has not greeted after 10 seconds is sent away, whatever trickles in."""
    raw, trickles = what
    peer = trial.dial(greet=False)
    began = time.monotonic()
    if trickles:
        _trickle(peer, raw, began + GREETING_S + trial.patience.answer_s)
    else:
        if raw:
            peer.send(raw)
        everything(peer, GREETING_S)
    elapsed_s = time.monotonic() - began
    require(
        elapsed_s > GREETING_S * 0.8,
        "the connection is ended long before 10 seconds",
        got=f"{elapsed_s:.1f} s",
    )
