"""Reports for programs: one JSON object a line, and JUnit XML.

JSON lines: the first object is the run (``"run"``), then one for each case (``"case"``), the last one the summary
(``"summary"``). The fields of a case are stable; new ones may be added.
"""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

from ..outcome import Outcome, Report
from ..verdicts import Verdict
from .terminal import Replay

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no place for."""


def json_lines(report: Report, replay: Replay) -> str:
    """The whole run as JSON lines."""
    run = {"run": {"subject": report.subject, "options": report.options}}
    counts = {verdict.value: number for verdict, number in report.counts().items()}
    summary = {
        "summary": {
            "counts": counts,
            "durability": report.durability,
            "elapsed_s": round(report.elapsed_s, 3),
            "exit_code": report.exit_code,
            "clauses_proved": sorted(report.clauses_proved()),
        }
    }
    rows = [run, *(case_object(outcome, replay) for outcome in report.outcomes), summary]
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def case_object(outcome: Outcome, replay: Replay) -> dict[str, Any]:
    """One case as an object; what was said and heard only where it did not simply pass."""
    case, divergence = outcome.case, outcome.divergence
    told: dict[str, Any] = {
        "case": case.name,
        "verdict": outcome.verdict.value,
        "known": outcome.known,
        "level": case.level,
        "layer": case.layer,
        "profile": case.profile,
        "clauses": list(case.clauses),
        "message": outcome.message,
        "elapsed_s": round(outcome.elapsed_s, 4),
    }
    if outcome.verdict in {Verdict.PASS, Verdict.UNSUPPORTED}:
        return told
    return told | {
        "clause": outcome.clause,
        "expected": outcome.expected,
        "got": outcome.got,
        "divergence": None
        if divergence is None
        else {
            "what": divergence.what,
            "offset": divergence.offset,
            "expected": divergence.expected,
            "got": divergence.got,
        },
        "conversation": [
            {
                "at_s": round(entry.at_s, 4),
                "connection": entry.connection,
                "direction": entry.direction,
                "text": entry.text,
                "hex": entry.raw.hex(),
            }
            for entry in outcome.transcript.entries
        ],
        "replay": replay(case.name),
    }


def junit_xml(report: Report, replay: Replay) -> str:
    """The whole run as JUnit XML: one testsuite, what was not examined as skipped."""
    counts = report.counts()
    suite = ElementTree.Element(
        "testsuite",
        name="blockproto conform",
        hostname=report.subject,
        tests=str(len(report.outcomes)),
        failures=str(len(report.failures)),
        errors=str(counts[Verdict.HARNESS_ERROR]),
        skipped=str(counts[Verdict.UNSUPPORTED]),
        time=f"{report.elapsed_s:.3f}",
    )
    for outcome in report.outcomes:
        folder, _, name = outcome.case.name.rpartition("/")
        row = ElementTree.SubElement(
            suite, "testcase", classname=folder.replace("/", "."), name=name, time=f"{outcome.elapsed_s:.4f}"
        )
        if outcome.verdict is Verdict.UNSUPPORTED:
            ElementTree.SubElement(row, "skipped", message=printable(outcome.message))
        elif outcome.verdict is Verdict.HARNESS_ERROR or outcome.counts_as_failure:
            kind = "error" if outcome.verdict is Verdict.HARNESS_ERROR else "failure"
            told = ElementTree.SubElement(
                row, kind, type=outcome.verdict.value, message=printable(outcome.message)
            )
            told.text = printable("\n".join(_details(outcome, replay)))
        elif outcome.message:
            ElementTree.SubElement(row, "system-out").text = printable(
                f"{outcome.verdict.value}: {outcome.message}"
            )
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _details(outcome: Outcome, replay: Replay) -> list[str]:
    return [
        f"expected: {outcome.expected}",
        f"got: {outcome.got}",
        f"differs at: {outcome.divergence or '-'}",
        f"clauses: {' '.join(outcome.case.clauses)}",
        *outcome.transcript.lines(),
        f"again with: {replay(outcome.case.name)}",
    ]


def printable(text: str) -> str:
    """The text with what XML cannot hold replaced."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
