"""``blockproto queue run``: runs the transfers of a queue, and shows them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click
import trio

from .. import LeftOut, QueuedTransfer, TransferQueue, TransferState
from ..common.names import show_name
from ..errors import Code
from ..queue.transfer_queue import AT_ONCE, RETRY_FOR_S
from .access import access_options, check_access, token_needs_server
from .address import to_address
from .interruptions import LineTeller
from .left_out import LeftOutTeller, missed_of, say_missed
from .options import EXIT_CODES, json_option, retry_option, verbose_option, verbosity
from .output import Status, is_for_all, print_json, say, show_count, show_size, warn
from .progress import Meter
from .queue_file import fields_of, file_option, with_queue


@click.command("run", epilog=EXIT_CODES)
@click.option(
    "--until-empty",
    is_flag=True,
    help="End when nothing waits any more, instead of waiting for more. What failed in an earlier run makes the exit code 1 "
    "until it is retried or cancelled.",
)
@click.option(
    "--at-once",
    metavar="N",
    type=click.IntRange(1, 64),
    default=AT_ONCE,
    show_default=True,
    help="Run at most this many transfers of one priority at once with one server; more urgent ones do not wait.",
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

    return with_queue(file, running, makes=True)


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
        for one in queue.transfers():  # those that ended last
            watcher.see(one)
        watcher.sum_up()
        if options["until_empty"]:
            watcher.tell_of_earlier(queue.transfers(), options["server"])
        status = watcher.status
    return status


def _passed_over(folder: QueuedTransfer, parts: Sequence[LeftOut]) -> None:
    """Report what is left out of a folder."""
    teller = LeftOutTeller(verbosity() > 0)
    for part in parts:
        if not part.missed:
            teller.tell_part(part)
            continue
        for missed in missed_of(part, folder.name):
            say_missed(missed)
    teller.sum_up()


class _Watcher:
    """Shows the changes of a running queue."""

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
        """Show a transfer as it is now."""
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
        """Show its progress; nothing is counted twice when it fails or waits, and runs again."""
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
        """Whether the error concerns all transfers with its server, and was reported for another one."""
        if not is_for_all(one.code) and one.code != Code.TIMEOUT:
            return False
        before = self._alike.get((one.server, one.code), 0)
        self._alike[one.server, one.code] = before + 1
        return before > 0

    def sum_up(self) -> None:
        """Say how many failed for a reason that was reported once."""
        for (server, _), count in self._alike.items():
            if count > 1:
                more = show_count(count - 1, "other transfer")
                say(f"{server}: {more} failed for the same reason; `blockproto queue retry all` tries again")

    def tell_of_earlier(self, all_of_it: Sequence[QueuedTransfer], server: str | None) -> None:
        """Say what failed before this run and was not tried: the queue is not empty, and not all of it is done."""
        count = sum(
            one.state is TransferState.FAILED and one.id not in self._shown and server in (None, one.server)
            for one in all_of_it
        )
        if count:
            self.status = max(self.status, Status.FAILED)
            warn(
                f"{show_count(count, 'transfer')} failed in an earlier run and was not tried: `blockproto queue list` shows "
                "such, `queue retry` and `queue cancel` deal with them"
            )


class _Position:
    """The progress of a transfer, for the meter."""

    def __init__(self, filename: str, filesize: int | None, position: int) -> None:
        self.filename = filename
        self.filesize = filesize
        self.position_bytes_done = position
