"""Figures: what was measured beside what was to be reached, and what that comes to in one word.

Rules:
    1. ``reached`` and ``short`` are judged on the exact median; what is shown is rounded against us.
    2. Without a target a figure is ``reported``; in a void run it is ``void``; what could not be measured is ``failed``,
       and beside a peer that is not here ``absent``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from .pairs import Summary


class Verdict(StrEnum):
    """A figure in one word."""

    REACHED = "reached"
    SHORT = "short"
    REPORTED = "reported"
    VOID = "void"
    FAILED = "failed"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Target:
    """A limit to keep.

    Attributes:
        limit: in the figure's unit.
        at_least: whether the figure must not be below it; else not above.
    """

    limit: float
    at_least: bool

    def met_by(self, value: float) -> bool:
        """Whether ``value`` keeps the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:.4g}"


def at_least(limit: float) -> Target:
    """A figure that must not be below ``limit``."""
    return Target(limit, at_least=True)


def at_most(limit: float) -> Target:
    """A figure that must not be above ``limit``."""
    return Target(limit, at_least=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        what: what was measured, in words.
        unit: of the figure: ``×`` (a ratio, above 1 we are faster), ``ms``, ``MiB`` …
        summary: median and quartiles; None if it could not be measured.
        target: what was to be reached, or None.
        void: whether the run means nothing.
        note: more, in words: times behind a ratio, or why there is no figure.
        absent: whether there is none because the peer is not here.
    """

    what: str
    unit: str
    summary: Summary | None
    target: Target | None = None
    void: bool = False
    note: str = ""
    absent: bool = False

    @property
    def verdict(self) -> Verdict:
        """See the module's rules."""
        if self.summary is None:
            return Verdict.ABSENT if self.absent else Verdict.FAILED
        if self.void:
            return Verdict.VOID
        if self.target is None:
            return Verdict.REPORTED
        return Verdict.REACHED if self.target.met_by(self.summary.median) else Verdict.SHORT

    @property
    def shown(self) -> str:
        """The median and its quartiles, rounded against us."""
        if self.summary is None:
            return "–"
        upwards = self.target is not None and not self.target.at_least
        median, lower, upper = (show(value, upwards=upwards) for value in self.summary[:3])
        return (
            f"{median} {self.unit} [{lower}–{upper}]" if self.summary.values > 1 else f"{median} {self.unit}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "summary": None if self.summary is None else self.summary._asdict(),
            "verdict": self.verdict.value,
        }


@dataclass(slots=True)
class Section:
    """The figures of one scenario at one place and size, with everything that was measured for them.

    Attributes:
        title: such as ``upload 1 GiB, disk``.
        rows: the figures.
        floor_spread: slowest by fastest floor, or None where the scenario has none.
        raw: measured values for the JSON.
        said: sentences that belong to it: where it ran, what its floor was.
    """

    title: str
    rows: list[Row]
    floor_spread: float | None = None
    raw: Any = None
    said: list[str] = field(default_factory=list)

    @property
    def void(self) -> bool:
        """Whether a figure of it is void."""
        return any(row.void for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "void": self.void,
            "floor_spread": self.floor_spread,
            "said": self.said,
            "rows": [row.as_dict() for row in self.rows],
            "raw": self.raw,
        }


def show(value: float, *, upwards: bool = False, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, but never fewer than its whole part has; cut, or rounded up."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    scale: int = 10**decimals
    # What decimal fractions cannot say exactly (0.29 × 100 = 28.999…) is no reason to lose a digit.
    scaled = round(value * scale, 6)
    return f"{(math.ceil(scaled) if upwards else math.floor(scaled)) / scale:.{decimals}f}"


def show_size(count: int) -> str:
    """A number of bytes: ``4 GiB``, ``16 MiB``, ``1.5 KiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:g} {unit}"
        size /= 1024
    return f"{size:g} TiB"
