"""Messages about a connection that is lost and made again."""

from __future__ import annotations

from ..client_side.connections import LineEvent, Reconnected, Reconnecting
from ..common.names import show_name
from .output import say, show_size

TELL_WAIT_S = 1.0
"""Report waits of at least this long (s)."""


class LineTeller:
    """Says on stderr that a connection is lost and made again, if that takes a while.

    Args:
        verbose: say so for every loss.
    """

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._waits = False

    def __call__(self, event: LineEvent) -> None:
        """Report an event."""
        if isinstance(event, Reconnecting):
            if event.after_s >= TELL_WAIT_S or self._verbose:
                self._waits = True
                say(
                    show_name(
                        f"{event.why}; trying again in {event.after_s:.0f} s (Ctrl-C stops, nothing is lost)"
                    )
                )
        elif isinstance(event, Reconnected):
            if self._waits:
                say("connected again")
            self._waits = False
        elif self._verbose:
            say(show_name(f"{event.filename} goes on: {show_size(event.position)} are there"))
