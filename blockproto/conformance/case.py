"""What a case is, and how a chapter registers its cases.

    cases = Chapter("res", Side.SERVER)

    @cases.add(
        "takeover/late-piece-of-a-smaller-attempt",
        "RES-006 STR-008",
        why="A server that still writes what an older attempt sends mixes two versions of a file.",
        layer=2,
    )
    def late_piece(trial: Trial) -> None: ...

    @cases.table("check/flipped-{}", "FRM-010", {"type": 3, "flags": 4}, why="…")
    def flipped(trial: Trial, offset: int) -> None: ...

Rules:
    1. The name says what is odd, and never changes: ``bp1/`` chapter ``/`` path. No numbers that only count.
    2. The first clause is the one that the case judges; its level is the case's. The others are touched too, and a case
       that proves nothing about a clause does not name it.
    3. A case stands alone: it makes what it needs, under names and sourceids of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from .clauses import clause

Script = Callable[..., None]
S = TypeVar("S", bound=Script)

LAYERS = {
    0: "codec vectors",
    1: "wire scripts",
    2: "scenarios",
    3: "faults",
    4: "limits",
    5: "security",
}
"""What a layer needs more than the one before."""

LIMITS = 4
"""The layer of limits: its cases take much of something, and time."""


class Side(Enum):
    """Whom a case examines."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is examined.

    Attributes:
        name: stable; says what is odd.
        clauses: full ids, the judged one first.
        why: what goes wrong with an implementation that gets it wrong; one sentence.
        script: what is done. It returns, or raises one of ``verdicts``.
        side: whom it examines.
        layer: see ``LAYERS``.
        slow: it waits for a deadline of the protocol (many seconds); such cases run beside the others.
        alone: nothing else runs meanwhile.
        needs: what the adapter must be able to do (``kill``, ``stop``, ``start``, ``files``).
    """

    name: str
    clauses: tuple[str, ...]
    why: str
    script: Script
    side: Side
    layer: int = 1
    slow: bool = False
    alone: bool = False
    needs: frozenset[str] = frozenset()

    @property
    def level(self) -> str:
        """MUST, SHOULD or MAY: that of the judged clause."""
        return clause(self.clauses[0]).level

    @property
    def profile(self) -> str:
        """The profile of the judged clause."""
        return clause(self.clauses[0]).profile


class Chapter:
    """The cases of one file, in order.

    Args:
        name: the second part of their names, usually a chapter of the spec in small letters.
        side: whom they examine.
        protocol: the first part of their names; clause ids are completed with it in capitals.
    """

    def __init__(self, name: str, side: Side, *, protocol: str = "bp1") -> None:
        self.cases: list[Case] = []
        self._prefix = f"{protocol}/{name}"
        self._protocol = protocol.upper()
        self._side = side

    def add(self, name: str, clauses: str, *, why: str, **options: Any) -> Callable[[S], S]:
        """Register the function as a case.

        Args:
            name: what stands behind the chapter in the case's name.
            clauses: ids without the protocol's name, the judged one first.
            why: one sentence.
            options: ``layer``, ``slow``, ``alone``, ``needs`` (words).
        """

        def register(script: S) -> S:
            self._register(name, clauses, why, script, options)
            return script

        return register

    def table(
        self, name: str, clauses: str, rows: Mapping[str, Any], *, why: str, **options: Any
    ) -> Callable[[S], S]:
        """Register one case for each row: ``{}`` in ``name`` is the row's key, the script's last argument its value."""

        def register(script: S) -> S:
            for key, value in rows.items():
                self._register(name.format(key), clauses, why, partial(_with, script, value), options)
            return script

        return register

    def _register(self, name: str, clauses: str, why: str, script: Script, options: dict[str, Any]) -> None:
        ids = tuple(f"{self._protocol}-{id_}" for id_ in clauses.split())
        options = {**options, "needs": frozenset(options.get("needs", "").split())}
        self.cases.append(Case(f"{self._prefix}/{name}", ids, why, script, self._side, **options))


def _with(script: Script, value: Any, trial: Any) -> None:
    script(trial, value)
