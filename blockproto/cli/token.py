"""``blockproto token``: make, list and revoke tokens. A running server applies changes when it gets SIGHUP.

A token is shown once, on stdout, when it is made; the server keeps only a hash of it.
"""

from __future__ import annotations

import shlex
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ..common.names import RESERVED, SafeName, show_name
from ..errors import NameRefused, UnknownFile
from ..identity import principals as registers
from ..identity.principals import Register, Token
from ..identity.realm import EVERYTHING
from ..store.local.state_lock import holder_of
from ..wire import Scopes
from .options import EXIT_CODES_HERE, Duration, json_option, to_size
from .output import about, fail, print_json, say, show_round
from .state_folder import require_state


def to_state(ctx: click.Context, _parameter: click.Parameter, state: Path | None) -> Path:
    """The state that was named, which need not exist yet to get its first token, or that of the current folder."""
    if state is None and not Path(RESERVED).is_dir():
        raise click.UsageError(
            f"no server has its state in this folder: say --state DIR/{RESERVED}, where DIR is the folder that is served"
        )
    if state is not None:
        require_state(state, may_be_new=ctx.info_name == "add")
    return state or Path(RESERVED)


state_option = click.option(
    "--state",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    callback=to_state,
    help="The server's state: DIR/.blockproto of the folder it serves, or its --state.  [default: the one here]",
)


_EXAMPLES = f"""\b
blockproto token add ann --quota 10GB --state ~/inbox/.blockproto
blockproto token revoke ann --state ~/inbox/.blockproto

{EXIT_CODES_HERE}
"""


@click.group("token", epilog=_EXAMPLES)
def token() -> None:
    """Make, list and revoke the tokens with which clients come in."""


@token.command("add", epilog=EXIT_CODES_HERE)
@click.argument("name")
@click.option(
    "--folder",
    metavar="PATH",
    help="The only part of the served folder that NAME sees; '.' is all of it. Default: a folder called NAME.",
)
@click.option(
    "--read", "reads", is_flag=True, help="May fetch and list. Default, without --read and --write: both."
)
@click.option("--write", "writes", is_flag=True, help="May send and remove.")
@click.option(
    "--quota",
    metavar="SIZE",
    callback=to_size,
    help="How many bytes NAME may keep on the server, as in 10GB.",
)
@click.option(
    "--expires", "lasts_s", metavar="TIME", type=Duration(), help="How long the token is valid, as in 30d."
)
@state_option
def add(
    name: str,
    folder: str | None,
    reads: bool,
    writes: bool,
    quota: int | None,
    lasts_s: float | None,
    state: Path,
) -> int:
    """Make a token for NAME and print it; it is not shown again.

    A NAME that has tokens already gets one more: its files and uploads are the same. Its folder stays what it is unless
    --folder says otherwise.
    """
    if lasts_s == 0:
        raise click.UsageError(
            "--expires 0 would make a token that has expired already: write a time, as in 30d"
        )
    now_ms = time.time_ns() // 1_000_000
    scopes = (Scopes.READ if reads else Scopes(0)) | (Scopes.WRITE if writes else Scopes(0)) or EVERYTHING
    made: list[str] = []
    ids: list[str] = []

    def one_more(register: Register) -> Register:
        known = register.principals.get(name)
        kept = name if known is None else known.folder
        changed, text = register.with_token(
            name,
            folder=kept if folder is None else None if folder == "." else folder.removesuffix("/"),
            quota=known.quota if quota is None and known is not None else quota,
            scopes=scopes,
            now_ms=now_ms,
            expires_ms=None if lasts_s is None else now_ms + int(lasts_s * 1000),
        )
        made.append(text)
        ids.extend(one.id for one in changed.tokens if one not in register.tokens)
        return changed

    try:
        if folder is None:
            SafeName.parse(name)
    except NameRefused as error:
        return fail(error, show_name(name), "choose a NAME that can be a folder, or say --folder")
    if folder is not None and folder != ".":
        _require_folder(folder)
    with about(name):
        registers.change(state, one_more)
    try:
        click.echo(made[0])
    except (OSError, click.ClickException):  # it was not shown, and never will be
        registers.change(state, lambda register: register.without(ids[0])[0])
        raise
    say(f"this is the only time it is shown; {_applied(state)}")
    return 0


def _require_folder(folder: str) -> None:
    """Raise a usage error for a name that is not a part of the served folder; '' is an unset variable, not all of it."""
    try:
        SafeName.parse(folder.removesuffix("/"))
    except NameRefused as error:
        raise click.BadParameter(
            f"{show_name(folder)!r} is not a folder below the served one: {error}; '.' is all of it",
            param_hint="--folder",
        ) from error


@token.command("list", epilog=EXIT_CODES_HERE)
@json_option
@state_option
def list_tokens(as_json: bool, state: Path) -> int:
    """List the tokens: whose they are, what they allow and how long. The tokens themselves are not kept anywhere."""
    with about(str(state)):
        register = registers.load(state)
    if not register.tokens:
        say(f"there are no tokens in {state}")
    for one in register.tokens:
        if as_json:
            print_json(_fields(register, one))
        else:
            click.echo(_line(register, one))
    return 0


@token.command("revoke", epilog=EXIT_CODES_HERE)
@click.argument("name_or_id")
@state_option
def revoke(name_or_id: str, state: Path) -> int:
    """Revoke the token with this id, or all tokens of this name. Files stay where they are."""
    gone: list[Token] = []

    def less(register: Register) -> Register:
        changed, found = register.without(name_or_id)
        gone.extend(found)
        return changed

    with about(name_or_id):
        registers.change(state, less)
    if not gone:
        return fail(
            UnknownFile("there is no token of that name or id"), name_or_id, "see: blockproto token list"
        )
    for one in gone:
        say(f"revoked {one.id} of {show_name(one.name)}")
    say(_applied(state))
    return 0


def _applied(state: Path) -> str:
    """How a change comes into effect: by a signal to the server of this state, whose process is named where it is seen."""
    if not (state / "ledger").exists():
        served = state.name == RESERVED
        words = ["serve", str(state.parent)] if served else ["serve", "DIR", "--state", str(state)]
        return f"no server has had this state yet; this one will take it: blockproto {show_name(shlex.join(words))}"
    pid = holder_of(state)
    if pid is not None and _takes_sighup(pid):
        return f"the server that is running takes the change after: kill -HUP {pid}"
    return (
        "a server that is running takes the change after SIGHUP (kill -HUP and its process id, or systemctl reload "
        "blockproto), another at its start"
    )


def _takes_sighup(pid: int) -> bool:
    """Whether a process does something at SIGHUP; it ends others, as it would `blockproto check`."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGHUP - 1) & 1)


def _fields(register: Register, one: Token) -> dict[str, Any]:
    principal = register.principals[one.name]
    return {
        "id": one.id,
        "name": one.name,
        "scopes": list(one.scopes),
        "folder": "." if principal.folder is None else principal.folder,
        "quota": principal.quota,
        "created_ms": one.created_ms,
        "expires_ms": one.expires_ms,
    }


def _line(register: Register, one: Token) -> str:
    fields = _fields(register, one)
    ends = "for ever" if one.expires_ms is None else f"until {_day(one.expires_ms)}"
    quota = "no quota" if fields["quota"] is None else f"quota {show_round(fields['quota'])}"
    rights = "+".join(one.scopes)
    return show_name(f"{one.id}  {one.name}  {rights}  folder {fields['folder']}  {quota}  {ends}")


def _day(unix_ms: int) -> str:
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return "after the year 9999"
