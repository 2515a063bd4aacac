"""Name rules: what becomes of a file whose name is taken, at a server (``decide_name``) and of a download (``judge_taken``).

They differ in one case: under UPDATE a server compares a later file with what is there and keeps the bytes of the same one
(BP1-COM-022); a download replaces it, for its bytes have come already. What is no file stands in a download's way with a
text of its own.

Spec: BP1-COM-013, BP1-COM-021 to 025.
"""

from __future__ import annotations

import stat
from enum import Enum, auto

from ..common.times import is_newer
from ..errors import FileExists, NotPermitted
from .facts import Facts, IfExists


class Kind(Enum):
    """What has a name."""

    FILE = auto()
    FOLDER = auto()
    OTHER = auto()


def kind_of(st_mode: int) -> Kind:
    """The kind of what has that ``st_mode``."""
    if stat.S_ISREG(st_mode):
        return Kind.FILE
    return Kind.FOLDER if stat.S_ISDIR(st_mode) else Kind.OTHER


class Verdict(Enum):
    """What becomes of a file that comes under a name that is taken.

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


def decide_name(
    if_exists: IfExists, there: Kind, *, folder: bool = False, equal: bool | None, newer: bool
) -> Verdict:
    """What becomes of a file or a folder that is uploaded under a name that is taken.

    Args:
        if_exists: the rule.
        there: what has the name.
        folder: whether what comes is a folder.
        equal: whether a file there has the same content, for who may know that; None while nobody knows.
        newer: whether what comes is strictly newer than what is there (``is_later``).

    Raises:
        FileExists: a folder comes, and what has its name is none.
        NotPermitted: what is no file would have to be replaced.
    """
    if folder:
        if there is not Kind.FOLDER:
            raise FileExists("a file has the name of the folder")
        return Verdict.LEAVE if if_exists in (IfExists.SKIP, IfExists.UPDATE) else Verdict.THERE
    if if_exists is IfExists.SKIP:
        return Verdict.LEAVE
    if there is not Kind.FILE and if_exists in (IfExists.REPLACE, IfExists.UPDATE):
        raise NotPermitted("what has the name is no file")
    if if_exists is IfExists.UPDATE:
        if not newer:
            return Verdict.LEAVE
        if_exists = IfExists.REPLACE
    return judge_taken(if_exists, equal=equal if there is Kind.FILE else False, newer=newer)


def is_later(facts: Facts, there_ns: int) -> bool:
    """Whether a file is strictly later than one of that mtime (BP1-COM-025); one without a time is not."""
    return facts.mtime_ns is not None and is_newer(facts.mtime_ns, there_ns)
