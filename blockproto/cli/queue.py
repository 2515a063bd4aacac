"""``blockproto queue``: transfers that wait for their turn, in a list that survives its program.

Any number of commands may add and change while one runs. ``run`` shows what it does; the others return at once, also when no
server can be reached: a folder is read when its turn comes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .. import QueuedTransfer, TransferQueue, TransferState
from ..common.names import show_name
from ..errors import NameRefused
from ..queue import Direction
from ..queue.entry import PRIORITIES, Wanted
from ..queue.transfer_queue import wanted
from ..results import IfExistsWord
from .address import Address, to_address
from .get_words import split_words
from .options import (
    EXIT_CODES,
    EXIT_CODES_HERE,
    as_option,
    check_as_name,
    if_exists_option,
    json_option,
    paths_and_address,
    verbose_option,
)
from .output import fail, print_json, say, show_count, show_size
from .put import name_of
from .queue_change import cancel, move, pause, resume, retry
from .queue_file import fields_of, file_option, state_of, with_queue
from .queue_run import run

priority_option = click.option(
    "--priority",
    type=click.Choice(PRIORITIES),
    default="normal",
    show_default=True,
    help="interactive goes first and never waits behind the others; bulk uses what they leave.",
)


_EXAMPLES = f"""\b
blockproto queue add film.mp4 bp://localhost/ --priority bulk
blockproto queue run --until-empty

{EXIT_CODES}
"""


@click.group("queue", epilog=_EXAMPLES)
def queue() -> None:
    """Let transfers wait for their turn, pause them, go on after a restart.

    `queue add` and `queue get` put something in, `queue run` does it, `queue list` shows it. The list is a file: programs
    and the computer may end at any moment, and the next `queue run` goes on from what was acknowledged.

    The file is this user's own, in the folder $BLOCKPROTO_CONFIG if that is set; $BLOCKPROTO_QUEUE or --queue names another.

    Files and folders go through a queue; standard input, a part of a file (--range) and servers that speak only an older
    dialect do not: `put` and `get` do those. Files keep their times; a folder that is not empty gets the time at
    which its last file arrived.
    """


for _command in (pause, resume, retry, cancel, move, run):
    queue.add_command(_command)


# ---- putting something in


@queue.command("add", epilog=EXIT_CODES_HERE)
@paths_and_address
@as_option
@if_exists_option("there", "yours")
@priority_option
@file_option
@json_option
@verbose_option
def add(
    paths: tuple[str, ...],
    address: Address,
    as_name: str | None,
    if_exists: str,
    priority: str,
    file: Path,
    as_json: bool,
) -> int:
    """Queue files or folders to send to a server.

    Adding again what is in the queue already changes nothing but --if-exists. Symbolic links and special files in folders
    stay behind.
    """
    if not address.folder:
        raise click.UsageError(f"'{address.text}' may mean a folder or a name: end it with '/', or use --as")
    check_as_name(as_name, paths)
    many = []
    for path in paths:
        if path == "-":
            raise click.UsageError("'-', stdin, cannot wait in a queue: send it with put")
        try:
            os.lstat(path)
        except OSError as error:
            return fail(error, path)
        name = "/".join(filter(None, (address.path, (as_name or name_of(path)).strip("/"))))
        place = Path(os.path.abspath(path))
        many.append(_judged(path, Direction.UPLOAD, address.server, name, place, if_exists, priority))
    return _add(file, many, as_json)


@queue.command("get", epilog=EXIT_CODES_HERE)
@click.argument("words", nargs=-1, required=True, metavar="bp://HOST:PORT/NAME... [DEST]")
@if_exists_option("here", "the server's")
@priority_option
@file_option
@json_option
@verbose_option
@click.pass_context
def get(
    ctx: click.Context,
    words: tuple[str, ...],
    if_exists: IfExistsWord,
    priority: str,
    file: Path,
    as_json: bool,
) -> int:
    """Queue files or folders to fetch from a server.

    They go into DEST if that is a folder or ends with "/", or if there are several (then it is made), else under the name
    DEST; without it into the current folder.
    """
    texts, dest = split_words(words)
    addresses = [to_address(ctx, ctx.command.params[0], text) for text in texts]
    into = dest is None or len(addresses) > 1 or dest.endswith("/") or os.path.isdir(dest)
    many = []
    for address in addresses:
        if not address.path:
            raise click.UsageError(f"'{address.text}' is the whole server: name a file or folder of it")
        last = address.path.rpartition("/")[2]
        place = Path(os.path.abspath(os.path.join(dest or ".", last) if into else str(dest)))
        many.append(
            _judged(
                address.text, Direction.DOWNLOAD, address.server, address.path, place, if_exists, priority
            )
        )
    if into and dest is not None:
        try:
            os.makedirs(dest, exist_ok=True)
        except OSError as error:
            return fail(error, dest)
    return _add(file, many, as_json)


def _judged(what: str, *facts: Any) -> Wanted:
    try:
        return wanted(*facts)
    except NameRefused as error:
        raise click.UsageError(show_name(f"'{what}': {error}")) from error


def _add(file: Path, many: list[Wanted], as_json: bool) -> int:
    async def add(queue: TransferQueue) -> None:
        ids = await queue.add(many)
        there = {one.id: one for one in queue.transfers()}
        for id_ in ids:
            if as_json:
                print_json(fields_of(there[id_]))
            else:
                click.echo(f"{id_}  {show_name(there[id_].name)}")
        if not as_json and not await queue.is_running():
            say("nothing runs this queue yet: `blockproto queue run` does")

    return with_queue(file, add, makes=True)


# ---- looking


@queue.command("list", epilog=EXIT_CODES_HERE)
@click.option("--all", "everything", is_flag=True, help="Also what is done or cancelled.")
@file_option
@json_option
@verbose_option
def list_(everything: bool, file: Path, as_json: bool) -> int:
    """Show what is in the queue, the next transfer first.

    A line has the ID, state, priority, progress, what is transferred and with which server.
    """

    async def show(queue: TransferQueue) -> None:
        runs = await queue.is_running()
        hidden = () if everything else (TransferState.DONE, TransferState.CANCELLED)
        found = [one for one in queue.transfers() if one.state not in hidden]
        for one in found:
            if as_json:
                print_json(fields_of(one, runs))
            else:
                _print(one, runs)
        if not as_json and not found:
            say("nothing is in the queue" if everything else "nothing is left to do in the queue")
        elif not as_json and not runs and any(not one.state.ended for one in found):
            say("nothing runs this queue: `blockproto queue run` does")

    return with_queue(file, show)


def _print(one: QueuedTransfer, runs: bool) -> None:
    arrow = "→" if one.direction is Direction.UPLOAD else "←"
    size = "" if one.filesize is None else f"{show_size(one.position)} of {show_size(one.filesize)}"
    text = f"{one.id:>4}  {state_of(one, runs).value:<9}  {one.priority:<11}  {size:>22}  "
    text += f"{one.path} {arrow} {one.server}/{one.name}"
    text += f"  (became {show_count(one.became, 'transfer')})" if one.became is not None else ""
    text += f"  {one.error}" if one.error else ""
    click.echo(show_name(text))
