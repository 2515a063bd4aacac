"""From each clause of the spec to what proves it: a conformance case or a named test.

    clause · wire            ← a case of ``blockproto/conformance`` that cites it  ← a mutant that such a case kills
    clause · fault, inspect  ← a test with ``@pytest.mark.clause("BP1-RES-007")``

Rules:
    1. Tests are read, not run: the markers are found in their source, here and in ``blockproto/testing``.
    2. A MUST or SHOULD without proof, and a proof of a clause that does not exist, is a complaint; ``make test`` fails
       with the list of them.
    3. A MAY needs no proof and may have one.
    4. A wire clause that binds one side is proved by a case of that side. In an upload the client is the sender, in a
       download the server; so a clause of the sender or the receiver, or of both, may be proved on either side.

``make trace`` prints the table, ``make trace ARGS=BP1-RES`` a part of it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mutants.table import MUTANTS, NONE

from blockproto.conformance import client as clients
from blockproto.conformance import server as servers
from blockproto.conformance.case import Case

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [ROOT / "tests", ROOT / "blockproto" / "testing"]
MARKS = {"pytest.mark.clause", "clause"}
"""The second one is of ``blockproto.testing``, whose tests are inherited by people who have no such mark."""
IMPLEMENTED = {"CORE", "CONNECTION", "DIALECTS", "IDENTITY"}
"""The profiles that this project implements."""

EXAMINED = {"CORE"}
"""The profiles whose wire clauses need cases; those of the others may be proved by tests, as what strangers need least."""

_CLAUSE = re.compile(
    r"^- \*\*\[(?P<id>BP1-[A-Z0-9]{3}-\d{3}) (?P<level>MUST|SHOULD|MAY) (?P<role>\w+) · (?P<profile>\w+) · (?P<proof>\w+)\]"
    r"\*\* (?P<sentence>.*)$",
    re.M,
)


@dataclass(frozen=True, slots=True)
class Clause:
    """One numbered promise."""

    id: str
    level: str
    role: str
    profile: str
    proof: str
    sentence: str

    @property
    def binding(self) -> bool:
        """Whether it must be proved here."""
        return self.profile in IMPLEMENTED and self.level != "MAY"


def clauses() -> dict[str, Clause]:
    """Every clause of the spec by its id: those of protocol.md in the order of the text, then the other documents'."""
    documents = sorted((ROOT / "spec").glob("*.md"), key=lambda path: (path.name != "protocol.md", path.name))
    text = "\n".join(path.read_text(encoding="utf-8") for path in documents)
    return {match["id"]: Clause(**match.groupdict()) for match in _CLAUSE.finditer(text)}


def proofs_by_tests() -> dict[str, list[str]]:
    """clause id: the tests that are marked with it, as ``file::test``."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(path for folder in FOLDERS for path in folder.rglob("*.py")):
        for name, ids in marked(path.read_text(encoding="utf-8")):
            for id_ in ids:
                found[id_].append(f"{path.relative_to(ROOT)}::{name}")
    return dict(found)


def marked(source: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(test, clause ids) of every test function with ``@pytest.mark.clause(…)``, or ``@clause(…)``, in ``source``."""
    if "clause(" not in source:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in MARKS:
                    yield node.name, tuple(ast.literal_eval(argument) for argument in decorator.args)


def complaints_about_tests(clauses: Mapping[str, Clause], proofs: Mapping[str, list[str]]) -> list[str]:
    """What is wrong with the proofs of fault and inspect clauses."""
    unknown = [
        f"{id_} is not a clause: {', '.join(tests)}" for id_, tests in proofs.items() if id_ not in clauses
    ]
    return unknown + [
        f"{clause.id} ({clause.level} · {clause.proof}) has no test: mark one with @pytest.mark.clause"
        for clause in clauses.values()
        if clause.binding and clause.proof != "wire" and clause.id not in proofs
    ]


def proofs_by_cases() -> dict[str, list[Case]]:
    """clause id: the conformance cases that cite it."""
    found: dict[str, list[Case]] = defaultdict(list)
    for case in (*servers.all_cases(), *clients.all_cases()):
        for id_ in case.clauses:
            found[id_].append(case)
    return dict(found)


def complaints_about_cases(
    clauses: Mapping[str, Clause], cases: Mapping[str, list[Case]], tests: Mapping[str, list[str]]
) -> list[str]:
    """What is wrong with the proofs of wire clauses."""
    unknown = [
        f"{id_} is not a clause: {found[0].name}" for id_, found in cases.items() if id_ not in clauses
    ]
    missing = []
    for clause in clauses.values():
        sides = {case.side.value for case in cases.get(clause.id, ())}
        if clause.role in {"client", "server"}:
            sides &= {clause.role}
        proved = bool(sides) or (clause.profile not in EXAMINED and clause.id in tests)
        if clause.binding and clause.proof == "wire" and not proved:
            missing.append(f"{clause.id} ({clause.level} {clause.role}) has no conformance case")
    return unknown + missing


def table(beginnings: Iterable[str] = ("",)) -> Iterator[str]:
    """A line for each clause whose id begins so, and one for each of its proofs."""
    tests, cases = proofs_by_tests(), proofs_by_cases()
    for clause in clauses().values():
        if clause.id.startswith(tuple(beginnings)):
            yield f"{clause.id}  {clause.level} {clause.role} · {clause.profile} · {clause.proof}"
            yield from (f"    {test}" for test in tests.get(clause.id, ()))
            yield from (f"    {case.name}" for case in cases.get(clause.id, ()))
            broken = [mutant.name for mutant in MUTANTS.values() if clause.id in mutant.ids]
            if broken or clause.id in NONE:
                yield f"    mutants: {', '.join(broken) or NONE[clause.id]}"


if __name__ == "__main__":
    for line in table(sys.argv[1:] or [""]):
        print(line)
