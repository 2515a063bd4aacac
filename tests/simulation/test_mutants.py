"""Every mistake of ``mutants.py`` is caught: by a run in which the right things go wrong, or by a test."""

from __future__ import annotations

from collections.abc import Callable

import peers
import pytest
import test_turns

from .mutants import MIXES, MUTANTS, mutated
from .run import simulate
from .world import Violation

CLIENTS = 8
MANY = 24
"""For mistakes that need people who get in each other's way."""
SEEDS = 40
"""Runs in which a mistake has to show itself; most show in the first."""

CAUGHT_BY_A_TEST: dict[str, Callable[[], object]] = {
    "strict_priority": lambda: peers.run(test_turns.test_no_priority_starves),
}


def test_every_mutant_has_its_catcher() -> None:
    assert set(MIXES) | set(CAUGHT_BY_A_TEST) == set(MUTANTS)
    assert not set(MIXES) & set(CAUGHT_BY_A_TEST)


def _is_caught(seed: int, name: str) -> bool:
    try:
        simulate(seed, MANY if name == "names_overwritten" else CLIENTS, mix=MIXES[name])
    except Violation:
        return True
    return False


@pytest.mark.parametrize("name", sorted(MIXES))
def test_the_mutant_breaks_a_promise(name: str) -> None:
    with mutated(name):
        assert any(_is_caught(seed, name) for seed in range(1, SEEDS))


@pytest.mark.parametrize("name", sorted(MIXES))
def test_what_goes_wrong_there_is_survived_without_the_mistake(name: str) -> None:
    simulate(1, CLIENTS, mix=MIXES[name])


@pytest.mark.parametrize("name", sorted(CAUGHT_BY_A_TEST))
def test_the_mutant_fails_a_test(name: str) -> None:
    CAUGHT_BY_A_TEST[name]()
    with mutated(name), pytest.raises(AssertionError):
        CAUGHT_BY_A_TEST[name]()
