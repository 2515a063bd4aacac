"""``blockproto queue``: transfers that wait for their turn, in a list that survives its program.

Any number of commands may add and change while one runs. ``run`` shows what it does; the others say little and return at
once, also when no server can be reached: a folder is looked into when its turn comes.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
import trio
from click.core import ParameterSource

from .. import Client, LeftOut, QueuedTransfer, TransferQueue, TransferState
from ..common.names import show_name
from ..errors import Code, NameRefused, NotPermitted
from ..queue import Direction
from ..queue.entry import PRIORITIES, Wanted
from ..queue.transfer_queue import AT_ONCE, RETRY_FOR_S, default_path, wanted
from ..results import IfExistsWord
from .access import access_options, check_access, connect_as_told, token_needs_server
from .address import Address, parse_address, to_address
from .get import split_words
from .interruptions import LineTeller
from .left_out import LeftOutTeller, missed_of, say_missed
from .options import (
    EXIT_CODES,
    as_option,
    check_as_name,
    if_exists_option,
    json_option,
    paths_and_address,
    retry_option,
    verbose_option,
    verbosity,
)
from .output import Status, about, fail, is_for_all, print_json, say, show_count, show_size, warn
from .progress import Meter
from .put import name_of

FILE_VARIABLE = "BLOCKPROTO_QUEUE"
_ALL = "all"
_Command = TypeVar("_Command", bound=Callable[..., Any])

file_option = click.option(
    "--queue",
    "file",
    metavar="FILE",
    envvar=FILE_VARIABLE,
    type=click.Path(path_type=Path, dir_okay=False),
    default=default_path,
    show_default=f"${FILE_VARIABLE}, or this user's own",
    help="The queue's file, on a local disk; add, get and run make it if it is not there.",
)
priority_option = click.option(
    "--priority",
    type=click.Choice(PRIORITIES),
    default="normal",
    show_default=True,
    help="interactive goes first and never waits behind the others; bulk uses what they leave.",
)
ids_argument = click.argument("ids", nargs=-1, required=True, metavar="ID...|all")


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

    Files and folders go through a queue; standard input, a part of a file (--range) and servers that speak only an older
    dialect do not: `put` and `get` do those. Files keep their times; a folder that is not empty gets the time at
    which its last file arrived.
    """


# ---- putting something in


@queue.command("add")
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


@queue.command("get")
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

    They go into DEST if that is a folder (or ends with "/"), else under the name DEST; without it into the current folder.
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

    return _with_queue(file, add, makes=True)


# ---- looking


@queue.command("list")
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

    return _with_queue(file, show)


def fields_of(one: QueuedTransfer, runs: bool = True) -> dict[str, Any]:
    """The object that ``--json`` prints for a transfer.

    Args:
        one: the transfer.
        runs: whether some process runs the queue: else nothing runs, whatever a killed one has left.
    """
    fields = asdict(one)
    fields |= {"direction": one.direction.value, "path": str(one.path), "state": _state(one, runs).value}
    del fields["place"], fields["revision"]
    return fields


def _state(one: QueuedTransfer, runs: bool) -> TransferState:
    return TransferState.WAITING if one.state is TransferState.RUNNING and not runs else one.state


def _print(one: QueuedTransfer, runs: bool) -> None:
    arrow = "→" if one.direction is Direction.UPLOAD else "←"
    size = "" if one.filesize is None else f"{show_size(one.position)} of {show_size(one.filesize)}"
    text = f"{one.id:>4}  {_state(one, runs).value:<9}  {one.priority:<11}  {size:>22}  "
    text += f"{one.path} {arrow} {one.server}/{one.name}"
    text += f"  (became {show_count(one.became, 'transfer')})" if one.became is not None else ""
    text += f"  {one.error}" if one.error else ""
    click.echo(show_name(text))


# ---- changing


@queue.command("pause")
@ids_argument
@file_option
@verbose_option
def pause(ids: tuple[str, ...], file: Path) -> int:
    """Stop transfers where they are, until `queue resume`."""
    return _change(file, ids, "paused", lambda queue, numbers: queue.pause(*numbers))


@queue.command("resume")
@ids_argument
@file_option
@verbose_option
def resume(ids: tuple[str, ...], file: Path) -> int:
    """Let paused transfers wait for their turn again."""
    return _change(file, ids, "waiting", lambda queue, numbers: queue.resume(*numbers))


@queue.command("retry")
@ids_argument
@file_option
@verbose_option
def retry(ids: tuple[str, ...], file: Path) -> int:
    """Let failed transfers wait for their turn again.

    Cancelled ones too, if they are given by ID.
    """
    return _change(file, ids, "waiting", lambda queue, numbers: queue.retry(*numbers))


@queue.command("cancel")
@ids_argument
@file_option
@verbose_option
def cancel(ids: tuple[str, ...], file: Path) -> int:
    """Cancel transfers and remove what has arrived of them.

    The `queue run` that is running removes it, or the next one.
    """
    return _change(file, ids, "cancelled", lambda queue, numbers: queue.cancel(*numbers))


@queue.command("move")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--first", is_flag=True, help="Before everything else of the same priority.")
@click.option("--last", is_flag=True, help="Behind everything else of the same priority.")
@click.option("--before", metavar="ID", type=int, help="Just before that one.")
@click.option("--after", metavar="ID", type=int, help="Just behind that one.")
@click.option("--priority", type=click.Choice(PRIORITIES), help="Give them this priority, too.")
@file_option
@verbose_option
def move(
    ids: tuple[str, ...],
    first: bool,
    last: bool,
    before: int | None,
    after: int | None,
    priority: str | None,
    file: Path,
) -> int:
    """Move transfers to another place in the queue.

    A more urgent priority still goes first.
    """
    places = [first, last, before is not None, after is not None]
    if sum(places) > 1 or (not any(places) and priority is None):
        raise click.UsageError(
            "say where to: one of --first, --last, --before ID and --after ID, or --priority"
        )
    numbers = _numbers(ids)

    async def moving(queue: TransferQueue) -> None:
        if priority is not None:
            await queue.set_priority(*numbers, priority=priority)
        if any(places):
            await queue.move(*numbers, first=first, before=before, after=after)

    return _with_queue(file, moving)


def _numbers(ids: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers; none for the word ``all``."""
    if ids == (_ALL,):
        return ()
    wrong = next((word for word in ids if not (word.isascii() and word.isdigit()) or len(word) > 18), None)
    if wrong is not None:
        raise click.UsageError(f"'{wrong}' is no transfer's ID: `blockproto queue list` shows them")
    return tuple(map(int, ids))


def _change(
    file: Path,
    ids: tuple[str, ...],
    became: str,
    change: Callable[[TransferQueue, tuple[int, ...]], Awaitable[list[int]]],
) -> int:
    numbers = _numbers(ids)

    async def changing(queue: TransferQueue) -> int:
        changed = await change(queue, numbers)
        say(f"{show_count(len(changed), 'transfer')} {became}")
        for one in queue.transfers():
            if one.id in numbers and one.id not in changed:
                say(f"{one.id} is {one.state.value}: that cannot be {became}")
        return Status.DONE if changed or not numbers else Status.FAILED

    return _with_queue(file, changing)


# ---- running


@queue.command("run")
@click.option(
    "--until-empty", is_flag=True, help="End when nothing waits any more, instead of waiting for more."
)
@click.option(
    "--at-once",
    metavar="N",
    type=click.IntRange(1, 64),
    default=AT_ONCE,
    show_default=True,
    help="So many of one priority together with one server; a more urgent one does not wait for less urgent ones.",
)
@click.option("--server", metavar="bp://HOST:PORT", help="Only what concerns this server; a token needs it.")
@retry_option(f"{RETRY_FOR_S / 3600:.0f}h")
@file_option
@json_option
@access_options
@verbose_option
def run(
    until_empty: bool, at_once: int, server: str | None, retry_for_s: float | None, file: Path, as_json: bool
) -> int:
    """Do what is in the queue, and what is added meanwhile.

    Ctrl-C stops it, and nothing is lost. A server that cannot be reached is tried again and again, and the transfers with
    other servers do not wait for it.
    """
    address = (
        None if server is None else to_address(click.get_current_context(), click.Argument(["a"]), server)
    )
    if address is None and token_needs_server():
        raise click.UsageError("a token is for one server: say for which with --server bp://HOST:PORT")
    if address is not None:
        check_access(address)
    options: dict[str, Any] = {
        "at_once": at_once,
        "until_empty": until_empty,
        "server": None if address is None else address.server,
        "retry_for_s": RETRY_FOR_S if retry_for_s is None else retry_for_s,
        "on_line": LineTeller(verbosity() > 0),
        "on_left_out": _passed_over,
    }

    async def running(queue: TransferQueue) -> int:
        return await _run(queue, as_json, options)

    return _with_queue(file, running, makes=True)


async def _run(queue: TransferQueue, as_json: bool, options: dict[str, Any]) -> int:
    status: int = Status.DONE
    with Meter(0) as meter:
        watcher = _Watcher(meter, as_json)
        async with trio.open_nursery() as nursery:
            await nursery.start(watcher.watch, queue)
            try:
                await queue.run(**options)
            finally:
                nursery.cancel_scope.cancel()
        for one in queue.transfers():  # what ended in the last instant
            watcher.see(one)
        watcher.sum_up()
        status = watcher.status
    return status


def _passed_over(folder: QueuedTransfer, parts: Sequence[LeftOut]) -> None:
    """Tell what of a folder does not come."""
    teller = LeftOutTeller(verbosity() > 0)
    for part in parts:
        if not part.missed:
            teller.tell_part(part)
            continue
        for missed in missed_of(part, folder.name):
            say_missed(missed)
    teller.sum_up()


class _Watcher:
    """Shows what happens in a queue that runs."""

    def __init__(self, meter: Meter, as_json: bool) -> None:
        self.status: int = Status.DONE
        self._meter = meter
        self._as_json = as_json
        self._shown: dict[int, QueuedTransfer] = {}
        self._before = 0
        self._expected: dict[int, int] = {}
        self._alike: dict[tuple[str, int | None], int] = {}

    async def watch(
        self, queue: TransferQueue, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self._before = max((one.revision for one in queue.transfers()), default=0)
        async with aclosing(queue.events()) as events:
            task_status.started()
            async for one in events:
                self.see(one)

    def see(self, one: QueuedTransfer) -> None:
        """Take note of a transfer as it is now."""
        last = self._shown.get(one.id)
        if one.revision <= max(self._before, last.revision if last is not None else 0):
            return
        self._shown[one.id] = one
        if self._as_json:
            print_json(fields_of(one))
        name = f"{one.id}: {one.name}"
        self._meter_of(name, one)
        if one.state is not TransferState.RUNNING and (last is None or last.state is not one.state):
            self._tell(one)

    def _meter_of(self, name: str, one: QueuedTransfer) -> None:
        """Show how far it is: it may fail or wait, and run again, so that nothing of it is ever added twice."""
        cancelled = one.state is TransferState.CANCELLED
        size = 0 if cancelled else one.filesize or 0
        self._meter.expect(size - self._expected.get(one.id, 0))
        self._expected[one.id] = size
        done = one.state is TransferState.DONE
        self._meter.update(_Position(name, one.filesize, size if done else min(one.position, size)))

    def _tell(self, one: QueuedTransfer) -> None:
        what = show_name(f"{one.id}: {one.name}")
        if one.state is TransferState.FAILED:
            self.status = max(self.status, Status.UNREACHABLE if one.code == Code.TIMEOUT else Status.FAILED)
            if self._was_said(one):
                return
            again = f"; `blockproto queue retry {one.id}` tries again"
            warn(f"{what}: {show_name(one.error or '')}{again if one.retryable else ''}")
        elif one.state is TransferState.DONE and one.became is not None:
            say(f"{what}: became {show_count(one.became, 'transfer')}")
        elif one.state is TransferState.DONE:
            say(f"{what}: done, {show_size(one.filesize or 0)}, as '{show_name(one.stored_as or '')}'")
        elif one.state is not TransferState.WAITING:
            say(f"{what}: {one.state.value}")

    def _was_said(self, one: QueuedTransfer) -> bool:
        """Whether what failed concerns all transfers with its server, and was said of another."""
        if not is_for_all(one.code) and one.code != Code.TIMEOUT:
            return False
        before = self._alike.get((one.server, one.code), 0)
        self._alike[one.server, one.code] = before + 1
        return before > 0

    def sum_up(self) -> None:
        """Say how many failed for a reason that was said once."""
        for (server, _), count in self._alike.items():
            if count > 1:
                more = show_count(count - 1, "other transfer")
                say(f"{server}: {more} failed for the same reason; `blockproto queue retry all` tries again")


class _Position:
    """How far a transfer is, as the meter takes it."""

    def __init__(self, filename: str, filesize: int | None, position: int) -> None:
        self.filename = filename
        self.filesize = filesize
        self.position_bytes_done = position


def _connect(server: str, **options: Any) -> AbstractAsyncContextManager[Client]:
    """Connect as the command was told; what may not be spoken to fails its transfers, not the queue."""
    try:
        check_access(parse_address(server))
    except click.UsageError as error:
        raise NotPermitted(error.format_message()) from error
    return connect_as_told(server, **options)


def _with_queue(
    file: Path, work: Callable[[TransferQueue], Awaitable[int | None]], *, makes: bool = False
) -> int:
    """Open the queue, and do something with it; ``makes``: also if the file that ``--queue`` names is not there."""
    told = click.get_current_context().get_parameter_source("file") is ParameterSource.COMMANDLINE
    if told and not makes and not file.exists():
        raise click.UsageError(
            f"--queue '{file}' is not there: `blockproto queue add` and `queue get` make it"
        )

    async def main() -> int:
        async with TransferQueue.open(file, connect=_connect) as queue:
            return await work(queue) or Status.DONE

    with about(str(file)):
        try:
            return trio.run(main)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
