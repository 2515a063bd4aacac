"""The first token closes a running server for everybody who has none; only its operator opens it again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from old_clients import OldClient, rest_of
from peers import MIB, RawPeer, Sample, Served, bytes_of, run, serving
from processes import COMMAND, Process, Ran, Server, wait_for_line, wait_until

from blockproto.cli.output import Status
from blockproto.dialects.registry import dialects_of
from blockproto.errors import Code, Scope
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.principals import Register
from blockproto.identity.realm import ANONYMOUS, EVERYTHING, Realm
from blockproto.identity.server_auth import AuthOptions, open_server_auth
from blockproto.wire import FEATURE_AUTH, FEATURE_AUTH_REQUIRED, Auth, List, ListKind, Opened, Result, Scopes

quick = pytest.mark.trio(run=run)
Run = Callable[..., Ran]


def one_token() -> tuple[Register, str]:
    return Register({}).with_token(
        "alice", folder=None, quota=None, scopes=EVERYTHING, now_ms=0, expires_ms=None
    )


def open_door(anonymous: Realm | None = ANONYMOUS, *, until_token: bool = True) -> AuthPolicy:
    return AuthPolicy(Register({}), anonymous, until_token=until_token)


async def asks(served: Served) -> RawPeer:
    """A peer that has asked something without saying who it is."""
    peer = await served.peer()
    await peer.say(1, List(ListKind.FILES))
    await peer.expect(Result, 1)
    return peer


# ---- the rule


@quick
@pytest.mark.clause("BP1-AUT-014")
async def test_who_came_without_a_token_has_to_leave_when_there_is_the_first() -> None:
    sample = Sample(bytes_of(3 * MIB))
    async with serving(policy=open_door()) as served:
        idle = await asks(served)
        sending = await served.peer()
        await sending.say(1, sample.open())
        await sending.expect(Opened, 1)
        register, token = one_token()
        served.server.use_register(register)
        for peer in (idle, sending):
            await peer.expect_error(Code.UNAUTHENTICATED, Scope.CONNECTION, 0)
        newcomer = RawPeer(served.connect())
        hello = await newcomer.greet()
        assert hello.features & 3 == FEATURE_AUTH | FEATURE_AUTH_REQUIRED
        await newcomer.say(1, sample.open())
        await newcomer.expect_error(Code.UNAUTHENTICATED, Scope.STREAM, 1)
        await newcomer.say(3, Auth(token))
        await newcomer.expect(Result, 3)


@quick
async def test_who_has_a_token_stays_and_so_does_everybody_where_the_operator_says_so() -> None:
    register, token = one_token()
    async with serving(policy=open_door()) as served:
        await asks(served)
        known = await served.peer()
        served.server.policy.register = register
        await known.say(1, Auth(token))
        await known.expect(Result, 1)
        served.server.use_register(register)
        await known.say(3, List(ListKind.FILES))
        await known.expect(Result, 3)
    async with serving(policy=open_door(until_token=False)) as served:
        stays = await asks(served)
        served.server.use_register(register)
        await stays.say(3, List(ListKind.FILES))
        await stays.expect(Result, 3)


@quick
async def test_without_its_last_token_it_stays_closed() -> None:
    register, _ = one_token()
    empty, gone = register.without("alice")
    assert gone
    async with serving(policy=open_door()) as served:
        served.server.use_register(register)
        served.server.use_register(empty)
        served.server.use_register(Register({}))
        peer = await served.peer()
        await peer.say(1, List(ListKind.FILES))
        await peer.expect_error(Code.UNAUTHENTICATED, Scope.STREAM, 1)


@quick
async def test_a_stranger_who_is_about_to_say_a_token_is_not_sent_away() -> None:
    """Where nobody may come in without one, whoever has not said it yet has lost nothing."""
    register, token = one_token()
    async with serving(policy=open_door(None)) as served:
        peer = await served.peer()
        served.server.use_register(register)
        await peer.say(1, Auth(token))
        await peer.expect(Result, 1)


@quick
@pytest.mark.clause("BP1-DIA-020")
async def test_a_dialect_has_the_rights_of_who_has_no_token() -> None:
    spoken = dialects_of(["sourceid", "struct82"])
    line = b"Content-Length=3;filename=a.txt;sourceid=\r\n"
    for anonymous, code in ((None, b"error=40;"), (Realm(scopes=Scopes.READ), b"error=41;")):
        async with serving(policy=open_door(anonymous), dialects=spoken) as served:
            stream = served.connect()
            await stream.send_all(line + b"abc")
            assert (await stream.receive_some()).startswith(code)
            await stream.aclose()
            assert not served.store.uploads(bytes(16), "", 10)[0]
    async with serving(policy=open_door(), dialects=spoken) as served:
        here = served.connect()
        await here.send_all(line)
        assert (await here.receive_some()).startswith(b"sourceid=")
        served.server.use_register(one_token()[0])
        assert await here.receive_some() == b""


# ---- the default, at the start


def test_a_start_without_the_last_token_lets_nobody_in_and_makes_no_new_one(tmp_path: Path, run: Run) -> None:
    assert run("token", "add", "alice", "--state", tmp_path).status == Status.DONE
    assert run("token", "revoke", "alice", "--state", tmp_path).status == Status.DONE
    for host in ("127.0.0.1", "0.0.0.0"):
        for auth_options in (AuthOptions(), AuthOptions(insecure=True)):
            server_auth = open_server_auth(tmp_path, host, auth_options)
            assert server_auth.policy.anonymous is None
            assert server_auth.owner_token is None
    server_auth = open_server_auth(tmp_path, "127.0.0.1", AuthOptions(anonymous=EVERYTHING))
    assert server_auth.policy.anonymous is not None
    server_auth.policy.use_register(server_auth.reload())
    assert server_auth.policy.anonymous is not None


# ---- real processes


def hup(server: Server) -> None:
    server.process.send_signal(signal.SIGHUP)


def test_a_running_server_closes_after_hup(
    start_server: Callable[..., Server], tmp_path: Path, run: Run
) -> None:
    server = start_server(None, "--dialect", "sourceid")
    state = server.folder / ".blockproto"
    (tmp_path / "a").write_bytes(b"1")
    assert run("put", tmp_path / "a", server.address + "/").status == Status.DONE
    old = OldClient(server.port, b"old.bin", os.urandom(2 * MIB))
    kept_open = old.ask()
    token = run("token", "add", "alice", "--folder", ".", "--state", state).out.strip()
    assert run("ls", server.address).status == Status.DONE
    hup(server)
    wait_until(lambda: run("ls", server.address).status == Status.FAILED)
    assert rest_of(kept_open) == b""
    kept_open.close()
    with socket.create_connection(("127.0.0.1", server.port), 30) as late:
        late.sendall(b"Content-Length=1;filename=late;sourceid=\r\nx")
        assert b"error=40;name=UNAUTHENTICATED" in rest_of(late)
    env = {"BLOCKPROTO_TOKEN": token}
    assert run("ls", server.address, env=env).out.count("\n") == 1
    run("token", "revoke", "alice", "--state", state)
    hup(server)
    wait_until(lambda: run("ls", server.address, env=env).status == Status.FAILED)
    refused = run("ls", server.address)
    assert refused.status == Status.FAILED
    assert "Traceback" not in refused.err
    server.stop()
    server = start_server(server.folder)
    assert run("ls", server.address).status == Status.FAILED
    server.stop()
    server = start_server(server.folder, "--anonymous", "read")
    assert run("ls", server.address).status == Status.DONE
    assert run("put", tmp_path / "a", server.address + "/x/").status == Status.FAILED


def test_the_start_says_that_nobody_can_come_in(tmp_path: Path, run: Run) -> None:
    served = tmp_path / "served"
    served.mkdir()
    state = served / ".blockproto"
    run("token", "add", "alice", "--state", state)
    run("token", "revoke", "alice", "--state", state)
    command = [*COMMAND, "serve", str(served), "--listen", "127.0.0.1:0", "--dialect", "struct82"]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert wait_for_line(process, 30).startswith("listening on")
        process.terminate()
        err = process.communicate(timeout=30)[1]
    assert "nobody can come in" in err
    assert "--dialect struct82 are not let in" in err


@quick
async def test_a_refused_upload_of_a_dialect_is_in_the_log_at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "blockproto")
    async with serving(dialects=dialects_of(["sourceid"])) as served:
        stream = served.connect()
        await stream.send_all(b"Content-Length=3;filename=.blockproto;sourceid=\r\nabc")
        assert (await stream.receive_some()).startswith(b"error=")
        await stream.aclose()
    assert any(
        record.levelname == "INFO" and "rule reserved" in record.getMessage() for record in caplog.records
    )
