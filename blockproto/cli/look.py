"""``blockproto ls``, ``stat`` and ``uploads``: show what a server has.

Listings go to stdout, as lines for people or, with ``--json``, as objects for scripts.
"""

from __future__ import annotations

import stat as modes
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import trio

from .. import BlockprotoError, Client, FileInfo, LeftOut, UploadInfo
from ..common.blocks import BLOCK_LENGTH
from ..common.names import show_name
from .access import access_options, check_access, connect_as_told, for_each_server
from .address import Address, address_of, advice_about, to_address
from .left_out import LeftOutTeller, missed_of, say_missed
from .options import EXIT_CODES, EXIT_CODES_ASKING, json_option, verbose_option, verbosity
from .output import (
    Status,
    about,
    ends_all,
    fail,
    print_json,
    say,
    show_count,
    show_size,
    show_time,
)

_FOLDER_ARGUMENT = "bp://HOST:PORT[/FOLDER]"
_NO_ID = "0" * 32
_BEGUN = "less than a block"
"""What is held of an upload without a whole block: a server does not list uploads of which it has nothing (BP1-LST-005)."""


_LS_EXAMPLES = f"""\b
blockproto ls -r bp://localhost/2026
blockproto ls --json bp://localhost/ | jq -r .address

{EXIT_CODES}
"""


@click.command("ls", epilog=_LS_EXAMPLES)
@click.argument("addresses", nargs=-1, required=True, metavar=f"{_FOLDER_ARGUMENT}...")
@click.option("-r", "--recursive", is_flag=True, help="Also what is in its folders.")
@json_option
@access_options
@verbose_option
@click.pass_context
def ls(ctx: click.Context, addresses: tuple[str, ...], recursive: bool, as_json: bool) -> int:
    """List the files and folders in folders of a server (or single files).

    What is there and is not listed is named on stderr. Where the server could not read something the exit code is 1.
    """
    wanted = [to_address(ctx, ctx.command.params[0], text) for text in addresses]
    for address in wanted:
        check_access(address)
    listing = _Listing(recursive, as_json, len(wanted) > 1, LeftOutTeller(verbosity() > 0))
    status = for_each_server(wanted, partial(_ls, listing))
    listing.left_out.sum_up()
    return status


@dataclass(slots=True)
class _Listing:
    """The arguments of one ``ls``, and its outcome; ``heads``: name each folder above its entries."""

    recursive: bool
    as_json: bool
    heads: bool
    left_out: LeftOutTeller
    begun: bool = False
    status: int = Status.DONE

    def head(self, address: Address) -> None:
        """Print the name of a folder, for people."""
        if self.heads and not self.as_json:
            click.echo(("\n" if self.begun else "") + show_name(address.text) + ":")
        self.begun = True


async def _ls(listing: _Listing, addresses: Sequence[Address]) -> int:
    async with connect_as_told(addresses[0].server) as client:
        for address in addresses:
            try:
                await _ls_one(client, address, listing)
            except BlockprotoError as error:
                if ends_all(error):
                    raise
                advice = advice_about(address, error)
                listing.status = max(listing.status, fail(error, address.text, advice))
    return listing.status


async def _ls_one(client: Client, address: Address, listing: _Listing) -> None:
    entry = await client.stat(address.path) if address.path and not address.folder else None
    if entry is not None and not entry.folder:
        _print_entry(entry, address.path.rpartition("/")[0], address.server, listing.as_json)
        listing.begun = True
        return
    told = partial(_passed_over, listing, address.path)
    entries = client.listing(address.path, recursive=listing.recursive, on_left_out=told)
    begun = False
    async with aclosing(entries):
        async for entry in entries:
            if not begun:
                listing.head(address)
                begun = True
            _print_entry(entry, address.path, address.server, listing.as_json)
    if not begun:
        listing.head(address)


def _passed_over(listing: _Listing, above: str, part: LeftOut) -> None:
    """Report what the server left out."""
    if not part.missed:
        listing.left_out.tell_part(part)
        return
    for missed in missed_of(part, above):
        say_missed(missed)
    if part.reason != "name":  # such a name was chosen; the other reasons may hide anything
        listing.status = max(listing.status, Status.FAILED)


def _print_entry(entry: FileInfo, above: str, server: str, as_json: bool) -> None:
    if as_json:
        print_json(file_fields(entry, server))
        return
    name = entry.filename[len(above) + 1 :] if above else entry.filename
    kind = modes.S_IFDIR if entry.folder else modes.S_IFREG
    size = "-" if entry.folder else show_size(entry.filesize)
    click.echo(
        f"{modes.filemode(kind | entry.mode)}  {size:>10}  {show_time(entry.mtime_ns)}  "
        f"{show_name(name)}{'/' if entry.folder else ''}"
    )


def file_fields(entry: FileInfo, server: str) -> dict[str, Any]:
    """The object that ``ls --json`` and ``stat --json`` print for an entry of ``server`` (``bp://HOST:PORT``)."""
    return {
        "filename": entry.filename,
        "folder": entry.folder,
        "filetype": entry.filetype,
        "filesize": entry.filesize,
        "mtime_ns": entry.mtime_ns,
        "mode": f"{entry.mode:04o}",
        "file_id": entry.file_id,
        "version": entry.version,
        "root": entry.root,
        "b3sum": entry.b3sum,
        "address": address_of(server, entry.filename),
    }


@click.command("stat", epilog=EXIT_CODES_ASKING)
@click.argument("addresses", nargs=-1, required=True, metavar="bp://HOST:PORT/NAME...")
@click.option("--b3sum", is_flag=True, help="Wait until the server has computed the file's BLAKE3.")
@json_option
@access_options
@verbose_option
@click.pass_context
def stat(ctx: click.Context, addresses: tuple[str, ...], b3sum: bool, as_json: bool) -> int:
    """Show what a server knows of files or folders."""
    wanted = [to_address(ctx, ctx.command.params[0], text) for text in addresses]
    for address in wanted:
        check_access(address)
        if not address.path:
            raise click.UsageError(
                f"'{address.text}' names no file: add its name, or list the folder with ls"
            )
    return for_each_server(wanted, partial(_stat, b3sum, as_json))


async def _stat(b3sum: bool, as_json: bool, addresses: Sequence[Address]) -> int:
    status: int = Status.DONE
    async with connect_as_told(addresses[0].server) as client:
        for number, address in enumerate(addresses):
            if number and not as_json:
                click.echo()
            try:
                entry = await client.stat(address.path, b3sum=b3sum)
            except BlockprotoError as error:
                if ends_all(error):
                    raise
                status = max(status, fail(error, address.text, advice_about(address, error)))
            else:
                _print_facts(entry, address.server, as_json)
    return status


def _print_facts(entry: FileInfo, server: str, as_json: bool) -> None:
    fields = file_fields(entry, server)
    if as_json:
        print_json(fields)
        return
    fields |= {
        "mtime": show_time(entry.mtime_ns),
        "filesize": f"{entry.filesize} ({show_size(entry.filesize)})",
    }
    hidden = {"folder", "mtime_ns", "version", "address"} | ({"filesize"} if entry.folder else set())
    for key, value in fields.items():
        if value is not None and key not in hidden and value != _NO_ID:
            click.echo(f"{key:<9} {show_name(str(value))}")


@click.command("uploads", epilog=EXIT_CODES_ASKING)
@click.argument("address", callback=to_address, metavar="bp://HOST:PORT")
@json_option
@access_options
@verbose_option
def uploads(address: Address, as_json: bool) -> int:
    """List the unfinished uploads: sourceid, what is held, expiry, filename."""
    check_access(address)
    if address.path:
        raise click.UsageError(f"uploads are listed for the whole server: write {address.server}")
    with about(address.text):
        return trio.run(_uploads, address, as_json)


async def _uploads(address: Address, as_json: bool) -> int:
    count = 0
    async with connect_as_told(address.server) as client, aclosing(client.uploads()) as unfinished:
        async for upload in unfinished:
            count += 1
            _print_upload(upload, as_json)
    if not count:
        say("no unfinished uploads")
    return Status.DONE


def _print_upload(upload: UploadInfo, as_json: bool) -> None:
    if as_json:
        print_json(upload_fields(upload))
        return
    size = "?, a stream" if upload.filesize is None else show_size(upload.filesize)
    held = _held_bytes(upload)
    expiry = "never" if upload.expires_ms is None else show_time(upload.expires_ms * 10**6)
    click.echo(
        f"{upload.sourceid}  {show_size(held) if held else _BEGUN} of {size} ({show_count(upload.held_count, 'block')})  "
        f"expires {expiry}  {show_name(upload.filename)}"
    )


def _held_bytes(upload: UploadInfo) -> int:
    """Bytes that are durable, wherever in the file; by a part of a block too many where the short last one is among them."""
    held = upload.held_count * BLOCK_LENGTH
    return max(upload.position, held if upload.filesize is None else min(held, upload.filesize))


def upload_fields(upload: UploadInfo) -> dict[str, Any]:
    """The object that ``uploads --json`` prints for an upload."""
    return {
        "sourceid": upload.sourceid,
        "file_id": upload.file_id,
        "filename": upload.filename,
        "filetype": upload.filetype,
        "filesize": upload.filesize,
        "blocknum": upload.blocknum,
        "position": upload.position,
        "held_count": upload.held_count,
        "expires_ms": upload.expires_ms,
    }
