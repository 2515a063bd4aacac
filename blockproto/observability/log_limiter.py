"""Limit repeated log records, so that no peer can fill the log.

Warnings and errors of one place in the code are written at most ``MOST`` times in ``WINDOW_S``; the next one after that says
how many were suppressed. Records below warnings, for which an operator has to ask, are not limited.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

MOST = 100
WINDOW_S = 60.0


class LogLimiter(logging.Filter):
    """Lets a record pass, or counts it.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._places: dict[
            tuple[str, int], list[float]
        ] = {}  # when the window began; written, and not written, in it

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        if record.levelno < logging.WARNING:
            return True
        now_s = self._clock()
        place = self._places.setdefault((record.pathname, record.lineno), [now_s, 0, 0])
        if now_s - place[0] >= WINDOW_S:
            if place[2]:
                record.msg = (
                    f"{record.getMessage()} (and {int(place[2])} times more that were not written down)"
                )
                record.args = ()
            place[:] = [now_s, 0, 0]
        if place[1] >= MOST:
            place[2] += 1
            return False
        place[1] += 1
        return True
