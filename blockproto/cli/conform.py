"""``blockproto conform``: hold somebody's server (or client) against the spec, clause by clause.

Exit codes are those of the harness, not of the other commands: 0 all required cases pass, 1 failures, 2 usage, 3 the
harness itself is wrong, 4 there is nothing that could be examined.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..conformance import session
from ..conformance.adapter import Adapter, AdapterError
from ..conformance.cast import Cast
from ..conformance.outcome import EXIT_HARNESS, EXIT_UNREACHABLE
from ..conformance.report.terminal import Replay
from ..conformance.selection import SelectionError
from ..conformance.server import ServerSubject, all_cases
from ..conformance.session import Options, chosen
from ..conformance.target import Target
from ..conformance.timing import Patience
from ..conformance.verdicts import Unreachable
from ..identity.certificates import parse_pin
from .address import SCHEME, AddressError, parse_address
from .conform_client import client
from .conform_options import judge_profile, run_options, tell
from .options import verbosity
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


_EXAMPLES = """\b
blockproto conform server localhost:7878
blockproto conform client -- ./my-client

Exit codes: 0 all required cases pass, 1 failures, 2 usage, 3 the harness is wrong, 4 there is nothing to examine.
"""


@click.group("conform", epilog=_EXAMPLES)
def conform() -> None:
    """Test a server or a client, whoever wrote it, against the spec."""


@conform.command("server")
@click.argument("address", metavar="HOST:PORT", required=False)
@run_options
@click.option("--small-segments", is_flag=True, help="Send in segments of one byte.")
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


conform.add_command(client)
