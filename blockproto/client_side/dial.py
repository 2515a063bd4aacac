"""Connect to ``bp://HOST[:PORT]`` over TCP."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import trio

from ..connection.endpoint import Endpoint, endpoint_of
from ..errors import ConnectionLost, NotListening

PORT_DEFAULT = 7878
CONNECT_S = 10.0

Dial = Callable[[], Awaitable[Endpoint]]


def tcp_dial(url: str) -> tuple[Dial, str]:
    """A function that connects to ``url`` (``bp://HOST[:PORT]``), and the server as ``HOST:PORT``.

    Raises:
        ValueError: it is not a URL of this form.
    """
    host, port, server = parse_url(url, "bp")
    return lambda: connect_tcp(host, port, server), server


def parse_url(url: str, scheme: str) -> tuple[str, int, str]:
    """Host and port of ``SCHEME://HOST[:PORT]``, and both as ``HOST:PORT``. Raises ValueError."""
    wrong = f"{url!r} is not an address: write {scheme}://HOST:PORT"
    try:
        parts = urlsplit(url)
        port = parts.port or PORT_DEFAULT
    except ValueError as exc:
        raise ValueError(f"{wrong} ({exc})") from exc
    host = parts.hostname
    if parts.scheme != scheme or not host:
        raise ValueError(wrong)
    if parts.path.strip("/"):
        raise ValueError(
            f"{url!r} names a folder or file: write {scheme}://HOST:PORT, and give the name to what is called"
        )
    return host, port, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def connect_tcp(host: str, port: int, server: str) -> Endpoint:
    """A TCP connection to ``server``. Raises ConnectionLost; cancellation leaves none."""
    try:
        with trio.fail_after(CONNECT_S):
            return endpoint_of(await trio.open_tcp_stream(host, port))
    except trio.TooSlowError as exc:
        raise ConnectionLost(f"{server} did not answer within {CONNECT_S:.0f} s") from exc
    except OSError as exc:
        cause = _cause(exc)
        if cause is not None and cause.errno == errno.ECONNREFUSED:
            text = f"cannot reach {server}: {os.strerror(errno.ECONNREFUSED)}: nothing listens there"
            raise NotListening(text) from exc
        raise ConnectionLost(f"cannot reach {server}: {_reason(exc)}") from exc


def _cause(error: OSError) -> OSError | None:
    """The system's error of a failed connect: Trio wraps that of each address."""
    causes = error.__cause__
    if isinstance(causes, BaseExceptionGroup):
        causes = causes.exceptions[0]
    return causes if isinstance(causes, OSError) else None


def _reason(error: OSError) -> str:
    cause = _cause(error)
    if cause is not None and cause.errno:
        return os.strerror(cause.errno)
    if isinstance(error, socket.gaierror):
        return f"no such host ({error.strerror})"
    return error.strerror or str(error)
