"""``blockproto token`` and the authentication of ``blockproto serve``: real processes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from processes import COMMAND, Process, Server, wait_until

from blockproto.cli.output import Status
from blockproto.errors import NotPermitted
from blockproto.identity.certificates import own_certificate, parse_pin, pin_of_file, pin_words
from blockproto.identity.principals import load
from blockproto.identity.realm import EVERYTHING
from blockproto.identity.server_auth import OWNER_TOKEN_NAME, AuthOptions, open_server_auth
from blockproto.identity.tokens import secret_of
from blockproto.store.local.state_lock import holder_of
from blockproto.store.local.store import LocalStore
from blockproto.wire import FEATURE_AUTH, FEATURE_AUTH_REQUIRED, Scopes

Run = Callable[..., Any]


# ---- the authentication


def test_on_loopback_everybody_on_this_machine_may_come_in_until_there_is_a_token(
    tmp_path: Path, run: Run
) -> None:
    server_auth = open_server_auth(tmp_path, "127.0.0.1", AuthOptions())
    assert (server_auth.tls, server_auth.pin, server_auth.owner_token) == (None, None, None)
    assert server_auth.policy.anonymous is not None
    assert server_auth.policy.anonymous.scopes == EVERYTHING
    assert list(tmp_path.iterdir()) == []
    assert run("token", "add", "alice", "--state", tmp_path).status == Status.DONE
    server_auth = open_server_auth(tmp_path, "127.0.0.1", AuthOptions())
    assert server_auth.policy.anonymous is None
    assert server_auth.policy.features == FEATURE_AUTH | FEATURE_AUTH_REQUIRED
    server_auth = open_server_auth(tmp_path, "127.0.0.1", AuthOptions(anonymous=Scopes.READ))
    assert server_auth.policy.anonymous is not None
    assert server_auth.policy.anonymous.scopes == Scopes.READ
    assert server_auth.policy.features == FEATURE_AUTH


def test_for_other_machines_the_first_start_makes_a_certificate_and_a_token(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = open_server_auth(state, "0.0.0.0", AuthOptions())
    assert first.tls is not None
    assert first.pin == pin_of_file(own_certificate(state)[0])
    assert first.owner_token == state / OWNER_TOKEN_NAME
    assert not first.policy.plaintext_for("192.0.2.1")
    assert first.policy.plaintext_for("127.0.0.1")
    assert first.policy.anonymous is None
    token = first.owner_token.read_text().strip()
    assert first.owner_token.stat().st_mode & 0o777 == 0o600
    grant = load(state).find(token)
    assert grant is not None
    assert (grant.realm.folder, grant.realm.scopes) == (None, EVERYTHING)
    again = open_server_auth(state, "0.0.0.0", AuthOptions())
    assert (again.pin, again.owner_token) == (first.pin, None)


def test_insecure_is_for_everybody_as_before(tmp_path: Path) -> None:
    server_auth = open_server_auth(tmp_path, "0.0.0.0", AuthOptions(insecure=True))
    assert server_auth.tls is None
    assert server_auth.policy.plaintext_for("192.0.2.1")
    assert server_auth.policy.anonymous is not None
    assert server_auth.policy.anonymous.scopes == EVERYTHING


def test_what_was_read_anew_counts_and_a_damaged_file_changes_nothing(tmp_path: Path, run: Run) -> None:
    server_auth = open_server_auth(tmp_path, "0.0.0.0", AuthOptions())
    assert run("token", "add", "alice", "--state", tmp_path).status == Status.DONE
    assert set(server_auth.reload().principals) == {"owner", "alice"}
    (tmp_path / "server.crt").write_text("nonsense")
    with pytest.raises(NotPermitted, match="not a certificate"):
        server_auth.reload()


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    certificate, key = own_certificate(tmp_path / "made")
    with pytest.raises(NotPermitted, match="give both"):
        open_server_auth(tmp_path, "0.0.0.0", AuthOptions(certificate=certificate))
    server_auth = open_server_auth(tmp_path, "127.0.0.1", AuthOptions(certificate=certificate, key=key))
    assert server_auth.tls is not None
    assert server_auth.pin is None


def test_serve_tells_how_to_come_in(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    command = [*COMMAND, "serve", str(tmp_path / "served"), "--listen", "0.0.0.0:0"]
    said = []
    for _ in range(2):
        with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening on 0.0.0.0:")
            process.terminate()
            said.append(process.communicate(timeout=20)[1])
    first, second = said
    lines = first.splitlines()
    assert parse_pin(lines[0].split()[-1]) == parse_pin(lines[1].partition("in words: ")[2])
    assert f"put FILE bps://HOST:PORT/ --token-file {OWNER_TOKEN_NAME} --pin {lines[0].split()[-1]}" in first
    token = (tmp_path / "served" / ".blockproto" / OWNER_TOKEN_NAME).read_text().strip()
    secret_of(token)
    assert token not in first
    assert second.splitlines() == lines[:2]


# ---- the command


def test_tokens_are_not_made_for_a_server_that_is_not_here(tmp_path: Path) -> None:
    """In another folder than the one that is served a token would be printed that no server knows."""
    for words in (["add", "kim"], ["list"], ["revoke", "kim"]):
        ran = subprocess.run(
            [*COMMAND, "token", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == Status.USAGE
        assert "--state DIR/.blockproto" in ran.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".blockproto").mkdir()
    listed = subprocess.run(
        [*COMMAND, "token", "list"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (listed.returncode, listed.stdout) == (Status.DONE, "")
    assert "there are no tokens" in listed.stderr


def test_the_served_folder_is_not_taken_for_the_state(server: Server, tmp_path: Path, run: Run) -> None:
    """A list of tokens in the served folder would be among its files, and no server would read it."""
    folder, state = server.folder, server.folder / ".blockproto"
    other = tmp_path / "other"
    other.mkdir()
    for words in (
        ["token", "add", "ann"],
        ["token", "list"],
        ["token", "revoke", "ann"],
        ["check", other],
        ["serve", other, "--listen", "127.0.0.1:0"],
    ):
        ran = run(*words, "--state", folder)
        assert ran.status == Status.USAGE, ran
        assert f"'{folder}' is a folder that is served, not a state: its state is '{state}'" in " ".join(
            ran.err.split()
        )
    assert [path.name for path in folder.iterdir()] == [".blockproto"]
    assert run("token", "add", "ann", "--state", state).status == Status.DONE


def test_a_state_elsewhere_is_not_looked_for_in_the_served_folder(tmp_path: Path, run: Run) -> None:
    """With --state on another mount `.blockproto` holds partials only; with it on the same one there is none."""
    partials = tmp_path / "served" / ".blockproto" / "partials"
    partials.mkdir(parents=True)
    ran = run("token", "add", "ann", "--state", tmp_path / "served")
    assert ran.status == Status.USAGE
    assert "is the one that `blockproto serve --state` names" in " ".join(ran.err.split())
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").touch()
    for words in (["add", "ann"], ["list"], ["revoke", "ann"]):
        ran = run("token", *words, "--state", tmp_path / "files")
        assert ran.status == Status.USAGE
        assert "holds other files and no state" in " ".join(ran.err.split())
    for words in (["list"], ["revoke", "ann"]):
        assert run("token", *words, "--state", tmp_path / "missing").status == Status.USAGE
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["a"]
    assert not (tmp_path / "missing").exists()


def test_the_process_that_takes_a_change_is_named(server: Server, run: Run) -> None:
    """Another command whose words look like a server's must get no signal."""
    state = server.folder / ".blockproto"
    added = run("token", "add", "ann", "--folder", ".", "--state", state)
    assert f"kill -HUP {server.process.pid}\n" in added.err
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: run("ls", server.address).status == Status.FAILED)
    revoked = run("token", "revoke", "ann", "--state", state)
    assert f"kill -HUP {server.process.pid}\n" in revoked.err
    server.stop()
    assert "another at its start" in run("token", "add", "bob", "--state", state).err


@pytest.mark.parametrize(
    ("name", "words"),
    [("my inbox/.blockproto", "serve '{}/my inbox'"), ("state", "serve DIR --state {}/state")],
)
def test_a_state_that_no_server_has_had_is_said_to_be_new(
    name: str, words: str, tmp_path: Path, run: Run
) -> None:
    """It was perhaps mistyped."""
    ran = run("token", "add", "ann", "--state", tmp_path / name)
    assert ran.status == Status.DONE
    assert ran.err.rstrip().endswith(
        f"no server has had this state yet; this one will take it: blockproto {words.format(tmp_path)}"
    )


def test_who_does_not_take_the_signal_is_not_named(tmp_path: Path, run: Run) -> None:
    """`check`, and programs that embed the store: SIGHUP would end them."""
    (tmp_path / "served").mkdir()
    state = tmp_path / "served" / ".blockproto"
    store = LocalStore.open(tmp_path / "served")
    try:
        assert holder_of(state) == os.getpid()
        assert "kill -HUP and its process id" in run("token", "add", "ann", "--state", state).err
    finally:
        store.close()
    assert holder_of(state) is None  # though the number is there, and a process of that number
    (state / "lock").write_text("no number")
    assert holder_of(state) is None


def test_a_token_is_added_listed_and_revoked(tmp_path: Path, run: Run) -> None:
    added = run(
        "token", "add", "Zoë 中文", "--quota", "10GB", "--expires", "30d", "--read", "--state", tmp_path
    )
    assert added.status == Status.DONE
    token = added.out.strip()
    grant = load(tmp_path).find(token)
    assert grant is not None
    assert (grant.realm.quota, grant.realm.scopes) == (10**10, Scopes.READ)
    assert grant.realm.folder is not None
    assert grant.realm.folder.text == "Zoë 中文"
    assert run("token", "add", "Zoë 中文", "--folder", ".", "--state", tmp_path).status == Status.DONE
    listed = run("token", "list", "--json", "--state", tmp_path)
    rows = [json.loads(line) for line in listed.out.splitlines()]
    assert [(row["name"], row["scopes"], row["folder"]) for row in rows] == [
        ("Zoë 中文", ["read"], "."),
        ("Zoë 中文", ["read", "write"], "."),
    ]
    assert rows[0]["expires_ms"] - rows[0]["created_ms"] == 30 * 86_400_000
    assert token not in listed.out
    people = run("token", "list", "--state", tmp_path)
    assert "quota 10 GB" in people.out
    revoked = run("token", "revoke", rows[0]["id"], "--state", tmp_path)
    assert revoked.status == Status.DONE
    assert load(tmp_path).find(token) is None
    assert run("token", "revoke", "Zoë 中文", "--state", tmp_path).status == Status.DONE
    assert run("token", "list", "--state", tmp_path).out == ""
    unknown = run("token", "revoke", "Zoë 中文", "--state", tmp_path)
    assert unknown.status == Status.FAILED
    assert "no token of that name or id" in unknown.err


@pytest.mark.parametrize("folder", ["", "/", "./", "..", "a//b", "/a", ".blockproto", "\x1b[31m"])
def test_a_folder_that_is_no_part_of_the_served_one_is_refused(tmp_path: Path, run: Run, folder: str) -> None:
    """'' is an unset variable of a shell: it must not mean all there is."""
    ran = run("token", "add", "eve", "--folder", folder, "--state", tmp_path)
    assert ran.status == Status.USAGE
    assert "--folder" in ran.err
    assert "\x1b" not in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../out", "", "a/../b", ".blockproto", "\x1b[31m"])
def test_a_name_that_can_be_no_folder_is_refused(tmp_path: Path, run: Run, name: str) -> None:
    ran = run("token", "add", name, "--state", tmp_path)
    assert ran.status == Status.FAILED
    assert "--folder" in ran.err
    assert "\x1b" not in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_list_is_said_so(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "tokens.json"
    path.touch(mode=0o600)
    path.write_text("nonsense")
    for arguments in (["list"], ["add", "bob"], ["revoke", "bob"]):
        ran = run("token", *arguments, "--state", tmp_path)
        assert ran.status == Status.FAILED
        assert "not a list of tokens" in ran.err
    assert path.read_text() == "nonsense"


# ---- a client that comes in


class Open(NamedTuple):
    """A server for other machines: its folder, its bps:// address on this one, the file with its first token."""

    folder: Path
    address: str
    owner: Path
    process: subprocess.Popen[str]


@pytest.fixture
def open_to_all(tmp_path: Path) -> Iterator[Open]:
    folder = tmp_path / "served"
    folder.mkdir()
    command = [*COMMAND, "serve", str(folder), "--listen", "0.0.0.0:0"]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip().rpartition(":")[2]
        yield Open(folder, f"bps://127.0.0.1:{port}/", folder / ".blockproto" / OWNER_TOKEN_NAME, process)
        process.terminate()
        assert process.wait(20) == 0


def test_what_the_first_start_says_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "my 文件"
    folder.mkdir()
    command = [*COMMAND, "serve", str(folder), "--listen", "0.0.0.0:0"]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.terminate()
        said = process.stderr.read()
        assert process.wait(20) == 0
    (line,) = [line for line in said.splitlines() if "more tokens: " in line]
    typed = shlex.split(line.partition("more tokens: ")[2])
    assert typed == ["blockproto", "token", "add", "NAME", "--state", str(folder / ".blockproto")]


@pytest.mark.clause("BP1-AUT-004", "BP1-TLS-003")
def test_there_and_back_with_a_token_over_tls(
    open_to_all: Open, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address, owner, _ = open_to_all
    pin = pin_of_file(folder / ".blockproto" / "server.crt").hex()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "a 中文.bin").write_bytes(os.urandom(3_000_000))
    unknown = run("put", tmp_path / "a 中文.bin", address, "--token-file", owner)
    assert unknown.status == Status.FAILED
    assert pin in unknown.err
    nobody = run("put", tmp_path / "a 中文.bin", address, "--pin", pin)
    assert nobody.status == Status.FAILED
    assert "token" in nobody.err
    other = run("put", tmp_path / "a 中文.bin", address, "--pin", "00" * 32, "--token-file", owner)
    assert other.status == Status.FAILED
    assert "somebody stands between" in other.err
    assert "give that one (--pin)" in other.err
    assert [path.name for path in folder.iterdir()] == [".blockproto"]

    put = run("put", tmp_path / "a 中文.bin", address, "--pin", pin, "--token-file", owner)
    assert put.status == Status.DONE, put.err
    monkeypatch.setenv("BLOCKPROTO_TOKEN", owner.read_text())
    words = pin_words(bytes.fromhex(pin))
    (tmp_path / "back").mkdir()
    assert run("get", f"{address}a 中文.bin", f"{tmp_path}/back/", "--pin", words).status == Status.DONE
    assert (tmp_path / "back" / "a 中文.bin").read_bytes() == (tmp_path / "a 中文.bin").read_bytes()
    for arguments in (["ls", address], ["uploads", address], ["rm", f"{address}a 中文.bin"]):
        assert run(*arguments, "--pin", pin).status == Status.DONE
    token = owner.read_text().strip()
    for ran in (unknown, nobody, other, put):
        assert token not in ran.err + ran.out


def test_what_is_wrong_with_the_server_is_not_said_of_the_token(
    open_to_all: Open, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    pin = pin_of_file(open_to_all.folder / ".blockproto" / "server.crt").hex()
    for words, why in (
        (["--pin", "00" * 32], "is not the server it was"),
        ([], "nobody has said yes to its certificate"),
    ):
        ran = run("ls", open_to_all.address, *words)
        assert ran.status == Status.FAILED
        assert why in ran.err
        assert pin in ran.err
        assert "token" not in ran.err


def test_a_damaged_token_is_said_before_anything_is_sent(tmp_path: Path, run: Run) -> None:
    (tmp_path / "token").write_text("bp1_" + "a" * 58 + "\n")
    ran = run("ls", "bp://127.0.0.1:1/", "--token-file", tmp_path / "token")
    assert ran.status == Status.USAGE
    assert "is damaged: a character of it is wrong" in ran.err
    missing = run("ls", "bp://127.0.0.1:1/", "--token-file", tmp_path / "nothing")
    assert missing.status == Status.USAGE
    assert "No such file" in missing.err


def test_the_system_trusts_no_certificate_of_our_own(open_to_all: Open, run: Run) -> None:
    _, address, owner, _ = open_to_all
    ran = run("ls", address, "--ca", "system", "--token-file", owner)
    assert ran.status != Status.DONE


def test_a_hangup_makes_changes_count(open_to_all: Open, tmp_path: Path, run: Run) -> None:
    folder, address, owner, process = open_to_all
    pin = pin_of_file(folder / ".blockproto" / "server.crt").hex()
    bob = tmp_path / "bob.token"
    bob.write_text(run("token", "add", "bob", "--state", folder / ".blockproto").out)

    def ends(token: Path, status: Status) -> bool:
        return run("ls", address, "--pin", pin, "--token-file", token).status == status

    assert ends(bob, Status.FAILED)
    process.send_signal(signal.SIGHUP)
    assert any(ends(bob, Status.DONE) for _ in range(20))
    assert run("token", "revoke", "owner", "--state", folder / ".blockproto").status == Status.DONE
    assert ends(owner, Status.DONE)
    process.send_signal(signal.SIGHUP)
    assert any(ends(owner, Status.FAILED) for _ in range(20))
    assert ends(bob, Status.DONE)


def test_a_dialect_beside_tokens_is_warned_of(tmp_path: Path, run: Run) -> None:
    assert run("token", "add", "alice", "--state", tmp_path / ".blockproto").status == Status.DONE
    command = [*COMMAND, "serve", str(tmp_path), "--listen", "127.0.0.1:0", "--dialect", "sourceid"]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on ")
        process.terminate()
        assert "--dialect sourceid are not let in" in process.communicate(timeout=20)[1]
