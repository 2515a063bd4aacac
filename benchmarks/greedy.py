"""Greedy: what fifty polite principals wait for their files to be durable, beside one that sends all it can.

The rounds are those of the campaign ``tests/campaigns/attack_greedy.py``: without and with the greedy one in turn, on one
server with a token for each. Both the polite and the greedy take processor time from the server, which a machine with few
cores notices.
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
from .pairs import summarise
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
    alone, there = figures["p99_ms_without"], figures["p99_ms_with"]
    ratios = [one / other for one, other in zip(there, alone, strict=True)]
    rows = [
        Row(
            f"p99 of {GREEDY_POLITE} polite ones, with the greedy one by without",
            "×",
            summarise(ratios),
            GREEDY,
        ),
        Row("p99 without the greedy one", "ms", summarise(alone)),
        Row("p99 with the greedy one", "ms", summarise(there)),
    ]
    yield Section(f"greedy, {arena.place.name}", rows, raw=figures)


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
