"""Every clause of the spec has its proof, and every proof its clause."""

from __future__ import annotations

from dataclasses import replace

import traceability as trace

CLAUSES = trace.clauses()
NO_CLAUSES = [f"BP1-FRM-{number}" for number in (997, 998, 999)]
"""Not written out, because every clause that is written out in a test exists (test_spec)."""


def test_every_clause_of_the_spec_is_read() -> None:
    documents = (trace.ROOT / "spec").glob("*.md")
    tags = sum(path.read_text(encoding="utf-8").count("**[BP1-") for path in documents)
    assert len(CLAUSES) == tags > 190


def test_fault_and_inspect_clauses_have_their_tests() -> None:
    complaints = trace.complaints_about_tests(CLAUSES, trace.proofs_by_tests())
    assert not complaints, "\n".join(complaints)


def test_wire_clauses_have_their_cases() -> None:
    complaints = trace.complaints_about_cases(CLAUSES, trace.proofs_by_cases(), trace.proofs_by_tests())
    assert not complaints, "\n".join(complaints)


def test_every_case_cites_a_clause_and_has_a_name_of_its_own() -> None:
    cases = [*trace.servers.all_cases(), *trace.clients.all_cases()]
    assert [case.name for case in cases if not case.clauses] == []
    assert len({case.name for case in cases}) == len(cases)


def test_a_case_of_the_other_side_proves_nothing() -> None:
    server = next(
        one for one in CLAUSES.values() if one.role == "server" and one.proof == "wire" and one.binding
    )
    case = trace.clients.all_cases()[0]
    (complaint,) = trace.complaints_about_cases({server.id: server}, {server.id: [case]}, {})
    assert server.id in complaint
    (complaint,) = trace.complaints_about_cases({}, {NO_CLAUSES[0]: [case]}, {})
    assert case.name in complaint


def test_a_clause_without_a_test_and_a_test_without_a_clause_are_noticed() -> None:
    must = replace(next(iter(CLAUSES.values())), id=NO_CLAUSES[1], level="MUST", proof="fault")
    other = {one.id: one for one in (must, replace(must, id=NO_CLAUSES[2], level="MAY"))}
    (complaint,) = trace.complaints_about_tests(other, {})
    assert must.id in complaint
    (complaint,) = trace.complaints_about_tests(
        other, {must.id: ["a"], NO_CLAUSES[0]: ["tests/test_b.py::test_b"]}
    )
    assert NO_CLAUSES[0] in complaint
    assert "test_b" in complaint


def test_markers_are_read_with_all_their_ids() -> None:
    source = '@pytest.mark.clause("BP1-A", "BP1-B")\n@quick\nasync def test_a(): ...\ndef test_b(): ...\n'
    assert list(trace.marked(source)) == [("test_a", ("BP1-A", "BP1-B"))]
