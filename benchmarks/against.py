"""Against an older commit: scenarios whose figures are ours alone, run by the benchmarks of both checkouts in turns.

What is measured in commands takes part in the pairs (``--old`` puts the older command among the contestants). What reaches
into the library, or compares figures that are no times, is run as a whole: by the older checkout's own benchmarks in its own
environment and by these here, on the same file system, as many rounds as there are pairs, in shuffled order. Figures of the
same words are compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .contest import Options
from .figures import Row, Section, show
from .ours import OLD
from .pairs import summarise
from .places import Place, remove
from .processes import CommandFailed
from .targets import NOT_SLOWER

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 3600.0
TIMES = {"s", "ms", "µs"}
"""Units in which less is better, and which are judged; the others are reported."""

Figures = Mapping[str, Mapping[str, Any]]
"""What was measured → its row in the JSON."""


def interpreter_of(checkout: Path) -> Path:
    """The interpreter of a checkout's environment."""
    return checkout / ".venv" / "bin" / "python"


def command_of(checkout: Path) -> Path:
    """The installed command of a checkout's environment."""
    return checkout / ".venv" / "bin" / "blockproto"


def against(scenario: str, place: Place, options: Options) -> Iterator[Section]:
    """The section of one scenario: each of its figures, the older checkout's beside ours."""
    assert options.old is not None
    checkouts = {OLD: options.old, "new": ROOT}
    rounds: list[dict[str, Figures]] = []
    title = f"{scenario}, old and new, {place.name}"
    for number in range(options.pairs):
        told: dict[str, Figures] = {}
        for who in options.rng.sample(list(checkouts), 2):
            options.tell(f"{title}: round {number + 1} of {options.pairs}: {who}")
            try:
                told[who] = _run(checkouts[who], scenario, place, options)
            except CommandFailed as error:
                yield Section(title, [Row(scenario, "×", None, note=f"{who}: {error}")])
                return
        rounds.append(told)
    yield Section(title, compare(rounds), raw=rounds, said=[f"on {place.about}"])


def compare(rounds: Sequence[Mapping[str, Figures]]) -> list[Row]:
    """A row for each figure that both told in every round: what it was divided by what it is, or the other way round.

    Args:
        rounds: ``old`` and ``new`` → figures, for each round.
    """
    shared = [what for what in rounds[0]["new"] if all(what in told[who] for told in rounds for who in told)]
    rows = [_row(what, [(told[OLD][what], told["new"][what]) for told in rounds]) for what in shared]
    return [row for row in rows if row is not None]


def _row(what: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Row | None:
    """The row of one figure; None where it cannot be divided, or nobody knows what would be better."""
    row = pairs[0][1]
    unit, target = row["unit"], row["target"]
    medians = [
        (old["summary"]["median"], new["summary"]["median"])
        for old, new in pairs
        if old["summary"] and new["summary"]
    ]
    known = target is not None or (unit not in ("", "×") and not unit.endswith("/s"))
    if len(medians) < len(pairs) or not known or not all(old > 0 and new > 0 for old, new in medians):
        return None
    more_is_better = target is not None and target["at_least"]
    ratios = [new / old if more_is_better else old / new for old, new in medians]
    was, now = (show(summarise(values).median) for values in zip(*medians, strict=True))
    judged = NOT_SLOWER if unit in TIMES else None
    return Row(f"{what} beside old", "×", summarise(ratios), judged, note=f"{was} → {now} {unit}".rstrip())


def _run(checkout: Path, scenario: str, place: Place, options: Options) -> dict[str, Any]:
    """Run one scenario with the benchmarks of a checkout; returns its rows by what they tell.

    Raises:
        CommandFailed: it wrote no results.
    """
    results = place.folder / "results"
    command = [
        *(str(interpreter_of(checkout) if checkout == options.old else sys.executable), "-m", "benchmarks"),
        *("--only", scenario, "--place", "disk", "--pairs", "1", "--out", str(results)),
        *("--sizes", ",".join(map(str, options.sizes)), "--files", str(options.files)),
        *("--memory-size", str(options.memory_size), "--held-blocks", str(options.held_blocks)),
    ]
    ran = subprocess.run(
        command,
        cwd=checkout,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    # Its status says whether everything was reached, or drawn; what was measured stands in the file.
    written = sorted(results.glob("*.json"))
    if not written:
        raise CommandFailed((ran.stderr or ran.stdout)[-500:])
    document = json.loads(written[-1].read_text(encoding="utf-8"))
    remove(results)
    return {row["what"]: row for section in document["sections"] for row in section["rows"]}


def _environment() -> dict[str, str]:
    """This environment without what would lead the other checkout's interpreter into this one."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
