"""End a connection whose server is alive but makes no progress.

PONG and CREDIT show that the peer is alive, not that it works. Progress is a message on a stream, or payload in either
direction. Without any for too long while streams are open, the connection ends, and with it every wait on it. The limit
depends on what is waited for:

    ``FIRST_S``      the peer has answered nothing on this connection yet
    ``STALLED_S``    it has, and then stopped
    ``PATIENCE_S``   the answer may take long: the digest of a big file, the removal of a big folder, a COMMIT whose file is
                     compared with another of its name

Spec: BP1-END-018.
"""

from __future__ import annotations

import trio

from ..connection.connection import Connection
from ..errors import ConnectionLost

FIRST_S = 60.0
STALLED_S = 300.0
PATIENCE_S = 3600.0 * 6
_LOOK_EVERY_S = 15.0

assert FIRST_S < STALLED_S < PATIENCE_S


async def end_when_stalled(connection: Connection) -> None:
    """End ``connection`` when it has stalled; returns when it has ended. Cancellation leaves it as it is."""
    while connection.lost is None:
        limit_s = limit_for(connection)
        quiet_s = trio.current_time() - connection.advanced_s
        if not connection.awaits_peer:
            await trio.sleep(_LOOK_EVERY_S)
        elif quiet_s < limit_s:
            await trio.sleep(min(limit_s - quiet_s, _LOOK_EVERY_S))
        else:
            connection.close(
                ConnectionLost(
                    f"{connection.endpoint.peer} is there and has done nothing for {quiet_s:.0f} s",
                    retryable=False,
                )
            )


def limit_for(connection: Connection) -> float:
    """How long the peer may make no progress, in seconds, given what is waited for now."""
    if connection.patient or (connection.answered and connection.awaits_commit):
        return PATIENCE_S
    return STALLED_S if connection.answered else FIRST_S
