"""Who guards a client's connection: TLS that the harness answers, and connections on which the client may say nothing."""

from __future__ import annotations

import socket
import ssl

from ..tunnel import ALPN, plain_end
from ..verdicts import Closed, Failed, Hung

TLS_HANDSHAKE = b"\x16\x03"
"""How every TLS connection begins."""

_READ = 1 << 16


def answer_tls(sock: socket.socket, context: ssl.SSLContext, timeout_s: float) -> socket.socket:
    """Be the server of a handshake; a plain socket that leads into it.

    Raises:
        Closed: the client ends the handshake.
        Failed: it offers no ``blockproto/1``.
    """
    sock.settimeout(timeout_s)
    try:
        secure = context.wrap_socket(sock, server_side=True)
    except OSError as error:
        raise Closed("the client does not finish the TLS handshake", got=str(error)) from error
    if secure.selected_alpn_protocol() != ALPN:
        secure.close()
        raise Failed(f"the client does not offer {ALPN} by ALPN", clause="BP1-TLS-002")
    secure.settimeout(None)
    return plain_end(secure)


def said_inside(sock: socket.socket, context: ssl.SSLContext, timeout_s: float) -> bytes:
    """What the client says inside TLS at first; nothing, if it ends the handshake or the connection before.

    Raises:
        Hung: it does neither.
    """
    sock.settimeout(timeout_s)
    try:
        with context.wrap_socket(sock, server_side=True) as secure:
            return secure.recv(_READ)
    except TimeoutError:
        raise Hung("the client keeps a connection that it cannot trust") from None
    except OSError:
        return b""


def said_in_the_open(sock: socket.socket, timeout_s: float) -> bytes:
    """Everything that the client says on a connection until it ends it; the connection is closed then."""
    said = b""
    sock.settimeout(timeout_s)
    with sock:
        try:
            while more := sock.recv(_READ):
                said += more
        except OSError:
            pass  # it was reset, or nothing more comes: what was said is what counts
    return said
