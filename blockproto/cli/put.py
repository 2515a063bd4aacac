"""``blockproto put``: files, folders and stdin to a server.

Like ``cp -r``: ``put photos bp://HOST/2026/`` makes ``2026/photos/…`` on the server, with or without "/" behind ``photos``.
All files of one command share one client, so that thousands of small ones are pipelined. Folders come last, when nothing in
them changes any more.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import click
import trio

from .. import BlockprotoError, Client, Receipt
from ..client_side.receipts import Arrived
from ..client_side.walk import Found, total_of, walk
from ..common.names import show_name
from ..errors import (
    Code,
    ConnectionLost,
    FileExists,
    GoingAway,
    NotPermitted,
    ProtocolError,
    StoreFull,
    Unsupported,
)
from ..results import IfExistsWord, Job
from ..store import FOLDER_FILETYPE
from .access import access_options, check_access, connect_as_told
from .address import Address, address_of
from .interruptions import LineTeller, cancelled_by_ctrl_c
from .left_out import LeftOutTeller
from .options import (
    EXIT_CODES,
    as_option,
    check_as_name,
    checksum_option,
    if_exists_option,
    json_option,
    log_option,
    paths_and_address,
    retry_option,
    verbose_option,
    verbosity,
)
from .output import Status, fail, print_failure, say, show_count, show_size, status_of
from .progress import Meter
from .streams import raw_stdin
from .tally import Tally, ends_files

E = TypeVar("E", bound=BlockprotoError | OSError)
STDIN = "-"
STDIN_NAME = "stdin"
_ENDS_ALL = (ConnectionLost, GoingAway, ProtocolError, Unsupported)
"""Errors that concern the server as a whole: reported once, not for each file."""
_SEND_ANEW = "see that the server runs there, then run the command again: stdin is sent from its beginning"
_MAKE_ROOM = "make room, then run the command again: stdin is sent from its beginning"
_NAME_A_FOLDER = "name a folder there, not a file"


@dataclass(slots=True)
class _Wanted:
    """The arguments of one ``put``."""

    paths: tuple[str, ...]
    address: Address
    as_name: str | None
    if_exists: IfExistsWord
    as_json: bool
    verbosity: int
    retry_for_s: float | None
    log: Path | None = None
    checksum: bool = False


class _Job(NamedTuple):
    """One of many files: see ``UploadJob``."""

    path: str
    name: str
    if_exists: IfExistsWord
    looked: os.stat_result | None


@dataclass(slots=True)
class _Tally(Tally):
    """The outcome; ``given`` and ``answered`` count jobs."""

    lost: list[BlockprotoError] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    given: int = 0
    answered: int = 0
    rest: list[Found] = field(default_factory=list)
    advice: str = ""
    blocked: list[str] = field(default_factory=list)
    is_folder: dict[str, bool] = field(default_factory=dict)
    """Of what a refused file lies in: whether it may be a folder on the server."""


_EXAMPLES = f"""\b
blockproto put film.mp4 bp://localhost/2026/
tar c /etc | blockproto put - bps://example.org/ --as etc.tar

%20 and the like in an address are decoded; write a % itself as %25 where two hexadecimal digits follow it.

{EXIT_CODES}
"""


@click.command("put", epilog=_EXAMPLES)
@paths_and_address
@click.option(
    "--connections",
    metavar="N",
    type=click.IntRange(1, 64),
    help="Send over this many connections. Default: 1 (with --dialect struct82: 5).",
)
@as_option
@if_exists_option("there", "yours")
@checksum_option
@click.option(
    "--dialect", metavar="NAME", help="Send single files to a server that speaks this older wire format only."
)
@retry_option()
@log_option
@json_option
@access_options
@verbose_option
def put(
    paths: tuple[str, ...],
    address: Address,
    connections: int | None,
    as_name: str | None,
    if_exists: IfExistsWord,
    checksum: bool,
    dialect: str | None,
    retry_for_s: float | None,
    log: Path | None,
    as_json: bool,
) -> int:
    """Send files, folders or stdin ("-") to a server.

    PATH may be a folder: its files and folders travel with their times and rights; symbolic links and special files are
    named and left out. As with cp -r, `put photos bp://HOST/2026/` makes 2026/photos on the server. What comes through
    stdin is called "stdin" there, unless --as names it.

    Running the same command again resumes. What is there already with the same content is not sent again, whoever sent
    it: only digests travel.
    """
    check_access(address)
    wanted = _Wanted(paths, address, as_name, if_exists, as_json, verbosity(), retry_for_s, log, checksum)
    _check_usage(wanted)
    if dialect is not None:
        from .put_dialect import check_usage, put_in_dialect

        if log is not None:
            raise click.UsageError(
                "--log is for the native protocol; an older wire format tells too little of itself"
            )
        check_usage(dialect, paths, address, as_name, connections, if_exists, checksum)
        sending = partial(put_in_dialect, retry_for_s=retry_for_s, on_line=LineTeller(verbosity() > 0))
        return trio.run(sending, dialect, paths, address, as_name, connections, as_json)
    return trio.run(_put, wanted, connections or 1)


def _check_usage(wanted: _Wanted) -> None:
    if not wanted.address.folder:
        name = wanted.address.path.rpartition("/")[2]
        raise click.UsageError(
            f"'{wanted.address.text}' may mean a folder or a name: end it with '/' for the folder, "
            f"or give the folder it goes into and --as '{name}'"
        )
    check_as_name(wanted.as_name, wanted.paths)
    if wanted.paths.count(STDIN) > 1:
        raise click.UsageError("'-' is stdin and can be given once")
    for path in wanted.paths:
        if path != STDIN and wanted.as_name is None and not name_of(path):
            raise click.UsageError(f"'{path}' has no name of its own: give it one with --as NAME")


def name_of(path: str) -> str:
    """The name of ``path`` on the server: its last component, also of ``.`` and ``folder/..``."""
    name = os.path.basename(path.rstrip("/"))
    return os.path.basename(os.path.realpath(path)) if name in ("", ".", "..") else name


def _server_name(wanted: _Wanted, path: str) -> str:
    name = STDIN_NAME if path == STDIN else name_of(path)
    if wanted.as_name is not None:
        name = wanted.as_name.rstrip("/")
    return f"{wanted.address.path}/{name}" if wanted.address.path else name


async def _put(wanted: _Wanted, connections: int) -> int:
    tally = _Tally(LeftOutTeller(wanted.verbosity > 0), wanted.as_json)
    began = time.monotonic()
    shown = sys.stderr.isatty()
    total = await trio.to_thread.run_sync(_total, wanted) if shown else None
    folders: list[Found] = []
    found = _files(wanted, tally, folders)
    resumes = STDIN not in wanted.paths
    with Meter(total, shown, resumes=resumes) as meter:
        try:
            connected = connect_as_told(
                wanted.address.server,
                connections=connections,
                retry_for_s=wanted.retry_for_s,
                on_line=LineTeller(wanted.verbosity > 0, resumes=resumes),
                log=wanted.log,
            )
            async with connected as client, cancelled_by_ctrl_c():
                await _send_all(client, wanted, tally, meter, found, folders)
            if tally.status == Status.DONE and tally.answered == tally.given and not tally.lost:
                meter.complete()  # also of what grew or shrank meanwhile, and of stdin
        except _ENDS_ALL as error:
            tally.lost.append(error)
        except OSError as error:
            tally.failed += 1
            tally.status = fail(error)
            _tell_of_the_rest(tally, error, found)
            return tally.status
    why = tally.ended or next(iter(tally.lost), None)
    if why is None and tally.pending:
        why = ConnectionLost(f"{show_count(len(tally.pending), 'file')} got no answer")
        tally.lost.append(why)
    if why is not None:
        _tell_of_the_rest(tally, why, found)
    _sum_up(wanted, tally, time.monotonic() - began)
    return tally.status


def _total(wanted: _Wanted) -> int | None:
    """The bytes of all files, or None with stdin among them; files that cannot be read are reported later."""
    if STDIN in wanted.paths:
        return None

    def ignore(_path: str, _why: object) -> None:
        pass

    return sum(total_of(walk(path, "", ignore, ignore)) for path in wanted.paths)


async def _send_all(
    client: Client,
    wanted: _Wanted,
    tally: _Tally,
    meter: Meter,
    found: Iterator[Found],
    folders: list[Found],
) -> None:
    if STDIN in wanted.paths:
        await _send_stdin(client, wanted, tally, meter)
    if not tally.ended:
        await _send_jobs(client, wanted, tally, meter, found)
    if not tally.lost and not tally.ended:
        await _send_jobs(client, wanted, tally, meter, iter(folders))


def _files(wanted: _Wanted, tally: _Tally, folders: list[Found]) -> Iterator[Found]:
    """The files to send, found while earlier ones are sent; folders are kept in ``folders`` for later."""
    for path in wanted.paths:
        if path == STDIN:
            continue
        written = str(Path(path))
        name = _server_name(wanted, path)
        leave_out = partial(_leave_out, tally, named=written, name=name)
        for found in walk(written, name, leave_out, partial(_unreadable, tally)):
            if found.folder:
                folders.append(found)
            else:
                yield found


def _leave_out(tally: _Tally, path: str, why: str, *, named: str, name: str) -> None:
    typed = path == named
    tally.left_out.tell(path, why, typed=typed)
    if typed:
        tally.status = max(tally.status, Status.FAILED)
        if tally.as_json:
            print_failure(name, OSError(f"it is {why}, and only files and folders are sent"))


def _unreadable(tally: _Tally, path: str, error: OSError) -> None:
    tally.failure(path, error, path)


async def _send_stdin(client: Client, wanted: _Wanted, tally: _Tally, meter: Meter) -> None:
    name = _server_name(wanted, STDIN)
    source: BinaryIO = raw_stdin()
    try:
        os.read(source.fileno(), 0)  # raises if it is closed: that is not an empty file
        receipt = await client.upload(source, name=name, if_exists=wanted.if_exists, progress=meter.update)
    except _ENDS_ALL as error:
        tally.advice = _SEND_ANEW if status_of(error) is Status.UNREACHABLE else ""
        if wanted.as_json:
            print_failure(name, error)
        raise
    except (BlockprotoError, OSError) as error:
        if isinstance(error, BlockprotoError) and ends_files(error, None):
            tally.ended = error
        advice = _MAKE_ROOM if isinstance(error, StoreFull) else ""
        tally.failure(_what_failed(wanted, tally, STDIN_NAME, error), _with_name(error, name), name, advice)
    else:
        _stored(wanted, tally, meter, "-", receipt)


async def _send_jobs(
    client: Client, wanted: _Wanted, tally: _Tally, meter: Meter, found: Iterator[Found]
) -> None:
    jobs = _jobs(wanted, tally, found)
    sending = client.upload_batches(jobs, checksum=wanted.checksum, progress=meter.update)
    async with aclosing(sending) as batches:
        async for batch in batches:
            for job, outcome in batch:
                tally.answered += 1
                tally.pending.pop(job.name, None)
                if isinstance(outcome, Arrived | Receipt):
                    _stored(wanted, tally, meter, str(job.path), outcome)
                    continue
                await _not_stored(client, wanted, tally, meter, job, outcome)
                if tally.ended and not isinstance(tally.ended, StoreFull):
                    return  # else what was begun is waited for: some of it may still fit


async def _not_stored(
    client: Client, wanted: _Wanted, tally: _Tally, meter: Meter, job: Job, error: BlockprotoError
) -> None:
    """Say why a file was not stored; ``tally.ended`` is why no other will be."""
    error = _with_name(error, job.name)
    if tally.ended is not None:
        tally.quiet_failure(error, job.name)
        return
    if isinstance(error, _ENDS_ALL):
        tally.lost.append(error)
        if wanted.as_json:
            print_failure(job.name, error)
        return
    meter.failed(job.name)
    blocked = await _is_blocked(client, tally, job, error)
    if blocked and (error.code is Code.FILE_EXISTS or not _is_typed(wanted, str(job.path))):
        _tell_blocked(wanted, tally, job, error)
        return
    tally.ended = error if ends_files(error, tally.sizes.pop(job.name, 0)) else None
    what = _what_failed(wanted, tally, str(job.path), error)
    tally.failure(what, error, job.name, _NAME_A_FOLDER if blocked else "")


async def _is_blocked(client: Client, tally: _Tally, job: Job, error: BlockprotoError) -> bool:
    """Whether ``job`` failed because something that is not a folder stands on the server where one has to be.

    What refuses a job does not say why in a way that programs read, so the server is asked what stands there.
    """
    if error.code is Code.FILE_EXISTS:
        return _is_folder_here(job)
    if error.code is not Code.NOT_PERMITTED:
        return False
    parts = job.name.split("/")
    for count in range(1, len(parts)):
        above = "/".join(parts[:count])
        if above not in tally.is_folder:
            tally.is_folder[above] = await _may_be_folder(client, above)
        if not tally.is_folder[above]:
            return True
    return False


def _with_name(error: E, name: str) -> E | FileExists:
    """The error with the name there, where that is taken: it is not the one that was typed."""
    taken = isinstance(error, BlockprotoError) and error.code is Code.FILE_EXISTS
    return FileExists(f"the name '{name}' is taken there by other content") if taken else error


def _is_folder_here(job: Job) -> bool:
    return os.path.isdir(job.path)


async def _may_be_folder(client: Client, name: str) -> bool:
    """Whether a name on the server is a folder, or nothing, or not to be told."""
    try:
        return (await client.stat(name)).folder
    except BlockprotoError:
        return True


def _tell_blocked(wanted: _Wanted, tally: _Tally, job: Job, error: BlockprotoError) -> None:
    """Say what stands where a folder of ours should be: once, not for each file in it."""
    name, path = job.name, job.path
    if error.code is Code.NOT_PERMITTED:
        name, path = name.rpartition("/")[0], Path(path).parent
    tally.failed += 1
    if not any(f"{name}/".startswith(f"{told}/") or told.startswith(f"{name}/") for told in tally.blocked):
        tally.blocked.append(name)
        why = FileExists(
            "something there has the name of this folder, or of one above it, and is not a folder"
        )
        advice = "remove it there, or send the folder under another name with --as"
        tally.status = max(tally.status, fail(why, str(path), advice))
    if wanted.as_json:
        print_failure(job.name, error)


def _what_failed(wanted: _Wanted, tally: _Tally, path: str, error: BaseException) -> str:
    """What an error is said of: the server's folder has rights, too, and its disk can be read-only."""
    server = wanted.address.server
    if tally.ended:
        return server
    return f"{path}: on {server}" if isinstance(error, NotPermitted) else path


def _is_typed(wanted: _Wanted, path: str) -> bool:
    """Whether a path, as a ``Path`` writes it, is an argument of the command, not an entry of a folder."""
    return path in _as_written(wanted.paths)


@lru_cache(maxsize=1)
def _as_written(paths: tuple[str, ...]) -> frozenset[str]:
    return frozenset(str(Path(path)) for path in paths)


def _jobs(wanted: _Wanted, tally: _Tally, found: Iterator[Found]) -> Iterator[_Job]:
    for one in found:
        if tally.ended is not None:
            tally.rest.append(one)
            return
        tally.given += 1
        tally.pending[one.name] = None
        tally.sizes[one.name] = one.filesize
        yield _Job(one.path, one.name, wanted.if_exists, one.looked)


def _tell_of_the_rest(tally: _Tally, error: BlockprotoError | OSError, found: Iterator[Found]) -> None:
    """Count the files that were not sent, and print their objects with the error that ended the run."""
    if not tally.as_json and tally.ended is None:
        return
    rest = (one.name for one in chain(tally.rest, found))
    for name in chain(tally.pending, rest):
        if tally.ended is None:
            print_failure(name, error)  # how many these are is said elsewhere
        else:
            tally.skipped(name, error)


def _stored(wanted: _Wanted, tally: _Tally, meter: Meter, about: str, outcome: Arrived | Receipt) -> None:
    filename = outcome.filename
    size = tally.sizes.pop(filename, outcome.filesize)  # a skipped file has the size of the one there
    meter.finished(filename, size)
    if outcome.filetype == FOLDER_FILETYPE:
        return
    tally.arrived(outcome, size)
    if wanted.verbosity or about == STDIN or _is_typed(wanted, about) or outcome.stored_as != filename:
        receipt = outcome if isinstance(outcome, Receipt) else outcome.receipt()
        say(show_name(f"{about}: {_describe(receipt)}"))


def _describe(receipt: Receipt) -> str:
    size = show_size(receipt.filesize)
    if receipt.outcome == "there":
        return f"already there as '{receipt.stored_as}' ({size})"
    if receipt.outcome == "left":
        return f"'{receipt.stored_as}' was left as it is there"
    text = f"stored as '{receipt.stored_as}', {size} in {receipt.elapsed_s:.1f} s"
    if receipt.stored_as != receipt.filename:
        text += f" (there was another '{receipt.filename}')"
    if receipt.resumed:
        text += f"; resumed, {receipt.blocks_skipped} of {receipt.blocknum} blocks were there already"
    return text


def _sum_up(wanted: _Wanted, tally: _Tally, elapsed_s: float) -> None:
    tally.left_out.sum_up()
    if tally.ended and not tally.files and tally.told <= 1:
        return  # that was said already
    if tally.lost:
        left = f" ({show_count(len(tally.lost), 'file')} did not go)" if len(tally.lost) > 1 else ""
        tally.status = max(tally.status, fail(tally.lost[0], wanted.address.server + left, tally.advice))
    if tally.files + tally.failed + tally.left_out.count > 1 or (
        not tally.lost and any(map(os.path.isdir, wanted.paths))
    ):
        only = wanted.paths[0] if len(wanted.paths) == 1 else ""
        place = address_of(wanted.address.server, _server_name(wanted, only) if only else wanted.address.path)
        tally.sum_up(elapsed_s, f"to {place}", "sent", "already there", "left as they are there")
