"""A server that lives and does nothing: when a client stops waiting for it.

PONG and CREDIT show that the peer lives, not that it works. What counts here is what gets a stream further: a message on
it, payload that comes, payload that goes. Without any of that for long enough, while streams are open, the connection ends,
and with it every wait on it. How long is enough depends on what is waited for:

    ``FIRST_S``      the peer has answered nothing on this connection yet
    ``STALLED_S``    it has, and then stopped
    ``PATIENCE_S``   something may rightly take long: a digest of a big file, the removal of a big folder, a COMMIT whose
                     file is compared with what has its name

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
    """End ``connection`` when it has stalled; returns only when cancelled, or when it has ended."""
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
    """How long the peer may do nothing for what is waited for now, in seconds."""
    if connection.patient or (connection.answered and connection.awaits_commit):
        return PATIENCE_S
    return STALLED_S if connection.answered else FIRST_S
