"""Questions that are answered by one message: LIST and REMOVE.

Spec: BP1-LST.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from ..errors import BlockprotoError, UnexpectedMessage
from ..link.connection import Connection, error_of
from ..wire import Error, List, Message, Remove, Result
from .lines import Lines


async def ask(lines: Lines, message: List | Remove) -> Result:
    """The answer, asked for again after a lost connection; raises it if it is an error."""
    return await lines.retrying(partial(ask_once, lines, message))


async def ask_once(lines: Lines, message: List | Remove) -> Result:
    """The answer; raises it if it is an error."""
    return await Question(await lines.connection(), message).answer()


async def at_once(*works: Callable[[], Awaitable[None]]) -> None:
    """Do all of it together; the first error ends the others, and is raised as itself."""
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
        raise _first_of(group) from group


def _first_of(error: BaseException) -> BaseException:
    return _first_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


class Question:
    """One LIST or REMOVE and its answer."""

    waits = False

    def __init__(self, connection: Connection, message: List | Remove) -> None:
        self._answered = trio.Event()
        self._answer: Result | BlockprotoError | None = None
        stream = connection.open(self)
        connection.post(stream, message)

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.Sink."""
        if isinstance(message, Result):
            self._answer = message
        elif isinstance(message, Error):
            self._answer = error_of(message)
        self._answered.set()

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.Sink."""
        raise UnexpectedMessage("an answer has no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.Sink."""
        self._answer = self._answer or error
        self._answered.set()

    async def answer(self) -> Result:
        """Wait for the answer; raises it if it is an error."""
        await self._answered.wait()
        if isinstance(self._answer, BlockprotoError):
            raise self._answer
        assert self._answer is not None
        return self._answer
