"""Addresses: every form people type, and a sentence for every wrong one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

import blockproto
from blockproto.cli.address import (
    Address,
    AddressError,
    address_of,
    advice_about,
    parse_address,
    parse_listen,
    show_host_port,
)
from blockproto.errors import StoreFull, UnknownFile
from blockproto.identity.loopback import is_loopback


@pytest.mark.parametrize(
    ("text", "host", "port", "path", "folder"),
    [
        ("bp://localhost", "localhost", 7878, "", True),
        ("bp://localhost/", "localhost", 7878, "", True),
        ("BP://localhost:7878/", "localhost", 7878, "", True),
        ("bp://h:1/a/b.txt", "h", 1, "a/b.txt", False),
        ("bp://h:1/a/b/", "h", 1, "a/b", True),
        ("bp://[::1]:7000/x", "::1", 7000, "x", False),
        ("bp://[fe80::1%eth0]/", "fe80::1%eth0", 7878, "", True),
        ("bp://h/holiday photos/中文.jpg", "h", 7878, "holiday photos/中文.jpg", False),
        ("bp://h/holiday%20photos/%E4%B8%AD%e6%96%87.jpg", "h", 7878, "holiday photos/中文.jpg", False),
        ("bp://h/100%", "h", 7878, "100%", False),
        ("bp://h/50% off", "h", 7878, "50% off", False),
        ("bp://h/%2541", "h", 7878, "%41", False),
        ("bp://h/what?#1", "h", 7878, "what?#1", False),
        ("bp://h/a//b", "h", 7878, "a/b", False),
        ("bp://h//a", "h", 7878, "a", False),
        ("bp://h///", "h", 7878, "", True),
        ("bp://h/a%2F%2fb//", "h", 7878, "a/b", True),
        ("bp://h/.//a", "h", 7878, "a", False),
        ("bp://h/a:b@c", "h", 7878, "a:b@c", False),
        ("bp://h/folder%2F", "h", 7878, "folder", True),
    ],
)
def test_parses(text: str, host: str, port: int, path: str, folder: bool) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.path, address.folder) == (host, port, path, folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("localhost:7878", "begins with bp://"),
        ("http://localhost/", "begins with bp://"),
        ("", "begins with bp://"),
        ("bp:///x", "host is missing"),
        ("bp://:7878/", "host is missing"),
        ("bp://h:/x", "port must be a number"),
        ("bp://h:99999/", "port must be a number from 1 to"),
        ("bp://h:-1/", "port must be a number"),
        ("bp://h:٣/", "port must be a number"),
        ("bp://h:0/", "port 0 is only for serve"),
        ("bp://::1/", "brackets"),
        ("bp://[::1/", "write an IPv6 address"),
        ("bp://[::1]7878/", "write an IPv6 address"),
        ("bp://[zz]:1/", "no IPv6 address"),
        ("bp://me:secret@h/", "no user names"),
        ("bp://a b/", "cannot be one"),
        ("bp://h/%ff%fe", "not UTF-8"),
    ],
)
def test_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(AddressError, match=words):
        parse_address(text)


@pytest.mark.parametrize("name", ["a", "文件?#%41.txt", "100%", "%25%zz%2", "a b/%%41"])
def test_an_address_of_a_name_gives_it_back(name: str) -> None:
    assert parse_address(address_of("bp://h:1", name)).path == name


def test_a_decoded_name_that_nothing_has_is_said_with_what_to_write() -> None:
    address = parse_address("bp://h/x%41?.txt")
    advice = "looked for 'xA?.txt'; where the name holds the '%' itself, write 'bp://h/x%2541?.txt'"
    assert advice_about(address, UnknownFile()) == advice
    assert advice_about(address, StoreFull()) == ""
    assert advice_about(parse_address("bp://h/100%"), UnknownFile()) == ""


def test_names_that_are_not_unicode_survive() -> None:
    assert parse_address("bp://h/\udcff").path == "\udcff"
    with pytest.raises(AddressError, match="not UTF-8"):
        parse_address("bp://h/\udcff%41")


@pytest.mark.parametrize(
    ("text", "result"),
    [("127.0.0.1:7878", ("127.0.0.1", 7878)), ("[::]:0", ("::", 0)), ("localhost:0", ("localhost", 0))],
)
def test_listen(text: str, result: tuple[str, int]) -> None:
    assert parse_listen(text) == result


@pytest.mark.parametrize(
    "text", ["7878", "127.0.0.1", "bp://127.0.0.1:7878", "127.0.0.1:", ":7878", "::1:7878", "h:70000"]
)
def test_listen_says_what_is_wrong(text: str) -> None:
    with pytest.raises(AddressError):
        parse_listen(text)


def test_a_port_that_is_missing_is_said_to_be_missing() -> None:
    with pytest.raises(AddressError, match="the port is missing; write HOST:PORT"):
        parse_listen("127.0.0.1")


def test_server_is_what_connect_takes() -> None:
    assert Address("::1", 7).server == "bp://[::1]:7"
    assert show_host_port("h", 7) == "h:7"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", False),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.168.1.2", False),
        ("localhost.example.org", False),
        ("::", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_the_library_says_how_an_address_to_listen_on_is_given(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="give a host and a port"):
        trio.run(partial(blockproto.serve, tmp_path, listen="127.0.0.1:0"))
