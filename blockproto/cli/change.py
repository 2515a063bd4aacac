"""``blockproto rm`` and ``cancel``: remove something from a server."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import trio

from .. import BlockprotoError, Client
from .access import access_options, check_access, connect_as_told, for_each_server
from .address import Address, AddressError, advice_about, is_address, parse_address, to_address
from .options import EXIT_CODES, EXIT_CODES_ASKING, json_option, verbose_option, verbosity
from .output import Status, about, ends_all, fail, print_failed, print_json, printing_failed, say

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
    things = [
        _Thing(
            one.text,
            "filename",
            one.path,
            "removed",
            partial(Client.remove, name=one.path, recursive=recursive),
        )
        for one in addresses
    ]
    return await _take_away(addresses[0].server, things, as_json)


@dataclass(frozen=True, slots=True)
class _Thing:
    """What is to be removed.

    Attributes:
        typed: as it was typed.
        key, name: field and value of the object for scripts that name it.
        done: what it is then: removed or cancelled.
        take: removes it.
    """

    typed: str
    key: str
    name: str
    done: str
    take: Callable[[Client], Awaitable[None]]

    def fields(self, done: bool) -> dict[str, Any]:
        """The object for scripts."""
        return {self.key: self.name, self.done: done}


async def _take_away(server: str, things: Sequence[_Thing], as_json: bool) -> int:
    """Remove one thing after another; one that is refused does not stop the others. Returns the exit code."""
    status: int = Status.DONE
    left = list(things)
    with printing_failed(lambda: [one.fields(False) for one in left], as_json):
        async with connect_as_told(server) as client:
            while left:
                status = max(status, await _take_one(client, left[0], as_json))
                del left[0]
    return status


async def _take_one(client: Client, thing: _Thing, as_json: bool) -> int:
    try:
        await thing.take(client)
    except BlockprotoError as error:
        if ends_all(error):
            raise
        if as_json:
            print_failed(thing.fields(False), error)
        advice = advice_about(parse_address(thing.typed), error) if is_address(thing.typed) else ""
        return fail(error, thing.typed, advice)
    if as_json:
        print_json(thing.fields(True))
    elif verbosity():
        say(f"{thing.typed}: {thing.done}")
    return Status.DONE


@click.command("cancel", epilog=EXIT_CODES_ASKING)
@click.argument("words", nargs=-1, required=True, metavar="SOURCEID... bp://HOST:PORT")
@json_option
@access_options
@verbose_option
def cancel(words: tuple[str, ...], as_json: bool) -> int:
    """Throw unfinished uploads away; `blockproto uploads` lists their SOURCEIDs."""
    address, sourceids = _sort_words(words)
    check_access(address)
    things = [
        _Thing(one, "sourceid", one, "cancelled", partial(Client.cancel_upload, sourceid=one))
        for one in sourceids
    ]
    with about(address.text):
        return trio.run(_take_away, address.server, things, as_json)


def _sort_words(words: tuple[str, ...]) -> tuple[Address, list[str]]:
    """The server's address and the sourceids, given in any order."""
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
