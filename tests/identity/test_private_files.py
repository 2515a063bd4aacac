"""Private files belong to the owner of their folder, also where root writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockproto.identity import principals
from blockproto.identity.certificates import own_certificate
from blockproto.identity.known_servers import KnownServers
from blockproto.identity.private_files import write_private
from blockproto.identity.realm import EVERYTHING

NOBODY = 65_534


def make_everything(state: Path) -> None:
    """All private files that there are."""
    principals.change(
        state,
        lambda register: register.with_token(
            "ann", folder=None, quota=None, scopes=EVERYTHING, now_ms=0, expires_ms=None
        )[0],
    )
    own_certificate(state)
    KnownServers(state / "known.json").remember("bps://h:1", bytes(32))


def test_what_root_writes_belongs_to_who_owns_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda _fd, uid, gid: given.append((uid, gid)))
    make_everything(tmp_path)
    owner = tmp_path.stat()
    assert set(given) == {(owner.st_uid, owner.st_gid)}
    assert len(given) == len(list(tmp_path.iterdir()))
    given.clear()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    make_everything(tmp_path / "others")
    assert not given


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_server_that_runs_as_another_user_reads_what_root_wrote(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    for _ in range(2):
        make_everything(tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 6
    assert {(one.stat().st_uid, one.stat().st_mode & 0o777) for one in files} == {(NOBODY, 0o600)}


def test_what_cannot_be_given_away_is_not_left_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(PermissionError):
        write_private(tmp_path / "a", b"secret")
    assert list(tmp_path.iterdir()) == []
