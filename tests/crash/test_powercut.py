"""Real power cuts, where the machine allows them; `make crash` cuts a hundred times."""

from __future__ import annotations

import random

import pytest

from .powercut import cut_power, why_not

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", autouse=True)
def _loop_mounts() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.clause("BP1-RES-015", "BP1-COM-005", "BP1-COM-006")
def test_a_few_cuts_break_no_promise() -> None:
    seed = random.SystemRandom().randrange(1000)
    report = cut_power(5, seed=seed)
    assert report.promises > 0
    assert report.problems == [], f"seed {seed}"


def test_a_store_that_does_not_sync_is_caught() -> None:
    assert cut_power(2, "no_sync").problems != []


@pytest.mark.crash
def test_a_hundred_cuts_break_no_promise() -> None:
    seed = random.SystemRandom().randrange(1000)
    report = cut_power(100, seed=seed)
    assert report.promises > 1000
    assert report.problems == [], f"seed {seed}"
