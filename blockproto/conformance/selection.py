"""Which cases run: by name, by profile, by what failed the last time; and the list of failures that are known."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .case import LIMITS, Case
from .outcome import Outcome, Report
from .verdicts import Verdict


class SelectionError(ValueError):
    """Nothing can be selected by that; the text says what to write instead."""


def select(cases: Sequence[Case], patterns: Sequence[str] = (), *, quick: bool = False) -> list[Case]:
    """The cases that match one of the patterns (all, if there is none); without slow ones and limits if it shall be quick.

    Args:
        cases: to choose from.
        patterns: a whole name, a piece of one, or a shell pattern; or the id of a clause.
        quick: leave out what waits for deadlines, and the limits (L4), which take much of something.

    Raises:
        SelectionError: a pattern matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {case.name for case in cases if _matches(case, pattern, cases)}
        if not found:
            raise SelectionError(f"no case matches {pattern!r}; --list shows them all")
        chosen |= found
    wanted = [case for case in cases if not patterns or case.name in chosen]
    return [case for case in wanted if not quick or not (case.slow or case.layer == LIMITS)]


def _matches(case: Case, pattern: str, cases: Sequence[Case]) -> bool:
    if any(one.name == pattern for one in cases):
        return case.name == pattern
    if re.fullmatch(r"(\w+-)?[A-Z]{3}-\d{3}", pattern):
        return any(clause == pattern or clause.endswith(f"-{pattern}") for clause in case.clauses)
    if set(pattern) & set("*?["):
        return fnmatch.fnmatchcase(case.name, pattern)
    return pattern in case.name


def remember(path: Path, report: Report) -> None:
    """Write down what failed, for ``--failed``; a case that was not run keeps what it was."""
    failed = set(recall(path)) - {outcome.case.name for outcome in report.outcomes}
    failed |= {outcome.case.name for outcome in report.outcomes if outcome.verdict.failed}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sorted(failed)), encoding="utf-8")


def recall(path: Path) -> list[str]:
    """What failed the last time; empty if nothing is written down."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)]


def read_known_failures(text: str) -> dict[str, str]:
    """Case and message of each line ``CASE: MESSAGE``; what stands behind ``#`` at a line's beginning is skipped.

    Raises:
        SelectionError: a line has another form.
    """
    known: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, message = line.partition(": ")
        if not colon or " " in name.strip():
            raise SelectionError(f"line {number} of the known failures is not 'CASE: MESSAGE'")
        known[name.strip()] = message.strip()
    return known


def write_known_failures(outcomes: Iterable[Outcome]) -> str:
    """The list that would make these outcomes known."""
    lines = [f"{outcome.case.name}: {outcome.message}" for outcome in outcomes if outcome.verdict.failed]
    return "".join(f"{line}\n" for line in lines)


def apply_known_failures(report: Report, known: dict[str, str]) -> None:
    """Excuse failures that are known by case and message; what is known and passes has failed: the list is out of date."""
    for at, outcome in enumerate(report.outcomes):
        message = known.get(outcome.case.name)
        if message is None:
            continue
        if outcome.verdict.failed:
            report.outcomes[at] = outcome.with_(known=outcome.message == message)
        elif outcome.verdict in {Verdict.PASS, Verdict.NON_STRICT}:
            report.outcomes[at] = outcome.with_(
                verdict=Verdict.FAIL,
                message="passes, but is listed as a known failure: take it off the list",
            )
