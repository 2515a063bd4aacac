"""Company: how many connections each principal has, and which of them goes when one more comes than it may have.

Who comes is let in: a phone that lost its network comes back at once, and what it left behind is here until its silence has
become long enough. So it is the connection which has been silent longest that goes, and principals only ever send away their
own. The anonymous one is everybody, and is not counted.

Spec: BP1-PRN-009.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import BlockprotoError, ConnectionLost
from ..wire import ZERO_ID

CONNECTIONS_EACH = 4096
"""Connections of one principal, where the system's limit of open files allows so many."""
FILES_FOR_ONE = 2
"""One principal gets one in so many of the files the system lets us open."""


def connections_for(files: int) -> int:
    """How many connections one principal may have where so many files may be open."""
    return max(1, min(CONNECTIONS_EACH, files // FILES_FOR_ONE))


class Member(Protocol):
    """A connection."""

    @property
    def heard_s(self) -> float:
        """When something came on it last, in Trio's time."""

    def end_with(self, error: BlockprotoError) -> None:
        """Say why it ends, and end it."""


class Company:
    """The connections of all principals.

    Args:
        each: how many one principal may have, at least 1.
    """

    def __init__(self, each: int = CONNECTIONS_EACH) -> None:
        self._each = each
        self._members: dict[bytes, set[Member]] = {}
        self._principals: dict[Member, bytes] = {}

    def join(self, principal: bytes, member: Member) -> None:
        """``member`` speaks for ``principal``; another of them ends if that is one too many. Harmless when repeated."""
        if principal == ZERO_ID:
            return
        members = self._members.setdefault(principal, set())
        if member not in members and len(members) >= self._each:
            longest = min(members, key=lambda one: one.heard_s)
            self.leave(longest)
            longest.end_with(
                ConnectionLost(f"{self._each} connections of this principal spoke later than this one")
            )
        self._members.setdefault(principal, members).add(member)
        self._principals[member] = principal

    def leave(self, member: Member) -> None:
        """It has ended. Harmless when repeated, and for who never joined."""
        principal = self._principals.pop(member, None)
        if principal is not None:
            self._members[principal].discard(member)
            if not self._members[principal]:
                del self._members[principal]
