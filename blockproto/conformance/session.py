"""One call of the command, whoever is examined: select, run, report, remember. The command line is its only caller."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from rich.console import Console

from .case import Case
from .outcome import Report
from .report.html import html_page
from .report.machine import json_lines, junit_xml
from .report.terminal import Replay, Terminal, explain_lines
from .runner import Runner, Subject
from .selection import (
    SelectionError,
    apply_known_failures,
    read_known_failures,
    recall,
    remember,
    select,
)


@dataclass(frozen=True)
class Options:
    """What people chose; the attributes are the command's options."""

    patterns: tuple[str, ...] = ()
    failed: bool = False
    quick: bool = False
    jobs: int = 1
    shuffle: int | None = None
    known_failures: Path | None = None
    json: Path | None = None
    junit: Path | None = None
    html: Path | None = None
    verbose: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """What shaped the run, for reports."""
        told = {"quick": self.quick, "jobs": self.jobs, "shuffle": self.shuffle, **self.more}
        return {name: value for name, value in told.items() if value not in {None, False}}


def chosen(cases: Sequence[Case], name: str, options: Options) -> list[Case]:
    """The cases that are to run.

    Raises:
        SelectionError: there is none, for a reason that the text says.
    """
    cases = select(cases, options.patterns, quick=options.quick)
    if options.failed:
        failed = set(recall(memory_of(name)))
        cases = [case for case in cases if case.name in failed]
        if not cases:
            raise SelectionError("nothing failed the last time")
    return cases


def memory_of(name: str) -> Path:
    """Where it is written down what failed when ``name`` was examined the last time."""
    short = hashlib.blake2s(name.encode(), digest_size=8).hexdigest()
    return user_cache_path("blockproto") / "conform" / f"{short}.json"


def explain(cases: Sequence[Case], console: Console) -> None:
    """Say what each case is about."""
    for case in cases:
        for line in explain_lines(case):
            console.print(line, highlight=False, soft_wrap=True)


def run(
    subject: Subject,
    name: str,
    cases: Sequence[Case],
    options: Options,
    replay: Replay,
    console: Console,
    finish: Callable[[], None] = lambda: None,
) -> Report:
    """Run cases and write the reports that were asked for.

    Args:
        subject: what is examined.
        name: what it is called in reports.
        cases: what runs.
        options: how.
        replay: gives the command that runs one case again.
        console: for people.
        finish: called when the cases are done, before the reports are written.
    """
    report = Report(name, options=options.told())
    known = read_known_failures(options.known_failures.read_text("utf-8")) if options.known_failures else {}
    terminal = Terminal(console, replay, verbose=options.verbose)
    try:
        Runner(subject, terminal, jobs=options.jobs, shuffle=options.shuffle).run(cases, report)
        finish()
    finally:
        terminal.stop()
        apply_known_failures(report, known)
        _write(options, report, replay)
        remember(memory_of(name), report)
    terminal.summary(report)
    return report


def _write(options: Options, report: Report, replay: Replay) -> None:
    for path, made in ((options.json, json_lines), (options.junit, junit_xml), (options.html, html_page)):
        if path is not None:
            path.write_text(made(report, replay), encoding="utf-8")
