"""Options that several commands share, and the rule about addresses on other machines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import click

from .address import Address
from .output import warn

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    """``--json``: objects for scripts on stdout, one a line."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object a line on stdout, for scripts."
    )(command)


def insecure_option(command: _Command) -> _Command:
    """``--insecure``: speak unencrypted to another machine."""
    text = "Speak unencrypted with another machine (there is no TLS yet)."
    return click.option("--insecure", is_flag=True, help=text)(command)


def verbose_option(command: _Command) -> _Command:
    """``-v`` behind the command's name too, where people type it."""
    text = "Say more; -vv also what the engine does."
    return click.option(
        "-v", "--verbose", count=True, expose_value=False, callback=_set_verbosity, help=text
    )(command)


def _set_verbosity(ctx: click.Context, _parameter: click.Parameter, count: int) -> None:
    ctx.obj = (ctx.obj or 0) + count
    if ctx.obj >= 2:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def verbosity() -> int:
    """How often ``-v`` was given, before and behind the command's name."""
    return int(click.get_current_context().obj or 0)


def check_secure(address: Address, insecure: bool) -> None:
    """Refuse to speak unencrypted with another machine unless that was asked for; then say so in red.

    Raises:
        click.UsageError: it is another machine and ``--insecure`` was not given.
    """
    if address.loopback:
        return
    if not insecure:
        raise click.UsageError(
            f"'{address.host}' is another machine and there is no encryption yet: "
            "add --insecure if everybody on the way may read and change what is sent"
        )
    warn(f"not encrypted: everybody between here and {address.host} can read and change what is sent")
