"""The cases for servers as a list: names, clauses, what is covered, and the data of the package."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from blockproto.conformance.case import LAYERS, Case
from blockproto.conformance.clauses import all_clauses, document
from blockproto.conformance.server import CHAPTERS, all_cases

ROOT = Path(__file__).resolve().parents[2]
CASES = all_cases()
NOT_SEEN_IN_A_SERVER = {
    "BP1-RES-011": "a server that sends a download says attempt 0 (FET-003)",
    "BP1-COM-002": "a server sends no brief files",
    "BP1-COM-008": "what a sender makes of COMMITTED is not seen by who said it",
    "BP1-COM-031": "a client that receives has no hooks",
    "BP1-FIL-013": "a server says no FILES",
    "BP1-FIL-016": "a server says no FILES",
}
"""Clauses of a sender that bind a server and that no case for servers can show, and why."""
ADAPTER_CAN = {"kill", "stop", "start", "files", "write", "link"}
PLAYED_BY_A_SERVER = {"server", "both", "sender", "receiver"}


def test_names_are_unique_and_say_where_they_belong() -> None:
    assert [name for name, times in Counter(case.name for case in CASES).items() if times > 1] == []
    for case in CASES:
        assert re.fullmatch(r"[a-z0-9]+(/[a-zA-Z0-9-]+){2,5}", case.name), case.name


def complaints(case: Case) -> Iterator[str]:
    """What is wrong with a case's registration."""
    if not set(case.clauses) <= set(all_clauses()):
        yield "cites a clause that is none"
    if not case.clauses or len(set(case.clauses)) < len(case.clauses):
        yield "cites no clause, or one twice"
    if len(case.why.split()) < 4 or not case.why.endswith((".", "?")):
        yield "does not say why in a sentence"
    if case.layer not in LAYERS or not case.needs <= ADAPTER_CAN:
        yield "needs what there is not"
    script = case.script.args[0] if isinstance(case.script, partial) else case.script
    if not script.__doc__:
        yield "has a script that does not say what it does"


def test_a_case_cites_clauses_and_says_why() -> None:
    assert {case.name: told for case in CASES if (told := list(complaints(case)))} == {}


def test_every_clause_that_a_server_plays_on_the_wire_has_a_case() -> None:
    cited = {id_ for case in CASES for id_ in case.clauses}
    wanted = {
        clause.id
        for clause in all_clauses().values()
        if clause.profile == "CORE"
        and clause.proof == "wire"
        and clause.level != "MAY"
        and clause.role in PLAYED_BY_A_SERVER
    }
    assert wanted - cited == set(NOT_SEEN_IN_A_SERVER)


def test_every_chapter_of_the_spec_has_a_module() -> None:
    chapters = {id_.split("-")[1].lower() for id_, one in all_clauses().items() if one.profile == "CORE"}
    assert chapters <= {chapter.rstrip("_") for chapter in CHAPTERS}


def test_every_vector_that_needs_no_stream_is_played() -> None:
    rows = [
        row["name"]
        for row in document("refusals")["vectors"]
        if row["judge"] == "server" and row["layer"] in {"greeting", "frame"} and row["limits"] == "usual"
    ]
    assert len(rows) > 80
    assert {case.name for case in CASES if case.layer == 0} == {f"bp1/vec/refused/{name}" for name in rows}


def test_the_package_has_the_spec_s_clauses_and_vectors() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "spec" / "export.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
