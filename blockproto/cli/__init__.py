"""The command ``blockproto``: one module for each group of commands, loaded only when its command is called.

Rules:
    1. What scripts read goes to stdout (JSON lines, listings, ``listening on``); everything said to people goes to stderr.
    2. Exit codes: 0 done, 1 refused or failed, 2 usage, 3 unreachable or lost after retries, 130 Ctrl-C,
       141 stdout's reader has gone.
    3. This module imports nothing heavy, so that ``--version`` and ``--help`` answer at once; each command's own module
       imports what it needs (tests/cli/test_cli_imports.py).
"""

from __future__ import annotations

import importlib
import io
import itertools
import logging
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click

from .. import __version__
from ..common.names import show_lines
from ..errors import BlockprotoError
from .output import ShownFormatter, Status, fail, leaves_of, say
from .stopped import STOP
from .streams import secure

_COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("serve", "Serve a folder: take uploads into it and hand its files out."),
    "put": ("put", "Send files, folders or stdin to a server; run again to resume."),
    "get": ("get", "Fetch files or folders from a server; run again to resume."),
    "queue": ("queue", "Let transfers wait for their turn, pause them, go on after a restart."),
    "explain": ("explain", "Say why a transfer was slow or stuck, from what put --log or get --log wrote."),
    "ls": ("look", "List the files of a server."),
    "stat": ("look", "Show what a server knows of one file or folder."),
    "uploads": ("look", "List the unfinished uploads of a server."),
    "rm": ("change", "Remove files or folders from a server."),
    "cancel": ("change", "Throw an unfinished upload away."),
    "token": ("token", "Make, list and revoke the tokens with which clients come in."),
    "check": ("check", "Check a served folder against its ledger, while no server runs."),
    "clean": ("clean", "List what unfinished downloads have left in a folder, and remove it."),
    "chaos": ("chaos", "Put a bad line between an app and a server: slow, far away, breaking off."),
    "conform": ("conform", "Test a server or client, whoever wrote it, against the spec."),
    "demo": ("demo", "Kill a server in the middle of an upload and watch the file arrive."),
}
"""command: (module of this package, one line of help), in the order of ``--help``."""


class _Commands(click.Group):
    """A group whose commands are imported when they are called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click.Group; a name that is nearly right is understood, and not done."""
        if args[0] not in _COMMANDS:
            from difflib import get_close_matches

            if near := get_close_matches(args[0], _COMMANDS, n=1):
                ctx.fail(f"No such command '{args[0]}'. Did you mean '{near[0]}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"blockproto {__version__}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version.",
)
@click.option("-v", "--verbose", count=True, help="Say more; -vv also what the engine does.")
@click.pass_context
def commands(ctx: click.Context, verbose: int) -> None:
    """Transfer files that resume, are verified block by block, and are kept once acknowledged.

    Two commands to begin with: `blockproto serve DIR` on one side, `blockproto put FILE bp://HOST:7878` on the other.
    """
    ctx.obj = verbose


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Args:
        arguments: what stands after the command's name; None takes them from ``sys.argv``.
    """
    secure()
    STOP.resumes = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in scripts that this locale cannot write
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(ShownFormatter())
    sys.excepthook = _show_bug
    try:
        _refuse_empty(sys.argv[1:] if arguments is None else arguments)
        result: Any = commands.main(args=arguments, prog_name="blockproto", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else Status.DONE
    except click.Abort:
        return _interrupted()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BaseException as error:
        return _from_trio(error)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse empty arguments: none of ours may be empty, and as a path it would mean the current folder.

    Raises:
        click.UsageError: one is empty. Those behind "--" may belong to another program and are not checked.
    """
    for at, word in enumerate(itertools.takewhile(lambda word: word != "--", arguments)):
        if list(arguments[:at]) == ["token", "add"]:
            continue  # it reports a bad NAME itself
        if not word or (word.startswith("--") and word.endswith("=")):
            before = f" behind '{arguments[at - 1]}'" if at else ""
            where = f" '{word}'" if word else before
            raise click.UsageError(f"the argument{where} is empty: is a variable of the shell not set?")


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A ``sys.excepthook`` that escapes foreign text."""
    import traceback

    say(show_lines("".join(traceback.format_exception(kind, error, trace)).rstrip("\n")))


def _from_trio(error: BaseException) -> int:
    """The exit code for what came out of ``trio.run``: nurseries wrap errors in groups. A bug is raised again."""
    leaves = leaves_of(error)
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return _interrupted()
    for leaf in leaves:
        if isinstance(leaf, click.ClickException):
            leaf.show()
            return leaf.exit_code
    known = [leaf for leaf in leaves if isinstance(leaf, BlockprotoError)]
    if len(known) != len(leaves):
        raise error
    return max(fail(leaf) for leaf in known)


def _interrupted() -> int:
    say(STOP.sentence())
    return Status.INTERRUPTED
