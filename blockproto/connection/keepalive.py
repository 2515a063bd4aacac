"""How long an idle connection may be silent before the client says PING, as far as this network let it find out.

What forgets an idle connection is the network between (address translation, balancers), each after a time of its own. On a
wired network 15 s are no burden. A phone's radio wakes up for every PING, so there the time grows while it holds.

One object serves all connections of a client, one after another: what was learned outlives the connection that learned it.
Pure arithmetic: no clock, no IO.

Spec: BP1-END-005, BP1-END-014.
"""

from __future__ import annotations

ACTIVE_S = 15.0
"""While anything runs, and always on a wired network."""
MOBILE_FIRST_S = 210.0
MOBILE_STEP_S = 60.0
MOBILE_BACK_S = 20.0
MOBILE_LEAST_S = 30.0
MOBILE_MOST_S = 600.0


class KeepAlive:
    """The silence that this network bears.

    Args:
        mobile: whether to learn a long one; False: ``ACTIVE_S``.
    """

    __slots__ = ("_every_s", "_growing", "_mobile")

    def __init__(self, *, mobile: bool = False) -> None:
        self._mobile = mobile
        self._every_s = MOBILE_FIRST_S
        self._growing = True

    def every_s(self, *, busy: bool) -> float:
        """Seconds of silence after which PING is said; ``busy``: a stream is open."""
        return ACTIVE_S if busy or not self._mobile else self._every_s

    def held(self, silent_s: float) -> None:
        """A PING after so many seconds of silence was answered."""
        if self._growing and silent_s >= self._every_s:
            self._every_s = min(MOBILE_MOST_S, self._every_s + MOBILE_STEP_S)

    def failed(self, silent_s: float) -> None:
        """A PING after so many seconds of silence was not answered: stay below that on this network."""
        if silent_s >= self._every_s:
            self._every_s = max(MOBILE_LEAST_S, self._every_s - MOBILE_BACK_S)
            self._growing = False

    def network_changed(self) -> None:
        """Nothing is known of the network that this machine uses now."""
        self._every_s = MOBILE_FIRST_S
        self._growing = True
