"""A log that no peer can fill: what is said again and again is counted."""

from __future__ import annotations

import logging

from blockproto.observability.log_limiter import MOST, WINDOW_S, LogLimiter


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def test_warnings_of_one_place_are_counted_after_many() -> None:
    now = [0.0]
    heard = Heard()
    heard.addFilter(LogLimiter(lambda: now[0]))
    log = logging.getLogger("blockproto-test-flood")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.addHandler(heard)

    def refuse(peer: str) -> None:
        log.warning("%s was not let in", peer)

    for number in range(10 * MOST):
        refuse(f"peer {number}")
        log.info("%s said something", number)
    log.error("another place")
    assert len([line for line in heard.said if "not let in" in line]) == MOST
    assert len([line for line in heard.said if "said something" in line]) == 10 * MOST
    assert heard.said[-1] == "another place"
    now[0] += WINDOW_S
    refuse("peer %s")
    refuse("another")
    assert heard.said[-2:] == [
        f"peer %s was not let in (and {9 * MOST} times more that were not written down)",
        "another was not let in",
    ]
