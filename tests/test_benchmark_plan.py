"""What a run of the benchmarks does, where, and beside which commit. Nothing is timed here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # `python -m pytest` has it there, a bare `pytest` has not
# ruff: noqa: E402

from benchmarks.against import compare
from benchmarks.figures import Verdict
from benchmarks.floor import CREATE_FILES, CREATE_FOLDERS, creates_us
from benchmarks.folder import pairs_that_fit
from benchmarks.places import Place
from benchmarks.plan import SCENARIOS, plan, wanted
from benchmarks.sources import weigh
from benchmarks.startup import GET, LIBRARIES, PUT, VERSION, rows_of_startup

# ---- the plan, and beside an older commit


def test_very_many_files_are_measured_only_when_they_are_named() -> None:
    assert "many" not in wanted(None)
    assert wanted(["many", "upload"]) == ["upload", "many"]
    assert len(wanted(None)) == len(SCENARIOS) - 1
    with pytest.raises(ValueError, match=r"^moon$"):
        wanted(["upload", "moon"])


def test_contests_are_measured_everywhere_and_ours_alone_at_the_first_place() -> None:
    assert plan(["upload", "memory", "small"], ["ext4", "tmpfs"]) == [
        ("upload", "ext4"),
        ("memory", "ext4"),
        ("small", "ext4"),
        ("upload", "tmpfs"),
        ("small", "tmpfs"),
    ]


def test_no_more_pairs_are_run_than_there_is_room_for() -> None:
    assert pairs_that_fit(9, 1000, 3) == 9
    assert pairs_that_fit(9, 17, 3) == 2
    assert pairs_that_fit(9, 5, 3) == 0
    assert pairs_that_fit(9, -1, 3) == 0


def _figure(median: float, unit: str, *, at_least: bool | None = None) -> dict[str, object]:
    target = None if at_least is None else {"limit": 1.0, "at_least": at_least}
    return {"summary": {"median": median}, "unit": unit, "target": target}


def test_figures_of_both_checkouts_are_compared_round_by_round() -> None:
    rounds = [
        {
            "old": {
                "taken": _figure(old, "ms"),
                "rate": _figure(old, "×", at_least=True),
                "gone": _figure(1, "s"),
            },
            "new": {"taken": _figure(new, "ms"), "rate": _figure(new, "×", at_least=True)},
        }
        for old, new in ((10.0, 20.0), (10.0, 5.0), (10.0, 10.0))
    ]
    taken, rate = compare(rounds)
    assert (taken.what, taken.shown, taken.verdict) == (
        "taken beside old",
        "1.00 × [0.750–1.50]",
        Verdict.REACHED,
    )
    assert rate.summary is not None
    assert (rate.summary[:3], rate.verdict) == ((1.0, 0.75, 1.5), Verdict.REPORTED)
    slower = compare([{"old": {"taken": _figure(9.69, "ms")}, "new": {"taken": _figure(10.0, "ms")}}])
    assert [row.verdict for row in slower] == [Verdict.SHORT]


def test_figures_that_cannot_be_divided_are_left_out() -> None:
    unknown = {"ratio": _figure(2.0, "×"), "nothing": _figure(0.0, "ms"), "failed": _figure(1.0, "ms")}
    assert compare([{"old": unknown | {"failed": {"summary": None}}, "new": unknown}]) == []


def test_the_imports_are_taken_off_a_command_round_by_round() -> None:
    times_s = {VERSION: [0.05, 0.06], PUT: [0.20, 0.30], GET: [0.19, 0.20], LIBRARIES: [0.15, 0.15]}
    times_s |= {f"old: {what}": [2 * one for one in times_s[what]] for what in (VERSION, PUT, GET)}
    rows = {row.what: row for row in rows_of_startup(times_s)}
    beyond = rows[f"{PUT}, beyond the imports"]
    assert beyond.summary is not None
    assert beyond.summary.median == pytest.approx(100)
    assert (beyond.verdict, rows[VERSION].verdict) == (Verdict.SHORT, Verdict.REACHED)
    assert rows[f"{PUT} beside old"].shown == "2.00 × [2.00–2.00]"


# ---- places


def test_what_is_discarded_stays_on_the_file_system(tmp_path: Path) -> None:
    place = Place("disk", tmp_path, "here")
    folder, other = tmp_path / "served" / "tree", tmp_path / "other" / "tree"
    for one in (folder, other):
        one.mkdir(parents=True)
        (one / "file").write_bytes(b"")
        place.discard(one)
        place.discard(one)
        assert not one.exists()
    assert len(list((tmp_path / "trash").glob("*/tree/file"))) == 2


def test_what_is_discarded_in_a_tmpfs_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "file").write_bytes(b"")
    Place("tmpfs", tmp_path, "here").discard(folder)
    assert list(tmp_path.iterdir()) == []


def test_plain_creates_make_whole_files(tmp_path: Path) -> None:
    assert creates_us(tmp_path / "creates") > 0
    assert weigh(tmp_path / "creates") == (
        CREATE_FOLDERS * CREATE_FILES,
        CREATE_FOLDERS * CREATE_FILES * 4096,
    )
