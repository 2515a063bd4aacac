"""TLS for the harness: a handshake, and a plain socket that leads into it, so that peers need not know of it.

    peer ── plain socket ── one thread ── TLS ── server

The harness trusts any certificate, unless it is told a pin: it examines what the server says, not who it is.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading

from .ready import wait_for

ALPN = "blockproto/1"
_READ = 1 << 16


class PinDiffers(OSError):
    """The server has another certificate than the one that was named."""


def shake(
    sock: socket.socket,
    *,
    pin: bytes | None = None,
    protocols: tuple[str, ...] = (ALPN,),
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLSocket:
    """The handshake, with exactly this version; OSError if it fails.

    Args:
        sock: connected; owned from now on.
        pin: SHA-256 of the certificate, or None.
        protocols: what ALPN offers.
        version: of TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(list(protocols))
    try:
        secure = context.wrap_socket(sock, suppress_ragged_eofs=True)
    except OSError:
        sock.close()
        raise
    certificate = secure.getpeercert(binary_form=True) or b""
    if pin is not None and hashlib.sha256(certificate).digest() != pin:
        secure.close()
        raise PinDiffers(f"its certificate is {hashlib.sha256(certificate).hexdigest()}, not {pin.hex()}")
    return secure


def plain_end(secure: ssl.SSLSocket) -> socket.socket:
    """A plain socket: what is sent there goes through ``secure``, and back. Its close ends both, with close_notify."""
    ours, theirs = socket.socketpair()
    threading.Thread(target=_carry, args=(secure, theirs), daemon=True).start()
    return ours


def _carry(secure: ssl.SSLSocket, plain: socket.socket) -> None:
    """Carry bytes both ways until one side ends. One thread: a TLS connection bears no two."""
    with plain, secure:
        try:
            while True:
                heard = [secure] if secure.pending() else wait_for(read=(secure, plain))
                if plain in heard:
                    said = plain.recv(_READ)
                    if not said:
                        secure.setblocking(False)
                        secure.unwrap()
                        return
                    secure.sendall(said)
                if secure in heard:
                    secure.setblocking(False)
                    try:
                        answer = secure.recv(_READ)
                    except ssl.SSLWantReadError:
                        continue
                    finally:
                        secure.setblocking(True)
                    if not answer:
                        return
                    plain.sendall(answer)
        except OSError:
            return  # one of them is gone; the other one is closed, which its user sees
