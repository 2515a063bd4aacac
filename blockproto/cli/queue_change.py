"""``blockproto queue pause``, ``resume``, ``retry``, ``cancel`` and ``move``: change what waits in a queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Concatenate

import click

from .. import TransferQueue
from ..queue.entry import PRIORITIES
from .options import EXIT_CODES_HERE, verbose_option
from .output import Status, say, show_count
from .queue_file import file_option, with_queue

_ALL = "all"
_Change = Callable[Concatenate[TransferQueue, ...], Awaitable[list[int]]]


def _command(name: str, became: str, change: _Change, told: str) -> click.Command:
    """A command that changes the transfers whose IDs it is given.

    Args:
        name: what it is called.
        became: their state afterwards, for people.
        change: the method that does it; returns the IDs of those that changed.
        told: the help of the command.
    """

    @click.command(name, help=told, epilog=EXIT_CODES_HERE)
    @click.argument("ids", nargs=-1, required=True, metavar="ID...|all")
    @file_option
    @verbose_option
    def command(ids: tuple[str, ...], file: Path) -> int:
        numbers = _numbers(ids)

        async def changing(queue: TransferQueue) -> int:
            changed = await change(queue, *numbers)
            say(f"{show_count(len(changed), 'transfer')} {became}")
            for one in queue.transfers():
                if one.id in numbers and one.id not in changed:
                    say(f"{one.id} is {one.state.value}: that cannot be {became}")
            return Status.DONE if changed or not numbers else Status.FAILED

        return with_queue(file, changing)

    return command


pause = _command(
    "pause", "paused", TransferQueue.pause, "Stop transfers where they are, until `queue resume`."
)
resume = _command(
    "resume", "waiting", TransferQueue.resume, "Let paused transfers wait for their turn again."
)
retry = _command(
    "retry",
    "waiting",
    TransferQueue.retry,
    "Let failed transfers wait for their turn again.\n\nCancelled ones too, if they are given by ID.",
)
cancel = _command(
    "cancel",
    "cancelled",
    TransferQueue.cancel,
    "Cancel transfers and remove what has arrived of them.\n\n"
    "The `queue run` that is running removes it, or the next one.",
)


@click.command("move", epilog=EXIT_CODES_HERE)
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

    return with_queue(file, moving)


def _numbers(ids: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers; none for the word ``all``."""
    if ids == (_ALL,):
        return ()
    wrong = next((word for word in ids if not (word.isascii() and word.isdigit()) or len(word) > 18), None)
    if wrong is not None:
        raise click.UsageError(f"'{wrong}' is not the ID of a transfer: `blockproto queue list` shows them")
    return tuple(map(int, ids))
