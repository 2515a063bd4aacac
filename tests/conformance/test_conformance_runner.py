"""The runner of the conformance harness against subjects that are made up: verdicts, order, sanity, blame."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blockproto.conformance.case import Case, Chapter, Side
from blockproto.conformance.outcome import EXIT_FAILED, EXIT_HARNESS, EXIT_PASSED, Outcome, Report
from blockproto.conformance.runner import SANITY_EVERY, Runner
from blockproto.conformance.transcript import Transcript
from blockproto.conformance.verdicts import (
    Closed,
    Failed,
    Hung,
    Unsupported,
    Verdict,
    first_difference,
)


class World:
    """What a made-up case gets."""

    def __init__(self, subject: Subject, case: Case) -> None:
        self.subject = subject
        self.case = case
        self.transcript = Transcript()
        self.notes: list[str] = []


class Subject:
    """Somebody who can die, and may come back."""

    def __init__(self, *, returns: bool = True) -> None:
        self.dead = False
        self.returns = returns
        self.log: list[str] = []
        self.lacking: dict[str, str] = {}
        self._lock = threading.Lock()
        chapter = Chapter("sanity", Side.SERVER)
        chapter.add("check", "COM-009", why="It must work at all.")(self._sane)
        (self.sanity,) = chapter.cases

    def _sane(self, world: World) -> None:
        if self.dead:
            raise Closed("the target accepts no connection")

    @contextmanager
    def trial(self, case: Case) -> Iterator[World]:
        with self._lock:
            self.log.append(case.name)
        yield World(self, case)

    def alive(self) -> bool:
        return not self.dead

    def wait_back(self) -> bool:
        self.log.append("waited")
        self.dead = self.dead and not self.returns
        return self.returns

    def lacks(self, case: Case) -> str:
        return self.lacking.get(case.name, "")


class Silent:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.total = 0
        self.outcomes: list[Outcome] = []
        self.told: list[str] = []

    def begin(self, total: int) -> None:
        self.total = total

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def said(self, text: str) -> None:
        self.told.append(text)


def passes(world: World) -> None:
    pass


def fails(world: World) -> None:
    raise Failed("it does not", expected="this", got="that", divergence=first_difference("it", b"ab", b"ac"))


def hangs(world: World) -> None:
    raise Hung("nothing came")


def kills(world: World) -> None:
    world.subject.dead = True
    raise Closed("the connection ended")


def touched_by_death(world: World) -> None:
    if world.subject.dead:
        raise Closed("the connection ended")


def wrong(world: World) -> None:
    raise KeyError("a bug of ours")


def cannot(world: World) -> None:
    raise Unsupported("needs wings")


def notes(world: World) -> None:
    world.notes += ["it closes without a word", "it closes without a word"]


def cases_of(*scripts: Callable[[Any], None], clause: str = "FRM-001", **options: Any) -> list[Case]:
    chapter = Chapter("made-up", Side.SERVER)
    for no, script in enumerate(scripts):
        chapter.add(f"{no:03}-{script.__name__}", clause, why="It is made up.", **options)(script)
    return chapter.cases


def run(cases: list[Case], subject: Subject | None = None, **options: Any) -> tuple[Report, Subject, Silent]:
    subject = subject or Subject()
    observer = Silent()
    report = Runner(subject, observer, **options).run(cases, Report("made up"))
    return report, subject, observer


def verdicts(report: Report) -> dict[str, str]:
    return {outcome.case.name.rpartition("-")[2]: outcome.verdict.value for outcome in report.outcomes}


def test_each_way_to_end_has_its_verdict() -> None:
    report, _, observer = run(cases_of(passes, fails, hangs, wrong, cannot, notes))
    assert verdicts(report) == {
        "passes": "PASS",
        "fails": "FAIL",
        "hangs": "HANG",
        "wrong": "HARNESS_ERROR",
        "cannot": "UNSUPPORTED",
        "notes": "NON_STRICT",
    }
    assert observer.total == 6
    assert len(observer.outcomes) == 6
    by_name = {outcome.case.name.rpartition("-")[2]: outcome for outcome in report.outcomes}
    assert by_name["notes"].message == "it closes without a word"
    assert by_name["fails"].message == "it does not"
    assert str(by_name["fails"].divergence) == "byte 1 of it: 63 instead of 62"
    assert by_name["fails"].clause == "BP1-FRM-001"
    assert "KeyError" in by_name["wrong"].message


@pytest.mark.parametrize(
    ("scripts", "expected"),
    [
        ((passes, cannot, notes), EXIT_PASSED),
        ((passes, fails), EXIT_FAILED),
        ((passes, hangs), EXIT_FAILED),
        ((fails, wrong), EXIT_HARNESS),
    ],
)
def test_the_exit_code(scripts: tuple[Callable[[Any], None], ...], expected: int) -> None:
    assert run(cases_of(*scripts))[0].exit_code == expected


@pytest.mark.parametrize(("clause", "expected"), [("COM-020", "NON_STRICT"), ("COM-013", "FAIL")])
def test_a_should_that_fails_is_not_strict(clause: str, expected: str) -> None:
    assert verdicts(run(cases_of(fails, clause=clause))[0]) == {"fails": expected}


def test_what_is_lacking_is_not_run() -> None:
    cases = cases_of(fails)
    subject = Subject()
    subject.lacking = {cases[0].name: "the profile was not asked for"}
    report, subject, _ = run(cases, subject)
    assert [(one.verdict, one.message) for one in report.outcomes] == [
        (Verdict.UNSUPPORTED, "the profile was not asked for")
    ]
    assert cases[0].name not in subject.log


def test_sanity_comes_first_last_after_fifty_and_after_a_hang() -> None:
    scripts = [passes] * (SANITY_EVERY - 1) + [hangs] + [passes] * SANITY_EVERY
    _, subject, _ = run(cases_of(*scripts))
    checks = [at for at, name in enumerate(subject.log) if name.endswith("sanity/check")]
    assert checks == [0, SANITY_EVERY + 1, 2 * SANITY_EVERY + 2, 2 * SANITY_EVERY + 3]


def test_a_sanity_check_that_fails_is_an_outcome() -> None:
    subject = Subject()
    subject.sanity = cases_of(fails)[0]
    report, _, _ = run(cases_of(passes), subject)
    messages = [outcome.message for outcome in report.outcomes if outcome.verdict is Verdict.FAIL]
    assert messages == [
        "the sanity check before the first case: it does not",
        "the sanity check after the last case: it does not",
    ]
    assert report.exit_code == EXIT_FAILED


def test_who_kills_is_blamed_and_the_run_goes_on() -> None:
    report, subject, observer = run(cases_of(passes, kills, passes, fails))
    assert [outcome.verdict.value for outcome in report.outcomes] == ["PASS", "CRASH", "PASS", "FAIL"]
    assert "001-kills" in observer.told[0]
    assert observer.told[1] == "the target is back"
    assert subject.log.count("waited") == 1


def test_of_those_that_ran_together_the_killer_is_found() -> None:
    meet = threading.Barrier(3)
    first = threading.Event()

    def waits_and_is_hit(world: World) -> None:
        if not first.is_set():
            meet.wait(10)
            first.wait(10)
        touched_by_death(world)

    def kills_in_company(world: World) -> None:
        if not first.is_set():
            meet.wait(10)
        world.subject.dead = True
        first.set()
        raise Closed("the connection ended")

    scripts = [waits_and_is_hit, kills_in_company, waits_and_is_hit, passes]
    report, _, _ = run(cases_of(*scripts), jobs=3)
    assert sorted((one.case.name[-16:], one.verdict.value) for one in report.outcomes) == sorted(
        [
            ("waits_and_is_hit"[-16:], "PASS"),
            ("waits_and_is_hit"[-16:], "PASS"),
            ("kills_in_company"[-16:], "CRASH"),
            ("made-up/003-passes"[-16:], "PASS"),
        ]
    )


def test_who_kills_only_in_company_is_still_a_crash() -> None:
    meet = threading.Barrier(2)
    once = threading.Event()

    def together(world: World) -> None:
        if not once.is_set():
            meet.wait(10)
            world.subject.dead = True
            once.set()
            raise Closed("the connection ended")

    report, _, _ = run(cases_of(together, together), jobs=2)
    crashed = [outcome for outcome in report.outcomes if outcome.verdict is Verdict.CRASH]
    assert len(crashed) == 1
    assert "none of 2 cases" in crashed[0].message
    assert len(report.outcomes) == 2


def test_what_never_comes_back_fails_the_rest() -> None:
    report, _, observer = run(cases_of(passes, kills, passes, passes), Subject(returns=False))
    assert [outcome.verdict.value for outcome in report.outcomes[:4]] == ["PASS", "CRASH", "FAIL", "FAIL"]
    assert report.outcomes[2].message == "not examined: the target is gone since bp1/made-up/001-kills"
    assert report.exit_code == EXIT_FAILED
    assert len(observer.told) == 1


def test_slow_cases_run_beside_the_others() -> None:
    done = threading.Event()
    slow = cases_of(lambda world: None if done.wait(10) else pytest.fail("nobody came"), slow=True)
    quick = cases_of(passes, lambda world: done.set())
    assert run([*quick, *slow])[0].exit_code == EXIT_PASSED


def test_who_must_be_alone_runs_at_the_end() -> None:
    running: list[str] = []
    together: list[int] = []

    def counts(world: World) -> None:
        running.append(world.case.name)
        together.append(len(running))
        running.remove(world.case.name)

    alone = cases_of(counts, alone=True)
    _, subject, _ = run([*alone, *cases_of(*[passes] * 20)], jobs=4)
    assert together == [1]
    assert subject.log.index(alone[0].name, 1) == len(subject.log) - 2


def test_the_order_follows_the_seed() -> None:
    cases = cases_of(*[passes] * 30)
    orders = [run(cases, shuffle=seed)[1].log for seed in (1, 1, 2, None)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[3][1:-1] == [case.name for case in cases]


def test_clauses_are_proved_by_what_passes_and_fails_nowhere() -> None:
    report, _, _ = run(
        [*cases_of(passes), *cases_of(passes, fails, clause="FRM-002"), *cases_of(cannot, clause="FRM-003")]
    )
    assert report.clauses_proved() == {"BP1-FRM-001"}
