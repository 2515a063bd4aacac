"""ERR: errors. Their scopes, and what their receiver does."""

from __future__ import annotations

from ... import wire
from ...errors import ERRORS, Code, Scope
from .. import moves
from ..case import Chapter, Side
from ..peer import Peer
from ..target import Trial
from ..verdicts import require
from .blk import TWO_AND_A_BIT, begun
from .crd import stingy, stored

cases = Chapter("err", Side.SERVER)


@cases.add(
    "table/scope-and-retryable-of-the-row",
    "ERR-001",
    why="A client decides by scope and retryable whether to try again; the code is for people.",
)
def rows(trial: Trial) -> None:
    """Refusals of several codes have scope and retryable of their rows."""
    peer, sample = begun(trial)
    peer.say(3, wire.Fetch("no such file of conform"))
    peer.say(5, sample.open(filename="a//b"))
    peer.say(7, sample.with_(attempt=1).open())
    peer.say(9, wire.Remove(wire.RemoveKind.UPLOAD, trial.sourceid()))
    moves.send_block(peer, sample, 2, damaged=True)
    for stream, code in (
        (3, Code.UNKNOWN_FILE),
        (5, Code.NAME_REFUSED),
        (7, Code.SUPERSEDED),
        (9, Code.UNKNOWN_UPLOAD),
        (1, Code.DIGEST_MISMATCH),
    ):
        row = ERRORS[code]
        peer.expect_error(code, stream=stream, scope=row.scope, retryable=row.retryable)


@cases.table(
    "unknown-code/scope-{}",
    "ERR-004 ERR-002",
    {"block": Scope.BLOCK, "stream": Scope.STREAM},
    why="A later version has more codes; what to do is in the scope.",
)
def unknown_code(trial: Trial, scope: Scope) -> None:
    """ERROR with a code that nobody knows, from a fetcher: by its scope the transfer goes on, or its stream ends."""
    sample = stored(trial, 700_000)
    peer = stingy(trial)
    peer.say(1, wire.Fetch(sample.filename))
    while not peer.came(1):
        peer.expect_any(1)
    peer.say(1, wire.Error(9_999, int(scope), True, "from the future", blockno=0))
    peer.ping(among=(wire.Block, wire.Piece))
    if scope is Scope.BLOCK:
        peer.grant(0, 4_000_000)
        peer.grant(1, 4_000_000)
        while not isinstance(peer.expect_any(1).message, wire.Commit):
            pass
    moves.brief(peer, trial.sample(10), 3)


@cases.add(
    "unknown-code/scope-connection",
    "ERR-004 END-011",
    why="Whatever the code, scope connection is the end.",
)
def unknown_code_connection(trial: Trial) -> None:
    """ERROR of scope connection with an unknown code: the server says nothing more and closes."""
    peer = trial.dial()
    peer.say(0, wire.Error(9_999, int(Scope.CONNECTION), False, "from the future"))
    closed_without_a_word(peer)


def closed_without_a_word(peer: Peer) -> None:
    """The connection ends, and no frame comes any more."""
    came = peer.expect_closed()
    require(not came, "a frame came after an ERROR that ended the connection", got=str(came[:1]))


@cases.add(
    "text/decides-nothing",
    "ERR-003 ERR-002",
    why="Text is for people; a program that reads it breaks with the next wording, or obeys an attacker.",
)
def text(trial: Trial) -> None:
    """ERROR with a text of 1,024 bytes full of control characters ends its stream, and nothing else."""
    peer, _ = begun(trial)
    peer.say(1, wire.Error(31, int(Scope.STREAM), True, "\x1b[2J\x07\r\n\0" * 128))
    peer.ping()


@cases.add(
    "block/about-a-block-that-is-not-there",
    "ERR-005 ERR-002",
    why="A fetcher may be wrong about a blockno; it must not be able to make the server read outside of the file.",
    layer=5,
)
def strange_block(trial: Trial) -> None:
    """DIGEST_MISMATCH about block 4,000,000,000 of a small file: any refusal, or nothing; the server lives."""
    sample = stored(trial, 700_000)
    peer = stingy(trial)
    peer.say(1, wire.Fetch(sample.filename))
    peer.expect(wire.Open, 1)
    peer.say(1, wire.Error(int(Code.DIGEST_MISMATCH), int(Scope.BLOCK), True, blockno=4_000_000_000))
    require(trial.target.answers(), "the server does not answer others after a strange blockno")


@cases.add(
    "name/says-which-rule",
    "ERR-007",
    why="A person must see what is wrong with the name, and a terminal must not obey it.",
)
def says_which_rule(trial: Trial) -> None:
    """The text of NAME_REFUSED names the rule and the profile, with what a terminal obeys escaped."""
    peer, sample = trial.dial(), trial.sample()
    for stream, (name, rule) in ((1, ("a/../b", "dot-component")), (3, ("\x1b[31mred", "control-character"))):
        peer.say(stream, sample.open(filename=name))
        error = peer.expect_error(Code.NAME_REFUSED, stream=stream)
        require(
            f"(rule {rule}, profile wire)" in error.text, "the text does not name the rule", got=error.text
        )
        require(error.text.isprintable(), "the text has characters that a terminal obeys", got=error.text)


@cases.add(
    "current/the-upload-s-attempt",
    "ERR-009 RES-006",
    why="A person who takes an upload back needs a greater number than that one.",
)
def current(trial: Trial) -> None:
    """SUPERSEDED carries the attempt that owns the upload; other refusals carry none or anything."""
    peer, sample = begun(trial, TWO_AND_A_BIT, attempt=2**40)
    peer.say(3, sample.with_(attempt=5).open())
    peer.expect_error(Code.SUPERSEDED, stream=3, current=2**40)
