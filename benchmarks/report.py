"""Reports: the table for people, the JSON for later, and the words that a run is void."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .figures import Section, Verdict
from .ours import COMMAND
from .pairs import SPREAD_MAX
from .peers import PEERS
from .processes import find_program

WIDTH = 150
"""Columns of the table where the output is no terminal."""

_STYLES = {Verdict.REACHED: "green", Verdict.SHORT: "red", Verdict.VOID: "yellow", Verdict.FAILED: "red"}


def print_section(section: Section, console: Console) -> None:
    """Print the table of one section, and that it is void if it is."""
    table = Table(title=section.title, title_justify="left", title_style="bold", expand=False)
    for heading in ("figure", "median [quartiles]", "target", "", "more"):
        table.add_column(heading, overflow="fold")
    for row in section.rows:
        target = f"{row.target} {row.unit}".rstrip() if row.target else ""
        verdict = Text(row.verdict.value, style=_STYLES.get(row.verdict, ""))
        table.add_row(Text(row.what), Text(row.shown.strip()), target, verdict, Text(row.note))
    console.print(table)
    for sentence in section.said:
        console.print(sentence, markup=False)
    if section.void:
        console.print(f"VOID: {void_words(section)}", style="yellow", markup=False)


def void_words(section: Section) -> str:
    """What of a section is void, and why."""
    why = (
        f"the floors spread {section.floor_spread:.1f}-fold"
        if section.floor_spread is not None and section.floor_spread > SPREAD_MAX
        else f"plain creates beside most of its pairs took more than {SPREAD_MAX:g} times as long as at their best"
    )
    what = ", ".join(row.what for row in section.rows if row.void)
    return f"{section.title}: {what}: {why}: the machine changed while this was measured, run it again"


def print_summary(sections: list[Section], console: Console) -> None:
    """Print how many figures were reached, and which were not."""
    counts = Counter(row.verdict for section in sections for row in section.rows)
    console.print(", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]))
    for section in sections:
        for row in section.rows:
            if row.verdict is Verdict.SHORT:
                console.print(
                    f"short: {section.title}: {row.what}: {row.shown}, target {row.target} {row.unit}",
                    markup=False,
                )
    void = [void_words(section) for section in sections if section.void]
    if void:
        console.print("This run is void in part. Do not quote these figures:", style="yellow")
    for words in void:
        console.print(f"void: {words}", style="yellow", markup=False)


def console() -> Console:
    """Where tables go: the terminal's width, or ``WIDTH`` where there is none."""
    ours = Console(highlight=False)
    return ours if ours.is_terminal else Console(highlight=False, width=WIDTH)


def write_json(path: Path, about: dict[str, Any], sections: list[Section]) -> None:
    """Write everything that was measured."""
    document = about | {
        "void": any(section.void for section in sections),
        "sections": [section.as_dict() for section in sections],
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_machine(old: Path | None = None) -> dict[str, Any]:
    """What the figures depend on: cores, memory, kernel, versions, the commits. No names, no paths."""
    return {
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "commit": _commit_of(Path()),
        "old_commit": None if old is None else _commit_of(old),
        "versions": {"blockproto": _first_line([COMMAND, "--version"]), **_peer_versions()},
    }


def _commit_of(checkout: Path) -> str:
    return _first_line(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"])


def _peer_versions() -> dict[str, str]:
    flags = {"nginx": "-v", "vsftpd": "-v", "sshd": "-V", "scp": None, "ssh-keygen": None}
    programs = {program for peer in PEERS for program in peer.packages}
    return {
        program: _first_line([found, flag])
        for program in sorted(programs)
        if (flag := flags.get(program, "--version")) and (found := find_program(program))
    }


def _first_line(command: list[str]) -> str:
    """What a program says first, wherever it says it (vsftpd: on its standard input); empty if it fails."""
    with tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(command, stdin=said, stdout=said, stderr=said, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        said.seek(0)
        return "" if done.returncode else said.readline().decode(errors="replace").strip()
