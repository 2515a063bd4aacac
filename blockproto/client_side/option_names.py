"""The words of the public interface, and what they are for the store and on the wire."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..errors import Unsupported
from ..results import IF_EXISTS
from ..store import IfExists
from ..wire import FEATURE_IF_EXISTS, Priority


@cache
def if_exists_of(word: str) -> IfExists:
    """What to do about a taken name; raises ValueError."""
    if word not in IF_EXISTS:
        raise ValueError(f"if_exists is {word!r}: it is one of {', '.join(IF_EXISTS)}")
    return IfExists[word.upper()]


def as_spoken(if_exists: IfExists, features: int) -> IfExists:
    """The rule to send to a server with these features: one that does not know ``skip`` is told ``refuse``.

    Raises:
        Unsupported: the server does not know ``update``.
    """
    if features & FEATURE_IF_EXISTS or if_exists <= IfExists.REPLACE:
        return if_exists
    if if_exists is IfExists.SKIP:
        return IfExists.REFUSE
    raise Unsupported("this server is older and does not know 'update': use 'skip', 'replace' or 'keep'")


def priority_of(word: str) -> Priority:
    """The priority that ``word`` names; raises ValueError."""
    words = [priority.name.lower() for priority in Priority]
    if word not in words:
        raise ValueError(f"priority is {word!r}: it is one of {', '.join(words)}")
    return Priority[word.upper()]


@dataclass(frozen=True, slots=True)
class Rule:
    """How files are to arrive.

    Attributes:
        if_exists: what to do when the name is taken by other content.
        checksum: compare contents also where size and time agree.
        below: the folder behind which no symbolic link is followed on the way to a file; None: all are followed.
        made: files (device, inode number) that nothing of this run may replace; what it makes is added.
    """

    if_exists: IfExists = IfExists.KEEP
    checksum: bool = False
    below: Path | None = None
    made: set[tuple[int, int]] = field(default_factory=set)


ANY_RULE = Rule()
"""For what does not depend on the rule."""


def rule_of(
    if_exists: str,
    checksum: bool = False,
    below: Path | None = None,
    made: set[tuple[int, int]] | None = None,
) -> Rule:
    """The rule that these words make; raises ValueError."""
    return Rule(if_exists_of(if_exists), checksum, below, set() if made is None else made)
