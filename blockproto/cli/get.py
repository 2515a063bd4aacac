"""``blockproto get``: files and folders from a server.

Like ``cp -r``: ``get bp://HOST/photos`` makes ``photos/…`` here; into DEST if that is a folder, else under the name DEST.
A file that is here already with the same size and time is not fetched again. What a server calls its files is data: each
name is parsed as a ``SafeName`` and must lie below what was asked for, before anything is made of it here.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import click
import trio

from .. import BlockprotoError, Client, FileInfo, Receipt
from ..blocks import blocknum_of
from ..errors import BadFacts, ConnectionLost, GoingAway, NameRefused, SourceChanged
from ..names import SafeName, show_name
from ..times import same_mtime, set_mtime
from .access import access_options, check_access, connect_as_told
from .address import SCHEME, Address, is_address, to_address
from .interruptions import LineTeller
from .options import json_option, log_option, retry_option, verbose_option, verbosity
from .output import Status, fail, leaves_of, print_json, print_receipt, say, show_count, show_size
from .progress import Meter


@dataclass(slots=True)
class _Wanted:
    """What one ``get`` was asked for."""

    dest: str | None
    into: bool
    span: tuple[int, int] | None
    as_json: bool
    verbosity: int
    retry_for_s: float | None
    log: Path | None


@dataclass(slots=True)
class _Tally:
    """What became of it."""

    status: int = Status.DONE
    files: int = 0
    filesize: int = 0
    here_already: int = 0
    failed: int = 0
    named: set[str] = field(default_factory=set)
    folders: list[tuple[Path, FileInfo]] = field(default_factory=list)


@dataclass(slots=True)
class _Fetch:
    """One ``get`` under way: the connection, what was wanted, what became of it, and how far it is."""

    client: Client
    wanted: _Wanted
    tally: _Tally
    meter: Meter


@click.command("get")
@click.argument("words", nargs=-1, required=True, metavar="bp://HOST:PORT/NAME... [DEST]")
@click.option(
    "--range", "span", metavar="FIRST-LAST", help="Only these bytes of one file, both counted from 0."
)
@click.option(
    "--upload",
    metavar="ID",
    help="The file that is still being uploaded to bp://HOST:PORT with this sourceid or file id (`blockproto uploads` lists "
    "them), as it comes in.",
)
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
    retry_for_s: float | None,
    log: Path | None,
    as_json: bool,
) -> int:
    """Fetch files or folders from a server.

    They go into DEST if that is a folder (or ends with "/"), else under the name DEST; without it into the current folder.

    Running the same command again resumes, and fetches nothing that is already here.
    """
    texts, dest = split_words(words)
    addresses = [to_address(ctx, ctx.command.params[0], text) for text in texts]
    for address in addresses:
        check_access(address)
    if log is not None and len({address.server for address in addresses}) > 1:
        raise click.UsageError("--log is for one server: give addresses of one")
    if upload is not None:
        from .get_upload import check_usage, get_upload

        check_usage(upload, addresses, span)
        return trio.run(get_upload, upload, addresses[0], dest, as_json, retry_for_s, log)
    if span is not None and (len(addresses) > 1 or not addresses[0].path):
        raise click.UsageError("--range is for one file: give one address with a name")
    into = dest is not None and (len(addresses) > 1 or dest.endswith("/") or os.path.isdir(dest))
    wanted = _Wanted(dest, into, _parse_span(span), as_json, verbosity(), retry_for_s, log)
    return trio.run(_get, addresses, wanted)


def split_words(words: tuple[str, ...]) -> tuple[list[str], str | None]:
    """The addresses, and DEST if there is one; raises click.UsageError."""
    addresses = [word for word in words if is_address(word)]
    others = [word for word in words if word not in addresses]
    if others == ["-"]:
        raise click.UsageError("'-': stdout takes no files yet; name a file or folder of this machine")
    if not addresses or len(others) > 1 or (others and words[-1] != others[0]):
        wrong = others[0] if others else words[0]
        raise click.UsageError(
            f"'{wrong}': give one or more addresses {SCHEME}HOST:PORT/NAME, then at most one DEST on this machine"
        )
    return addresses, others[0] if others else None


def _parse_span(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise click.UsageError(
            f"--range '{text}': write FIRST-LAST, two byte positions of which the second is not the smaller, as in 0-1023"
        )
    return int(match[1]), int(match[2])


async def _get(addresses: list[Address], wanted: _Wanted) -> int:
    tally = _Tally()
    began = time.monotonic()
    with Meter(0) as meter:
        for server in dict.fromkeys(address.server for address in addresses):
            here = [address for address in addresses if address.server == server]
            status = await _get_from(server, here, wanted, tally, meter)
            tally.status = max(
                tally.status, status
            )  # the former status only now: it may have changed meanwhile
    _finish_folders(tally)
    _sum_up(tally, time.monotonic() - began)
    return tally.status


async def _get_from(
    server: str, addresses: list[Address], wanted: _Wanted, tally: _Tally, meter: Meter
) -> int:
    """Fetch what is wanted from one server; returns the exit code for the server itself."""
    try:
        teller = LineTeller(wanted.verbosity > 0)
        options = {"retry_for_s": wanted.retry_for_s, "on_line": teller, "log": wanted.log}
        async with connect_as_told(server, **options) as client:
            fetch = _Fetch(client, wanted, tally, meter)
            for address in addresses:
                await _get_address(fetch, address)
    except (BlockprotoError, BaseExceptionGroup) as error:
        lost = leaves_of(error)
        if not all(isinstance(leaf, BlockprotoError) for leaf in lost):
            raise
        return fail(lost[0], server)
    return Status.DONE


async def _get_address(fetch: _Fetch, address: Address) -> None:
    try:
        entry = await fetch.client.stat(address.path) if address.path else None
    except (ConnectionLost, GoingAway):
        raise
    except BlockprotoError as error:
        _failed(fetch.tally, address.text, error)
        return
    target = _target(fetch.wanted, address.path)
    if fetch.wanted.into and not _make_folder(fetch.tally, None, target.parent):
        return
    if entry is not None and not entry.folder:
        fetch.tally.named.add(entry.filename)
        fetch.meter.expect(entry.filesize)
        await _get_file(fetch, entry, target)
    elif fetch.wanted.span is not None:
        raise click.UsageError(f"--range is for one file: '{address.text}' is a folder")
    else:
        await _get_folder(fetch, address.path, entry, target)


def _target(wanted: _Wanted, path: str) -> Path:
    """Where a file or folder goes; the whole served folder (path "") goes straight into DEST."""
    dest = Path(wanted.dest) if wanted.dest is not None else Path()
    if not path or (wanted.dest is not None and not wanted.into):
        return dest
    return dest / path.rpartition("/")[2]


async def _get_folder(fetch: _Fetch, above: str, folder: FileInfo | None, target: Path) -> None:
    if not _make_folder(fetch.tally, folder, target):
        return
    jobs = _files_of(fetch, above, target)
    async with aclosing(fetch.client.download_all(jobs, progress=fetch.meter.update)) as ended:
        async for job, outcome in ended:
            if isinstance(outcome, Receipt):
                _fetched(fetch, outcome)
            elif isinstance(outcome, ConnectionLost | GoingAway):
                raise outcome
            elif isinstance(outcome, SourceChanged):
                await _get_file(fetch, job.entry, job.dest)  # it changed after it was listed: ask again
            else:
                _not_fetched(fetch, job.entry, job.dest, outcome)


async def _files_of(fetch: _Fetch, above: str, target: Path) -> AsyncGenerator[tuple[FileInfo, Path], None]:
    """The files below a folder that are to be fetched, and where each goes; makes the folders on the way."""
    async with aclosing(fetch.client.listing(above, recursive=True)) as entries:
        async for entry in entries:
            place = _place(fetch.tally, above, entry, target)
            if place is None:
                continue
            if entry.folder:
                _make_folder(fetch.tally, entry, place)
                continue
            fetch.meter.expect(entry.filesize)
            try:
                here = _is_here(entry, place)
            except OSError as error:
                _not_fetched(fetch, entry, place, error)
                continue
            if here:
                _here_already(fetch, entry, place)
            else:
                yield entry, place


def _place(tally: _Tally, above: str, entry: FileInfo, target: Path) -> Path | None:
    """Where an entry goes, or None if its name could lead anywhere else."""
    try:
        components = SafeName.parse(entry.filename).components
    except NameRefused as error:
        _failed(tally, entry.filename, error)
        return None
    depth = len(above.split("/")) if above else 0
    if "/".join(components[:depth]) != above or len(components) <= depth:
        _failed(tally, entry.filename, NameRefused("the server named a file outside of what was asked for"))
        return None
    return target.joinpath(*components[depth:])


def _make_folder(tally: _Tally, folder: FileInfo | None, place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _failed(tally, str(place), error)
        return False
    if folder is not None:
        tally.folders.append((place, folder))
    return True


async def _get_file(fetch: _Fetch, entry: FileInfo, place: Path) -> None:
    try:
        if _is_here(entry, place) and fetch.wanted.span is None:
            _here_already(fetch, entry, place)
            return
        receipt = await fetch.client.download(
            entry.filename, place, span=fetch.wanted.span, progress=fetch.meter.update
        )
    except (ConnectionLost, GoingAway):
        raise
    except (BlockprotoError, OSError) as error:
        _not_fetched(fetch, entry, place, error)
    else:
        _fetched(fetch, receipt)


def _not_fetched(fetch: _Fetch, entry: FileInfo, place: Path, error: BlockprotoError | OSError) -> None:
    fetch.meter.finished(entry.filename, 0)
    _failed(fetch.tally, str(place) if isinstance(error, OSError) else entry.filename, error, _advice(error))


def _advice(error: BaseException) -> str:
    return "give a range that begins within the file" if isinstance(error, BadFacts) else ""


def _is_here(entry: FileInfo, place: Path) -> bool:
    """Whether the file is there already; raises OSError if a folder is."""
    try:
        facts = place.lstat()
    except OSError:
        return False
    if stat.S_ISDIR(facts.st_mode) or (stat.S_ISLNK(facts.st_mode) and place.is_dir()):
        raise IsADirectoryError(0, "a folder stands where the file should go", str(place))
    same = facts.st_size == entry.filesize and same_mtime(facts.st_mtime_ns, entry.mtime_ns)
    return same and stat.S_ISREG(facts.st_mode)


def _here_already(fetch: _Fetch, entry: FileInfo, place: Path) -> None:
    fetch.meter.finished(entry.filename, entry.filesize)
    fetch.tally.files += 1
    fetch.tally.filesize += entry.filesize
    fetch.tally.here_already += 1
    if fetch.wanted.as_json:
        blocknum = blocknum_of(entry.filesize)
        print_json(
            {
                "filename": entry.filename,
                "filetype": entry.filetype,
                "filesize": entry.filesize,
                "blocknum": blocknum,
                "sourceid": None,
                "root": entry.root,
                "b3sum": entry.b3sum,
                "stored_as": str(place),
                "resumed": True,
                "blocks_sent": 0,
                "blocks_skipped": blocknum,
                "payload_bytes_sent": 0,
                "connections": 1,
                "elapsed_s": 0.0,
            }
        )
    if fetch.wanted.verbosity or entry.filename in fetch.tally.named:
        say(show_name(f"{entry.filename}: already here as '{place}' ({show_size(entry.filesize)})"))


def _fetched(fetch: _Fetch, receipt: Receipt) -> None:
    fetch.meter.finished(receipt.filename, receipt.filesize)
    fetch.tally.files += 1
    fetch.tally.filesize += receipt.filesize
    if fetch.wanted.as_json:
        print_receipt(receipt)
    if fetch.wanted.verbosity or receipt.filename in fetch.tally.named:
        text = f"fetched as '{receipt.stored_as}', {show_size(receipt.filesize)} in {receipt.elapsed_s:.1f} s"
        if receipt.resumed:
            text += f"; resumed, {receipt.blocks_skipped} of {receipt.blocknum} blocks were here already"
        say(show_name(f"{receipt.filename}: {text}"))


def _failed(tally: _Tally, what: str, error: BaseException, advice: str = "") -> None:
    tally.failed += 1
    tally.status = max(tally.status, fail(error, what, advice))


def _finish_folders(tally: _Tally) -> None:
    """Give the folders their rights and times, the deepest first, now that nothing is made in them any more."""
    for place, folder in reversed(tally.folders):
        try:
            os.chmod(place, folder.mode)
            set_mtime(place, folder.mtime_ns)
        except OSError as error:
            _failed(tally, str(place), error)


def _sum_up(tally: _Tally, elapsed_s: float) -> None:
    if tally.files + tally.failed <= 1 and not tally.folders:
        return
    parts = [f"{show_count(tally.files, 'file')}, {show_size(tally.filesize)} in {elapsed_s:.1f} s"]
    parts += [f"{tally.here_already} of them were here already"] if tally.here_already else []
    parts += [f"{tally.failed} failed"] if tally.failed else []
    say("; ".join(parts))
