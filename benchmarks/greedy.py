"""Greedy: what fifty polite principals wait for their files to be durable, beside one that sends all it can.

The rounds are those of the campaign ``tests/campaigns/attack_greedy.py``, on one server with a token for each. Both the
polite and the greedy take processor time from the server and from each other, which a machine with few cores notices; what
that alone costs is told by the rounds beside a process that is as busy as the greedy one and sends nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arena import Arena
from .contest import Options
from .figures import Row, Section
from .pairs import Summary, summarise
from .targets import GREEDY, GREEDY_POLITE

TESTS = Path(__file__).resolve().parent.parent / "tests"
SECONDS = 4
_TIMEOUT_S = 600.0


def greedy(arena: Arena, options: Options) -> Iterator[Section]:
    """p99 of COMMITTED of the polite ones, in pairs of rounds."""
    options.tell("one greedy principal")
    figures, why = _campaign(arena.place.folder, options.pairs)
    if figures is None:
        yield Section(
            f"greedy, {arena.place.name}", [Row("p99 with the greedy one", "×", None, GREEDY, note=why)]
        )
        return
    alone, busy, there = (
        figures[f"p99_ms_{beside}"] for beside in ("alone", "beside_a_busy_process", "beside_the_greedy_one")
    )
    rows = [
        Row(
            f"p99 of {GREEDY_POLITE} polite ones, beside the greedy one by alone",
            "×",
            _ratios(there, alone),
            GREEDY,
        ),
        Row("the same by beside a process that is only busy", "×", _ratios(there, busy)),
        Row("p99 alone", "ms", summarise(alone)),
        Row("p99 beside a process that is only busy", "ms", summarise(busy)),
        Row("p99 beside the greedy one", "ms", summarise(there)),
    ]
    yield Section(f"greedy, {arena.place.name}", rows, raw=figures)


def _ratios(ones: list[float], others: list[float]) -> Summary:
    return summarise([one / other for one, other in zip(ones, others, strict=True)])


def _campaign(folder: Path, rounds: int) -> tuple[dict[str, Any] | None, str]:
    words = ["--polite", str(GREEDY_POLITE), "--seconds", str(SECONDS), "--rounds", str(rounds)]
    ran = subprocess.run(
        [sys.executable, "-m", "campaigns.attack_greedy", *words, "--folder", str(folder)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if ran.returncode:
        return None, (ran.stdout or ran.stderr)[-500:]
    figures: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return figures, ""
