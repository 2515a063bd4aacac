"""TLS over a connection, both sides: the handshake with its end in time, and whose certificate it is.

Inside, everything is as without it: what comes out is an endpoint. The end of the TLS connection means no more than the end
of a TCP connection (BP1-TLS-007), so close_notify is neither sent nor waited for.

Spec: BP1-TLS.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable

import trio

from ..errors import ConnectionLost
from .endpoint import Endpoint, StreamEndpoint

_READ_LEAST = 512
_READ_MOST = 32 * 1024

Trust = Callable[[bytes], None]
"""Judges the peer's certificate (DER) and raises if it is not the one."""


class EndpointStream(trio.abc.Stream):
    """An endpoint as a Trio stream, for TLS to run over. Owns ``endpoint``.

    Args:
        endpoint: the connection.
        first: bytes that were read of it already.
    """

    def __init__(self, endpoint: Endpoint, first: bytes = b"") -> None:
        self._endpoint = endpoint
        self._first = first
        self._length = _READ_LEAST

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See trio.abc.SendStream."""
        try:
            await self._endpoint.send([data])
        except ConnectionLost as exc:
            raise trio.BrokenResourceError(str(exc)) from exc

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream; ``send_all`` waits when it must."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See trio.abc.ReceiveStream. Little memory is kept while nothing comes, and more while much does."""
        if self._first:
            first, self._first = self._first, b""
            return first
        view = memoryview(bytearray(min(max_bytes or _READ_MOST, self._length)))
        try:
            received = await self._endpoint.receive_into(view)
        except ConnectionLost as exc:
            raise trio.BrokenResourceError(str(exc)) from exc
        assert received is not None  # no deadline was given
        self._length = _READ_MOST if received == len(view) else _READ_LEAST
        return bytes(view[:received])

    async def aclose(self) -> None:
        """See trio.abc.AsyncResource."""
        await self._endpoint.aclose()


class TlsEndpoint(StreamEndpoint):
    """The inside of a TLS connection. Owns both."""

    def __init__(self, stream: trio.SSLStream[EndpointStream], outer: Endpoint) -> None:
        super().__init__(stream, outer.peer)
        self._outer = outer

    def limit_unsent(self, limited: bool) -> None:
        """See Endpoint."""
        self._outer.limit_unsent(limited)

    async def aclose(self) -> None:
        """See Endpoint: at once, without close_notify (BP1-TLS-007)."""
        with contextlib.suppress(trio.BrokenResourceError):
            await super().aclose()


async def answer_tls(endpoint: Endpoint, first: bytes, context: ssl.SSLContext, until: float) -> Endpoint:
    """Be the server of a TLS handshake.

    Args:
        endpoint: the connection; owned from now on.
        first: what was read of it already.
        context: certificate and key.
        until: the Trio time at which the handshake must have ended.

    Raises:
        ConnectionLost: it failed or took too long; the connection is closed.

    Cancellation: the connection is closed.
    """
    inner = EndpointStream(endpoint, first)
    stream = trio.SSLStream(inner, context, server_side=True, https_compatible=True)
    await _shake_hands(stream, endpoint.peer, until)
    return TlsEndpoint(stream, endpoint)


async def begin_tls(
    endpoint: Endpoint, context: ssl.SSLContext, host: str, trust: Trust | None, alpn: str, until: float
) -> Endpoint:
    """Be the client of a TLS handshake; errors and cancellation as for ``answer_tls``.

    Args:
        endpoint: the connection; owned from now on.
        context: how the certificate is judged, if ``trust`` is None.
        until: the Trio time at which the handshake must have ended.
        host: the name to send and, unless ``trust`` judges, to hold the certificate against.
        trust: judges the certificate before anything else is sent, or None where ``context`` did.
        alpn: the protocol that the server must have chosen.

    Raises:
        What ``trust`` raises; then nothing was sent but the handshake.
    """
    inner = EndpointStream(endpoint)
    stream = trio.SSLStream(inner, context, server_hostname=host, https_compatible=True)
    await _shake_hands(stream, endpoint.peer, until)
    try:
        if trust is not None:
            trust(stream.getpeercert(binary_form=True))
        if stream.selected_alpn_protocol() != alpn:
            raise ConnectionLost(f"{endpoint.peer} speaks TLS, but not {alpn} in it")
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return TlsEndpoint(stream, endpoint)


async def _shake_hands(stream: trio.SSLStream[EndpointStream], peer: str, until: float) -> None:
    try:
        with trio.move_on_at(until) as scope:
            await stream.do_handshake()
        if scope.cancelled_caught:
            raise ConnectionLost(f"the TLS handshake with {peer} took too long")
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(stream)
        raise ConnectionLost(f"the TLS handshake with {peer} failed{_why(exc)}") from exc
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def _why(error: trio.BrokenResourceError) -> str:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f": {cause.verify_message}"
    return f": {cause.reason}" if isinstance(cause, ssl.SSLError) and cause.reason else ""
