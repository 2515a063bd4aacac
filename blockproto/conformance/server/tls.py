"""TLS: what is inside is the same protocol. Only for servers that offer it (``--tls``)."""

from __future__ import annotations

import socket
import ssl

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from .. import moves
from ..case import Chapter, Side
from ..peer import Peer
from ..target import Trial
from ..tunnel import ALPN, plain_end, shake
from ..verdicts import Closed, Failed, Unsupported, require

cases = Chapter("tls", Side.SERVER)


def handshake(
    trial: Trial,
    protocols: tuple[str, ...] = (ALPN,),
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLSocket:
    """A TLS connection on which nothing was said; Unsupported if the server is said to offer none."""
    if not trial.target.tls:
        raise Unsupported("TLS was not asked for (--tls)")
    try:
        return shake(trial.target.reach(), pin=trial.target.pin, protocols=protocols, version=version)
    except OSError as error:
        raise Closed("the handshake fails", got=str(error)) from error


def inside(trial: Trial, secure: ssl.SSLSocket) -> Peer:
    """A greeted peer inside a TLS connection."""
    peer = trial.take(plain_end(secure))
    peer.greet()
    return peer


@cases.add(
    "handshake/same-port",
    "TLS-001 TLS-002",
    why="One port to open is one port to get right.",
)
def same_port(trial: Trial) -> None:
    """TLS 1.3 on the usual port; inside come preface, HELLO and the answer to PING."""
    secure = handshake(trial)
    require(secure.version() == "TLSv1.3", f"it is {secure.version()}")
    inside(trial, secure).ping()


@cases.add(
    "handshake/first-bytes-one-by-one",
    "TLS-001",
    why="The network cuts bytes as it likes, also the two by which TLS is known.",
)
def one_by_one(trial: Trial) -> None:
    """The ClientHello comes in single bytes at first: it is answered all the same."""
    handshake(trial).close()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = context.wrap_bio(incoming, outgoing)
    with trial.target.reach() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                secure.do_handshake()
                return
            except ssl.SSLWantReadError:
                raw = outgoing.read()
            for at in range(min(8, len(raw))):
                sock.sendall(raw[at : at + 1])
            sock.sendall(raw[8:])
            said = sock.recv(1 << 16)
            if not said:
                raise Closed("the handshake does not go on")
            incoming.write(said)


@cases.add(
    "handshake/version-1-2",
    "TLS-001",
    why="A version with known weaknesses is chosen by who can choose it.",
    layer=5,
)
def version_1_2(trial: Trial) -> None:
    """A client that speaks TLS 1.2 at most gets no connection."""
    handshake(trial).close()
    try:
        secure = handshake(trial, version=ssl.TLSVersion.TLSv1_2)
    except Closed:
        return
    secure.close()
    raise Failed("TLS 1.2 was spoken", clause="BP1-TLS-001")


@cases.table(
    "alpn/{}",
    "TLS-002",
    {"alone": (ALPN,), "among-others": ("h2", "http/1.1", ALPN)},
    why="A client goes on only if its protocol was chosen.",
)
def alpn(trial: Trial, protocols: tuple[str, ...]) -> None:
    """``blockproto/1`` is chosen wherever it is offered."""
    with handshake(trial, protocols) as secure:
        chosen = secure.selected_alpn_protocol()
        require(chosen == ALPN, f"{chosen or 'no protocol'} was chosen")


@cases.add(
    "end/close-notify-is-no-commit",
    "TLS-007 END-012",
    why="Who takes an orderly end for the end of the file stores half of it as whole.",
    layer=2,
)
def close_notify(trial: Trial) -> None:
    """An upload whose TLS connection ends in order before COMMIT is not there, and can be resumed."""
    sample = trial.sample(2 * BLOCK_LENGTH)
    handshake(trial).close()
    peer = trial.comes_in()
    moves.begin_one(peer, sample, 3)
    peer.close()
    again = trial.comes_in()
    require(moves.stat(again, sample.filename, 5) is None, "half a file is there under its name")
    opened = moves.begin(again, sample.with_(attempt=sample.attempt + 1), 7)
    require((0, 1) in opened.held, "what was acknowledged is not held")
    moves.send_block(again, sample.with_(attempt=sample.attempt + 1), 1, 7)
    moves.commit(again, sample, 7)


@cases.add(
    "plaintext/refused-after-hello",
    "TLS-009",
    why="A client that is told why it may not come in asks its user; one that is cut off tries for ever.",
    layer=5,
)
def plaintext(trial: Trial) -> None:
    """Without TLS, a server that wants it says HELLO, then UNAUTHENTICATED (connection); PING may be answered before."""
    if not trial.target.tls:
        raise Unsupported("TLS was not asked for (--tls)")
    peer = trial.take(trial.target.reach())
    peer.greet()
    for _ in range(3):
        peer.say(0, wire.Ping(b"conform!", 0))
        heard = peer.hear("ERROR UNAUTHENTICATED (connection)")
        if not isinstance(heard.message, wire.Ping):
            peer.judge_error(heard, Code.UNAUTHENTICATED, scope=Scope.CONNECTION)
            return
    raise Unsupported("the server takes this machine without TLS")
