"""``blockproto conform``: test a server or client against the spec, clause by clause.

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
from ..conformance.cast import Cast
from ..conformance.clauses import all_clauses
from ..conformance.client import all_cases as client_cases
from ..conformance.client.command import Command
from ..conformance.client.subject import ClientSubject
from ..conformance.outcome import EXIT_HARNESS, EXIT_UNREACHABLE
from ..conformance.report.terminal import Replay
from ..conformance.selection import SelectionError
from ..conformance.server import ServerSubject
from ..conformance.server import all_cases as server_cases
from ..conformance.session import Options, chosen
from ..conformance.target import Target
from ..conformance.timing import Patience
from ..conformance.verdicts import Unreachable
from ..identity.certificates import parse_pin
from .address import SCHEME, AddressError, parse_address
from .options import verbose_option, verbosity
from .output import warn


def to_pin(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> bytes | None:
    """A pin, from words or digits."""
    try:
        return None if text is None else parse_pin(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def to_tokens(
    _ctx: click.Context, _parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """The tokens in files, with the files' names."""
    try:
        return tuple(
            (name, Path(name).read_text(encoding="utf-8", errors="replace").strip()) for name in names
        )
    except OSError as error:
        raise click.BadParameter(f"'{error.filename}': {error.strerror}") from error


_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)


def _run_options(command: _Command) -> _Command:
    """The options that both commands have; they get most of them as keyword arguments of ``Options``."""
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
            click.option("--small-segments", is_flag=True, help="Send in segments of one byte."),
            verbose_option,
        ]
    ):
        command = option(command)
    return command


def _tell(cases: list[Any], explain: str | None, options: Options) -> int:
    """``--list`` and ``--explain``, on stdout."""
    if explain:
        session.explain(chosen(cases, "", Options(patterns=(explain,))), Console(file=sys.stdout))
        return 0
    for case in chosen(cases, "", options):
        marks = " ".join(
            [case.level, f"L{case.layer}", *(["slow"] if case.slow else []), *sorted(case.needs)]
        )
        click.echo(f"{case.name}  {marks}  {' '.join(case.clauses)}")
    return 0


def _judge_profile(profile: str) -> None:
    """Raise a usage error for a profile that the spec does not have."""
    known = sorted({clause.profile for clause in all_clauses().values()})
    if profile not in known:
        raise click.UsageError(f"there is no profile {profile!r}; the spec has {', '.join(known)}")


_EXIT_CODES = "Exit codes: 0 all required cases pass, 1 failures, 2 usage, 3 the harness is wrong, 4 nothing to examine."
_EXAMPLES = f"""\b
blockproto conform server localhost:7878
blockproto conform client -- ./my-client

{_EXIT_CODES}
"""


@click.group("conform", epilog=_EXAMPLES)
def conform() -> None:
    """Test a server or a client, whoever wrote it, against the spec."""


@conform.command("server", epilog=_EXIT_CODES)
@click.argument("address", metavar="HOST:PORT", required=False)
@_run_options
@click.option(
    "--tls", is_flag=True, help="Speak TLS on every connection, with whatever certificate is shown."
)
@click.option(
    "--pin", metavar="PIN", callback=to_pin, help="With --tls: the certificate, as the server prints it."
)
@click.option(
    "--token-file",
    "tokens",
    multiple=True,
    metavar="FILE",
    callback=to_tokens,
    help="Profile IDENTITY: a token; of two principals with folders of their own, of more for more cases. Repeatable.",
)
@click.option("--adapter", metavar="CMD", help="A process that can kill, start and inspect the server.")
def server(
    address: str | None,
    list_: bool,
    explain: str | None,
    profiles: tuple[str, ...],
    slow: float,
    small_segments: bool,
    tls: bool,
    pin: bytes | None,
    tokens: tuple[tuple[str, str], ...],
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
    cases = server_cases()
    try:
        if explain or list_:
            return _tell(cases, explain, options)
        if not address:
            raise click.UsageError("say which server: HOST:PORT, as in localhost:7878")
        where = parse_address(SCHEME + address.removeprefix(SCHEME))
        cases = chosen(cases, f"server {address}", options)
    except (AddressError, SelectionError) as error:
        raise click.UsageError(str(error)) from error
    for profile in profiles:
        _judge_profile(profile)
    cast = Cast(tuple(token for _, token in tokens))
    target = Target(where.host, where.port, Patience(slow), small_segments, tls=tls, pin=pin, cast=cast)
    words = ["--slow", f"{slow:g}"] if slow != 1 else []
    words += ["--small-segments"] if small_segments else []
    words += ["--tls"] if tls else []
    words += ["--pin", pin.hex()] if pin else []
    words += [f"--token-file {shlex.quote(name)}" for name, _ in tokens]
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


@conform.command("client", epilog=_EXIT_CODES, context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
@_run_options
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
    cases = client_cases()
    try:
        if explain or list_:
            return _tell(cases, explain, options)
        if not command:
            raise click.UsageError("say how the client is started, behind --: conform client -- ./my-client")
        cases = chosen(cases, name, options)
    except SelectionError as error:
        raise click.UsageError(str(error)) from error
    for profile in profiles:
        _judge_profile(profile)
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
