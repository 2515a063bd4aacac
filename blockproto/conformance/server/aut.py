"""AUT: who is asking. Needs tokens; what the server asks of those who have none, it says in HELLO."""

from __future__ import annotations

import base64
import secrets
from zlib import crc32

from ... import wire
from ...errors import Code, Scope
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..target import Trial
from ..verdicts import Unsupported, require

cases = Chapter("aut", Side.SERVER)
GREASE_TLV = 27
OF_NO_SCHEME = 0x7E


def unknown_token() -> str:
    """A token that is whole and that nobody has given out."""
    secret = secrets.token_bytes(32)
    checked = secret + crc32(secret).to_bytes(4, "big")
    return "bp1_" + base64.b32encode(checked).decode().rstrip("=").lower()


def features(peer: Peer) -> int:
    """What the server said of itself."""
    assert peer.hello is not None
    return peer.hello.features


def stranger(trial: Trial) -> Peer:
    """A connection on which nobody said who they are, to a server that answers nobody so."""
    peer = trial.dial()
    if not features(peer) & wire.FEATURE_AUTH_REQUIRED:
        raise Unsupported("the server also answers who does not say AUTH")
    return peer


def long_list(length: int = 5_000) -> bytes:
    """LIST with a head of more than the early 4,096 bytes."""
    raw = forge.frame(3, wire.List(wire.ListKind.FILES, limit=1))
    return forge.rebuilt(raw, tail=forge.tlv(GREASE_TLV, bytes(length)))


@cases.add(
    "features/as-it-behaves",
    "AUT-001 AUT-004",
    why="A client that trusts the bits either sends a token in vain or never gets in.",
)
def as_it_behaves(trial: Trial) -> None:
    """AUTH is among the features; LIST without AUTH is refused exactly if AUTH_REQUIRED is, too."""
    peer = trial.dial()
    require(bool(features(peer) & wire.FEATURE_AUTH), "HELLO does not say AUTH")
    peer.say(1, wire.List(wire.ListKind.FILES, limit=1))
    if features(peer) & wire.FEATURE_AUTH_REQUIRED:
        peer.expect_error(Code.UNAUTHENTICATED, stream=1)
    else:
        peer.expect(wire.Result, 1)


@cases.add(
    "auth/one-principal",
    "AUT-002 AUT-001",
    why="A client learns here who it is and when it has to come with something newer.",
)
def one_principal(trial: Trial) -> None:
    """AUTH is answered by one RESULT of kind 0 with one item, whose principal is not the anonymous one, and no cursor."""
    (player,) = trial.owners()
    peer = trial.dial()
    peer.say(1, wire.Auth(player.token, device=b"conformance-test"))
    result = peer.expect(wire.Result, 1, kind=wire.PRINCIPAL_KIND, cursor="")
    require(len(result.items) == 1, "there is not exactly one item")
    require(result.items[0].principal != wire.ZERO_ID, "the principal is the anonymous one")  # type: ignore[union-attr]
    peer.ping()


@cases.add(
    "order/nothing-waits",
    "AUT-003 AUT-002",
    why="A phone that has to wait for the answer to AUTH pays a round trip for every connection.",
)
def nothing_waits(trial: Trial) -> None:
    """Greeting, AUTH and a whole file in one segment: the file is stored."""
    (player,) = trial.owners()
    peer, sample = trial.dial(greet=False), trial.sample(100)
    raw = peer.frame(1, wire.Auth(player.token)) + peer.frame(3, sample.brief(), sample.content)
    peer.greet(behind=raw)
    peer.expect(wire.Result, 1, kind=wire.PRINCIPAL_KIND)
    moves.expect_committed(peer, sample, 3)


@cases.add(
    "order/behind-a-refused-one",
    "AUT-003 AUT-004",
    why="What was sent in somebody's name must not be done in nobody's.",
    layer=5,
)
def behind_a_refused_one(trial: Trial) -> None:
    """A token nobody knows and a file behind it: both are refused, and the file is nowhere."""
    peer, sample = stranger(trial), trial.sample(100)
    peer.send(peer.frame(1, wire.Auth(unknown_token())) + peer.frame(3, sample.brief(), sample.content))
    peer.expect_error(Code.UNAUTHENTICATED, stream=1)
    peer.expect_error(Code.UNAUTHENTICATED, stream=3)
    (player,) = trial.owners()
    require(moves.stat(trial.come_in(player), sample.filename, 3) is None, "the file is there")


REQUESTS = {
    "open": lambda sample: sample.open(),
    "block": lambda sample: sample.brief(),
    "fetch": lambda sample: wire.Fetch(sample.filename),
    "list-files": lambda sample: wire.List(wire.ListKind.FILES, limit=1),
    "list-uploads": lambda sample: wire.List(wire.ListKind.UPLOADS, limit=1),
    "list-receipts": lambda sample: wire.List(wire.ListKind.RECEIPTS, ids=(sample.sourceid,)),
    "remove": lambda sample: wire.Remove(wire.RemoveKind.FILE, filename=sample.filename),
}


@cases.table(
    "before/{}",
    "AUT-004",
    REQUESTS,
    why="One kind of request that is not guarded is the door.",
    layer=5,
)
def before(trial: Trial, request: object) -> None:
    """Each request before AUTH is refused; a file that is there is still there, one that is not is not made."""
    peer, sample = stranger(trial), trial.sample(100)
    (player,) = trial.owners()
    owner = trial.come_in(player)
    message = request(sample)  # type: ignore[operator]
    stores = isinstance(message, (wire.Open, wire.Block))
    if not stores:
        moves.brief(owner, sample, 3)
    peer.say(1, message, sample.content if isinstance(message, wire.Block) else b"")
    peer.expect_error(Code.UNAUTHENTICATED, stream=1)
    there = moves.stat(owner, sample.filename, 5) is not None
    require(there is not stores, "a request that was refused has been done")
    require(moves.unfinished(owner, sample.sourceid, 7) is None, "an upload that was refused is there")


@cases.add(
    "before/no-name-is-looked-at",
    "AUT-004",
    why="Who is told that a name is bad, or is not there, has been answered.",
    layer=5,
)
def no_name(trial: Trial) -> None:
    """A name that no server takes, and one that is not there, get the same words as any other."""
    peer = stranger(trial)
    texts = []
    for stream, name in ((1, "../up"), (3, trial.name()), (5, "a//b")):
        peer.say(stream, forge.unjudged(wire.Fetch("a"), filename=name))
        texts.append(peer.expect_error(Code.UNAUTHENTICATED, stream=stream).text)
    require(len(set(texts)) == 1, "the words differ")


@cases.add(
    "early/head",
    "AUT-005 FRM-006",
    why="A stranger's heads are memory that anybody may ask for.",
    layer=5,
)
def early_head(trial: Trial) -> None:
    """Before AUTH a head of 5,000 bytes is TOO_LARGE, whatever HELLO says; after it, it is what HELLO says."""
    peer = stranger(trial)
    assert peer.hello is not None
    most = peer.hello.head_length_max
    peer.opened(3)
    peer.send(long_list())
    peer.expect_refusal(Code.TOO_LARGE)
    (player,) = trial.owners()
    peer = trial.come_in(player)
    if most > len(long_list()):
        peer.opened(3)
        peer.send(long_list())
        peer.expect(wire.Result, 3)


REFUSED = {
    "unknown": lambda token: wire.Auth(unknown_token()),
    "damaged": lambda token: wire.Auth(token[:-2] + ("a" if token[-2] != "a" else "b") + token[-1]),
    "cut": lambda token: wire.Auth(token[:-1]),
    "empty": lambda token: wire.Auth(""),
    "long": lambda token: wire.Auth(token + "a" * 600),
    "of-no-scheme": lambda token: wire.Auth(token, scheme=OF_NO_SCHEME),
}


@cases.table(
    "refused/{}",
    "AUT-006 AUT-007",
    REFUSED,
    why="Words that differ tell who guesses how near they are.",
    layer=5,
)
def refused(trial: Trial, credential: object) -> None:
    """A credential that is no good is refused in the same words as one nobody knows; the right one is taken after it."""
    (player,) = trial.owners()
    peer = trial.dial()
    peer.say(1, wire.Auth(unknown_token()))
    words = peer.expect_error(Code.UNAUTHENTICATED, stream=1).text
    peer.say(3, credential(player.token))  # type: ignore[operator]
    peer.expect_error(Code.UNAUTHENTICATED, stream=3, text=words)
    peer.say(5, wire.Auth(player.token))
    peer.expect(wire.Result, 5, kind=wire.PRINCIPAL_KIND)


@cases.add(
    "refused/ended",
    "AUT-006",
    why="Whose token has ended needs another one, not another try.",
)
def ended(trial: Trial) -> None:
    """A token that was right and has ended is CREDENTIAL_EXPIRED. Of the tokens given, the first that is refused is that."""
    player = trial.target.cast.ended(trial.dial)
    peer = trial.dial()
    peer.say(1, wire.Auth(player.token))
    peer.expect_error(Code.CREDENTIAL_EXPIRED, stream=1)


@cases.add(
    "refused/changes-nothing",
    "AUT-007",
    why="A newer token that is wrong must not shut out who is in.",
)
def changes_nothing(trial: Trial) -> None:
    """Somebody who is in says a wrong token, and still is in."""
    (player,) = trial.owners()
    peer, sample = trial.come_in(player), trial.sample(100)
    peer.say(3, wire.Auth(unknown_token()))
    peer.expect_error(Code.UNAUTHENTICATED, stream=3)
    moves.brief(peer, sample, 5)


@cases.add(
    "refused/third",
    "AUT-007",
    why="Who may try for ever gets in at last.",
    layer=5,
)
def third(trial: Trial) -> None:
    """The third refused AUTH ends the connection; the first two do not."""
    peer = trial.dial()
    for stream in (1, 3):
        peer.say(stream, wire.Auth(unknown_token()))
        peer.expect_error(Code.UNAUTHENTICATED, stream=stream)
    peer.ping()
    peer.say(5, wire.Auth(unknown_token()))
    heard = peer.expect_heard(wire.Error)
    if heard.stream == 5:
        heard = peer.expect_heard(wire.Error)
    peer.judge_error(heard, Code.UNAUTHENTICATED, scope=Scope.CONNECTION)


@cases.add(
    "again/same-principal",
    "AUT-008 AUT-002",
    why="A token that ends is replaced on the connection, so that transfers go on.",
)
def same_principal(trial: Trial) -> None:
    """AUTH again, in the middle of an upload: it is answered, and the upload goes on."""
    (player,) = trial.owners()
    peer, sample = trial.come_in(player), trial.sample(3_000)
    moves.begin(peer, sample, 3)
    peer.say(5, wire.Auth(player.token))
    peer.expect(wire.Result, 5, kind=wire.PRINCIPAL_KIND)
    moves.send_blocks(peer, sample, 3)
    moves.commit(peer, sample, 3)


@cases.add(
    "again/another-principal",
    "AUT-008",
    why="A connection that changes hands mixes two people's files.",
    layer=5,
)
def another_principal(trial: Trial) -> None:
    """AUTH as somebody else is FORBIDDEN, and the connection speaks for the first as before."""
    one, other = trial.owners(2)
    peer, sample = trial.come_in(one), trial.sample(100)
    moves.brief(peer, sample, 3)
    peer.say(5, wire.Auth(other.token))
    peer.expect_error(Code.FORBIDDEN, stream=5)
    require(moves.stat(peer, sample.filename, 7) is not None, "the connection speaks for another one now")
