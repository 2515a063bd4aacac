"""Messages about a connection that is lost and made again, and how Ctrl-C stops what is under way."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ..client_side.connections import Discarded, LineEvent, Reconnected, Reconnecting
from ..common.names import show_name
from ..common.tasks import background_tasks
from .output import say, show_size

TELL_WAIT_S = 1.0
"""Report waits of at least this long (s)."""


class LineTeller:
    """Says on stderr that a connection is lost and made again, if that takes a while.

    Args:
        verbose: say so for every loss.
        resumes: whether the command can be stopped and run again without a loss.
    """

    def __init__(self, verbose: bool, *, resumes: bool = True) -> None:
        self._verbose = verbose
        self._stops = "Ctrl-C stops, nothing is lost" if resumes else "Ctrl-C stops"
        self._waits = False

    def __call__(self, event: LineEvent) -> None:
        """Report an event."""
        if isinstance(event, Reconnecting):
            if event.after_s >= TELL_WAIT_S or self._verbose:
                self._waits = True
                say(show_name(f"{event.why}; trying again in {event.after_s:.0f} s ({self._stops})"))
        elif isinstance(event, Reconnected):
            if self._waits:
                say("connected again")
            self._waits = False
        elif isinstance(event, Discarded):
            say(show_name(_said_of(event)))
        elif self._verbose:
            say(show_name(f"{event.filename} goes on: {show_size(event.position)} are there"))


@asynccontextmanager
async def cancelled_by_ctrl_c() -> AsyncIterator[None]:
    """Let the first Ctrl-C cancel the body, and nothing around it; KeyboardInterrupt follows when the body has ended.

    Else it is raised wherever the program is at that moment, perhaps in the task of the connection over which the body would
    still tell the server that it stops. A second Ctrl-C does that.
    """
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL, None):
        yield
        return

    async def listen(
        body: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            task_status.started()
            await anext(signals)
        body.cancel()

    async with background_tasks() as nursery:
        with trio.CancelScope() as body:
            await nursery.start(listen, body)
            yield
    if body.cancelled_caught:
        raise KeyboardInterrupt


def _said_of(event: Discarded) -> str:
    had = f"{event.filename}: a stream cannot be read again, so the {show_size(event.position)} of it that the server had"
    if event.removed:
        return f"{had} were removed there"
    return (
        f"{had} are of no use; they stay there until they expire (`blockproto uploads` shows when), or until "
        f"`blockproto cancel {event.sourceid}` removes them"
    )
