"""Tokens as text, and the register of a server's state folder."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockproto.errors import NameRefused, NotPermitted
from blockproto.identity import principals as registers
from blockproto.identity.principals import Register
from blockproto.identity.realm import EVERYTHING
from blockproto.identity.tokens import TOKEN_LENGTH, hash_of, new_token, secret_of
from blockproto.wire import Scopes

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"


def with_token(register: Register, name: str = "alice", **changed: object) -> tuple[Register, str]:
    values: dict[str, object] = {
        "folder": name, "quota": None, "scopes": EVERYTHING, "now_ms": 1000, "expires_ms": None,
    }  # fmt: skip
    return register.with_token(name, **(values | changed))  # type: ignore[arg-type]


# ---- tokens


@pytest.mark.clause("BP1-AUT-012")
def test_the_token_of_the_vectors() -> None:
    document = json.loads((VECTORS / "identity.json").read_text(encoding="utf-8"))
    [row] = [row for row in document["vectors"] if row["name"] == "auth/token"]
    assert secret_of(row["values"]["credential"]) == bytes(range(32))


def test_tokens_are_random_and_of_one_form() -> None:
    tokens = {new_token() for _ in range(50)}
    assert len(tokens) == 50
    for token in tokens:
        assert len(token) == TOKEN_LENGTH == 62
        assert token.startswith("bp1_")
        assert len(secret_of(token)) == 32


@given(st.integers(0, TOKEN_LENGTH - 1), st.characters(codec="utf-8"))
def test_a_wrong_character_is_seen_before_anything_is_sent(at: int, wrong: str) -> None:
    token = new_token()
    damaged = token[:at] + wrong + token[at + 1 :]
    if damaged == token:
        return
    if at == TOKEN_LENGTH - 1 and wrong in "abcdefghijklmnopqrstuvwxyz234567":
        return  # two of its five bits are padding, which base32 does not look at
    with pytest.raises(ValueError, match=r"it |a character") as caught:
        secret_of(damaged)
    assert damaged[10:20] not in str(caught.value)


@pytest.mark.parametrize("length", range(TOKEN_LENGTH))
def test_a_truncated_token_is_seen(length: int) -> None:
    with pytest.raises(ValueError, match="it "):
        secret_of(new_token()[:length])


# ---- the register


@pytest.mark.clause("BP1-AUT-006")
def test_a_token_finds_its_realm_and_nothing_else_does() -> None:
    register, alice = with_token(Register({}), folder="alice", quota=7, scopes=Scopes.READ, expires_ms=99)
    register, bob = with_token(register, "bob", folder=None)
    grant = register.find(alice)
    assert grant is not None
    assert (grant.realm.name, grant.realm.quota, grant.realm.scopes) == ("alice", 7, Scopes.READ)
    assert grant.realm.folder is not None
    assert grant.realm.folder.text == "alice"
    assert grant.expires_ms == 99
    other = register.find(bob)
    assert other is not None
    assert other.realm.folder is None
    assert other.realm.principal != grant.realm.principal
    for unknown in (new_token(), alice[:-1], "", "bp1_", "a" * 10_000, "bp1_" + "a" * 58):
        assert register.find(unknown) is None


def test_tokens_of_one_name_are_one_principal_also_after_all_were_revoked() -> None:
    register, first = with_token(Register({}))
    register, second = with_token(register)
    one, two = register.find(first), register.find(second)
    assert one is not None
    assert two is not None
    assert one.realm == two.realm
    register, gone = register.without("alice")
    assert len(gone) == 2
    assert register.find(first) is register.find(second) is None
    register, third = with_token(register)
    again = register.find(third)
    assert again is not None
    assert again.realm.principal == one.realm.principal


def test_one_token_is_revoked_by_its_id() -> None:
    register, first = with_token(Register({}))
    register, second = with_token(register)
    left, gone = register.without(register.tokens[0].id)
    assert gone == register.tokens[:1]
    assert left.find(first) is None
    assert left.find(second) is not None
    assert not left.holds(gone[0].id)
    assert register.without("nobody") == (register, ())


def test_a_folder_is_held_against_the_rules_of_names() -> None:
    with pytest.raises(NameRefused):
        with_token(Register({}), folder="../out")


@pytest.mark.clause("BP1-AUT-011")
def test_the_file_holds_no_token_and_is_private(tmp_path: Path) -> None:
    token = ""

    def add(register: Register) -> Register:
        nonlocal token
        register, token = with_token(register)
        return register

    changed = registers.change(tmp_path / "state", add)
    path = tmp_path / "state" / registers.FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text(encoding="utf-8")
    assert token not in text
    assert secret_of(token).hex() not in text
    assert hash_of(secret_of(token)).hex() in text
    assert registers.load(tmp_path / "state") == changed
    assert registers.load(tmp_path / "elsewhere") == Register({})
    assert sorted(os.listdir(tmp_path / "state")) == [registers.FILE_NAME, f"{registers.FILE_NAME}.lock"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "not a list of tokens"),
        ("[]", "not a list of tokens"),
        ('{"version": 2}', "of version 2"),
        ('{"version": 1, "principals": {"a": {}}, "tokens": []}', "not a list of tokens"),
        (('{"version": 1, "principals": {}, "tokens": [{"id": "", "hash": "", "name": "a", "scopes": [], '
         '"created_ms": 0, "expires_ms": null}]}'), "not a list of tokens"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_ours_is_said_so(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / registers.FILE_NAME
    path.touch(mode=0o600)
    path.write_text(content)
    with pytest.raises(NotPermitted, match=why):
        registers.load(tmp_path)
    with pytest.raises(NotPermitted, match=why):
        registers.change(tmp_path, lambda register: register)
    assert path.read_text() == content


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    registers.change(tmp_path, lambda register: register)
    (tmp_path / registers.FILE_NAME).chmod(0o640)
    with pytest.raises(NotPermitted, match="chmod 600"):
        registers.load(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = registers.change(tmp_path, lambda register: with_token(register)[0])

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NotPermitted, match="No space left"):
        registers.change(tmp_path, lambda register: with_token(register)[0])
    assert registers.load(tmp_path) == before
    assert not list(tmp_path.glob("*.new"))
