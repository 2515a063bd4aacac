"""Limits of connections: how many each principal may have, in whatever protocol, and which one is closed for a new one.

New connections are always accepted: a phone that lost its network comes back at once, while its old connection is there
until it has been silent for long enough. So the longest idle one of the same principal is closed. For the anonymous
principal, which is everybody, each address counts as a principal.

Spec: BP1-PRN-009.
"""

from __future__ import annotations

from typing import Protocol

from ..common.addresses import neighbourhood
from ..errors import BlockprotoError, ConnectionLost
from ..wire import ZERO_ID

CONNECTIONS_EACH = 4096
"""Default number for one principal, where the system's limit of open files allows it."""
FILES_FOR_ONE = 2
"""Divisor of that limit: the most that one principal may have."""


def connections_for(files: int, wanted: int | None = None) -> int:
    """How many connections one principal may have if ``files`` may be open and the operator says ``wanted``."""
    return max(1, min(wanted or CONNECTIONS_EACH, files // FILES_FOR_ONE))


class Member(Protocol):
    """A connection."""

    @property
    def heard_s(self) -> float:
        """When a byte last came, in Trio's time."""

    def end_with(self, error: BlockprotoError) -> None:
        """End it, and tell the peer why."""


class ConnectionLimits:
    """The connections of all principals.

    Args:
        each: how many one principal may have, at least 1.
    """

    def __init__(self, each: int = CONNECTIONS_EACH) -> None:
        self._each = each
        self._members: dict[bytes | str, set[Member]] = {}
        self._whose: dict[Member, bytes | str] = {}

    def join(self, principal: bytes, host: str, member: Member) -> None:
        """Count ``member``, from ``host``, for ``principal``; end the longest idle one if that is one too many.

        Harmless when repeated. A connection that identifies itself later is moved from its address to its principal.
        """
        whose = neighbourhood(host) if principal == ZERO_ID else principal
        if self._whose.get(member) == whose:
            return
        self.leave(member)
        members = self._members.get(whose, set())
        if len(members) >= self._each:
            longest = min(members, key=lambda one: one.heard_s)
            self.leave(longest)
            kind = "this address" if isinstance(whose, str) else "this principal"
            longest.end_with(ConnectionLost(f"{self._each} connections of {kind} spoke later than this one"))
        self._members.setdefault(whose, set()).add(member)
        self._whose[member] = whose

    def leave(self, member: Member) -> None:
        """Stop counting it: it has ended. Harmless when repeated, and if it never joined."""
        whose = self._whose.pop(member, None)
        if whose is not None:
            self._members[whose].discard(member)
            if not self._members[whose]:
                del self._members[whose]
