"""The report as one HTML file, to be mailed or kept: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from xml.etree.ElementTree import Element, SubElement, tostring

from ..clauses import clause
from ..outcome import Outcome, Report
from ..verdicts import MEANINGS, Verdict
from .machine import printable
from .terminal import Replay

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent) }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
code, pre, .name { font: 13px/1.45 ui-monospace, monospace } pre { overflow-x: auto; margin: .4rem 0; padding: .6rem;
border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line) }
td.number { text-align: right; padding-right: 1.5rem; font-variant-numeric: tabular-nums }
.counts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 }
.counts div { border: 1px solid var(--line); border-left: .4rem solid; border-radius: 6px; padding: .4rem .9rem }
.counts b { display: block; font-size: 1.4rem } .muted { opacity: .7 }
.PASS { border-left-color: #2a9d5c !important } .NON_STRICT { border-left-color: #d8a200 !important }
.UNSUPPORTED { border-left-color: #8a8a8a !important } .FAIL, .HANG, .CRASH { border-left-color: #d43a3a !important }
.HARNESS_ERROR { border-left-color: #a03ad4 !important }
details { border: 1px solid var(--line); border-left: .4rem solid; border-radius: 6px }
details { padding: .4rem .9rem; margin: .5rem 0 }
summary { cursor: pointer } dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .5rem 0 }
dt { opacity: .7 } dd { margin: 0; overflow-wrap: anywhere }
"""
ORDER = (Verdict.HARNESS_ERROR, Verdict.CRASH, Verdict.HANG, Verdict.FAIL, Verdict.NON_STRICT)


def html_page(report: Report, replay: Replay) -> str:
    """The whole run as one page."""
    page = Element("html", lang="en")
    head = SubElement(page, "head")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", name="viewport", content="width=device-width")
    _add(head, "title", f"blockproto conformance: {report.subject}")
    _add(head, "style", STYLE)
    body = SubElement(page, "body")
    _header(body, report)
    for verdict in ORDER:
        outcomes = report.of(verdict)
        if outcomes:
            _add(body, "h2", f"{verdict.value}: {MEANINGS[verdict]}")
            for outcome in outcomes:
                _outcome(body, outcome, replay)
    _chapters(body, report)
    _all_cases(body, report)
    return "<!doctype html>\n" + tostring(page, encoding="unicode", method="html") + "\n"


def _header(body: Element, report: Report) -> None:
    _add(body, "h1", f"blockproto conformance of {report.subject}")
    options = ", ".join(
        name if value is True else f"{name} {value}" for name, value in report.options.items() if value
    )
    proved = len(report.clauses_proved())
    told = f"{len(report.outcomes)} cases in {report.elapsed_s:.1f} s; {proved} MUST clauses proved."
    _add(body, "p", f"{told} Options: {options or 'none'}.", "muted")
    counts = SubElement(body, "div", {"class": "counts"})
    for verdict, number in sorted(report.counts().items(), key=lambda item: list(Verdict).index(item[0])):
        box = SubElement(counts, "div", {"class": verdict.value, "title": MEANINGS[verdict]})
        _add(box, "b", str(number))
        _add(box, "span", verdict.value)


def _outcome(body: Element, outcome: Outcome, replay: Replay) -> None:
    box = SubElement(body, "details", {"class": outcome.verdict.value})
    if outcome.counts_as_failure:
        box.set("open", "open")
    summary = SubElement(box, "summary")
    _add(summary, "span", outcome.case.name, "name")
    _add(summary, "span", f" — {outcome.message}" + (" (known)" if outcome.known else ""))
    facts = SubElement(box, "dl")
    broken = clause(outcome.clause or outcome.case.clauses[0])
    for word, text in (
        ("why", outcome.case.why),
        ("clause", f"{broken.id} {broken.level}: {broken.text}"),
        ("expected", outcome.expected),
        ("got", outcome.got),
        ("differs at", str(outcome.divergence or "")),
        ("again with", replay(outcome.case.name)),
    ):
        if text:
            _add(facts, "dt", word)
            _add(facts, "dd", text)
    lines = outcome.transcript.lines()
    if lines:
        _add(box, "pre", "\n".join(lines))


def _chapters(body: Element, report: Report) -> None:
    """Case counts by chapter."""
    _add(body, "h2", "Chapters")
    verdicts = [verdict for verdict in Verdict if report.counts()[verdict]]
    found = Counter((_chapter(outcome), outcome.verdict) for outcome in report.outcomes)
    names = dict.fromkeys(_chapter(outcome) for outcome in report.outcomes)
    rows = [[name, *(str(found[name, verdict]) for verdict in verdicts)] for name in names]
    _table(body, ["chapter", *(verdict.value for verdict in verdicts)], rows, numbers=True)


def _all_cases(body: Element, report: Report) -> None:
    box = SubElement(body, "details")
    _add(box, "summary", "Every case")
    rows = [
        [one.case.name, one.verdict.value, one.case.level, " ".join(one.case.clauses), f"{one.elapsed_s:.2f}"]
        for one in sorted(report.outcomes, key=lambda one: one.case.name)
    ]
    _table(box, ["case", "verdict", "level", "clauses", "seconds"], rows)


def _chapter(outcome: Outcome) -> str:
    return "/".join(outcome.case.name.split("/")[:2])


def _table(parent: Element, titles: list[str], rows: Iterable[list[str]], numbers: bool = False) -> None:
    table = SubElement(parent, "table")
    row = SubElement(table, "tr")
    for title in titles:
        _add(row, "th", title)
    for cells in rows:
        row = SubElement(table, "tr")
        for at, cell in enumerate(cells):
            _add(row, "td", cell, "number" if numbers and at else "name" if at == 0 else "")


def _add(parent: Element, tag: str, text: str, class_: str = "") -> None:
    SubElement(parent, tag, {"class": class_} if class_ else {}).text = printable(text)
