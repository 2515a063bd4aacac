"""Selection, known failures and reports of the conformance harness."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from blockproto.conformance.case import Case
from blockproto.conformance.outcome import EXIT_FAILED, EXIT_PASSED, Outcome, Report
from blockproto.conformance.report.html import html_page
from blockproto.conformance.report.machine import json_lines, junit_xml
from blockproto.conformance.report.terminal import Replay, Terminal, explain_lines, failure_lines
from blockproto.conformance.selection import (
    SelectionError,
    apply_known_failures,
    read_known_failures,
    recall,
    remember,
    select,
    write_known_failures,
)
from blockproto.conformance.server import all_cases
from blockproto.conformance.transcript import Transcript
from blockproto.conformance.verdicts import Divergence, Verdict

CASES = all_cases()
NASTY = "\x1b[31m<script>alert(1)</script> & \ufffe \ud800 ]]> 'x' [bold]"
REPLAY = Replay(["blockproto conform server", "localhost:1"])


def case(name: str) -> Case:
    (found,) = [one for one in CASES if one.name == name]
    return found


FIRST, SECOND, THIRD = CASES[0], CASES[1], CASES[2]


def report_of(*outcomes: Outcome) -> Report:
    return Report("server localhost:1", list(outcomes), elapsed_s=1.5, options={"jobs": 4})


def transcript() -> Transcript:
    made = Transcript()
    made.add(1, ">", f"PING {NASTY}", b"\x00\xff")
    made.add(1, "<", "ERROR")
    return made


def failed(case_: Case, message: str = "it does not") -> Outcome:
    return Outcome(
        case_,
        Verdict.FAIL,
        message,
        f"expected {NASTY}",
        f"got {NASTY}",
        Divergence("the frame", 12, "00", "ff"),
        "BP1-FRM-010",
        transcript(),
    )


# ---- which


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("takeover", lambda one: "takeover" in one.name),
        ("bp1/res/*", lambda one: one.name.startswith("bp1/res/")),
        ("RES-006", lambda one: "BP1-RES-006" in one.clauses),
        ("BP1-RES-006", lambda one: "BP1-RES-006" in one.clauses),
        (FIRST.name, lambda one: one is FIRST),
    ],
)
def test_patterns_choose(pattern: str, expected: object) -> None:
    chosen = select(CASES, [pattern])
    assert chosen == [one for one in CASES if expected(one)]  # type: ignore[operator]
    assert chosen


def test_a_whole_name_chooses_one_also_where_it_begins_others() -> None:
    name = "bp1/lst/remove/the-served-folder"
    assert [one.name for one in select(CASES, [name])] == [name]
    assert len(select(CASES, [name + "*"])) > 1


def test_several_patterns_are_joined_in_the_order_of_the_spec() -> None:
    both = select(CASES, ["bp1/res/*", "bp1/frm/*"])
    assert both == [one for one in CASES if one.name.startswith(("bp1/res/", "bp1/frm/"))]


def test_quick_leaves_deadlines_and_limits_out() -> None:
    quick = select(CASES, quick=True)
    assert len(quick) > 0.9 * len(CASES)
    assert not any(one.slow or one.layer == 4 for one in quick)


def test_a_pattern_that_matches_nothing_is_told() -> None:
    with pytest.raises(SelectionError, match="no case matches 'no such thing'"):
        select(CASES, ["frm", "no such thing"])


def test_what_failed_is_remembered_until_it_passes(tmp_path: Path) -> None:
    memory = tmp_path / "deep" / "memory.json"
    assert recall(memory) == []
    remember(memory, report_of(failed(FIRST), failed(SECOND), Outcome(THIRD, Verdict.PASS)))
    assert recall(memory) == sorted([FIRST.name, SECOND.name])
    remember(memory, report_of(Outcome(FIRST, Verdict.PASS)))
    assert recall(memory) == [SECOND.name]
    memory.write_text("no json", encoding="utf-8")
    assert recall(memory) == []


# ---- known failures


def test_known_failures_go_round() -> None:
    outcomes = [failed(FIRST, "ERROR a: b"), Outcome(SECOND, Verdict.PASS)]
    assert read_known_failures("# a comment\n\n" + write_known_failures(outcomes)) == {
        FIRST.name: "ERROR a: b"
    }


def test_a_line_of_another_form_is_refused() -> None:
    with pytest.raises(SelectionError, match="line 2"):
        read_known_failures(f"{FIRST.name}: x\nno case here\n")


def test_a_known_failure_is_excused_by_case_and_message() -> None:
    report = report_of(failed(FIRST, "it does not"), Outcome(SECOND, Verdict.PASS))
    apply_known_failures(report, {FIRST.name: "it does not"})
    assert report.exit_code == EXIT_PASSED
    assert report.outcomes[0].known


def test_another_message_is_another_failure() -> None:
    report = report_of(failed(FIRST, "it does something else"))
    apply_known_failures(report, {FIRST.name: "it does not"})
    assert report.exit_code == EXIT_FAILED


def test_an_unexpected_pass_fails() -> None:
    report = report_of(Outcome(FIRST, Verdict.PASS))
    apply_known_failures(report, {FIRST.name: "it does not", SECOND.name: "was not run"})
    assert report.exit_code == EXIT_FAILED
    assert "take it off the list" in report.outcomes[0].message


# ---- reports


def full_report() -> Report:
    return report_of(
        Outcome(FIRST, Verdict.PASS, elapsed_s=0.25),
        failed(SECOND),
        Outcome(THIRD, Verdict.NON_STRICT, NASTY, transcript=transcript()),
        Outcome(CASES[3], Verdict.UNSUPPORTED, NASTY),
        Outcome(CASES[4], Verdict.HARNESS_ERROR, NASTY, got=NASTY),
        failed(CASES[5]).with_(known=True),
    )


def test_json_lines_hold_the_whole_run() -> None:
    rows = [json.loads(line) for line in json_lines(full_report(), REPLAY).splitlines()]
    assert rows[0]["run"]["subject"] == "server localhost:1"
    assert rows[-1]["summary"]["exit_code"] == 3
    assert rows[-1]["summary"]["counts"]["FAIL"] == 2
    assert [row["case"] for row in rows[1:-1]] == [one.name for one in CASES[:6]]
    row = rows[2]
    assert row["divergence"] == {"what": "the frame", "offset": 12, "expected": "00", "got": "ff"}
    assert row["conversation"][0]["hex"] == "00ff"
    assert row["replay"] == f"blockproto conform server localhost:1 -k {SECOND.name}"
    assert "conversation" not in rows[1]


def test_junit_is_well_formed_and_counts() -> None:
    suite = ElementTree.fromstring(junit_xml(full_report(), REPLAY))
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    kinds = [[child.tag for child in row] for row in suite]
    assert kinds == [[], ["failure"], ["system-out"], ["skipped"], ["error"], ["system-out"]]
    assert suite[1][0].get("message") == "it does not"
    assert f"-k {SECOND.name}" in (suite[1][0].text or "")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.scripts += tag == "script"
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_obeys_nobody() -> None:
    page = html_page(full_report(), REPLAY)
    tags = _Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    assert tags.scripts == 0
    assert SECOND.name in page
    assert "http" not in page.replace("HTTP", "")


def test_the_terminal_shows_a_failure_whole_and_obeys_nobody() -> None:
    out = StringIO()
    terminal = Terminal(Console(file=out, width=200), REPLAY)
    report = full_report()
    terminal.begin(6)
    for outcome in report.outcomes:
        terminal.ended(outcome)
    terminal.stop()
    terminal.summary(report)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "byte 12 of the frame: ff instead of 00" in text
    assert "BP1-FRM-010 MUST" in text
    assert f"again with blockproto conform server localhost:1 -k {SECOND.name}" in text
    assert "1 PASS" in text
    assert "[bold]" in text, "foreign text is no markup"


def test_a_case_that_was_not_begun_takes_one_line() -> None:
    assert len(failure_lines(Outcome(FIRST, Verdict.FAIL, "not examined"), "again")) == 1


@pytest.mark.parametrize("one", CASES[::40], ids=lambda one: one.name)
def test_a_case_is_explained_by_its_clauses(one: Case) -> None:
    text = "\n".join(explain_lines(one))
    assert one.why.split()[0] in text
    assert all(clause in text for clause in one.clauses)
