"""Listening sockets that a service manager opened and passes on, as systemd does (sd_listen_fds).

    LISTEN_PID   the process they are for
    LISTEN_FDS   how many there are; the first is descriptor 3

So a port can be bound before the server runs, by somebody who may, and stays bound while it is restarted.
"""

from __future__ import annotations

import os
import socket

from ..errors import NotPermitted

FIRST_FD = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def passed_sockets() -> list[socket.socket]:
    """The listening TCP sockets that were passed to this process; none, if none were. Only the first call finds them.

    Raises:
        NotPermitted: something else was passed.
    """
    told = [os.environ.pop(name, "") for name in _VARIABLES]  # a child of ours must not take them for its own
    if told[0] != str(os.getpid()) or not told[1].isdecimal():
        return []
    return [_listening(fd) for fd in range(FIRST_FD, FIRST_FD + int(told[1]))]


def _listening(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
        inet = sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM
        listens = inet and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        raise NotPermitted(f"descriptor {fd}, which was passed, is not a socket: {exc.strerror}") from exc
    if not listens:
        raise NotPermitted(
            f"descriptor {fd}, which was passed, is not a listening TCP socket: pass only such"
        )
    sock.setblocking(False)
    os.set_inheritable(fd, False)
    return sock
