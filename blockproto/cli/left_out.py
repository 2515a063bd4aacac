"""Messages about entries that are left out, here and in a server's listing: one for each of the first, then a sum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .. import BlockprotoError, LeftOut
from ..common.names import show_name
from ..errors import NameRefused, NotPermitted
from .output import explain, say

NAMED_MAX = 10
"""How many entries that are left out are named without ``-v``."""
_ADVICE = {
    "name": "rename it there",
    "unreadable": "let the server's user read it",
    "other": "use a newer version",
}


@dataclass(frozen=True, slots=True)
class Missed:
    """An entry that could not be sent: its name for people, the error, and what to do."""

    name: str
    error: BlockprotoError
    advice: str


class LeftOutTeller:
    """Names and counts what is left out on purpose: links, special files, unfinished downloads.

    Args:
        everything: name all of them; else the first ``NAMED_MAX``.

    Attributes:
        count: how many there were.
    """

    def __init__(self, everything: bool) -> None:
        self.count = 0
        self._most = math.inf if everything else NAMED_MAX
        self._named = self._withheld = self._nameless = 0

    def tell(self, name: str, why: str, *, typed: bool = False) -> None:
        """Name one; one that was ``typed`` as an argument of the command is always named."""
        self.count += 1
        if self._named < self._most or typed:
            self._named += 1
            say(show_name(f"{name}: {why}, left out"))
        else:
            self._withheld += 1

    def tell_part(self, part: LeftOut) -> None:
        """Name links or special files of a server's listing, which has the names of some."""
        for name in part.names:
            self.tell(name, part.why)
        more = max(0, part.count - len(part.names))
        self.count += more
        self._nameless += more

    def sum_up(self) -> None:
        """Say how many were not named."""
        more = self._withheld + self._nameless
        if not more:
            return
        advice = f"; -v names {'more' if self._nameless else 'all'}" if self._withheld else ""
        say(f"and {more:,} more left out{advice}")


def missed_of(part: LeftOut, above: str) -> Iterator[Missed]:
    """The entries that a listing of ``above`` could not give: each one that it names, and the others together."""
    advice = _ADVICE[part.reason]
    for name in part.names:
        yield Missed(name or above or "/", _error_of(part), advice)
    more = part.count - len(part.names)
    if more > 0:
        yield Missed(f"{more:,} more below '{above or '/'}'", _error_of(part), advice)


def say_missed(missed: Missed) -> None:
    """Report it without a failure."""
    say(explain(missed.error, missed.name, missed.advice))


def _error_of(part: LeftOut) -> BlockprotoError:
    return NameRefused(part.why) if part.reason == "name" else NotPermitted(part.why)
