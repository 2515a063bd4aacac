"""Open the file of a queue, and show its transfers, for the commands of ``blockproto queue``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import trio
from click.core import ParameterSource

from .. import Client, QueuedTransfer, TransferQueue, TransferState
from ..errors import NotPermitted
from ..queue.transfer_queue import default_path
from .access import check_access, connect_as_told
from .address import parse_address
from .output import Status, about

FILE_VARIABLE = "BLOCKPROTO_QUEUE"

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


def with_queue(
    file: Path, work: Callable[[TransferQueue], Awaitable[int | None]], *, makes: bool = False
) -> int:
    """Open the queue and run ``work`` on it; ``makes``: make the file that ``--queue`` names. Returns the exit code."""
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


def _connect(server: str, **options: Any) -> AbstractAsyncContextManager[Client]:
    """Connect with the command's options; an address that is not allowed fails its transfers, not the queue."""
    try:
        check_access(parse_address(server))
    except click.UsageError as error:
        raise NotPermitted(error.format_message()) from error
    return connect_as_told(server, **options)


def fields_of(one: QueuedTransfer, runs: bool = True) -> dict[str, Any]:
    """The object that ``--json`` prints for a transfer.

    Args:
        one: the transfer.
        runs: whether a process runs the queue; without one, no transfer is running.
    """
    fields = asdict(one)
    fields |= {"direction": one.direction.value, "path": str(one.path), "state": state_of(one, runs).value}
    del fields["place"], fields["revision"]
    return fields


def state_of(one: QueuedTransfer, runs: bool) -> TransferState:
    """The state of a transfer; nothing is running if no process runs the queue (``runs``)."""
    return TransferState.WAITING if one.state is TransferState.RUNNING and not runs else one.state
