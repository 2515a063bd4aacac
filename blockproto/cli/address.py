"""Addresses as people type them: ``bp://HOST[:PORT][/PATH]``, ``bps://…`` for TLS, and ``HOST:PORT``.

The path is a file name, not a URL's path: ``?`` and ``#`` mean themselves, blanks and every script are welcome as they are.
A ``%`` followed by two hexadecimal digits is decoded once (so that addresses copied from elsewhere work); any other ``%``
means itself. A file whose name really holds ``%41`` is written ``%2541``. A "/" at the end says: this is a folder; several
in a row are one, and one more at the beginning is none, as in the paths of a file system.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import click

from ..errors import UnknownFile
from ..identity.loopback import is_loopback

PORT_DEFAULT = 7878
SCHEME = "bp://"
SECURE_SCHEME = "bps://"
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Address:
    """One parsed address.

    Attributes:
        host: name or IP address, IPv6 without brackets.
        port: 1..65535 (0 only in ``--listen``: any free one).
        path: the decoded name without "/" at either end or twice in a row; "" is the whole served folder.
        folder: whether it ended with "/" or names the whole served folder.
        text: what was typed, for messages.
        secure: whether it is ``bps://``: TLS.
        decoded: whether some ``%41`` in the path was decoded.
    """

    host: str
    port: int
    path: str = ""
    folder: bool = True
    text: str = ""
    secure: bool = False
    decoded: bool = False

    @property
    def server(self) -> str:
        """``bp://HOST:PORT`` or ``bps://HOST:PORT``, as ``connect`` takes it."""
        return (SECURE_SCHEME if self.secure else SCHEME) + show_host_port(self.host, self.port)

    @property
    def loopback(self) -> bool:
        """Whether the bytes stay on this machine."""
        return is_loopback(self.host)


class AddressError(ValueError):
    """An address that cannot be parsed; the text says what to write instead."""


def parse_address(text: str) -> Address:
    """Parse ``bp://HOST[:PORT][/PATH]`` or ``bps://HOST[:PORT][/PATH]``.

    Raises:
        AddressError: with a sentence that says what was wrong and what to write.
    """
    scheme = _scheme_of(text)
    if scheme is None:
        raise AddressError(f"an address begins with {SCHEME}, as in {SCHEME}localhost:{PORT_DEFAULT}/")
    authority, slash, path = text[len(scheme) :].partition("/")
    if "@" in authority:
        raise AddressError(
            "there are no user names or passwords in an address: take away what stands before '@'"
        )
    host, port = _parse_host_port(authority, PORT_DEFAULT)
    decoded = _decode(path)
    name = without_dot(re.sub("/+", "/", decoded).removeprefix("/"))
    folder = not name or name.endswith("/")
    return Address(
        host,
        port,
        name.rstrip("/"),
        folder,
        text if slash else text + "/",
        scheme == SECURE_SCHEME,
        decoded != path,
    )


def address_of(server: str, name: str) -> str:
    """How ``name`` on ``server`` (``bp://HOST:PORT``) is typed: ``parse_address`` gives it back."""
    return f"{server}/{_encode(name)}"


def advice_about(address: Address, error: BaseException) -> str:
    """What to do where nothing has a name that is not the one that was typed, because it was decoded; else ""."""
    if not address.decoded or not isinstance(error, UnknownFile):
        return ""
    literal = _encode(address.text)
    return f"looked for '{address.path}'; where the name holds the '%' itself, write '{literal}'"


def _encode(text: str) -> str:
    return _PERCENT.sub(rb"%25\1", text.encode(errors="surrogateescape")).decode(errors="surrogateescape")


def is_address(text: str) -> bool:
    """Whether ``text`` begins like an address."""
    return _scheme_of(text) is not None


def _scheme_of(text: str) -> str | None:
    return next((scheme for scheme in (SCHEME, SECURE_SCHEME) if text[: len(scheme)].lower() == scheme), None)


def parse_listen(text: str) -> tuple[str, int]:
    """Parse ``HOST:PORT`` of ``serve --listen``; port 0 takes any free one.

    Raises:
        AddressError: with a sentence that says what was wrong and what to write.
    """
    if is_address(text):
        raise AddressError(f"write HOST:PORT without {SCHEME}, as in 127.0.0.1:{PORT_DEFAULT}")
    return _parse_host_port(text, None)


def _parse_host_port(text: str, port_default: int | None) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        host = re.sub("%25(?=.)", "%", host, count=1)  # how a URL writes a zone
        if not bracket or (rest and not rest.startswith(":")):
            raise AddressError(f"write an IPv6 address as [::1]:{PORT_DEFAULT}")
        _check_ipv6(host)
        digits = rest[1:] if rest else None
    elif text.count(":") > 1:
        raise AddressError(f"put the IPv6 address in brackets, as in [::1]:{PORT_DEFAULT}")
    else:
        host, colon, after = text.partition(":")
        digits = after if colon else None
    if not host or any(c.isspace() or c in "%?#\\" for c in host if ":" not in host):
        raise AddressError(
            f"the host is missing or cannot be one; write HOST:PORT, as in localhost:{PORT_DEFAULT}"
        )
    return host, _parse_port(digits, port_default)


def _parse_port(digits: str | None, port_default: int | None) -> int:
    if digits is None and port_default is not None:
        return port_default
    if digits is None:
        raise AddressError(f"the port is missing; write HOST:PORT, as in localhost:{PORT_DEFAULT}")
    if not digits or not digits.isascii() or not digits.isdigit() or int(digits) > 65535:
        first = 0 if port_default is None else 1
        raise AddressError(f"the port must be a number from {first} to 65535, as in localhost:{PORT_DEFAULT}")
    if port_default is not None and int(digits) == 0:
        raise AddressError("port 0 is only for serve --listen; write the port that serve printed")
    return int(digits)


def _check_ipv6(host: str) -> None:
    address, percent, zone = host.partition("%")
    if percent and not zone:
        raise AddressError(
            f"'{host}' names no zone: write the network interface behind '%', as in [fe80::1%eth0]"
        )
    try:
        link_local = ipaddress.IPv6Address(address).is_link_local
        if link_local and not zone:
            raise AddressError(
                f"'{host}' is an address of one link only: say which network interface that is on, as in [{host}%eth0]"
            )
    except ipaddress.AddressValueError as error:
        raise AddressError(f"'{host}' is no IPv6 address; write it as in [::1]:{PORT_DEFAULT}") from error


def without_dot(name: str) -> str:
    """``name`` without a leading "./", which means nothing on a server."""
    while name.startswith("./"):
        name = name[2:]
    return name


def _decode(path: str) -> str:
    if "%" not in path:
        return path
    decoded = _PERCENT.sub(
        lambda match: bytes.fromhex(match[1].decode()), path.encode(errors="surrogateescape")
    )
    try:
        return decoded.decode()
    except UnicodeDecodeError as error:
        raise AddressError(
            "the %-encoded part of the path is not UTF-8; write the name as it is, and a '%' in it as '%25'"
        ) from error


def show_host_port(host: str, port: int) -> str:
    """``HOST:PORT``, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def to_address(_ctx: click.Context, _parameter: click.Parameter, text: str) -> Address:
    """Parse an argument ``bp://HOST[:PORT][/PATH]``, as a click callback; a wrong one is a usage error (exit code 2)."""
    try:
        return parse_address(text)
    except AddressError as error:
        raise click.BadParameter(f"'{text}': {error}") from error


def to_last_address(ctx: click.Context, parameter: click.Parameter, text: str) -> Address:
    """``to_address`` for the address behind ``PATH...``; also a usage error if one is missing or they are reversed."""
    paths: tuple[str, ...] = ctx.params["paths"]
    if is_address(text) and not paths:
        raise click.UsageError(f"say what to send: a PATH is missing before '{text}'")
    if not is_address(text) and not paths:
        raise click.UsageError(
            f"the server's address is missing: write it behind '{text}', as in {SCHEME}HOST:PORT/"
        )
    if not is_address(text) and any(map(is_address, paths)):
        raise click.UsageError(
            "the server's address comes last, behind every PATH; to fetch files, use `blockproto get`"
        )
    return to_address(ctx, parameter, text)


def to_listen(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, int] | None:
    """Parse an option ``HOST:PORT``, as a click callback; a wrong one is a usage error (exit code 2)."""
    if text is None:
        return None
    try:
        return parse_listen(text)
    except AddressError as error:
        raise click.BadParameter(f"'{text}': {error}") from error
