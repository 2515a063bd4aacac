"""The harness is tested too: our client passes it, each mutant of ours is killed by a case that names its rule, and who only
pretends passes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import traceability
from mutants import matrix
from mutants.table import MUTANTS, NONE

from blockproto import wire
from blockproto.conformance.client.command import Command
from blockproto.conformance.client.subject import ClientSubject
from blockproto.conformance.outcome import Outcome, Report
from blockproto.conformance.runner import Runner
from blockproto.conformance.timing import Patience
from blockproto.conformance.verdicts import Verdict

SHARES = 6
"""Workers have each a part of the mutants."""

GOOD = {Verdict.PASS, Verdict.NON_STRICT, Verdict.UNSUPPORTED}


@pytest.fixture(scope="module")
def lab() -> Iterator[matrix.Lab]:
    lab = matrix.Lab()
    yield lab
    lab.close()


def bad(outcomes: list[Outcome]) -> list[str]:
    return [
        f"{one.verdict.value} {one.case.name}: {one.message} {one.got}"
        for one in outcomes
        if one.verdict not in GOOD
    ]


def test_every_edit_still_fits_the_source() -> None:
    """Where the code of a rule has changed, its mutant has to be looked at again."""
    assert [why for mutant in MUTANTS.values() if (why := mutant.why_not())] == []


@pytest.mark.long
def test_our_client_passes_every_case(lab: matrix.Lab) -> None:
    with lab.subject("client", None, Patience(2)) as subject:
        report = Runner(subject, matrix.Nobody(), jobs=4).run(matrix.cases_of("client"), Report("ours"))
    assert not bad(report.outcomes)
    assert len(report.outcomes) > 200


@pytest.mark.long
@pytest.mark.parametrize("share", range(SHARES))
def test_every_mutant_is_killed_by_a_case_that_names_its_clause(lab: matrix.Lab, share: int) -> None:
    """Mutants of both sides are examined as servers and as clients in turn; ``make mutants`` does both."""
    todo = [(mutant, mutant.sides[at % len(mutant.sides)]) for at, mutant in enumerate(MUTANTS.values())]
    todo = todo[share::SHARES]
    with ThreadPoolExecutor(matrix.THREADS) as pool:
        kills = list(pool.map(lambda one: lab.kills(*one), todo))
    alive = [
        f"{mutant.name} ({side})" for (mutant, side), found in zip(todo, kills, strict=True) if not found
    ]
    assert not alive


def test_every_clause_that_is_seen_on_the_wire_has_a_mutant() -> None:
    broken = {id_ for mutant in MUTANTS.values() for id_ in mutant.ids}
    musts = {
        one.id
        for one in traceability.clauses().values()
        if one.profile in {"CORE", "CONNECTION", "IDENTITY"} and (one.proof, one.level) == ("wire", "MUST")
    }
    assert sorted(musts - broken - set(NONE)) == []
    assert sorted(set(NONE) & broken) == [], "these have a mutant now: take them off the list"
    assert len(MUTANTS) >= 80


NOBODY = {
    "always-done": "print('{}')",
    "always-refused": 'import sys; print(\'{"error": "NOT_PERMITTED"}\'); sys.exit(1)',
    "always-lost": "import sys; sys.exit(3)",
    "connects-and-leaves": """
import json, socket, sys
host, port = json.loads(sys.argv[-1])["server"].split(":")
socket.create_connection((host, int(port))).close()
sys.exit(1)
""",
    "greets-and-leaves": f"""
import json, socket, sys
host, port = json.loads(sys.argv[-1])["server"].split(":")
with socket.create_connection((host, int(port))) as connection:
    connection.sendall(bytes.fromhex("{(wire.PREFACE + wire.encode_frame(0, wire.Hello())).hex()}"))
sys.exit(1)
""",
}
"""Clients that do nothing; each ends at once."""


@pytest.mark.parametrize("name", NOBODY)
def test_a_client_that_does_nothing_passes_no_case(name: str, tmp_path: Path) -> None:
    """A slice: every seventh case of a MUST. To close without a word where a refusal is wanted is allowed, not strict."""
    program = tmp_path / "client.py"
    program.write_text(NOBODY[name], encoding="utf-8")
    subject = ClientSubject(Command((sys.executable, "-S", "-E", str(program))), matrix.PATIENCE)
    cases = [case for case in matrix.cases_of("client") if case.level == "MUST"][::7]
    report = Runner(subject, matrix.Nobody(), jobs=4).run(cases, Report(name))
    passed = [one.case.name for one in report.outcomes if one.verdict is Verdict.PASS]
    assert len(cases) > 30
    assert passed == []
