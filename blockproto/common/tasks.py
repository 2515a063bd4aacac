"""A nursery for background tasks that raises the error of its body itself, not in a group.

For background tasks that report errors in another way (a connection says why it ended, a committer fails its works), so that
callers can write ``except ConnectionLost``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def background_tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled when the body ends; a single error leaves unwrapped."""
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = only_error(group)
        if error is None:
            raise
        raise error from error.__cause__


def only_error(raised: BaseException) -> BaseException | None:
    """The one error that ``raised`` is or holds in nested groups, Cancelled aside; None if there are several."""
    rest = raised.split(trio.Cancelled)[1] if isinstance(raised, BaseExceptionGroup) else raised
    if rest is None:
        return None
    error: BaseException = rest
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error


def first_error(raised: BaseException) -> BaseException:
    """The first error that ``raised`` is or holds in nested groups."""
    while isinstance(raised, BaseExceptionGroup):
        raised = raised.exceptions[0]
    return raised
