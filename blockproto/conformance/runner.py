"""Runs cases against whatever is examined: which, in which order, one by one or beside each other, and who is to blame.

The runner knows no wire. A ``Subject`` knows how to begin a trial of a case, how to tell whether it is still there, and
which case is the sanity check.

Rules:
    1. Cases are isolated: each has a trial of its own. Slow ones (deadlines of the protocol) run beside the others from
       the beginning; those that must be alone run at the end.
    2. A sanity check comes first, last, after each CRASH or HANG, and after every 50 cases. One that fails is an outcome.
    3. A case that lost its connection is a suspect, and the subject is asked whether it is there. If it is not, nothing
       new begins; when it is back, suspects run again, each alone, and who makes it go away again is blamed with CRASH.
       A single suspect is blamed at once. If it never comes back, the rest has failed: a lost prerequisite is a failure.
    4. Any other exception than those of ``verdicts`` is HARNESS_ERROR: ours.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .case import Case
from .outcome import Outcome, Report
from .transcript import Transcript
from .verdicts import Closed, Failed, Hung, Unsupported, Verdict

SANITY_EVERY = 50
"""Cases between two sanity checks."""

SLOW_AT_ONCE = 48
"""Slow cases that wait beside the others at the same time."""


class World(Protocol):
    """What a case gets. The transcript and the notes end in its outcome."""

    transcript: Transcript
    notes: list[str]


class Subject(Protocol):
    """What is examined."""

    sanity: Case

    def trial(self, case: Case) -> AbstractContextManager[World]:
        """A fresh world for one run of a case."""

    def alive(self) -> bool:
        """Whether it still answers."""

    def wait_back(self) -> bool:
        """Wait a while until it answers again; whether it did."""

    def lacks(self, case: Case) -> str:
        """Why the case cannot be examined here, or an empty string."""


class Observer(Protocol):
    """Who is told while cases run; called from several threads, never two at once."""

    def begin(self, total: int) -> None:
        """So many cases will run."""

    def ended(self, outcome: Outcome) -> None:
        """A case has ended."""

    def said(self, text: str) -> None:
        """Something else that people should know."""


class Runner:
    """One run.

    Args:
        subject: what is examined.
        observer: who is told.
        jobs: how many cases run at the same time, slow ones not counted.
        shuffle: seed of the order, or None for the order of the spec.
    """

    def __init__(
        self, subject: Subject, observer: Observer, *, jobs: int = 1, shuffle: int | None = None
    ) -> None:
        self._subject = subject
        self._observer = observer
        self._jobs = jobs
        self._shuffle = shuffle
        self._lock = threading.Lock()
        self._queue: deque[Case] = deque()
        self._outcomes: list[Outcome] = []
        self._suspects: list[Outcome] = []
        self._trouble = threading.Event()
        self._stopped = threading.Event()
        self._since_sanity = 0

    def run(self, cases: Sequence[Case], report: Report) -> Report:
        """Run them all and add their outcomes to ``report``; Ctrl-C ends it after the cases that are running."""
        began = time.monotonic()
        cases = list(cases)
        if self._shuffle is not None:
            random.Random(self._shuffle).shuffle(cases)
        self._observer.begin(len(cases))
        try:
            if cases:
                self._check_sanity("before the first case")
                self._run_beside([case for case in cases if not case.alone])
                for case in cases:
                    if case.alone:
                        self._run_beside([case])
                self._check_sanity("after the last case")
        finally:
            self._stopped.set()
            report.outcomes += self._outcomes
            report.elapsed_s += time.monotonic() - began
        return report

    def _run_beside(self, cases: Iterable[Case]) -> None:
        """Rounds of workers, until the queue is empty; a round ends early when the subject is gone."""
        self._queue.extend(sorted(cases, key=lambda case: not case.slow))
        while self._queue:
            self._trouble.clear()
            slow = sum(case.slow for case in self._queue)
            count = min(len(self._queue), self._jobs + min(slow, SLOW_AT_ONCE))
            workers = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
            for worker in workers:
                worker.start()
            try:
                for worker in workers:
                    worker.join()
            except KeyboardInterrupt:
                self._queue.clear()
                raise
            if self._suspects:
                self._blame()

    def _work(self) -> None:
        while not self._trouble.is_set() and not self._stopped.is_set():
            with self._lock:
                if not self._queue:
                    return
                case = self._queue.popleft()
            outcome = self.examine(case)
            if outcome.lost and not self._subject.alive():
                self._trouble.set()
            if self._trouble.is_set() and outcome.lost:
                with self._lock:
                    self._suspects.append(outcome)
                continue
            self._end(outcome)
            if case.slow and self._queue and not self._queue[0].slow:
                return  # the slow cases' extra workers go when those are done

    def _end(self, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes.append(outcome)
            self._observer.ended(outcome)
            self._since_sanity += 1
            due = self._since_sanity >= SANITY_EVERY or outcome.verdict in {Verdict.HANG, Verdict.CRASH}
            if due:
                self._since_sanity = 0
        if due:
            self._check_sanity(f"after {outcome.case.name}")

    def _check_sanity(self, when: str) -> None:
        outcome = self.examine(self._subject.sanity)
        if outcome.verdict is Verdict.PASS:
            return
        with self._lock:
            outcome = outcome.with_(message=f"the sanity check {when}: {outcome.message}")
            self._outcomes.append(outcome)
            self._observer.ended(outcome)
        if outcome.lost and not self._subject.alive():
            self._trouble.set()

    # ---- one case

    def examine(self, case: Case) -> Outcome:
        """Run one case and say how it ended; nothing is counted and nobody is told."""
        lacks = self._subject.lacks(case)
        if lacks:
            return Outcome(case, Verdict.UNSUPPORTED, lacks)
        began = time.monotonic()
        outcome = self._examine(case)
        return outcome.with_(elapsed_s=time.monotonic() - began)

    def _examine(self, case: Case) -> Outcome:
        world: Any = None
        try:
            with self._subject.trial(case) as world:
                case.script(world)
        except Unsupported as why:
            return Outcome(case, Verdict.UNSUPPORTED, str(why), transcript=_transcript(world))
        except Failed as failure:
            return _failed(case, failure, _transcript(world))
        except Exception:
            told = traceback.format_exc().rstrip()
            last = told.splitlines()[-1]
            return Outcome(case, Verdict.HARNESS_ERROR, last, got=told, transcript=_transcript(world))
        notes = "; ".join(dict.fromkeys(world.notes))
        verdict = Verdict.NON_STRICT if notes else Verdict.PASS
        return Outcome(case, verdict, notes, transcript=world.transcript)

    # ---- blame

    def _blame(self) -> None:
        """Find out which of the suspects made the subject go away."""
        suspects, self._suspects = self._suspects, []
        names = ", ".join(outcome.case.name for outcome in suspects)
        self._observer.said(f"the target does not answer any more after {names}; waiting for it to come back")
        if not self._subject.wait_back():
            self._give_up(suspects)
            return
        self._observer.said("the target is back")
        if len(suspects) == 1:
            self._end(_crashed(suspects[0]))
            return
        found = False
        for suspect in suspects:
            outcome = self.examine(suspect.case)
            if outcome.lost and not self._subject.alive():
                outcome, found = _crashed(outcome), True
                if not self._subject.wait_back():
                    self._give_up([outcome, *suspects[suspects.index(suspect) + 1 :]])
                    return
            if suspect is suspects[-1] and not found:
                outcome = _crashed(
                    suspects[0], f"; none of {len(suspects)} cases that ran together does it alone"
                )
                self._end(outcome)
                continue
            self._end(outcome)

    def _give_up(self, suspects: list[Outcome]) -> None:
        """It never came back: the suspects are blamed, and what was not run has failed."""
        for suspect in suspects:
            self._end_quietly(_crashed(suspect))
        name = suspects[0].case.name
        while self._queue:
            case = self._queue.popleft()
            self._end_quietly(Outcome(case, Verdict.FAIL, f"not examined: the target is gone since {name}"))

    def _end_quietly(self, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes.append(outcome)
            self._observer.ended(outcome)


def _failed(case: Case, failure: Failed, transcript: Transcript) -> Outcome:
    verdict = failure.verdict
    if case.level != "MUST" and verdict is Verdict.FAIL:
        verdict = Verdict.NON_STRICT
    return Outcome(
        case,
        Verdict.HANG if isinstance(failure, Hung) else verdict,
        failure.reason,
        failure.expected,
        failure.got,
        failure.divergence,
        failure.clause or case.clauses[0],
        transcript,
        lost=isinstance(failure, (Closed, Hung)),
    )


def _crashed(outcome: Outcome, more: str = "") -> Outcome:
    return outcome.with_(verdict=Verdict.CRASH, message=f"the target is gone after this case{more}")


def _transcript(world: World | None) -> Transcript:
    return Transcript() if world is None else world.transcript
