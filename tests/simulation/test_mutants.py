"""Every mistake of ``mutants.py`` is caught: by a run in which the right things go wrong, or by a test."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import peers
import pytest
import test_coming_back
import test_endpoint
import test_liveness
import test_scheduler
import trio

from blockproto.connection.endpoint import SocketEndpoint

from .mutants import MIXES, MUTANTS
from .run import simulate
from .world import Violation

CLIENTS = 8
MANY = 24
NEED_MANY = {"names_overwritten", "any_file_is_the_same"}
"""Mistakes that need people who get in each other's way, and how many these are."""
SEEDS = 40
"""Runs in which a mistake has to show itself; most show in the first."""


def _a_superseded_client_leaves_it() -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        peers.run(
            test_coming_back.test_who_takes_over_and_is_refused_again_leaves_it_to_the_other,
            Path(folder),
            patch,
        )


def _little_is_unsent() -> None:
    first, second = test_endpoint.tcp_pair()
    with first, second:
        pair = SocketEndpoint(first), SocketEndpoint(second)
        trio.run(test_endpoint.test_little_is_kept_unsent_while_streams_share_the_line, pair)


CAUGHT_BY_A_TEST: dict[str, Callable[[], object]] = {
    "strict_priority": lambda: peers.run(test_scheduler.test_no_priority_starves),
    "superseded_is_passed_by_twice": _a_superseded_client_leaves_it,
    "no_bound_of_what_is_unsent": _little_is_unsent,
    "keep_alive_counts_frames": test_liveness.test_any_byte_is_life_also_one_in_the_middle_of_a_frame,
}


def test_every_mutant_has_its_catcher() -> None:
    assert set(MIXES) | set(CAUGHT_BY_A_TEST) == set(MUTANTS)
    assert not set(MIXES) & set(CAUGHT_BY_A_TEST)


def _is_caught(seed: int, name: str) -> bool:
    try:
        simulate(seed, MANY if name in NEED_MANY else CLIENTS, mix=MIXES[name])
    except Violation:
        return True
    return False


@pytest.mark.parametrize("name", sorted(MIXES))
def test_the_mutant_breaks_a_promise(name: str) -> None:
    with MUTANTS.at_work(name):
        assert any(_is_caught(seed, name) for seed in range(1, SEEDS))


@pytest.mark.parametrize("name", sorted(MIXES))
def test_what_goes_wrong_there_is_survived_without_the_mistake(name: str) -> None:
    simulate(1, CLIENTS, mix=MIXES[name])


@pytest.mark.parametrize("name", sorted(CAUGHT_BY_A_TEST))
def test_the_mutant_fails_a_test(name: str) -> None:
    CAUGHT_BY_A_TEST[name]()
    with MUTANTS.at_work(name), pytest.raises(AssertionError):
        CAUGHT_BY_A_TEST[name]()
