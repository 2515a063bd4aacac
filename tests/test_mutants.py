"""The harness is tested too: ours pass it, each mutant of ours is killed by a case that names its rule, and who only
pretends passes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import traceability
from mutants import matrix
from mutants.table import MUTANTS, NONE

from blockproto.conformance.outcome import Outcome, Report
from blockproto.conformance.runner import Runner
from blockproto.conformance.timing import Patience
from blockproto.conformance.verdicts import Verdict

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


def test_our_client_passes_every_case(lab: matrix.Lab) -> None:
    with lab.subject("client", None, Patience(2)) as subject:
        report = Runner(subject, matrix.Nobody(), jobs=4).run(matrix.cases_of("client"), Report("ours"))
    assert not bad(report.outcomes)
    assert len(report.outcomes) > 200


def test_the_cases_that_kill_mutants_pass_where_nothing_is_broken(lab: matrix.Lab) -> None:
    with lab.subject("server", None, Patience(2)) as subject:
        cases = {
            case.name: case for mutant in MUTANTS.values() for case in matrix.killers(mutant, "server")[:2]
        }
        report = Runner(subject, matrix.Nobody(), jobs=2).run(list(cases.values()), Report("ours"))
    assert not bad(report.outcomes)


def test_every_mutant_is_killed_by_a_case_that_names_its_clause(lab: matrix.Lab) -> None:
    """Mutants of both sides are examined as servers and as clients in turn; ``make mutants`` does both."""
    todo = [(mutant, mutant.sides[at % len(mutant.sides)]) for at, mutant in enumerate(MUTANTS.values())]
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
        if (one.profile, one.proof, one.level) == ("CORE", "wire", "MUST")
    }
    assert sorted(musts - broken - set(NONE)) == []
    assert sorted(set(NONE) & broken) == [], "these have a mutant now: take them off the list"
    assert len(MUTANTS) >= 80
