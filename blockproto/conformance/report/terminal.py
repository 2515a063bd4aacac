"""The terminal: a line that lives while cases run, each failure as it comes, and a summary.

Everything goes to stderr, for people. Foreign text is escaped: what a server says must not drive a terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from ...common.names import show_name
from ..case import LAYERS, Case
from ..clauses import clause
from ..outcome import Outcome, Report
from ..verdicts import Verdict

COLOURS = {
    Verdict.PASS: "green",
    Verdict.NON_STRICT: "yellow",
    Verdict.UNSUPPORTED: "bright_black",
    Verdict.FAIL: "red",
    Verdict.HANG: "red",
    Verdict.CRASH: "bold red",
    Verdict.HARNESS_ERROR: "magenta",
}
TRANSCRIPT_LINES = 30


class Terminal:
    """The runner's observer for people.

    Args:
        console: where to write; on a terminal the live line is shown.
        replay: gives the command that runs a case again.
        verbose: name each case as it ends.
    """

    def __init__(self, console: Console, replay: Replay, *, verbose: bool = False) -> None:
        self._console = console
        self._replay = replay
        self._verbose = verbose
        self._total = 0
        self._counts: Counter[Verdict] = Counter()
        self._status: Status | None = None

    def begin(self, total: int) -> None:
        """Show the live line where somebody looks."""
        self._total = total
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._status.start()

    def ended(self, outcome: Outcome) -> None:
        """Count; tell a failure at once."""
        self._counts[outcome.verdict] += 1
        if outcome.verdict.failed or outcome.verdict is Verdict.HARNESS_ERROR:
            for line in failure_lines(outcome, self._replay(outcome.case.name)):
                self._console.print(line, highlight=False, soft_wrap=True)
        elif self._verbose:
            self._console.print(verdict_line(outcome), highlight=False, soft_wrap=True)
        if self._status is not None:
            counts = "  ".join(f"[{COLOURS[v]}]{v.value} {n}[/]" for v, n in self._counts.items())
            self._status.update(
                f"{sum(self._counts.values())} of {self._total}  {counts}  {outcome.case.name}"
            )

    def said(self, text: str) -> None:
        """Something between the cases."""
        self._console.print(clean(text), style="yellow", highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Take the live line away."""
        if self._status is not None:
            self._status.stop()

    def summary(self, report: Report) -> None:
        """What the run ended with."""
        counts = report.counts()
        for outcome in report.of(Verdict.NON_STRICT):
            self._console.print(verdict_line(outcome), highlight=False, soft_wrap=True)
        told = " · ".join(f"[{COLOURS[v]}]{counts[v]} {v.value}[/]" for v in Verdict if counts[v])
        proved = len(report.clauses_proved())
        self._console.print(
            f"{told or 'no case'} in {report.elapsed_s:.1f} s; {proved} MUST clauses proved", highlight=False
        )
        for reason, number in Counter(outcome.message for outcome in report.of(Verdict.UNSUPPORTED)).items():
            self._console.print(
                f"  not examined, {number}: {clean(reason)}", style="bright_black", highlight=False
            )
        self._console.print(f"  {report.durability}", style="bright_black", highlight=False, soft_wrap=True)
        if report.failures:
            self._console.print(f"{len(report.failures)} failures; run them again with --failed", style="red")


class Replay:
    """Gives the command that runs one case again.

    Args:
        command: what stands before the case.
        behind: what stands behind it.
    """

    def __init__(self, command: Sequence[str], behind: Sequence[str] = ()) -> None:
        self._command = " ".join(command)
        self._behind = "".join(f" {word}" for word in behind)

    def __call__(self, case: str) -> str:
        """The command for a case of that name."""
        return f"{self._command} -k {case}{self._behind}"


def clean(text: str) -> str:
    """Text that neither the terminal nor rich's markup obeys."""
    return escape(show_name(text))


def verdict_line(outcome: Outcome) -> str:
    """One case in one line."""
    verdict = outcome.verdict
    known = " (known)" if outcome.known else ""
    why = f": {clean(outcome.message)}" if outcome.message else ""
    return f"[{COLOURS[verdict]}]{verdict.value}[/]{known} {outcome.case.name}{why}"


def failure_lines(outcome: Outcome, replay: str) -> list[str]:
    """Everything about a failure: what was expected and what came, the clause, the conversation, how to see it again."""
    lines = [verdict_line(outcome)]
    if not outcome.transcript.entries:
        return lines  # it was not even begun
    told = [
        ("expected", outcome.expected),
        ("got", outcome.got),
        ("differs at", str(outcome.divergence) if outcome.divergence else ""),
    ]
    lines += [f"  {word:<10} {clean(text)}" for word, text in told if text]
    broken = clause(outcome.clause or outcome.case.clauses[0])
    lines.append(f"  {'clause':<10} {broken.id} {broken.level}: {clean(broken.text)}")
    conversation = outcome.transcript.lines()[-TRANSCRIPT_LINES:]
    lines += [f"  [bright_black]{clean(line)}[/]" for line in conversation]
    return [*lines, f"  {'again with':<10} {clean(replay)}"]


def explain_lines(case: Case) -> list[str]:
    """What ``--explain`` says about a case."""
    lines = [
        f"[bold]{case.name}[/]",
        f"  {clean(case.why)}",
        f"  {case.level}, profile {case.profile}, layer L{case.layer} ({LAYERS[case.layer]})"
        + (", slow" if case.slow else "")
        + (f", needs an adapter that can {' and '.join(sorted(case.needs))}" if case.needs else ""),
    ]
    for id_ in case.clauses:
        one = clause(id_)
        lines.append(f"  [bold]{id_}[/] {one.level} {one.role} · {one.proof}: {clean(one.text)}")
    return lines
