"""Handshakes: a bare server that does nothing but TLS handshakes with Trio's own stream, and a client that dials.

python -m benchmarks.handshakes serve CERT KEY        prints "listening on HOST:PORT"
python -m benchmarks.handshakes dial PORT SECONDS     prints how many handshakes there were a second
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import trio

from blockproto.identity.certificates import client_context, server_context

from .processes import HOST


async def serve(certificate: Path, key: Path) -> None:
    """Shake hands with everybody, until the process is ended."""
    context = server_context(certificate, key)

    async def answer(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await secured.do_handshake()
            await secured.receive_some(1)
        except trio.BrokenResourceError:
            return
        finally:
            await trio.aclose_forcefully(stream)

    listeners = await trio.open_tcp_listeners(0, host=HOST)
    print(f"listening on {HOST}:{listeners[0].socket.getsockname()[1]}", flush=True)
    await trio.serve_listeners(answer, listeners)


def dial(port: int, seconds: float) -> float:
    """Do handshakes one after another for so long; returns how many a second."""
    context = client_context(pinned=True)
    done = 0
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        sock = socket.create_connection((HOST, port))
        context.wrap_socket(sock, server_hostname=HOST).close()
        done += 1
    return done / (time.monotonic() - begun)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve, Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        print(dial(int(sys.argv[2]), float(sys.argv[3])))
