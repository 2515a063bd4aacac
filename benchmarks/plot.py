"""The plot of a run: ratios beside their targets, and limits and how much of them was used."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from .figures import Row, Section, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    Verdict.REACHED: "#2a7f3f",
    Verdict.SHORT: "#c0392b",
    Verdict.REPORTED: "#4a6fa5",
    Verdict.VOID: "#b0b0b0",
}
_ROW_INCHES = 0.28
_WIDTH_INCHES = 11


def draw(path: Path, sections: list[Section], title: str) -> bool:
    """Draw the figures of a run into a PNG; False if there are none to draw, or matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ratios = [
        (section, row) for section in sections for row in section.rows if row.unit == "×" and row.summary
    ]
    limits = [
        (section, row)
        for section in sections
        for row in section.rows
        if row.summary and row.target and not row.target.at_least and row.target.limit
    ]
    panels = [panel for panel in ((ratios, _draw_ratios), (limits, _draw_limits)) if panel[0]]
    if not panels:
        return False
    heights = [len(rows) + 3 for rows, _ in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(_WIDTH_INCHES, _ROW_INCHES * sum(heights) + 1),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (rows, draw_panel), one in zip(panels, axes[:, 0], strict=True):
        draw_panel(one, rows)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _draw_ratios(axes: Axes, rows: list[tuple[Section, Row]]) -> None:
    """Medians with quartiles, and the target of each as a tick."""
    for height, (_, row) in enumerate(rows):
        assert row.summary is not None
        median, lower, upper, _values = row.summary
        colour = COLOURS[row.verdict]
        axes.plot([lower, upper], [height, height], color=colour, linewidth=4, alpha=0.4)
        axes.plot([median], [height], "o", color=colour)
        if row.target:
            axes.plot([row.target.limit], [height], "|", color="black", markersize=14)
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlim(left=0)
    axes.set_xlabel("their time divided by ours: median and quartiles of the pairs (| target)")
    _label(axes, rows)


def _draw_limits(axes: Axes, rows: list[tuple[Section, Row]]) -> None:
    """How much of each limit was used."""
    for height, (_, row) in enumerate(rows):
        assert row.summary is not None
        assert row.target is not None
        axes.barh(height, row.summary.median / row.target.limit * 100, color=COLOURS[row.verdict], height=0.6)
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set_xlabel("per cent of the limit")
    _label(axes, rows)


def _label(axes: Axes, rows: list[tuple[Section, Row]]) -> None:
    names = [f"{section.title}: {row.what}  {row.shown.partition(' [')[0]}" for section, row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
