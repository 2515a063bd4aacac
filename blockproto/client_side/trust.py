"""Connect over TLS to a server that the client trusts (``bps://``).

When a TLS dial returns, the server has proved its identity: its certificate is the pinned one, or one that an authority has
signed for that host. Nothing but the handshake was sent before.

Spec: BP1-TLS-002 to 005.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from ..connection.endpoint import Endpoint
from ..connection.tls import begin_tls
from ..errors import Untrusted
from ..identity.certificates import ALPN, client_context, pin_of, pin_words
from ..identity.known_servers import KnownServers
from .dial import CONNECT_S, Dial, connect_tcp, parse_url

Ask = Callable[[str, bytes], Awaitable[bool]]
"""Asks the user whether the server of this name has that pin (32 bytes)."""


@dataclass(frozen=True, slots=True)
class Trust:
    """How the server of a ``bps://`` address proves its identity.

    Attributes:
        pin: the pin of its certificate (32 bytes), or None.
        known: where pins are remembered, or None.
        ask: asks whether to remember the pin of an unknown server; None: unknown servers are not trusted.
        authorities: a PEM file of authorities, to trust these instead of pins; "system": those of this machine.
    """

    pin: bytes | None = None
    known: KnownServers | None = None
    ask: Ask | None = None
    authorities: Path | str | None = None


def tls_dial(url: str, trust: Trust | None = None) -> tuple[Dial, str]:
    """A function that connects to ``url`` (``bps://HOST[:PORT]``), and the server as ``HOST:PORT``.

    Args:
        url: of the server.
        trust: how the server proves its identity; None: by a certificate that this machine's authorities have signed.

    The function raises:
        ConnectionLost: the server was not reached, or its TLS failed.
        Untrusted: its certificate is not a trusted one: nothing was sent to it.

    Raises:
        ValueError: it is not a URL of this form.
        NotPermitted: the file of authorities cannot be used.
    """
    host, port, server = parse_url(url, "bps")
    return _Secure(host, port, server, trust or Trust(authorities="system")).dial, server


class _Secure:
    """Dials over TLS; asks the user at most once, however many connections are made."""

    def __init__(self, host: str, port: int, server: str, trust: Trust) -> None:
        self._host = host
        self._port = port
        self._server = server
        self._trust = trust
        self._pinned = trust.authorities is None
        files = None if trust.authorities in (None, "system") else Path(trust.authorities)
        self._context = client_context(pinned=self._pinned, authorities=files)
        self._asking = trio.Lock()
        self._accepted: bytes | None = trust.pin

    async def dial(self) -> Endpoint:
        """One connection."""
        if not self._pinned:
            return await self._handshake(None)
        expected = self._accepted or (self._trust.known and self._trust.known.pin(self._server))
        if expected:
            return await self._handshake(expected)
        async with self._asking:
            if self._accepted is None:
                self._accepted = await self._settle()
        return await self._handshake(self._accepted)

    async def _handshake(self, expected: bytes | None) -> Endpoint:
        judge = None if expected is None else lambda der: self._judge(expected, pin_of(der))
        endpoint = await connect_tcp(self._host, self._port, self._server)
        return await begin_tls(
            endpoint, self._context, self._host, judge, ALPN, trio.current_time() + CONNECT_S
        )

    def _judge(self, expected: bytes, pin: bytes) -> None:
        """Raises Untrusted if the certificate is another (BP1-TLS-004)."""
        if pin == expected:
            return
        where, then = "the pin that was given", "give that one (--pin)"
        if self._trust.pin is None and self._trust.known is not None:
            where = f"the one in {self._trust.known.path}"
            then = f"write that one in that file for '{self._server}', or remove the line there to be asked again"
        raise Untrusted(
            f"{self._server} is not the server it was, or somebody stands between: its certificate is {pin.hex()}, "
            f"{where} is {expected.hex()}. Nothing was sent. If its certificate was renewed on purpose, have its owner "
            f"tell you the new pin, and {then}"
        )

    async def _settle(self) -> bytes:
        """Fetch the certificate of an unknown server and ask the user to accept it; returns its pin. Raises Untrusted."""
        seen: list[bytes] = []
        endpoint = await connect_tcp(self._host, self._port, self._server)
        until = trio.current_time() + CONNECT_S
        looked = await begin_tls(
            endpoint, self._context, self._host, lambda der: seen.append(pin_of(der)), ALPN, until
        )
        await looked.aclose()
        [pin] = seen
        if self._trust.ask is None or not await self._trust.ask(self._server, pin):
            raise Untrusted(
                f"nothing is known of {self._server}, and nobody has said yes to its certificate: {pin.hex()}, in words: "
                f"{pin_words(pin)}. If the server shows the same where it runs, give it as the pin (--pin)"
            )
        if self._trust.known is not None:
            self._trust.known.remember(self._server, pin)
        return pin
