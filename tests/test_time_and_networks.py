"""Sleep, jumping clocks, changing addresses, dead and slow peers: short slices of the campaigns, with real processes.

Minutes pass in seconds because the processes' clocks do (libfaketime), and an address is taken away in a network namespace.
Where there is neither, the tests are skipped and say so.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from campaigns import asleep, clocks, moving, patience
from campaigns.tools import Figures, Place, heed_ctrl_c

pytestmark = pytest.mark.usefixtures("ctrl_c_heeded")


@pytest.fixture
def ctrl_c_heeded() -> None:
    heed_ctrl_c()


def _or_skip(case: Callable[[], Figures]) -> Figures:
    try:
        return case()
    except clocks.NoFaketime as error:
        pytest.skip(str(error))


def test_who_sleeps_for_a_moment_is_not_given_up(tmp_path: Path) -> None:
    """Minutes are what ``make life`` is for."""
    figures = asleep.run(Place(tmp_path / "place"), 1.0, asleep.ALL)
    assert {figures[str(case)]["connects"] for case in asleep.ALL} == {1}


@pytest.mark.clause("BP1-RES-027")
def test_a_clock_that_jumps_by_a_day_changes_nothing(tmp_path: Path) -> None:
    """Forward while it transfers, and to the day before when the same queue runs again."""
    place = Place(tmp_path / "place")
    _or_skip(lambda: clocks.run(place, (clocks.DAY_S, -clocks.DAY_S)))


@pytest.mark.clause("BP1-END-016", "BP1-RES-024")
def test_an_upload_goes_on_from_another_address(tmp_path: Path) -> None:
    try:
        moving.require_namespaces()
    except moving.CannotMove as error:
        pytest.skip(str(error))
    _or_skip(lambda: {"library": clocks.library()})
    options = ("--ways", "up", "--times", "20", "--folder", str(tmp_path))
    ran = subprocess.run(
        moving.inside(*options),
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert '"connects": 2' in ran.stdout


@pytest.mark.clause("BP1-END-004")
def test_a_dead_client_is_noticed(tmp_path: Path) -> None:
    _or_skip(lambda: patience.a_dead_client(Place(tmp_path / "place")))


@pytest.mark.clause("BP1-END-016")
def test_a_dead_server_is_noticed(tmp_path: Path) -> None:
    _or_skip(lambda: patience.a_dead_server(Place(tmp_path / "place")))


@pytest.mark.clause("BP1-LIM-005")
def test_a_slow_honest_one_is_not_taken_for_dead(tmp_path: Path) -> None:
    figures = _or_skip(lambda: patience.a_slow_honest_one(Place(tmp_path / "place"), "up", 90_000))
    assert figures["took_s"] > 60
