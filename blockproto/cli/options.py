"""Options that several commands share."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..observability.log_file import open_log
from ..results import IF_EXISTS
from .address import to_last_address, without_dot

EXIT_CODES = "Exit codes: 0 done, 1 refused or failed, 2 usage, 3 unreachable or lost (run it again to resume), 130 Ctrl-C."
"""The exit codes of the commands that transfer files, for their ``--help``."""
EXIT_CODES_ASKING = "Exit codes: 0 done, 1 refused or failed, 2 usage, 3 unreachable or lost, 130 Ctrl-C."
"""Those of the commands that ask a server something."""
EXIT_CODES_HERE = "Exit codes: 0 done, 1 refused or failed, 2 usage."
"""Those of the commands that speak with no server."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    """``--json``: objects for scripts on stdout, one a line."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object a line on stdout, for scripts."
    )(command)


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[kmgt])(i?)b?", re.I)


def to_size(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """Parse ``10GB``, ``500MiB``, ``1000000``, as a click callback."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"'{text}': write a number of bytes, as in 500MB or 10GiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " "))


_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A time with its unit; the value is seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click.ParamType."""
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*([a-z]*)", str(value).strip().lower())
        unit = _SECONDS.get(match[2] or "s") if match else None
        if match is None or unit is None or (not match[2] and float(match[1])):
            self.fail(f"'{value}': write a time with its unit, as in 90s, 10m or 1h, or 0", param, ctx)
        return float(match[1]) * unit


def retry_option(default: str | None = None) -> Callable[[_Command], _Command]:
    """``--retry-for``: how long to reconnect; ``default``: its default, if it is not the client's own."""
    text = "How long to come back after a lost connection while nothing gets further: 90s, 10m, 1h; 0: not at all. "
    if default is None:
        text += "Given, it also waits for a server that is not there yet.  [default: 2m for one that has answered]"
    else:
        text += f"Also for a server that is not there yet.  [default: {default}]"
    return click.option("--retry-for", "retry_for_s", metavar="TIME", type=Duration(), help=text)


def if_exists_option(here_or_there: str, whose: str) -> Callable[[_Command], _Command]:
    """``--if-exists``: what to do about a name taken ``here_or_there``; ``whose`` time decides for ``update``."""
    text = (
        f"If another file has the name {here_or_there}: keep both, refuse, replace it, skip (leave it), or update "
        f"(replace it if {whose} was modified later). The very same content is that file."
    )
    return click.option(
        "--if-exists",
        type=click.Choice(IF_EXISTS),
        default="keep",
        show_default=True,
        envvar="BLOCKPROTO_IF_EXISTS",
        show_envvar=True,
        help=text,
    )


def paths_and_address(command: _Command) -> _Command:
    """The arguments of what sends: ``PATH... bp://HOST:PORT[/FOLDER/]``."""
    address = click.argument("address", callback=to_last_address, metavar="bp://HOST:PORT[/FOLDER/]")
    return click.argument("paths", nargs=-1, metavar="PATH...")(address(command))


def as_option(command: _Command) -> _Command:
    """``--as``: another name on the server."""
    text = "The name it gets on the server (one PATH only)."
    return click.option("--as", "as_name", metavar="NAME", callback=_to_name, help=text)(command)


def _to_name(_ctx: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    return None if name is None else without_dot(name)


def check_as_name(as_name: str | None, paths: tuple[str, ...]) -> None:
    """Check whether ``--as`` can name what is sent.

    Raises:
        click.UsageError: several paths were given, or it cannot be a name, or it ends with "/" and the path is not a folder.
    """
    if as_name is None:
        return
    if len(paths) > 1:
        raise click.UsageError("--as names one PATH; give one PATH with it")
    if not as_name.strip("/"):
        raise click.UsageError("--as needs a name")
    if as_name.endswith("/") and not os.path.isdir(paths[0]):
        name = "NAME" if paths[0] == "-" else os.path.basename(paths[0])
        raise click.UsageError(
            f"--as '{as_name}' ends with '/' and so names a folder, which '{paths[0]}' is not: "
            f"write --as '{as_name}{name}' to put it in there"
        )


def checksum_option(command: _Command) -> _Command:
    """``--checksum``: compare contents."""
    text = (
        "Read the files here and compare digests also where size and time agree. The server reads its own where they were "
        "touched since it recorded theirs; `blockproto check --read` there reads all."
    )
    return click.option("--checksum", is_flag=True, help=text)(command)


def log_option(command: _Command) -> _Command:
    """``--log``: log what happens on the connection."""
    text = (
        "Write what happens on the line to FILE, for `blockproto explain FILE`: who waits for what, every second. Names and "
        "sizes of files are in it, contents and tokens are not."
    )
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option("--log", metavar="FILE", type=kind, callback=_check_writable, help=text)(command)


def _check_writable(_ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        try:
            open_log(path, "a").close()
        except OSError as error:
            raise click.BadParameter(f"'{path}': {error.strerror}") from error
    return path


def verbose_option(command: _Command) -> _Command:
    """``-v`` behind the command's name too, where people type it."""
    text = "Say more; -vv also what the engine does."
    return click.option(
        "-v", "--verbose", count=True, expose_value=False, callback=_set_verbosity, help=text
    )(command)


def _set_verbosity(ctx: click.Context, _parameter: click.Parameter, count: int) -> None:
    ctx.obj = (ctx.obj or 0) + count
    if ctx.obj >= 2:
        from ..observability.logs import TextFormatter

        handler = logging.StreamHandler()
        handler.setFormatter(TextFormatter())
        logging.basicConfig(level=logging.DEBUG, handlers=[handler])


def verbosity() -> int:
    """How often ``-v`` was given, before and behind the command's name."""
    return int(click.get_current_context().obj or 0)
