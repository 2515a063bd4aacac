"""``blockproto conform``: hold somebody's server (or client) against the spec, clause by clause.

Exit codes are those of the harness, not of the other commands: 0 all required cases pass, 1 failures, 2 usage, 3 the
harness itself is wrong, 4 there is nothing that could be examined.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from ..conformance import session
from ..conformance.adapter import Adapter, AdapterError
from ..conformance.clauses import all_clauses
from ..conformance.outcome import EXIT_HARNESS, EXIT_UNREACHABLE
from ..conformance.report.terminal import Replay
from ..conformance.selection import SelectionError
from ..conformance.server import ServerSubject, all_cases
from ..conformance.session import Options, chosen
from ..conformance.target import Target
from ..conformance.timing import Patience
from ..conformance.verdicts import Unreachable
from .address import SCHEME, AddressError, parse_address
from .options import verbose_option, verbosity
from .output import warn

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group("conform")
def conform() -> None:
    """Hold a server or a client, whoever wrote it, against the spec."""


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
                help="Only cases whose name holds WORDS, is it, or matches it (*); or of a clause (RES-006). Repeatable.",
            ),
            click.option("--failed", is_flag=True, help="Only what failed the last time."),
            click.option("--quick", is_flag=True, help="Leave out what waits for deadlines of the protocol."),
            click.option(
                "--jobs", default=1, type=click.IntRange(1, 64), metavar="N", help="Cases at the same time."
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


@conform.command("server")
@click.argument("address", metavar="HOST:PORT", required=False)
@run_options
@click.option("--small-segments", is_flag=True, help="Send in segments of one byte.")
@click.option("--adapter", metavar="CMD", help="A process that can kill, start and inspect the server.")
def server(
    address: str | None,
    list_: bool,
    explain: str | None,
    profiles: tuple[str, ...],
    slow: float,
    small_segments: bool,
    adapter: str | None,
    **choices: Any,
) -> int:
    """Examine the server at HOST:PORT.

    It is spoken to like a stranger: nothing about it is known but its address. What the cases store goes into one folder
    of a random name, and is removed at the end.
    """
    options = Options(
        verbose=bool(verbosity()), more={"slow": slow, "small segments": small_segments}, **choices
    )
    cases = all_cases()
    try:
        if explain or list_:
            return tell(cases, explain, options)
        if not address:
            raise click.UsageError("say which server: HOST:PORT, as in localhost:7878")
        where = parse_address(SCHEME + address.removeprefix(SCHEME))
        cases = chosen(cases, f"server {address}", options)
    except (AddressError, SelectionError) as error:
        raise click.UsageError(str(error)) from error
    for profile in profiles:
        judge_profile(profile)
    target = Target(where.host, where.port, Patience(slow), small_segments)
    words = ["--slow", f"{slow:g}"] if slow != 1 else []
    words += ["--small-segments"] if small_segments else []
    words += ["--adapter", shlex.quote(adapter)] if adapter else []
    words += [f"--profile {profile}" for profile in profiles if profile != "CORE"]
    replay = Replay(["blockproto conform server", str(address), *words])
    return _examine(
        target, adapter, frozenset({"CORE", *profiles}), f"server {address}", cases, options, replay
    )


def _examine(
    target: Target,
    adapter: str | None,
    profiles: frozenset[str],
    name: str,
    cases: list[Any],
    options: Options,
    replay: Replay,
) -> int:
    helper = None
    try:
        helper = Adapter(adapter) if adapter else None
        subject = ServerSubject(target.with_(adapter=helper), profiles)
        subject.reach()
        return session.run(
            subject, name, cases, options, replay, Console(stderr=True), subject.clean
        ).exit_code
    except Unreachable as error:
        warn(f"blockproto: {error}")
        return EXIT_UNREACHABLE
    except AdapterError as error:
        warn(f"blockproto: {error}")
        return EXIT_HARNESS
    finally:
        if helper is not None:
            helper.close()


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
