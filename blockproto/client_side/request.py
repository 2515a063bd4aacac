"""Questions that are answered by one message: LIST and REMOVE.

Each answer is checked before it is used: it has the kind that was asked for, and one entry where one was asked for. It must
come within ``ANSWER_S``, or ``PATIENCE_S`` where the server may take long.

Spec: BP1-LST, BP1-END-018.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from ..common.names import show_name
from ..common.tasks import first_error
from ..connection.connection import Connection, error_of
from ..errors import BlockprotoError, ConnectionLost, RemoteProtocolError, UnexpectedMessage
from ..wire import Error, FileItem, List, ListKind, Message, Remove, Result
from .connections import Connections
from .stall_timeout import FIRST_S, PATIENCE_S

ANSWER_S = FIRST_S
"""How long a question waits for its answer, in seconds."""


async def ask(connections: Connections, message: List | Remove) -> Result:
    """The answer, asked for again after a lost connection. Raises BlockprotoError; cancellation leaves nothing behind."""
    return await connections.retrying(partial(ask_once, connections, message))


async def ask_once(connections: Connections, message: List | Remove) -> Result:
    """The answer, asked for once. Raises BlockprotoError; cancellation leaves nothing behind."""
    return await Request(await connections.connection(), message).answer()


async def at_once(*works: Callable[[], Awaitable[None]]) -> None:
    """Run all of ``works`` together; the first error cancels the others and is raised without a group."""
    try:
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)
    except BaseExceptionGroup as group:
        cancelled, rest = group.split(trio.Cancelled)
        if cancelled is not None:
            raise cancelled from None
        assert rest is not None
        errors = rest.split(BlockprotoError)
        if errors[1] is not None:
            raise
        raise first_error(group) from group


async def stat_item(connections: Connections, name: str, *, b3sum: bool) -> FileItem:
    """What the server knows of one file or folder; with ``b3sum`` it computes that first. Raises as ``ask``."""
    page = await ask(connections, List(kind=ListKind.FILES, name=name.strip("/"), exact=True, b3sum=b3sum))
    item = page.items[0]
    assert isinstance(item, FileItem)
    return item


class Request:
    """One LIST or REMOVE and its answer."""

    waits = False

    def __init__(self, connection: Connection, message: List | Remove) -> None:
        self._answered = trio.Event()
        self._answer: Result | BlockprotoError | None = None
        self._connection = connection
        self._message = message
        self._stream = connection.open(self)
        connection.post(self._stream, message)

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Result):
            self._answer = _judged(self._message, message)
        elif isinstance(message, Error):
            self._answer = error_of(message)
        self._answered.set()

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        raise UnexpectedMessage("an answer has no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
        self._answer = self._answer or error
        self._answered.set()

    async def answer(self) -> Result:
        """Wait for the answer.

        Raises:
            ConnectionLost: the server is there and did not answer in time; the connection is closed then.
            BlockprotoError: the answer is an error, or is not one that was asked for.
        """
        long = self._message.recursive if isinstance(self._message, Remove) else self._message.b3sum
        limit_s = PATIENCE_S if long else ANSWER_S
        self._connection.patient += long
        try:
            with trio.move_on_after(limit_s):
                await self._answered.wait()
        finally:
            self._connection.patient -= long
        if self._answer is None:
            peer = self._connection.endpoint.peer
            self._connection.close(
                ConnectionLost(f"{peer} is there and has not answered for {limit_s:.0f} s", retryable=False)
            )
            await self._answered.wait()
        if isinstance(self._answer, BlockprotoError):
            raise self._answer
        assert self._answer is not None
        return self._answer


def _judged(message: List | Remove, answer: Result) -> Result | RemoteProtocolError:
    """The answer, or an error that says what is wrong with it."""
    if answer.kind != message.kind:
        return RemoteProtocolError(
            f"the server answered with kind {answer.kind} where {message.kind} was asked for"
        )
    if isinstance(message, Remove):
        return answer
    if len(answer.items) > message.limit:
        return RemoteProtocolError(
            f"the server answered {len(answer.items)} entries; {message.limit} were the most"
        )
    if message.exact:
        names = [item.filename for item in answer.items if isinstance(item, FileItem)]
        if names != [message.name]:
            shown = show_name(", ".join(names[:2]))
            return RemoteProtocolError(
                f"the server was asked for one entry and answered {len(names)} ({shown})"
            )
    return answer
