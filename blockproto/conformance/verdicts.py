"""What a case can end with: seven verdicts, and the exceptions by which a case says which.

A case that returns has passed. It never judges by silence: what it waits for comes, or the case has failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How a case ended, from good to bad."""

    PASS = "PASS"
    NON_STRICT = "NON_STRICT"
    UNSUPPORTED = "UNSUPPORTED"
    FAIL = "FAIL"
    HANG = "HANG"
    CRASH = "CRASH"
    HARNESS_ERROR = "HARNESS_ERROR"

    @property
    def failed(self) -> bool:
        """Whether what was examined is to blame."""
        return self in {Verdict.FAIL, Verdict.HANG, Verdict.CRASH}


MEANINGS = {
    Verdict.PASS: "does what the clause says",
    Verdict.NON_STRICT: "works together with others, but leaves what a SHOULD says, or closes where ERROR comes first",
    Verdict.UNSUPPORTED: "not examined: the profile was not asked for, or the adapter cannot do it",
    Verdict.FAIL: "does something else than the clause says",
    Verdict.HANG: "says nothing where something must be said",
    Verdict.CRASH: "is gone after the case",
    Verdict.HARNESS_ERROR: "the harness itself is wrong; please report it",
}


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first byte at which what came differs from what should have come.

    Attributes:
        what: which bytes: a frame, a file.
        offset: from their beginning, counted from 0.
        expected, got: the bytes from there on, a few of them, in hex; empty if that side has ended.
    """

    what: str
    offset: int
    expected: str
    got: str

    def __str__(self) -> str:
        return f"byte {self.offset} of {self.what}: {self.got or 'nothing'} instead of {self.expected or 'the end'}"


def first_difference(what: str, expected: bytes, got: bytes) -> Divergence | None:
    """Where two byte strings part, or None if they are equal."""
    if expected == got:
        return None
    shorter = min(len(expected), len(got))
    at = next((i for i in range(shorter) if expected[i] != got[i]), shorter)
    return Divergence(what, at, expected[at : at + 8].hex(" "), got[at : at + 8].hex(" "))


class Failed(Exception):
    """The case failed.

    Args:
        reason: one sentence without anything that differs between runs (no sourceid, no port): a list of known
            failures compares it.
        expected, got: what should have come and what came, decoded.
        divergence: the first byte that differs, where bytes can be compared.
        clause: the clause that was broken, if it is not the first of the case.
    """

    verdict = Verdict.FAIL

    def __init__(
        self,
        reason: str,
        *,
        expected: str = "",
        got: str = "",
        divergence: Divergence | None = None,
        clause: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.expected = expected
        self.got = got
        self.divergence = divergence
        self.clause = clause


class Hung(Failed):
    """Nothing came in the time that an answer may take."""

    verdict = Verdict.HANG


class Closed(Failed):
    """The other side ended the connection where it had to say something."""


class Unsupported(Exception):
    """The case cannot be examined here: what it needs is not claimed. The text says what."""


class Unreachable(Exception):
    """There is nothing that can be examined. The text is one sentence for people."""


def require(condition: object, reason: str, *, expected: str = "", got: str = "") -> None:
    """Fail with ``reason`` unless ``condition`` holds."""
    if not condition:
        raise Failed(reason, expected=expected, got=got)
