"""``blockproto rm`` and ``cancel``: what takes something away from a server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import click
import trio

from .. import BlockprotoError, Client
from .access import access_options, check_access, connect_as_told, for_each_server
from .address import Address, AddressError, is_address, parse_address, to_address
from .options import EXIT_CODES, json_option, verbose_option, verbosity
from .output import Status, about, ends_all, fail, leaves_of, print_failed, print_json, say

_SOURCEID = re.compile(r"[0-9a-fA-F]{32}")


_EXAMPLES = f"""\b
blockproto rm bp://localhost/notes.txt
blockproto rm -r bp://localhost/2026

{EXIT_CODES}
"""


@click.command("rm", epilog=_EXAMPLES)
@click.argument("addresses", nargs=-1, required=True, metavar="bp://HOST:PORT/NAME...")
@click.option("-r", "--recursive", is_flag=True, help="Also folders that are not empty.")
@json_option
@access_options
@verbose_option
@click.pass_context
def rm(ctx: click.Context, addresses: tuple[str, ...], recursive: bool, as_json: bool) -> int:
    """Remove files or folders from a server."""
    wanted = [to_address(ctx, ctx.command.params[0], text) for text in addresses]
    for address in wanted:
        check_access(address)
        if not address.path:
            raise click.UsageError(f"'{address.text}' is the whole served folder: name what is to be removed")
    return for_each_server(wanted, partial(_rm, recursive, as_json))


async def _rm(recursive: bool, as_json: bool, addresses: Sequence[Address]) -> int:
    status: int = Status.DONE
    left = list(addresses)
    with _telling_of([{"filename": one.path, "removed": False} for one in addresses], left, as_json):
        async with connect_as_told(addresses[0].server) as client:
            while left:
                status = max(status, await _rm_one(client, left[0], recursive, as_json))
                del left[0]
    return status


async def _rm_one(client: Client, address: Address, recursive: bool, as_json: bool) -> int:
    try:
        await client.remove(address.path, recursive=recursive)
    except BlockprotoError as error:
        if ends_all(error):
            raise
        if as_json:
            print_failed({"filename": address.path, "removed": False}, error)
        return fail(error, address.text)
    if as_json:
        print_json({"filename": address.path, "removed": True})
    elif verbosity():
        say(f"{address.text}: removed")
    return Status.DONE


@contextmanager
def _telling_of(objects: list[dict[str, Any]], left: Sequence[object], as_json: bool) -> Iterator[None]:
    """Print the last of ``objects``, one for each of what is ``left``, if an error ends the command before its turn."""
    try:
        yield
    except (BlockprotoError, OSError, BaseExceptionGroup) as error:
        cause = leaves_of(error)[0]
        if as_json and isinstance(cause, BlockprotoError | OSError):
            for fields in objects[len(objects) - len(left) :]:
                print_failed(fields, cause)
        raise


@click.command("cancel")
@click.argument("words", nargs=-1, required=True, metavar="SOURCEID... bp://HOST:PORT")
@json_option
@access_options
@verbose_option
def cancel(words: tuple[str, ...], as_json: bool) -> int:
    """Throw unfinished uploads away; `blockproto uploads` lists their SOURCEIDs."""
    address, sourceids = _sort_words(words)
    check_access(address)
    with about(address.text):
        return trio.run(_cancel, address, sourceids, as_json)


def _sort_words(words: tuple[str, ...]) -> tuple[Address, list[str]]:
    """The server's address and the sourceids, in whatever order they were given."""
    sourceids = [word.lower() for word in words if _SOURCEID.fullmatch(word)]
    others = [word for word in words if not _SOURCEID.fullmatch(word)]
    if len(others) != 1 or not sourceids:
        wrong = next((word for word in others if not is_address(word)), None)
        told = f"'{wrong}' is not a sourceid; " if wrong is not None else ""
        raise click.UsageError(
            f"{told}give one address bp://HOST:PORT and at least one sourceid "
            "(32 hexadecimal digits, as `uploads` lists them)"
        )
    try:
        return parse_address(others[0]), sourceids
    except AddressError as error:
        raise click.UsageError(f"'{others[0]}': {error}") from error


async def _cancel(address: Address, sourceids: list[str], as_json: bool) -> int:
    status: int = Status.DONE
    left = list(sourceids)
    with _telling_of([{"sourceid": one, "cancelled": False} for one in sourceids], left, as_json):
        async with connect_as_told(address.server) as client:
            while left:
                status = max(status, await _cancel_one(client, left[0], as_json))
                del left[0]
    return status


async def _cancel_one(client: Client, sourceid: str, as_json: bool) -> int:
    try:
        await client.cancel_upload(sourceid)
    except BlockprotoError as error:
        if ends_all(error):
            raise
        if as_json:
            print_failed({"sourceid": sourceid, "cancelled": False}, error)
        return fail(error, sourceid)
    if as_json:
        print_json({"sourceid": sourceid, "cancelled": True})
    elif verbosity():
        say(f"{sourceid}: cancelled")
    return Status.DONE
