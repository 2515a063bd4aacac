"""What ``conform server`` and ``conform client`` have in common: their options, ``--list`` and ``--explain``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from ..conformance import session
from ..conformance.clauses import all_clauses
from ..conformance.session import Options, chosen
from .options import verbose_option

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)


def run_options(command: _Command) -> _Command:
    """The options that every kind of examination has; the command gets them as keyword arguments of ``Options``."""
    for option in reversed(
        [
            click.option("--list", "list_", is_flag=True, help="Name the cases and run nothing."),
            click.option("--explain", metavar="CASE", help="Say what a case is about: why, and its clauses."),
            click.option(
                "-k",
                "patterns",
                multiple=True,
                metavar="WORDS",
                help="Only cases whose name contains WORDS or matches them (with *), or of a clause (RES-006). Repeatable.",
            ),
            click.option("--failed", is_flag=True, help="Only what failed the last time."),
            click.option(
                "--quick", is_flag=True, help="Leave out what waits for deadlines, and the limits (L4)."
            ),
            click.option(
                "--jobs",
                default=4,
                show_default=True,
                type=click.IntRange(1, 64),
                metavar="N",
                help="Cases at the same time.",
            ),
            click.option(
                "--shuffle", type=int, metavar="SEED", help="Another order, the same for the same SEED."
            ),
            click.option(
                "--profile",
                "profiles",
                multiple=True,
                default=["CORE"],
                show_default=True,
                help="Profiles that are claimed; CORE always is. Repeatable.",
            ),
            click.option(
                "--slow",
                default=1.0,
                type=click.FloatRange(0.01, 1000),
                metavar="N",
                help="Be N times as patient.",
            ),
            click.option(
                "--known-failures", type=_FILE, metavar="FILE", help="Lines 'CASE: MESSAGE' that are excused."
            ),
            click.option("--json", type=_FILE, metavar="FILE", help="Write the report as JSON lines."),
            click.option("--junit", type=_FILE, metavar="FILE", help="Write the report as JUnit XML."),
            click.option("--html", type=_FILE, metavar="FILE", help="Write the report as one HTML page."),
            verbose_option,
        ]
    ):
        command = option(command)
    return command


def tell(cases: list[Any], explain: str | None, options: Options) -> int:
    """``--list`` and ``--explain``: on stdout, since that is what was asked for."""
    if explain:
        session.explain(chosen(cases, "", Options(patterns=(explain,))), Console(file=sys.stdout))
        return 0
    for case in chosen(cases, "", options):
        marks = " ".join(
            [case.level, f"L{case.layer}", *(["slow"] if case.slow else []), *sorted(case.needs)]
        )
        click.echo(f"{case.name}  {marks}  {' '.join(case.clauses)}")
    return 0


def judge_profile(profile: str) -> None:
    """Refuse a profile that the spec does not have."""
    known = sorted({clause.profile for clause in all_clauses().values()})
    if profile not in known:
        raise click.UsageError(f"there is no profile {profile!r}; the spec has {', '.join(known)}")
