"""A slice of the campaign that does everything at once to one server; `make endure` is the whole of it."""

from __future__ import annotations

from pathlib import Path

from campaigns import endure
from campaigns.tools import Place


def test_everything_at_once_ends_nothing(tmp_path: Path) -> None:
    """No figure of time is judged here: other tests run beside it."""
    works = (endure.trees, endure.pipelined, endure.flood, endure.hostile)
    figures = endure.run(Place(tmp_path / "place"), minutes=0.05, seed=1, works=works, timed=False)
    assert figures["honest_files"] > 0
    assert figures["trees"] > 0
    assert figures["hostile_servers"] > 0
