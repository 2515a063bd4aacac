"""How many connections each principal has, and which of them goes when one more comes than it may have.

It makes no difference what they speak: the native protocol or a dialect.

Who comes is let in: a phone that lost its network comes back at once, and what it left behind is here until its silence has
become long enough. So it is the connection which has been silent longest that goes, and principals only ever send away their
own. The anonymous one is everybody: in its stead each address is counted as if it were a principal.

Spec: BP1-PRN-009.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import BlockprotoError, ConnectionLost
from ..wire import ZERO_ID
from .handshake_slots import neighbourhood

CONNECTIONS_EACH = 4096
"""Connections of one principal, where the system's limit of open files allows so many and nobody said otherwise."""
FILES_FOR_ONE = 2
"""One principal gets one in so many of the files the system lets us open."""


def connections_for(files: int, wanted: int | None = None) -> int:
    """How many connections one principal may have where so many files may be open, and the operator wants so many."""
    return max(1, min(wanted or CONNECTIONS_EACH, files // FILES_FOR_ONE))


class Member(Protocol):
    """A connection."""

    @property
    def heard_s(self) -> float:
        """When something came on it last, in Trio's time."""

    def end_with(self, error: BlockprotoError) -> None:
        """Say why it ends, and end it."""


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
        """``member`` speaks for ``principal`` from ``host``; another one ends if that is one too many.

        Harmless when repeated; who said later who it is, is that principal's and not its address's any more.
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
        """It has ended. Harmless when repeated, and for who never joined."""
        whose = self._whose.pop(member, None)
        if whose is not None:
            self._members[whose].discard(member)
            if not self._members[whose]:
                del self._members[whose]
