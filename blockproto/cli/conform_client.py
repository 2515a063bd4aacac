"""``blockproto conform client -- COMMAND…``: the harness is a server that misbehaves, and the client is a command."""

from __future__ import annotations

import shlex
from typing import Any

import click
from rich.console import Console

from ..conformance import session
from ..conformance.client import all_cases
from ..conformance.client.command import Command
from ..conformance.client.subject import ClientSubject
from ..conformance.outcome import EXIT_UNREACHABLE
from ..conformance.report.terminal import Replay
from ..conformance.selection import SelectionError
from ..conformance.session import Options, chosen
from ..conformance.timing import Patience
from ..conformance.verdicts import Unreachable
from .conform_options import judge_profile, run_options, tell
from .options import verbosity
from .output import warn


@click.command("client", context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
@run_options
@click.option("--small-segments", is_flag=True, help="Send in segments of one byte.")
def client(
    command: tuple[str, ...],
    list_: bool,
    explain: str | None,
    profiles: tuple[str, ...],
    slow: float,
    small_segments: bool,
    **choices: Any,
) -> int:
    """Examine the client that COMMAND starts.

    For each case COMMAND is started with one more word: a job, as JSON. What jobs there are, what is printed and which
    exit codes count stands in spec/conformance.md. Behind -- everything belongs to COMMAND.
    """
    options = Options(
        verbose=bool(verbosity()), more={"slow": slow, "small segments": small_segments}, **choices
    )
    name = f"client {shlex.join(command)}"
    cases = all_cases()
    try:
        if explain or list_:
            return tell(cases, explain, options)
        if not command:
            raise click.UsageError("say how the client is started, behind --: conform client -- ./my-client")
        cases = chosen(cases, name, options)
    except SelectionError as error:
        raise click.UsageError(str(error)) from error
    for profile in profiles:
        judge_profile(profile)
    subject = ClientSubject(Command(command), Patience(slow), small_segments)
    words = ["--slow", f"{slow:g}"] if slow != 1 else []
    words += ["--small-segments"] if small_segments else []
    replay = Replay(["blockproto conform client", *words], ["--", shlex.join(command)])
    try:
        subject.check()
        return session.run(subject, name, cases, options, replay, Console(stderr=True)).exit_code
    except Unreachable as error:
        warn(f"blockproto: {error}")
        return EXIT_UNREACHABLE
