"""The clauses of the spec as data: text, level, role, profile and proof of each id.

``clauses.json`` is written from the spec by ``spec/export.py``, so that an installed package can explain its cases. A
check in the build says whether the two have drifted apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Clause:
    """One numbered promise of the spec; the attributes are its tag's, ``text`` is its sentence."""

    id: str
    level: str
    role: str
    profile: str
    proof: str
    text: str
    document: str


def document(name: str) -> Any:
    """One JSON document of the package's data: ``clauses``, ``refusals``, ``names``, ``transitions``."""
    return json.loads(files(__package__).joinpath("data", f"{name}.json").read_text(encoding="utf-8"))


@cache
def all_clauses() -> dict[str, Clause]:
    """Every clause by its id, in the order of the spec."""
    return {row["id"]: Clause(**row) for row in document("clauses")}


def clause(id_: str) -> Clause:
    """The clause of that id; KeyError if the spec has none."""
    return all_clauses()[id_]
