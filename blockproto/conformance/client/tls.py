"""TLS for clients: whom they trust, and that nothing is said to anybody else. For clients with the profile IDENTITY."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from .. import forge
from ..case import Chapter, Side
from ..verdicts import Failed, require
from . import giving, taking
from .certificates import HOST, Credentials, make_authority, make_credentials
from .guarding import TLS_HANDSHAKE, said_inside
from .trial import Trial

cases = Chapter("client/tls", Side.CLIENT)


def pinned(trial: Trial) -> Credentials:
    """The trial's server speaks TLS with a certificate that it has signed itself."""
    credentials = make_credentials(trial.folder / "server.pem")
    trial.tls = credentials.context()
    return credentials


def trusts(trial: Trial, **members: str) -> None:
    """The client does a job with the server as it is: one that trusts nobody at all has proved nothing."""
    trial.start("list", folder="", **members)
    visit = trial.visit()
    require(trial.shelf.answer(visit, visit.hear("LIST")), "another request than LIST came")
    trial.done()


def says_nothing(trial: Trial, context: ssl.SSLContext, clause: str) -> None:
    """Whatever connections the client makes before it ends: nothing is said inside them, and the job has failed."""
    for sock in trial.knocks():
        said = said_inside(sock, context, trial.patience.answer_s)
        if said:
            raise Failed(
                "the client speaks to a server that it cannot trust", got=said[:16].hex(" "), clause=clause
            )
    trial.not_done()


# ---- a server that is the right one


@cases.add(
    "pin/upload-inside",
    "TLS-002 TLS-003",
    why="One rule of trust that works is worth more than ten that can be switched off.",
)
def upload_inside(trial: Trial) -> None:
    """The certificate is the pinned one: an upload inside TLS is as any other."""
    credentials = pinned(trial)
    sample = trial.sample(2 * BLOCK_LENGTH + 5)
    trial.upload(sample, pin=credentials.pin)
    taking.take_upload(trial.visit(), trial.shelf, sample)
    trial.stored(sample)


@cases.add(
    "authority/of-that-host",
    "TLS-003 TLS-002",
    why="A public server changes its certificate every few weeks, and nobody can pin it.",
)
def authority(trial: Trial) -> None:
    """An authority that the client was told to trust has signed the certificate for the server's name."""
    signer = make_authority(trial.folder / "authority.pem")
    trial.tls = make_credentials(trial.folder / "server.pem", signer).context()
    trial.host = HOST
    sample = trial.sample()
    trial.upload(sample, authorities=str(trial.folder / "authority.pem"))
    taking.take_upload(trial.visit(), trial.shelf, sample)
    trial.stored(sample)


@cases.add(
    "server-name/of-a-host",
    "TLS-002",
    why="One address may serve many names; who does not say which gets the certificate of another.",
)
def server_name(trial: Trial) -> None:
    """The server is named by a host name: it comes in the handshake (SNI)."""
    names: list[str | None] = []
    credentials = pinned(trial)
    assert trial.tls is not None
    trial.tls.sni_callback = lambda _, name, __: names.append(name)
    trial.host = HOST
    sample = trial.sample()
    trial.upload(sample, pin=credentials.pin)
    taking.take_upload(trial.visit(), trial.shelf, sample)
    trial.stored(sample)
    require(names == [HOST], "another server name than the host's", expected=HOST, got=str(names))


# ---- one that is not


@cases.add(
    "pin/another-certificate",
    "TLS-003",
    why="Who stands between shows a certificate of his own; a client that goes on gives him everything.",
    layer=5,
)
def another_certificate(trial: Trial) -> None:
    """The certificate is not the pinned one: nothing is said, and the job fails."""
    credentials = pinned(trial)
    trusts(trial, pin=credentials.pin)
    other = make_credentials(trial.folder / "other.pem").context()
    trial.upload(trial.sample(), pin=credentials.pin)
    says_nothing(trial, other, "BP1-TLS-003")


@cases.add(
    "pin/another-certificate-after-a-break",
    "TLS-003",
    why="An attacker need not be there from the beginning: he breaks the line and waits for who comes back.",
    layer=5,
)
def swapped_on_the_way(trial: Trial) -> None:
    """The line breaks in an upload, and the client comes back to another certificate."""
    credentials = pinned(trial)
    sample = trial.sample(3 * BLOCK_LENGTH)
    trial.upload(sample, pin=credentials.pin, tries=3)
    visit = trial.visit()
    upload = taking.open_upload(visit, trial.shelf, sample)
    taking.take_blocks(visit, trial.shelf, upload, until=1)
    trial.tls = make_credentials(trial.folder / "other.pem").context()
    visit.reset()
    says_nothing(trial, trial.tls, "BP1-TLS-003")


@cases.table(
    "authority/{}",
    "TLS-003",
    {
        "another-one": {"signed_by_another": True},
        "for-another-host": {"host": "elsewhere.invalid"},
        "ended-yesterday": {"ended": True},
    },
    why="A certificate that anybody can have made proves nothing.",
    layer=5,
)
def bad_chain(trial: Trial, wrong: dict[str, Any]) -> None:
    """The chain is not good, or not for this host, or not any more: nothing is said, and the job fails."""
    wrong = dict(wrong)
    authorities = str(trial.folder / "authority.pem")
    signer = make_authority(trial.folder / "authority.pem")
    trial.host = HOST
    trial.tls = make_credentials(trial.folder / "good.pem", signer).context()
    trusts(trial, authorities=authorities)
    if wrong.pop("signed_by_another", False):
        signer = make_authority(trial.folder / "another.pem")
    credentials = make_credentials(trial.folder / "server.pem", signer, **wrong)
    trial.upload(trial.sample(), authorities=authorities)
    says_nothing(trial, credentials.context(), "BP1-TLS-003")


@cases.add(
    "alpn/none-chosen",
    "TLS-002",
    why="The same certificate may stand before a web server, which makes something else of the same bytes.",
    layer=5,
)
def alpn_none(trial: Trial) -> None:
    """The server has the pinned certificate and chooses no application protocol."""
    credentials = pinned(trial)
    trusts(trial, pin=credentials.pin)
    trial.upload(trial.sample(), pin=credentials.pin)
    says_nothing(trial, credentials.context(protocols=("http/1.1",)), "BP1-TLS-002")


@cases.add(
    "handshake/version-1-2",
    "TLS-011",
    why="Old versions can be read by who has the key later, and their weaknesses are known.",
    layer=5,
)
def version_1_2(trial: Trial) -> None:
    """The server has the pinned certificate and speaks TLS 1.2 at most."""
    credentials = pinned(trial)
    trusts(trial, pin=credentials.pin)
    trial.upload(trial.sample(), pin=credentials.pin)
    says_nothing(trial, credentials.context(version=ssl.TLSVersion.TLSv1_2), "BP1-TLS-011")


@cases.table(
    "stripped/{}",
    "TLS-005",
    {
        "by-a-plain-greeting": wire.PREFACE + forge.frame(0, wire.Hello(agent="blockproto-conform")),
        "by-an-alert": b"\x15\x03\x03\0\x02\x02\x28",
        "by-http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
        "by-the-end": b"",
    },
    why="A client that then tries without TLS does what the one who stands between wants.",
    layer=5,
)
def stripped(trial: Trial, answer: bytes) -> None:
    """TLS is not answered: every connection that the client makes begins with TLS all the same, and the job fails."""
    credentials = pinned(trial)
    trusts(trial, pin=credentials.pin)
    trial.upload(trial.sample(), pin=credentials.pin)
    for sock in trial.knocks():
        with sock:
            sock.settimeout(trial.patience.answer_s)
            first = sock.recv(len(TLS_HANDSHAKE), socket.MSG_WAITALL)
            require(
                first == TLS_HANDSHAKE,
                "the client goes on without TLS",
                expected=TLS_HANDSHAKE.hex(" "),
                got=first.hex(" "),
            )
            sock.sendall(answer)
    trial.not_done()


# ---- the end


@cases.add(
    "end/close-notify-is-no-commit",
    "TLS-007 END-012",
    why="Who takes an orderly end for the end of the file keeps half of it as whole.",
    layer=2,
)
def close_notify(trial: Trial) -> None:
    """A download whose TLS connection ends in order before COMMIT is not there under its name; the next run completes it."""
    credentials = pinned(trial)
    sample = trial.sample(2 * BLOCK_LENGTH)
    trial.download(sample, pin=credentials.pin)
    visit = trial.visit()
    giving.send_block(visit, giving.open_download(visit, trial.shelf, sample), 0)
    visit.close()
    again = trial.visit()
    trial.absent(sample)
    giving.give_download(again, trial.shelf, sample)
    trial.fetched(sample)
