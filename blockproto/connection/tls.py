"""TLS over an endpoint, for both sides: the handshake with its deadline, the judgement of the certificate, and an endpoint.

The standard library's TLS works on memory; here the bytes go between that memory and the connection, many records at a time:
a pass through the scheduler for each record of 16 KiB would cost more than its encryption.

Received bytes are read into the caller's own memory and decrypted there. That is safe because plain text is never longer
than its encryption: it ends before the bytes that TLS has not been handed yet.

    0 ≤ filled ≤ handed ≤ came ≤ len(view):  plain text | free | not handed yet | free

So a connection keeps no buffer for reading, busy or idle.

The end of the TLS connection means no more than the end of a TCP connection (BP1-TLS-007), so close_notify is neither sent
nor waited for. Reading never writes: what TLS wants to say of itself (a new key) goes with the next bytes that are sent.

Spec: BP1-TLS.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Sequence

import trio

from ..errors import Code, ConnectionLost
from .endpoint import Deadline, Endpoint, Part, never

RECORD_LENGTH_MAX = 5 + (1 << 14) + 256
"""Bytes of the longest record: its header, the plain text, and what encryption adds (RFC 8446, 5.2)."""
_HANDSHAKE_LENGTH = 1024
_READ_LEAST = 512
_HAND_OVER_MOST = 64 * 1024
_WRITE_MOST = 128 * 1024

Trust = Callable[[bytes], None]
"""Judges the peer's certificate (DER) and raises if it is not the one."""


class TlsEndpoint:
    """The plain-text side of a TLS connection.

    Args:
        outer: the connection; owned from now on.
        context: certificates, keys and versions.
        server_side: whether this side is the server.
        server_hostname: the name that the client uses for the server.
        first: bytes of the connection that were read already.
    """

    def __init__(
        self,
        outer: Endpoint,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        first: bytes = b"",
    ) -> None:
        self.peer = outer.peer
        self.host = outer.host
        self._outer = outer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._incoming.write(first)
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )

    async def shake_hands(self) -> None:
        """Do the handshake.

        Raises:
            ConnectionLost: it failed; not retryable if the certificate is not trusted, or if the server does not answer in
                TLS.

        Cancellation: the caller has to close the connection.
        """
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
            except ssl.SSLError as exc:
                with contextlib.suppress(ConnectionLost):
                    await self._flush()  # the alert that says why
                raise self._failure(exc) from exc
            else:
                await self._flush()
                return
            view = memoryview(bytearray(_HANDSHAKE_LENGTH))
            came = await self._outer.receive_into(view)
            if not came:
                raise ConnectionLost(f"the TLS handshake with {self.peer} failed: it closed the connection")
            self._incoming.write(view[:came])

    def _failure(self, error: ssl.SSLError) -> ConnectionLost:
        """The error to raise for a failed handshake."""
        if isinstance(error, ssl.SSLCertVerificationError):
            advice = _CERTIFICATE_ADVICE.get(error.verify_code, "")
            return ConnectionLost(
                f"the TLS handshake with {self.peer} failed: its certificate is not trusted: {error.verify_message}{advice}",
                code=Code.UNAUTHENTICATED,
                retryable=False,
            )
        if error.reason in _NO_TLS and not self.tls.server_side:
            return ConnectionLost(
                f"the TLS handshake with {self.peer} failed: it answers, but not in TLS: use bp:// instead of bps:// "
                "if it is a server without TLS",
                code=Code.NOT_BLOCKPROTO,
                retryable=False,
            )
        return ConnectionLost(f"the TLS handshake with {self.peer} failed{_why(error)}")

    async def receive_into(self, view: memoryview, deadline: Deadline = never) -> int | None:
        """See Endpoint."""
        # Leave room for a record of which a part came before, so that the plain text of all that comes fits.
        space = view[: max(_READ_LEAST, len(view) - RECORD_LENGTH_MAX)]
        received = self._decrypt(view)
        while received is None:
            came = await self._outer.receive_into(space, deadline)
            if not came:
                return came
            received = self._decrypt_in_place(view, came)
        return received

    def _decrypt_in_place(self, view: memoryview, came: int) -> int | None:
        """Decrypt the first ``came`` bytes of ``view`` into its beginning; returns as ``_decrypt``."""
        filled = 0
        for begin in range(0, came, _HAND_OVER_MOST):
            handed = min(begin + _HAND_OVER_MOST, came)
            self._incoming.write(view[begin:handed])
            received = self._decrypt(view[filled : handed if handed < came else len(view)])
            if received == 0:
                return filled
            filled += received or 0
        return filled or None

    def _decrypt(self, view: memoryview) -> int | None:
        """Decrypt all complete records into ``view``; returns how many bytes, 0 at the end of TLS, None if there is none."""
        filled, space, read = 0, len(view), self.tls.read
        try:
            while filled < space:
                count: int = read(space - filled, view[filled:])  # type: ignore[assignment]
                if not count:
                    break
                filled += count
        except ssl.SSLWantReadError:
            return filled or None
        except ssl.SSLError as exc:
            raise ConnectionLost(f"the connection to {self.peer} broke{_why(exc)}") from exc
        return filled

    async def send(self, parts: Sequence[Part]) -> None:
        """See Endpoint."""
        for part in parts:
            rest = memoryview(part)
            while rest:
                try:
                    rest = rest[self.tls.write(rest[:_WRITE_MOST]) :]
                except ssl.SSLError as exc:
                    raise ConnectionLost(f"the connection to {self.peer} broke{_why(exc)}") from exc
                if self._outgoing.pending >= _WRITE_MOST:
                    await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._outer.send([self._outgoing.read()])

    def limit_unsent(self, limited: bool) -> None:
        """See Endpoint."""
        self._outer.limit_unsent(limited)

    async def end_sending(self) -> None:
        """See Endpoint; TLS has no usable half-close, so nothing happens."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See Endpoint: at once, without close_notify (BP1-TLS-007)."""
        await self._outer.aclose()


async def answer_tls(endpoint: Endpoint, first: bytes, context: ssl.SSLContext, until: float) -> Endpoint:
    """Do a TLS handshake as the server.

    Args:
        endpoint: the connection; owned from now on.
        first: bytes of it that were read already.
        context: certificate and key.
        until: the Trio time at which the handshake must have ended.

    Raises:
        ConnectionLost: it failed or took too long; the connection is closed.

    Cancellation: the connection is closed.
    """
    inside = TlsEndpoint(endpoint, context, server_side=True, first=first)
    await _shake_hands(inside, until)
    return inside


async def begin_tls(
    endpoint: Endpoint, context: ssl.SSLContext, host: str, trust: Trust | None, alpn: str, until: float
) -> Endpoint:
    """Do a TLS handshake as the client.

    Args:
        endpoint: the connection; owned from now on.
        context: judges the certificate, if ``trust`` is None.
        until: the Trio time at which the handshake must have ended.
        host: the name to send and, unless ``trust`` judges, to check the certificate against.
        trust: judges the certificate before anything but the handshake is sent, or None.
        alpn: the protocol that the server must have chosen.

    Raises:
        ConnectionLost: it failed, took too long, or the server chose another protocol; the connection is closed.
        Exception: as ``trust`` raises it; the connection is closed.

    Cancellation: the connection is closed.
    """
    inside = TlsEndpoint(endpoint, context, server_hostname=host)
    await _shake_hands(inside, until)
    try:
        if trust is not None:
            trust(inside.tls.getpeercert(binary_form=True) or b"")
        if inside.tls.selected_alpn_protocol() != alpn:
            raise ConnectionLost(f"{endpoint.peer} speaks TLS, but not {alpn} in it")
    except BaseException:
        with trio.CancelScope(shield=True):
            await inside.aclose()
        raise
    return inside


async def _shake_hands(inside: TlsEndpoint, until: float) -> None:
    try:
        with trio.move_on_at(until) as scope:
            await inside.shake_hands()
        if scope.cancelled_caught:
            raise ConnectionLost(f"the TLS handshake with {inside.peer} took too long")
    except BaseException:
        with trio.CancelScope(shield=True):
            await inside.aclose()
        raise


_NO_TLS = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "UNKNOWN_PROTOCOL",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
}
"""OpenSSL's reasons for bytes that are not TLS."""
_CERTIFICATE_ADVICE = {
    9: "; it is not valid yet: look at this machine's clock, or have its owner renew it",
    10: "; have its owner renew it, or look at this machine's clock",
    18: "; give the certificate itself with --ca FILE, or what the server prints with --pin",
    19: "; give its authority with --ca FILE, or what the server prints with --pin",
    20: "; give its authority with --ca FILE, or what the server prints with --pin",
    62: "; use the name that the certificate is for",
    64: "; use the name that the certificate is for",
}
"""What to do, by OpenSSL's verify_code."""


def _why(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f": {error.verify_message}"
    return f": {error.reason}" if error.reason else ""
