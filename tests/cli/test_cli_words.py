"""What the command says of wrong input: an empty argument, a token that cannot come in, a fault of this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hostile_server import Asked, HostileServer, frame
from peers import run as with_clock
from peers import serving
from processes import COMMAND, TIMEOUT_S, Ran, Server

from blockproto.cli import main
from blockproto.cli.output import Status, explain
from blockproto.errors import Code, NotPermitted, Refused, Unauthenticated
from blockproto.identity.auth_policy import DENY_ALL
from blockproto.identity.connection_auth import ConnectionAuth
from blockproto.identity.tokens import new_token
from blockproto.wire import Auth, Error

Run = Callable[..., Ran]


@pytest.mark.parametrize(
    "words",
    [
        ["put", "", "bp://localhost/"],
        ["put", "x", "bp://localhost/", "--as", ""],
        ["put", "x", "bp://localhost/", "--as="],
        ["get", "bp://localhost/x", ""],
        ["queue", "get", "bp://localhost/x", ""],
        ["queue", "add", "", "bp://localhost/"],
        ["serve", ""],
        ["check", ""],
        ["clean", ""],
        ["token", "list", "--state", ""],
        ["token", "add", "x", "--folder", ""],
        ["rm", ""],
        [""],
    ],
    ids=" ".join,
)
def test_an_empty_argument_is_a_mistake(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A variable of the shell that is not set must not mean the current folder."""
    assert main(words) == Status.USAGE
    said = capsys.readouterr()
    assert "is empty" in said.err
    assert said.out == ""


@pytest.mark.trio(run=with_clock)
@pytest.mark.parametrize("dest", ["", ".", ".."])
async def test_a_download_needs_the_name_of_a_file(dest: str) -> None:
    async with serving() as served, served.client() as client:
        with pytest.raises(NotPermitted, match="name the file"):
            await client.download("x", dest)


def test_where_a_token_could_be_read_on_the_way_nobody_is_asked_for_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the server's words are: what counts is that the line is not encrypted and not of this machine alone."""

    def refuse(asked: Asked) -> Iterable[object]:
        yield frame(asked.stream, Error(int(Code.UNAUTHENTICATED), 2, False, "who are you?"))

    with HostileServer(refuse) as server:
        assert main(["ls", f"bp://0.0.0.0:{server.port}/", "--insecure"]) == Status.FAILED
        assert "token" not in capsys.readouterr().err
        assert main(["ls", f"{server.address}/"]) == Status.FAILED
        assert "give a token" in capsys.readouterr().err


def test_where_tls_is_wanted_the_server_says_so() -> None:
    connection_auth = ConnectionAuth(DENY_ALL)
    with pytest.raises(Unauthenticated, match="use bps://"):
        connection_auth.requesting()
    with pytest.raises(Unauthenticated, match="use bps://"):
        connection_auth.judge(Auth(new_token()))


def test_a_token_that_was_not_sent_is_named(server: Server, tmp_path: Path, run: Run) -> None:
    served = tmp_path / "private"
    served.mkdir()
    assert run("token", "add", "somebody", "--state", served / ".blockproto").status == Status.DONE
    private = Server(served)
    try:
        token = {"BLOCKPROTO_TOKEN": new_token(), "BLOCKPROTO_TOKEN_FOR": "bp://127.0.0.1:1"}
        ran = run("ls", private.address, env=token)
        assert ran.status == Status.FAILED
        assert "$BLOCKPROTO_TOKEN was not sent: $BLOCKPROTO_TOKEN_FOR says" in ran.err
        assert ran.err.count("\n") == 1
    finally:
        private.stop()


def test_a_token_is_asked_for_on_a_terminal_only(run: Run) -> None:
    ran = subprocess.run(
        [*COMMAND, "ls", "bp://127.0.0.1:1/", "--token-file", "-"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ran.returncode == Status.USAGE, ran.stderr
    assert "terminal" in ran.stderr
    assert "Warning" not in ran.stderr
    assert run("ls", "bp://127.0.0.1:1/", "--token-file", "/dev/zero").status == Status.USAGE


def test_a_file_is_named_once_and_said_however_it_was_typed(
    server: Server, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(b"1")
    for text in ("x", "./x", ".//x"):
        assert "as 'x'" in run("put", text, server.address + "/").err
    assert explain(Refused("a/b: Permission denied"), "a/b").startswith("a/b: Permission denied")
    assert explain(Refused("a/b changed"), "a/b").startswith("a/b: changed")
    assert explain(Refused("other"), "a/b").startswith("a/b: other")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux has setpriv")
def test_the_advice_fits_a_folder_that_may_not_be_entered(server: Server, tmp_path: Path) -> None:
    """Also of root, who may enter everything unless it is taken away."""
    shut = tmp_path / "shut"
    shut.mkdir()
    (shut / "f").write_bytes(b"1")
    shut.chmod(0o444)
    weak = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search"]
    ran = subprocess.run(
        [*weak, *COMMAND, "put", str(shut), server.address + "/"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    shut.chmod(0o755)
    assert ran.returncode == Status.FAILED
    assert f"{shut}/f: Permission denied; change its rights" in ran.stderr
