"""Every clause of the spec has its proof, and every proof its clause."""

from __future__ import annotations

from dataclasses import replace

import traceability as trace

CLAUSES = trace.clauses()


def test_every_clause_of_the_spec_is_read() -> None:
    documents = (trace.ROOT / "spec").glob("*.md")
    tags = sum(path.read_text(encoding="utf-8").count("**[BP1-") for path in documents)
    assert len(CLAUSES) == tags > 190


def test_fault_and_inspect_clauses_have_their_tests() -> None:
    complaints = trace.complaints_about_tests(CLAUSES, trace.proofs_by_tests())
    assert not complaints, "\n".join(complaints)


def test_a_clause_without_a_test_and_a_test_without_a_clause_are_noticed() -> None:
    must = replace(next(iter(CLAUSES.values())), id="BP1-FRM-998", level="MUST", proof="fault")
    other = {one.id: one for one in (must, replace(must, id="BP1-FRM-999", level="MAY"))}
    (complaint,) = trace.complaints_about_tests(other, {})
    assert must.id in complaint
    (complaint,) = trace.complaints_about_tests(
        other, {must.id: ["a"], "BP1-FRM-997": ["tests/test_b.py::test_b"]}
    )
    assert "BP1-FRM-997" in complaint
    assert "test_b" in complaint


def test_markers_are_read_with_all_their_ids() -> None:
    source = '@pytest.mark.clause("BP1-A", "BP1-B")\n@quick\nasync def test_a(): ...\ndef test_b(): ...\n'
    assert list(trace.marked(source)) == [("test_a", ("BP1-A", "BP1-B"))]
