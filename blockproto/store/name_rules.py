"""Name rules: what becomes of a file whose name is taken."""

from __future__ import annotations

from enum import Enum, auto

from .facts import IfExists


class Verdict(Enum):
    """What becomes of a file that comes under a name another regular file has.

    Attributes:
        THERE: it is that file: nothing is stored.
        COMPARE: their contents decide: ask again when they are known.
        REPLACE: it takes the place of the other.
        NEXT: it gets the next name that is free.
        REFUSE: it does not come.
        LEAVE: it does not come either, and that is what was asked for.
    """

    THERE = auto()
    COMPARE = auto()
    REPLACE = auto()
    NEXT = auto()
    REFUSE = auto()
    LEAVE = auto()


def judge_taken(if_exists: IfExists, *, equal: bool | None, newer: bool) -> Verdict:
    """What to do when a regular file has the name.

    Args:
        if_exists: the rule.
        equal: whether that file has the same content; None while nobody knows.
        newer: whether what comes is strictly newer than what is there.
    """
    if if_exists is IfExists.SKIP:
        return Verdict.LEAVE
    if if_exists is IfExists.UPDATE:
        return Verdict.REPLACE if newer else Verdict.LEAVE
    if equal is None:
        return Verdict.COMPARE
    if equal:
        return Verdict.THERE
    return {
        IfExists.KEEP: Verdict.NEXT,
        IfExists.REFUSE: Verdict.REFUSE,
        IfExists.REPLACE: Verdict.REPLACE,
    }[if_exists]
