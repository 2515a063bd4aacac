"""AUT for clients: a token is said first, in time, and to nobody else. For clients with the profile IDENTITY."""

from __future__ import annotations

import base64
import os
import socket
from contextlib import suppress
from typing import Any
from zlib import crc32

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from ..case import Chapter, Side
from ..peer import Heard
from ..sample import Sample
from ..verdicts import Closed, Failed, Unsupported, require
from . import taking
from .guarding import said_in_the_open
from .hel import EARLY, UNKNOWN_FEATURES
from .tls import pinned
from .trial import Trial
from .visit import Visit

cases = Chapter("client/aut", Side.CLIENT)

PRINCIPAL = bytes(range(16))
REQUIRED = wire.FEATURE_AUTH | wire.FEATURE_AUTH_REQUIRED
ELSEWHERE = ("192.0.2.1", 9)
"""An address that nobody has (RFC 5737): by which of ours it would be reached can be asked without sending anything."""


def new_token() -> str:
    """A token that is whole (BP1-AUT-012), and that nobody has seen."""
    secret = os.urandom(32)
    text = base64.b32encode(secret + crc32(secret).to_bytes(4, "big")).decode()
    return f"bp1_{text.rstrip('=').lower()}"


def written(trial: Trial, token: str) -> str:
    """The file in which the client finds the token."""
    path = trial.folder / "token"
    path.write_text(token + "\n", encoding="utf-8")
    path.chmod(0o600)
    return str(path)


def comes_in(trial: Trial, sample: Sample, features: int = REQUIRED, **members: Any) -> tuple[Visit, str]:
    """A client with a token has the job to upload ``sample``, and was greeted; what it has said is still to be heard."""
    token = new_token()
    trial.upload(sample, token_file=written(trial, token), **members)
    return trial.visit(hello=wire.Hello(features=features, agent="blockproto-conform")), token


def heard_auth(visit: Visit, token: str) -> Heard:
    """AUTH, which must come before any request, with the token as it is."""
    heard = visit.hear("AUTH")
    if not isinstance(heard.message, wire.Auth):
        raise Failed("a request came before AUTH", expected="AUTH", got=str(heard), clause="BP1-TLS-010")
    visit.compare(heard, "BP1-AUT-012", scheme=wire.Scheme.TOKEN, credential=token)
    return heard


def admitted(**changes: Any) -> wire.Result:
    """The answer to AUTH."""
    fields = {
        "principal": PRINCIPAL,
        "expires_ms": None,
        "server_time_ms": taking.EXPIRES_MS,
        "quota": None,
        "used": None,
        "scopes": int(wire.Scopes.READ | wire.Scopes.WRITE),
        "name": "conform",
        **changes,
    }
    return wire.Result(wire.PRINCIPAL_KIND, (wire.PrincipalItem(**fields),))


@cases.table(
    "said/features-{}",
    "TLS-010 AUT-002",
    {
        "none": 0,
        "auth": wire.FEATURE_AUTH,
        "auth-required": REQUIRED,
        "nobody-knows": REQUIRED | UNKNOWN_FEATURES,
    },
    why="Without TLS somebody on the way can clear a bit, and the upload would be nobody's.",
    layer=5,
)
def said(trial: Trial, features: int) -> None:
    """Whatever HELLO says: AUTH comes first, on a stream of its own, and the upload is made behind it."""
    sample = trial.sample(BLOCK_LENGTH + 5)
    visit, token = comes_in(trial, sample, features)
    visit.say(heard_auth(visit, token).stream, admitted())
    taking.take_upload(visit, trial.shelf, sample)
    trial.stored(sample)
    trial.said_nowhere(token)


@cases.add(
    "said/inside-tls",
    "AUT-002 TLS-003",
    why="This is how nearly every client will come in.",
)
def said_inside_tls(trial: Trial) -> None:
    """TLS, AUTH and an upload."""
    credentials = pinned(trial)
    sample = trial.sample()
    visit, token = comes_in(trial, sample, pin=credentials.pin)
    visit.say(heard_auth(visit, token).stream, admitted())
    taking.take_upload(visit, trial.shelf, sample)
    trial.stored(sample)


@cases.add(
    "said/again-on-every-connection",
    "AUT-002 RES-011",
    why="A client that comes back and forgets who it is loses its upload to the anonymous one, or to nobody.",
    layer=2,
)
def said_again(trial: Trial) -> None:
    """The line breaks in an upload: the next connection begins with AUTH too, and the upload goes on."""
    sample = trial.sample(2 * BLOCK_LENGTH)
    visit, token = comes_in(trial, sample, tries=3)
    visit.say(heard_auth(visit, token).stream, admitted())
    upload = taking.open_upload(visit, trial.shelf, sample)
    taking.take_blocks(visit, trial.shelf, upload, until=1)
    visit.reset()
    visit = trial.visit(hello=wire.Hello(features=REQUIRED))
    visit.say(heard_auth(visit, token).stream, admitted())
    taking.take_upload(visit, trial.shelf, sample, 0)
    trial.stored(sample)


@cases.add(
    "limits/early-until-the-answer",
    "AUT-005",
    why="A server keeps little memory for strangers: what exceeds it ends the connection.",
)
def early_limits(trial: Trial) -> None:
    """The answer to AUTH comes late: until then pieces, credit and streams keep to the early limits, whatever HELLO says."""
    sample = trial.sample(3 * BLOCK_LENGTH)
    token = new_token()
    trial.upload(sample, token_file=written(trial, token))
    visit = trial.visit(hello=wire.Hello(features=REQUIRED))
    hello, visit.ours, visit.grants = visit.ours, EARLY, False
    auth = heard_auth(visit, token)
    upload = taking.open_upload(visit, trial.shelf, sample)
    visit.put_back(visit.settled(tells=True))
    visit.say(auth.stream, admitted())
    visit.ours, visit.grants = hello, True
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(sample)


@cases.table(
    "answer/{}",
    "AUT-002",
    {
        "unknown-scopes": {"scopes": 0xFFFF_FFFF},
        "nothing-is-known": {"name": "", "quota": 0, "used": 0},
        "a-clock-that-is-wrong": {"expires_ms": 2, "server_time_ms": 1},
    },
    why="The answer is for people: what the client does next does not hang on it.",
)
def answers(trial: Trial, changes: dict[str, Any]) -> None:
    """A principal item with odd values: the upload is made all the same."""
    sample = trial.sample()
    visit, token = comes_in(trial, sample)
    visit.say(heard_auth(visit, token).stream, admitted(**changes))
    taking.take_upload(visit, trial.shelf, sample)
    trial.stored(sample)


@cases.table(
    "refused/{}",
    "AUT-002 AUT-011",
    {"unknown": Code.UNAUTHENTICATED, "ended": Code.CREDENTIAL_EXPIRED},
    why="Who is told that the token has ended fetches a new one; who hears of a lost connection tries for ever.",
    layer=5,
)
def refused(trial: Trial, code: Code) -> None:
    """AUTH is refused: the job fails with that error, the same again does not help, and the token is in no text."""
    sample = trial.sample(BLOCK_LENGTH + 5)
    visit, token = comes_in(trial, sample)
    visit.say(heard_auth(visit, token).stream, wire.Error(code, Scope.STREAM, False, "no"))
    with suppress(Closed):
        while True:
            heard = visit.hear("a request, or the end")
            if isinstance(heard.message, wire.Open):
                visit.say(heard.stream, wire.Error(Code.UNAUTHENTICATED, Scope.STREAM, False, "no"))
    trial.refused(code.name)
    trial.said_nowhere(token)


@cases.add(
    "plaintext/never-to-another-machine",
    "TLS-006",
    why="A token that was read on the way is somebody else's token, too.",
    layer=5,
)
def never_in_the_open(trial: Trial) -> None:
    """Without TLS the token is said on loopback, and not to what can be another machine."""
    elsewhere, sample = address_of_ours(), trial.sample()
    visit, token = comes_in(trial, sample)
    visit.say(heard_auth(visit, token).stream, admitted())
    taking.take_upload(visit, trial.shelf, sample)
    trial.stored(sample)
    trial.move_to(elsewhere)
    trial.upload(trial.sample(), token_file=written(trial, token))
    for sock in trial.knocks(comes=False):
        require(
            token.encode() not in said_in_the_open(sock, trial.patience.answer_s),
            "the token was sent where everybody on the way can read it",
        )
    trial.not_done()
    trial.said_nowhere(token)


def address_of_ours() -> str:
    """An IPv4 address of this machine that is not loopback; Unsupported if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
        asking.connect(ELSEWHERE)
        found: str = asking.getsockname()[0]
        if not found.startswith("127."):
            return found
    raise Unsupported("this machine has no address but loopback")
