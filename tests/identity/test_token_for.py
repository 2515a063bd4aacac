"""A token goes to the server it was meant for and to no other, whatever else the command names."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Ran, Server

from blockproto.cli.output import Status
from blockproto.identity.tokens import new_token

Run = Callable[..., Ran]


class Ear:
    """Somebody else's port: accepts, says nothing, and keeps all that it hears."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"bp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard = b""
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    while more := connection.recv(65_536):
                        self.heard += more
                        if b"bp1_" in self.heard or len(self.heard) > 40:
                            break
                except TimeoutError:
                    continue

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear = Ear()
    yield ear
    ear.close()


@pytest.fixture
def guarded(start_server: Callable[..., Server], run: Run) -> tuple[Server, str]:
    """A server that wants a token, with a file "a", and the token."""
    server = start_server()
    (server.folder / "a").write_bytes(b"1")
    token = run("token", "add", "me", "--folder", ".", "--state", server.folder / ".blockproto").out.strip()
    server.stop()
    return start_server(server.folder), token


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("command", ["get", "rm"])
def test_a_command_with_a_token_speaks_with_one_server(
    order: int, command: str, guarded: tuple[Server, str], ear: Ear, tmp_path: Path, run: Run
) -> None:
    server, token = guarded
    addresses = [f"{server.address}/a", f"{ear.address}/a"]
    words = [command, *(reversed(addresses) if order else addresses)]
    ran = run(*words, env={"BLOCKPROTO_TOKEN": token}, cwd=tmp_path)
    assert ran.status == Status.USAGE
    assert "the token in $BLOCKPROTO_TOKEN is for one server" in ran.err
    assert "$BLOCKPROTO_TOKEN_FOR" in ran.err
    file = tmp_path / "token"
    file.write_text(token)
    assert run(*words, "--token-file", file, cwd=tmp_path).status == Status.USAGE
    assert ear.heard == b""


@pytest.mark.parametrize("prefix", ["", "bp://"])
def test_where_it_is_said_for_which_server_no_other_hears_it(
    prefix: str, guarded: tuple[Server, str], ear: Ear, tmp_path: Path, run: Run
) -> None:
    server, token = guarded
    (tmp_path / "b").write_bytes(b"2")
    meant = prefix + server.address.removeprefix("bp://")
    env = {"BLOCKPROTO_TOKEN": token, "BLOCKPROTO_TOKEN_FOR": meant}
    both = run(
        "get", f"{ear.address}/a", f"{server.address}/a", tmp_path / "to/", "--retry-for", "0", env=env
    )
    assert both.status == Status.UNREACHABLE
    assert (tmp_path / "to/a").read_bytes() == b"1"
    put = run("put", tmp_path / "b", f"{ear.address}/", "--retry-for", "0", env=env)
    assert put.status == Status.UNREACHABLE
    assert ear.heard
    assert b"bp1_" not in ear.heard
    assert token not in ear.heard.decode("latin-1")


def test_one_that_is_for_tls_only_is_not_sent_without(ear: Ear, run: Run) -> None:
    port = ear.address.rpartition(":")[2]
    env = {"BLOCKPROTO_TOKEN": new_token(), "BLOCKPROTO_TOKEN_FOR": f"bps://127.0.0.1:{port}"}
    assert run("ls", ear.address, env=env).status == Status.UNREACHABLE
    assert ear.heard
    assert b"bp1_" not in ear.heard


def test_the_queue_sends_it_to_that_server_only(
    guarded: tuple[Server, str], ear: Ear, tmp_path: Path, run: Run
) -> None:
    server, token = guarded
    (tmp_path / "b").write_bytes(b"2")
    env = {"BLOCKPROTO_TOKEN": token, "BLOCKPROTO_QUEUE": str(tmp_path / "queue")}
    run("queue", "add", tmp_path / "b", f"{ear.address}/", env=env)
    run("queue", "add", tmp_path / "b", f"{server.address}/", env=env)
    assert run("queue", "run", "--until-empty", env=env).status == Status.USAGE
    env["BLOCKPROTO_TOKEN_FOR"] = server.address
    assert run("queue", "run", "--until-empty", "--retry-for", "0", env=env).status == Status.UNREACHABLE
    assert (server.folder / "b").read_bytes() == b"2"
    assert ear.heard
    assert b"bp1_" not in ear.heard


def test_the_words_of_the_variable_are_checked(ear: Ear, run: Run) -> None:
    env = {"BLOCKPROTO_TOKEN": new_token(), "BLOCKPROTO_TOKEN_FOR": "bp://user@host/"}
    ran = run("ls", ear.address, env=env)
    assert ran.status == Status.USAGE
    assert "$BLOCKPROTO_TOKEN_FOR" in ran.err
    damaged = {"BLOCKPROTO_TOKEN": "bp1_damaged", "BLOCKPROTO_TOKEN_FOR": "elsewhere"}
    assert run("ls", ear.address, env=damaged).status == Status.UNREACHABLE
    assert run("ls", ear.address, env={"BLOCKPROTO_TOKEN": "bp1_damaged"}).status == Status.USAGE
