"""``blockproto get``: files and folders from a server.

Like ``cp -r``: ``get bp://HOST/photos`` makes ``photos/…`` here; in DEST if that is a folder, else under the name DEST. A
file that is here already is not fetched again, and another one of its name is kept unless ``--if-exists`` says otherwise.
The server's names are not trusted: each is parsed as a ``SafeName`` and must lie below what was asked for before anything is
made here, and below DEST no symbolic link is followed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import trio

from .. import BlockprotoError, Client, FileInfo, LeftOut, Receipt
from ..common.names import SafeName, holds_in_progress, show_name
from ..errors import ConnectionLost, GoingAway, InTheWay, NameRefused, SourceChanged, is_of_this_machine
from ..results import IfExistsWord
from ..store.part_file.begun_folder import BegunFolder
from ..store.part_file.target_folder import TargetFolder
from .access import access_options, check_access, connect_as_told
from .address import Address, advice_about, to_address
from .get_words import split_words
from .left_out import LeftOutTeller, missed_of
from .options import (
    EXIT_CODES,
    checksum_option,
    if_exists_option,
    json_option,
    log_option,
    retry_option,
    verbose_option,
    verbosity,
)
from .output import (
    fail,
    leaves_of,
    print_failure,
    say,
    show_size,
)
from .progress import Meter
from .span import FORMS, Span, parse_span
from .tally import Tally, ends_files

STDOUT = "-"


@dataclass(slots=True)
class _Wanted:
    """The arguments of one ``get``."""

    dest: str | None
    into: bool
    span: Span | None
    as_json: bool
    verbosity: int
    retry_for_s: float | None
    log: Path | None
    if_exists: IfExistsWord = "keep"
    checksum: bool = False
    keep_dirlinks: bool = False
    may_go_on: bool = False
    """Whether DEST, if it is a folder, may be one that the same command has made and not finished."""

    @property
    def below(self) -> Path | None:
        """The folder below which no symbolic link is followed: DEST as it was typed."""
        return None if self.keep_dirlinks else Path(self.dest or ".")


@dataclass(slots=True)
class _Tally(Tally):
    """The outcome.

    Attributes:
        missed: how many of those that failed the server could not list; trying again brings none of them.
    """

    missed: int = 0
    named: set[str] = field(default_factory=set)
    folders: list[tuple[Path, FileInfo]] = field(default_factory=list)
    made: set[tuple[int, int]] = field(default_factory=set)
    blocked: set[str] = field(default_factory=set)
    targets: list[Path] = field(default_factory=list)

    def begin(self, names: Iterable[str]) -> None:
        """Begin with ``names``, of one server: what ended the run with another one ends nothing with this."""
        self.pending = dict.fromkeys(names)
        self.ended = None


@dataclass(slots=True)
class _Fetch:
    """One running ``get``: the client, the arguments, the outcome so far, and the progress."""

    client: Client
    wanted: _Wanted
    tally: _Tally
    meter: Meter


_EXAMPLES = f"""\b
blockproto get "bp://localhost/holiday photos" ~/Pictures
blockproto get bp://localhost/film.mp4 - | mpv -

%20 and the like in an address are decoded; write a % itself as %25 where two hexadecimal digits follow it.

{EXIT_CODES}
"""


@click.command("get", epilog=_EXAMPLES)
@click.argument("words", nargs=-1, required=True, metavar="bp://HOST:PORT/NAME... [DEST]")
@click.option(
    "--range",
    "span",
    metavar=FORMS,
    help="Only these bytes of one file, both counted from 0; all from FIRST on; or the last COUNT.",
)
@click.option(
    "--upload",
    metavar="ID",
    help="The file that is still being uploaded to bp://HOST:PORT with this sourceid or file id (`blockproto uploads` lists "
    "them), as it comes in.",
)
@if_exists_option("here", "the server's")
@checksum_option
@click.option("--keep-dirlinks", is_flag=True, help="Follow symbolic links to folders below DEST, too.")
@retry_option()
@log_option
@json_option
@access_options
@verbose_option
@click.pass_context
def get(
    ctx: click.Context,
    words: tuple[str, ...],
    span: str | None,
    upload: str | None,
    if_exists: IfExistsWord,
    checksum: bool,
    keep_dirlinks: bool,
    retry_for_s: float | None,
    log: Path | None,
    as_json: bool,
) -> int:
    """Fetch files or folders from a server.

    As with cp -r they go into DEST if that is a folder, with or without "/" behind it (one that ends with "/" is made), else
    under the name DEST; without it into the current folder.
    The content of files goes to stdout if DEST is "-". Links, pipes and devices are never written.

    Running the same command again resumes, and fetches nothing that is already here. A folder DEST that this command
    has made counts as what it makes until all of it is there; from then on what is fetched goes into it.
    """
    texts, dest = split_words(words)
    addresses = [to_address(ctx, ctx.command.params[0], text) for text in texts]
    for address in addresses:
        check_access(address)
    if log is not None and len({address.server for address in addresses}) > 1:
        raise click.UsageError("--log is for one server: give addresses of one")
    if upload is not None:
        from .get_upload import check_usage, get_upload

        check_usage(upload, addresses, span, dest, if_exists)
        return trio.run(get_upload, upload, addresses[0], dest, if_exists, as_json, retry_for_s, log)
    if span is not None and (len(addresses) > 1 or not addresses[0].path):
        raise click.UsageError("--range is for one file: give one address with a name")
    if dest == STDOUT:
        from .get_stdout import get_to_stdout

        if as_json:
            raise click.UsageError("'-' and --json both want stdout: give one of them")
        return trio.run(get_to_stdout, addresses, parse_span(span), retry_for_s, log)
    told_into = len(addresses) > 1 or (dest or "").endswith("/")
    into = dest is not None and (told_into or os.path.isdir(dest))
    wanted = _Wanted(dest, into, parse_span(span), as_json, verbosity(), retry_for_s, log)
    wanted.if_exists, wanted.checksum, wanted.keep_dirlinks = if_exists, checksum, keep_dirlinks
    wanted.may_go_on = dest is not None and not told_into
    return trio.run(_get, addresses, wanted)


async def _get(addresses: list[Address], wanted: _Wanted) -> int:
    tally = _Tally(LeftOutTeller(wanted.verbosity > 0), wanted.as_json)
    began = time.monotonic()
    with Meter(0) as meter:
        for server in dict.fromkeys(address.server for address in addresses):
            here = [address for address in addresses if address.server == server]
            status = await _get_from(server, here, wanted, tally, meter)
            tally.status = max(tally.status, status)  # read the former status only now: it may have changed
    _finish_folders(wanted, tally)
    _sum_up(wanted, tally, time.monotonic() - began)
    return tally.status


async def _get_from(
    server: str, addresses: list[Address], wanted: _Wanted, tally: _Tally, meter: Meter
) -> int:
    """Fetch from one server; returns the exit code for the server itself."""
    tally.begin(address.path for address in addresses)
    try:
        async with connect_as_told(server, retry_for_s=wanted.retry_for_s, log=wanted.log) as client:
            fetch = _Fetch(client, wanted, tally, meter)
            for address in addresses:
                await _get_address(fetch, address)
                tally.pending.pop(address.path, None)
                if tally.ended is not None:
                    break
    except (BlockprotoError, OSError, BaseExceptionGroup) as error:
        lost = leaves_of(error)
        if not all(isinstance(leaf, BlockprotoError | OSError) for leaf in lost):
            raise
        _pending_failed(tally, tally.ended or lost[0])
        if tally.ended is None:
            return fail(lost[0], "" if isinstance(lost[0], OSError) else server)
    else:
        if tally.ended is not None:
            _pending_failed(tally, tally.ended)
    return tally.status


def _pending_failed(tally: _Tally, why: BaseException) -> None:
    """Print the objects of what was asked for and has not ended."""
    if tally.as_json:
        for name in tally.pending:
            print_failure(name, why)


async def _get_address(fetch: _Fetch, address: Address) -> None:
    try:
        entry = await fetch.client.stat(address.path) if address.path else None
    except (ConnectionLost, GoingAway):
        raise
    except BlockprotoError as error:
        _refused(fetch, address.text, address.path, error, advice_about(address, error))
        return
    begun = _begun_folder(fetch, address.path) if entry is not None and entry.folder else None
    if begun is not None and begun.is_marked():
        fetch.wanted.into = False
    target = _target(fetch.wanted, address.path)
    fetch.tally.targets.append(target)
    if fetch.wanted.into and not _make_folder(fetch, None, target.parent):
        return
    if entry is not None and not entry.folder:
        fetch.tally.named.add(entry.filename)
        fetch.meter.expect(_length_of(entry, fetch.wanted.span), entry.filename)
        await _get_file(fetch, entry, target)
    elif fetch.wanted.span is not None:
        raise click.UsageError(f"--range is for one file: '{address.text}' is a folder")
    elif begun is None or fetch.wanted.into:
        await _get_folder(fetch, address.path, entry, target)
    else:
        with begun.marked(lambda: fetch.tally.failed == fetch.tally.missed):
            await _get_folder(fetch, address.path, entry, target)


def _begun_folder(fetch: _Fetch, name: str) -> BegunFolder | None:
    """The mark of DEST as what a folder of the server becomes; None where it cannot be that."""
    path = Path(fetch.wanted.dest or "")
    if not fetch.wanted.may_go_on or path.name in ("", "..") or holds_in_progress(f"{name}/{path.name}"):
        return None
    return BegunFolder(path, fetch.client.destination(name, path).label)


def _length_of(entry: FileInfo, span: Span | None) -> int:
    """How many bytes are to come; none of a range that begins behind the end."""
    first, last = (0, entry.filesize - 1) if span is None else span.of(entry.filesize)
    return max(0, min(last + 1, entry.filesize) - first)


def _target(wanted: _Wanted, path: str) -> Path:
    """Where a file or folder goes; the whole served folder (path "") goes straight into DEST."""
    dest = Path(wanted.dest) if wanted.dest is not None else Path()
    if not path or (wanted.dest is not None and not wanted.into):
        return dest
    return dest / path.rpartition("/")[2]


async def _get_folder(fetch: _Fetch, above: str, folder: FileInfo | None, target: Path) -> None:
    if not _make_folder(fetch, folder, target):
        return
    wanted = fetch.wanted
    ended_jobs = fetch.client.download_all(
        _files_of(fetch, above, target),
        if_exists=wanted.if_exists,
        checksum=wanted.checksum,
        below=wanted.below,
        made=fetch.tally.made,
        progress=fetch.meter.update,
    )
    async with aclosing(ended_jobs) as ended:
        async for job, outcome in ended:
            if isinstance(outcome, Receipt):
                _arrived(fetch, outcome)
            elif isinstance(outcome, ConnectionLost | GoingAway):
                raise outcome
            elif isinstance(outcome, SourceChanged) and fetch.tally.ended is None:
                await _get_file(fetch, job.entry, job.dest)  # it changed after it was listed: ask again
            else:
                _not_fetched(fetch, job.entry, job.dest, outcome)


async def _files_of(fetch: _Fetch, above: str, target: Path) -> AsyncGenerator[tuple[FileInfo, Path], None]:
    """The files below a folder that are to be fetched, and where each goes; makes the folders on the way."""
    told = partial(_passed_over, fetch.tally, above)
    listing = fetch.client.listing(above, recursive=True, on_left_out=told)
    async with aclosing(listing), aclosing(_until_ended(fetch.tally, listing)) as entries:
        async for entry in entries:
            place = _place(fetch.tally, above, entry, target)
            if place is None:
                continue
            if _is_blocked(fetch.tally, entry):
                continue
            if entry.folder:
                if not _make_folder(fetch, entry, place):
                    fetch.tally.blocked.add(entry.filename)
            else:
                fetch.meter.expect(entry.filesize, entry.filename)
                fetch.tally.pending[entry.filename] = None
                yield entry, place


async def _until_ended(
    tally: _Tally, entries: AsyncGenerator[FileInfo, None]
) -> AsyncGenerator[FileInfo, None]:
    """The entries until the run has ended; the files among the others are counted, and have their objects."""
    try:
        async for entry in entries:
            if tally.ended is None:
                yield entry
            elif not entry.folder:
                tally.skipped(entry.filename, tally.ended)
    except BlockprotoError:
        if tally.ended is None:
            raise


def _is_blocked(tally: _Tally, entry: FileInfo) -> bool:
    """Whether an entry's folder could not be made here; that was reported, and is not again for its entries."""
    if not tally.blocked or not any(
        entry.filename[: at.start()] in tally.blocked for at in re.finditer("/", entry.filename)
    ):
        return False
    tally.failed += 1
    if tally.as_json:
        print_failure(entry.filename, InTheWay("its folder could not be made here"))
    return True


def _passed_over(tally: _Tally, above: str, part: LeftOut) -> None:
    """Report what the server left out of a listing; anything but links and special files is a failure."""
    if not part.missed:
        tally.left_out.tell_part(part)
        return
    before = tally.failed
    for missed in missed_of(part, above):
        tally.failure(missed.name, missed.error, missed.name, missed.advice)
    tally.failed = before + part.count
    tally.missed += part.count


def _place(tally: _Tally, above: str, entry: FileInfo, target: Path) -> Path | None:
    """Where an entry goes, or None if its name would lead anywhere else."""
    try:
        components = SafeName.parse(entry.filename).components
    except NameRefused as error:
        tally.failure(entry.filename, error, entry.filename)
        return None
    if holds_in_progress(entry.filename):
        tally.left_out.tell(entry.filename, "a download in progress there")
        return None
    depth = len(above.split("/")) if above else 0
    if "/".join(components[:depth]) != above or len(components) <= depth:
        outside = NameRefused("the server named a file outside of what was asked for")
        tally.failure(entry.filename, outside, entry.filename)
        return None
    return target.joinpath(*components[depth:])


def _make_folder(fetch: _Fetch, folder: FileInfo | None, path: Path) -> bool:
    try:
        TargetFolder(path, _below(fetch.wanted, path), make=True).close()
    except (OSError, BlockprotoError) as error:
        if not os.path.lexists(path) or os.path.isdir(path):
            fetch.tally.failure(str(path), error, str(path))
        elif folder is None:
            fetch.tally.failure(str(path), InTheWay("it is here, and is not a folder"), str(path))
        else:
            met = InTheWay(f"it is a folder on the server, and '{path}' here is none")
            fetch.tally.failure(folder.filename, met, folder.filename)
        return False
    if folder is not None:
        fetch.tally.folders.append((path, folder))
    return True


def _below(wanted: _Wanted, path: Path) -> Path | None:
    """Behind which folder links are not followed on the way to ``path``; None for DEST itself, which was typed."""
    below = wanted.below
    return None if below is None or below == path or below not in path.parents else below


async def _get_file(fetch: _Fetch, entry: FileInfo, place: Path) -> None:
    wanted = fetch.wanted
    try:
        receipt = await fetch.client.download(
            entry.filename,
            place,
            if_exists=wanted.if_exists,
            checksum=wanted.checksum,
            span=None if wanted.span is None else wanted.span.of(entry.filesize),
            below=_below(wanted, place.parent),
            made=fetch.tally.made,
            progress=fetch.meter.update,
        )
    except (ConnectionLost, GoingAway):
        raise
    except (BlockprotoError, OSError) as error:
        _not_fetched(fetch, entry, place, error)
    else:
        _arrived(fetch, receipt)


def _not_fetched(fetch: _Fetch, entry: FileInfo, place: Path, error: BlockprotoError | OSError) -> None:
    fetch.meter.failed(entry.filename)
    what = str(place) if is_of_this_machine(error) else entry.filename
    _refused(fetch, what, entry.filename, error, filesize=entry.filesize)


def _arrived(fetch: _Fetch, receipt: Receipt) -> None:
    """Report a file that was fetched, was here already, or was skipped."""
    tally = fetch.tally
    tally.pending.pop(receipt.filename, None)
    fetch.meter.finished(receipt.filename, receipt.filesize)
    tally.arrived(receipt, receipt.filesize)
    other = os.path.basename(receipt.stored_as) != receipt.filename.rpartition("/")[2]
    if fetch.wanted.verbosity or receipt.filename in tally.named or (other and receipt.outcome == "sent"):
        say(show_name(f"{receipt.filename}: {_describe(receipt)}"))


def _describe(receipt: Receipt) -> str:
    size = show_size(receipt.filesize)
    if receipt.outcome == "there":
        return f"already here as '{receipt.stored_as}' ({size})"
    if receipt.outcome == "left":
        return f"'{receipt.stored_as}' was left as it is"
    text = f"fetched as '{receipt.stored_as}', {size} in {receipt.elapsed_s:.1f} s"
    if receipt.resumed:
        text += f"; resumed, {receipt.blocks_skipped} of {receipt.blocknum} blocks were here already"
    return text


def _refused(
    fetch: _Fetch,
    what: str,
    filename: str,
    error: BlockprotoError | OSError,
    advice: str = "",
    filesize: int = 0,
) -> None:
    """Report a file that was refused. If all others would be, too, the run ends: what was begun ends quietly."""
    tally = fetch.tally
    tally.pending.pop(filename, None)
    if tally.ended is not None:
        tally.quiet_failure(error, filename)
        return
    tally.failure(what, error, filename, advice)
    if isinstance(error, BlockprotoError) and ends_files(error, filesize):
        tally.ended = error


def _finish_folders(wanted: _Wanted, tally: _Tally) -> None:
    """Set modes and times of the folders, the deepest first, now that nothing is made in them any more."""
    for path, folder in reversed(tally.folders):
        try:
            place = TargetFolder(path, _below(wanted, path))
            place.set_facts(folder.mode, folder.mtime_ns)
            place.close()
        except (OSError, BlockprotoError) as error:
            tally.failure(str(path), error, str(path))


def _sum_up(wanted: _Wanted, tally: _Tally, elapsed_s: float) -> None:
    tally.left_out.sum_up()
    if tally.files + tally.failed + tally.left_out.count > 1 or tally.folders:
        place = tally.targets[0] if len(tally.targets) == 1 else Path(wanted.dest or ".")
        tally.sum_up(elapsed_s, f"in '{place}'", "", "already here", "left as they were")
