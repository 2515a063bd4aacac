"""How a command connects and authenticates: the options that all commands with an address share.

    bps://  TLS: the certificate must be that of --pin, the one remembered, or (--ca) one that an authority signed; the user
            is asked once to accept the certificate of an unknown server
    bp://   no TLS: this machine, or --insecure

A token comes from --token-file or from the environment, never from the command line, which every user of this machine can
read. It is sent to one server only: ``$BLOCKPROTO_TOKEN_FOR`` names the one for the environment's token; without it, a
command with a token connects to one server only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import trio

from .address import SCHEME, Address, AddressError, is_address, parse_address
from .options import verbosity
from .output import WITHHELD, Status, about, say, warn
from .streams import raw_stdin

if TYPE_CHECKING:
    from ..client import Client
    from ..client_side.trust import Trust

TOKEN_VARIABLE = "BLOCKPROTO_TOKEN"
SERVER_VARIABLE = "BLOCKPROTO_TOKEN_FOR"
SYSTEM = "system"
_ASK = "-"
_TOKEN_FILE_LENGTH_MAX = 65_536
_KEY = "blockproto.access"
_SENT_KEY = "blockproto.access.server"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def access_options(command: _Command) -> _Command:
    """``--insecure``, ``--token-file``, ``--pin``, ``--ca``."""
    for option in (
        click.option(
            "--ca",
            metavar="FILE",
            expose_value=False,
            callback=_keep,
            help=f"bps://: trust what these authorities (PEM) signed, or '{SYSTEM}' for this machine's; no pins.",
        ),
        click.option(
            "--pin",
            metavar="PIN",
            expose_value=False,
            callback=_keep_pin,
            help="bps://: the server's certificate, as it prints it: 64 digits, or 24 words in quotes.",
        ),
        click.option(
            "--token-file",
            metavar="FILE",
            expose_value=False,
            callback=_keep_token,
            help=f"Use the token in FILE; '{_ASK}' asks for it. Default: ${TOKEN_VARIABLE}, but only for the server that "
            f"${SERVER_VARIABLE} names, if that is set.",
        ),
        click.option(
            "--insecure",
            is_flag=True,
            expose_value=False,
            callback=_keep,
            help="bp://: speak with another machine without TLS.",
        ),
    ):
        command = option(command)
    return command


def _keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    ctx.meta.setdefault(_KEY, {})[parameter.name] = value


def _keep_pin(ctx: click.Context, parameter: click.Parameter, text: str | None) -> None:
    if text is not None:
        from ..identity.certificates import parse_pin

        try:
            _keep(ctx, parameter, parse_pin(text))
        except ValueError as error:
            raise click.BadParameter(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Token:
    """A token that the command was given.

    Attributes:
        text: the token; it is never shown.
        where: where it came from.
        server: the only server it may be sent to; None: the one of the command.
    """

    text: str
    where: str
    server: Address | None

    def is_for(self, address: Address) -> bool:
        """Whether it may be sent to a server."""
        if self.server is None:
            return True
        same = (self.server.host.lower(), self.server.port) == (address.host.lower(), address.port)
        return same and (address.secure or not self.server.secure)


def _keep_token(ctx: click.Context, parameter: click.Parameter, name: str | None) -> None:
    """Read the token; it is checked when it is to be sent."""
    where, text = _read_token(name)
    if text is not None:
        server = _only_server() if name is None else None
        _keep(ctx, parameter, _Token(text, where, server))


def _only_server() -> Address | None:
    """The server that the environment's token is for, if one is named."""
    text = os.environ.get(SERVER_VARIABLE, "").strip()
    if not text:
        return None
    try:
        return parse_address(text if is_address(text) else SCHEME + text)
    except AddressError as error:
        raise click.UsageError(f"${SERVER_VARIABLE} is '{text}': {error}") from error


def _read_token(name: str | None) -> tuple[str, str | None]:
    if name is None:
        return f"${TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE, "").strip() or None
    if name == _ASK:
        if not sys.stdin.isatty():
            raise click.BadParameter(
                f"'{_ASK}' asks for the token on a terminal, and stdin is none: name a file, or set ${TOKEN_VARIABLE}"
            )
        return "what was typed", click.prompt("Token", hide_input=True, err=True).strip()
    try:
        with open(name, encoding="utf-8", errors="replace") as file:
            return name, file.read(_TOKEN_FILE_LENGTH_MAX).strip()
    except OSError as error:
        raise click.BadParameter(f"'{name}': {error.strerror}") from error


def _told(name: str) -> Any:
    return click.get_current_context().meta.get(_KEY, {}).get(name)


def token_needs_server() -> bool:
    """Whether the command has a token that names no server."""
    token: _Token | None = _told("token_file")
    return token is not None and token.server is None


def _token_for(address: Address) -> str | None:
    """The token that may be sent to ``address``, or None.

    Raises:
        click.UsageError: it is damaged, or the command has sent it to another server.
    """
    token: _Token | None = _told("token_file")
    if token is None:
        return None
    if not token.is_for(address):
        assert token.server is not None
        click.get_current_context().meta[WITHHELD] = (
            f"the token in {token.where} was not sent: ${SERVER_VARIABLE} says that it is for {token.server.server}"
        )
        if verbosity():
            say(f"{address.server}: the token in {token.where} is for another server and is not sent")
        return None
    from ..identity.tokens import secret_of

    try:
        secret_of(token.text)
    except ValueError as error:
        raise click.UsageError(f"the token in {token.where} is damaged: {error}") from None
    first = click.get_current_context().meta.setdefault(_SENT_KEY, address.server)
    if first != address.server:
        raise click.UsageError(
            f"the token in {token.where} is for one server, and the command names {first} and {address.server}: name one, "
            f"or set ${SERVER_VARIABLE} to the one that ${TOKEN_VARIABLE} is for"
        )
    return token.text


def check_access(address: Address) -> None:
    """Check whether the command may connect to ``address``, before it connects anywhere; warns of a connection without TLS.

    Raises:
        click.UsageError: it is another machine, without TLS, and ``--insecure`` was not given; or the token is damaged, or
            is for another server that the command named.
    """
    _token_for(address)
    if address.secure or address.loopback:
        return
    if not _told("insecure"):
        raise click.UsageError(
            f"'{address.host}' is another machine and bp:// is not encrypted: write bps:// if the server speaks TLS, or add "
            "--insecure if everybody on the way may read and change what is sent"
        )
    click.get_current_context().meta.setdefault(WITHHELD, "")  # a token could be read on the way, too
    warn(f"not encrypted: everybody between here and {address.host} can read and change what is sent")


def for_each_server(addresses: Sequence[Address], work: Callable[[Sequence[Address]], Awaitable[int]]) -> int:
    """Run ``work`` with the addresses of each server in turn; returns the greatest of the exit codes.

    An error that ends the work with one server is reported; the others are not affected.
    """
    status: int = Status.DONE
    for server in dict.fromkeys(address.server for address in addresses):
        here = [address for address in addresses if address.server == server]
        try:
            with about(here[0].text if len(here) == 1 else server):
                status = max(status, trio.run(work, here))
        except click.exceptions.Exit as ended:
            status = max(status, ended.exit_code)
    return status


def connect_as_told(server: str, **options: Any) -> AbstractAsyncContextManager[Client]:
    """``blockproto.connect`` with the token and the trust of the command's options."""
    from .. import connect

    trust = _trust() if server.startswith("bps:") else None
    from .interruptions import LineTeller

    options.setdefault("on_line", LineTeller(verbosity() > 0))
    token = _token_for(parse_address(server))
    return connect(server, token=token, trust=trust, insecure=bool(_told("insecure")), **options)


def _trust() -> Trust:
    from ..client_side.trust import Trust
    from ..identity.known_servers import known_servers

    authorities = _told("ca")
    if authorities is not None:
        return Trust(authorities=authorities if authorities == SYSTEM else Path(authorities))
    ask = _ask if sys.stdin.isatty() and sys.stderr.isatty() else None
    return Trust(pin=_told("pin"), known=known_servers(), ask=ask)


async def _ask(server: str, pin: bytes) -> bool:
    """Show the pin of an unknown server, and ask whether to trust it."""
    import trio

    from ..identity.certificates import pin_words

    say(f"nothing is known of {server} yet. Its certificate is:\n\n  {pin.hex()}\n  {pin_words(pin)}\n")
    question = "Does the server, or its owner, show the same? Then answer y: it is remembered. Trust it?"
    return await trio.to_thread.run_sync(confirmed, question, abandon_on_cancel=True)


def confirmed(question: str) -> bool:
    """Ask on stderr until the answer is one; an empty one, and the end of stdin, are no."""
    while True:
        print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
        answer = raw_stdin().readline().strip().lower()
        if answer in (b"y", b"yes"):
            return True
        if answer in (b"", b"n", b"no"):
            return False
