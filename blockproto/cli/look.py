"""``blockproto ls``, ``stat`` and ``uploads``: what a server has, without changing it.

Listings are what was asked for, so they go to stdout, as lines for people or, with ``--json``, as objects for scripts.
"""

from __future__ import annotations

import stat as modes
from contextlib import aclosing
from functools import partial
from typing import Any

import click
import trio

from .. import FileInfo, LeftOut, UploadInfo
from ..blocks import BLOCK_LENGTH
from ..names import show_name
from .access import access_options, check_access, connect_as_told
from .address import Address, to_address
from .left_out import missed_of, say_missed, tell_left_out
from .options import json_option, verbose_option
from .output import Status, about, print_json, say, show_size, show_time

_FOLDER_ARGUMENT = "bp://HOST:PORT[/FOLDER]"


@click.command("ls")
@click.argument("address", callback=to_address, metavar=_FOLDER_ARGUMENT)
@click.option("-r", "--recursive", is_flag=True, help="Also what is in its folders.")
@json_option
@access_options
@verbose_option
def ls(address: Address, recursive: bool, as_json: bool) -> int:
    """List the files and folders in a folder of a server (or one file)."""
    check_access(address)
    with about(address.text):
        return trio.run(_ls, address, recursive, as_json)


async def _ls(address: Address, recursive: bool, as_json: bool) -> int:
    async with connect_as_told(address.server) as client:
        entry = await client.stat(address.path) if address.path and not address.folder else None
        if entry is not None and not entry.folder:
            _print_entry(entry, address.path.rpartition("/")[0], as_json)
            return Status.DONE
        told = partial(_passed_over, address.path)
        listing = client.listing(address.path, recursive=recursive, on_left_out=told)
        async with aclosing(listing) as entries:
            async for entry in entries:
                _print_entry(entry, address.path, as_json)
    return Status.DONE


def _passed_over(above: str, part: LeftOut) -> None:
    """Tell what is there and not listed."""
    if not part.missed:
        tell_left_out(part)
        return
    for missed in missed_of(part, above):
        say_missed(missed)


def _print_entry(entry: FileInfo, above: str, as_json: bool) -> None:
    if as_json:
        print_json(file_fields(entry))
        return
    name = entry.filename[len(above) + 1 :] if above else entry.filename
    kind = modes.S_IFDIR if entry.folder else modes.S_IFREG
    size = "-" if entry.folder else show_size(entry.filesize)
    click.echo(
        f"{modes.filemode(kind | entry.mode)}  {size:>10}  {show_time(entry.mtime_ns)}  "
        f"{show_name(name)}{'/' if entry.folder else ''}"
    )


def file_fields(entry: FileInfo) -> dict[str, Any]:
    """The object that ``ls --json`` and ``stat --json`` print for an entry."""
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
    }


@click.command("stat")
@click.argument("address", callback=to_address, metavar="bp://HOST:PORT/NAME")
@click.option("--b3sum", is_flag=True, help="Wait until the server has computed the file's BLAKE3.")
@json_option
@access_options
@verbose_option
def stat(address: Address, b3sum: bool, as_json: bool) -> int:
    """Show what a server knows of one file or folder."""
    check_access(address)
    if not address.path:
        raise click.UsageError(f"'{address.text}' names no file: add its name, or list the folder with ls")
    with about(address.text):
        return trio.run(_stat, address, b3sum, as_json)


async def _stat(address: Address, b3sum: bool, as_json: bool) -> int:
    async with connect_as_told(address.server) as client:
        entry = await client.stat(address.path, b3sum=b3sum)
    fields = file_fields(entry)
    if as_json:
        print_json(fields)
        return Status.DONE
    fields |= {
        "mtime": show_time(entry.mtime_ns),
        "filesize": f"{entry.filesize} ({show_size(entry.filesize)})",
    }
    for key, value in fields.items():
        if value is not None and key not in ("folder", "mtime_ns", "version"):
            click.echo(f"{key:<9} {show_name(str(value))}")
    return Status.DONE


@click.command("uploads")
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
    size = "?" if upload.filesize is None else show_size(upload.filesize)
    expiry = "never" if upload.expires_ms is None else show_time(upload.expires_ms * 10**6)
    click.echo(
        f"{upload.sourceid}  {show_size(_held_bytes(upload))} of {size} ({upload.held_count} blocks)  "
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
