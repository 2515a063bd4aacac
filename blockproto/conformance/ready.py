"""Wait for sockets, whatever the numbers of their descriptors are.

``select.select`` takes only numbers below 1,024; a process that examines with many jobs, or has much open, has greater ones.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterable


def wait_for(
    *, read: Iterable[socket.socket] = (), write: Iterable[socket.socket] = (), timeout_s: float | None = None
) -> list[socket.socket]:
    """Wait until at least one socket is ready, and return those that can be read.

    Args:
        read: sockets whose bytes, end, or connections to accept are waited for.
        write: sockets whose room is waited for; they may be in ``read``, too.
        timeout_s: seconds to wait at most; None waits for ever.
    """
    wanted = dict.fromkeys(read, selectors.EVENT_READ)
    for sock in write:
        wanted[sock] = wanted.get(sock, 0) | selectors.EVENT_WRITE
    with selectors.DefaultSelector() as selector:
        for sock, events in wanted.items():
            selector.register(sock, events, sock)
        return [key.data for key, events in selector.select(timeout_s) if events & selectors.EVENT_READ]


def readable(sock: socket.socket, timeout_s: float) -> bool:
    """Whether there is something to read, the end, or a connection to accept, within that time."""
    return bool(wait_for(read=(sock,), timeout_s=timeout_s))
