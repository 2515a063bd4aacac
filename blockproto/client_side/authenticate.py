"""How a client authenticates: AUTH on the first stream of every connection, and again when there is a newer token.

Nothing waits for the answer: the server applies it to all requests behind AUTH. If AUTH is refused, the connection ends with
that error, so that every transfer reports the reason; a server without principals answers UNSUPPORTED, which is ignored.

Spec: BP1-AUT-003, BP1-AUT-008, BP1-AUT-013.
"""

from __future__ import annotations

from collections.abc import Callable

from ..connection.connection import Connection, error_of
from ..errors import BlockprotoError, Code, RemoteProtocolError
from ..wire import Auth, Error, Message, PrincipalItem, Result

OnPrincipal = Callable[[PrincipalItem], None]


class Authenticator:
    """Sends a client's token on its connections.

    Args:
        token: as text; None: the client has none.
        on_principal: called with the principal that the server answers.
    """

    def __init__(self, token: str | None = None, on_principal: OnPrincipal | None = None) -> None:
        self.token = token
        self._on_principal = on_principal

    def say_on(self, connection: Connection) -> None:
        """Send AUTH if there is a token; on a new connection before anything else."""
        if self.token is not None and connection.lost is None:
            stream = connection.open(Authentication(connection, self._on_principal))
            connection.post(stream, Auth(self.token))


class Authentication:
    """The stream of one AUTH, as its connection sees it."""

    waits = False

    def __init__(self, connection: Connection, on_principal: OnPrincipal | None) -> None:
        self._connection = connection
        self._on_principal = on_principal

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Error):
            if message.code != Code.UNSUPPORTED:
                self._connection.close(error_of(message))
        elif isinstance(message, Result):
            item = message.items[0] if len(message.items) == 1 else None
            if not isinstance(item, PrincipalItem):
                self._connection.close(RemoteProtocolError("the server's answer to AUTH says nobody"))
            elif self._on_principal is not None:
                self._on_principal(item)

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler; AUTH has none."""

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
