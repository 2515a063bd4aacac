"""Keep-alive: how long an idle connection may be silent before the client sends PING, as learned on this network.

Address translators and load balancers forget an idle connection, each after a time of its own. On a wired network a PING
every 15 s costs little. A phone's radio wakes up for each, so there the interval grows as long as connections survive it.

One object serves all connections of a client, one after another, so that what one has learned is kept. Pure arithmetic: no
clock, no IO.

Spec: BP1-END-005, BP1-END-014.
"""

from __future__ import annotations

ACTIVE_S = 15.0
"""The interval while a stream is open, and always on a wired network."""
MOBILE_FIRST_S = 210.0
MOBILE_STEP_S = 60.0
MOBILE_BACK_S = 20.0
MOBILE_LEAST_S = 30.0
MOBILE_MOST_S = 600.0


class KeepAlive:
    """The longest silence that a connection survives on this network.

    Args:
        mobile: whether to learn it; False: always ``ACTIVE_S``.
    """

    __slots__ = ("_every_s", "_growing", "_mobile")

    def __init__(self, *, mobile: bool = False) -> None:
        self._mobile = mobile
        self._every_s = MOBILE_FIRST_S
        self._growing = True

    def every_s(self, *, busy: bool) -> float:
        """Seconds of silence after which to send PING; ``busy``: a stream is open."""
        return ACTIVE_S if busy or not self._mobile else self._every_s

    def held(self, silent_s: float) -> None:
        """A PING after ``silent_s`` of silence was answered."""
        if self._growing and silent_s >= self._every_s:
            self._every_s = min(MOBILE_MOST_S, self._every_s + MOBILE_STEP_S)

    def failed(self, silent_s: float) -> None:
        """A PING after ``silent_s`` of silence was not answered: stay below that on this network."""
        if silent_s >= self._every_s:
            self._every_s = max(MOBILE_LEAST_S, self._every_s - MOBILE_BACK_S)
            self._growing = False

    def network_changed(self) -> None:
        """Forget what was learned: this machine uses another network now."""
        self._every_s = MOBILE_FIRST_S
        self._growing = True
