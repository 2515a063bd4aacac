"""What a case ended with, and what a whole run ended with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from .case import Case, Side
from .clauses import clause
from .transcript import Transcript
from .verdicts import Divergence, Verdict

EXIT_PASSED, EXIT_FAILED, EXIT_USAGE, EXIT_HARNESS, EXIT_UNREACHABLE = range(5)
"""0 all required cases pass, 1 failures, 2 usage, 3 the harness is wrong, 4 nothing that can be examined."""


@dataclass(frozen=True)
class Outcome:
    """One case and its verdict.

    Attributes:
        case: which.
        verdict: how it ended.
        message: one sentence, the same whenever the same goes wrong; empty for PASS.
        expected, got, divergence: what should have come, what came, and the first byte that differs; where they are known.
        clause: the clause that was broken; the judged one unless the failure names another.
        transcript: what was said and heard.
        elapsed_s: seconds.
        lost: the connection ended or fell silent, so that the target may be gone.
        known: it is in the list of known failures.
    """

    case: Case
    verdict: Verdict
    message: str = ""
    expected: str = ""
    got: str = ""
    divergence: Divergence | None = None
    clause: str = ""
    transcript: Transcript = field(default_factory=Transcript)
    elapsed_s: float = 0.0
    lost: bool = False
    known: bool = False

    @property
    def counts_as_failure(self) -> bool:
        """Whether the run fails because of it."""
        return self.verdict.failed and not self.known

    def with_(self, **changes: Any) -> Outcome:
        """The same, judged otherwise."""
        return replace(self, **changes)


@dataclass
class Report:
    """All outcomes of a run, in the order in which they came.

    Attributes:
        subject: what was examined, as people typed it.
        outcomes: one for each case; a sanity upload only if it failed.
        elapsed_s: of the whole run.
        options: what shaped the run (seed of the order, jobs, slow …).
    """

    subject: str
    outcomes: list[Outcome] = field(default_factory=list)
    elapsed_s: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def counts(self) -> Counter[Verdict]:
        """How many cases ended with each verdict."""
        return Counter(outcome.verdict for outcome in self.outcomes)

    @property
    def durability(self) -> str:
        """Whether a kill was survived, or why that was not examined: durability cannot be seen without one."""
        kills = [outcome for outcome in self.outcomes if "kill" in outcome.case.needs]
        tried = [outcome for outcome in kills if outcome.verdict is not Verdict.UNSUPPORTED]
        if tried:
            return f"durability was examined by {len(tried)} kills of the process, not by a loss of power"
        if self.outcomes and all(outcome.case.side is Side.CLIENT for outcome in self.outcomes):
            return "durability was not examined: no case kills a client"
        return "durability was not examined: that needs an adapter that can kill and start the server (--adapter)"

    def of(self, *verdicts: Verdict) -> list[Outcome]:
        """The outcomes with one of these verdicts, by name."""
        found = [outcome for outcome in self.outcomes if outcome.verdict in verdicts]
        return sorted(found, key=lambda outcome: outcome.case.name)

    @property
    def failures(self) -> list[Outcome]:
        """What makes the run fail, by name."""
        found = [outcome for outcome in self.outcomes if outcome.counts_as_failure]
        return sorted(found, key=lambda outcome: outcome.case.name)

    def clauses_proved(self, level: str = "MUST") -> set[str]:
        """Clauses of a level of which at least one case passed and none failed."""
        passed: set[str] = set()
        broken: set[str] = set()
        for outcome in self.outcomes:
            named = {id_ for id_ in outcome.case.clauses if clause(id_).level == level}
            if outcome.verdict in {Verdict.PASS, Verdict.NON_STRICT}:
                passed |= named
            elif outcome.verdict is not Verdict.UNSUPPORTED:
                broken |= named
        return passed - broken

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        if self.of(Verdict.HARNESS_ERROR):
            return EXIT_HARNESS
        return EXIT_FAILED if self.failures else EXIT_PASSED
