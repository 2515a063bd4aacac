"""A ledger whose file was cut short is refused with a sentence, before anything of it is mapped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from old_store import unpack
from processes import Ran, Server

from blockproto.errors import StoreFailed
from blockproto.store.local import ledger_soundness
from blockproto.store.local.store import LocalStore

Run = Callable[..., Ran]


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A folder with unfinished uploads, of this version."""
    old = unpack(tmp_path / "old")
    LocalStore.open(old.served).close()
    return old.served


def ledger_of(served: Path) -> Path:
    return served / ".blockproto" / "ledger" / "data.mdb"


def test_a_whole_one_opens(served: Path) -> None:
    LocalStore.open(served).close()


def test_wherever_it_was_cut_it_opens_as_it_was_or_is_refused(served: Path, tmp_path: Path) -> None:
    ledger = ledger_of(served)
    whole = ledger.read_bytes()
    uploads = _uploads(served)
    refused = 0
    for length in range(4096, len(whole), 4096):
        ledger.write_bytes(whole[:length])
        try:
            ledger_soundness.require_whole(ledger.parent, served / ".blockproto" / "partials")
        except StoreFailed:
            refused += 1
        else:
            assert _uploads(served) == uploads
            ledger.write_bytes(whole)
    assert refused > 2


def _uploads(served: Path) -> int:
    store = LocalStore.open(served)
    try:
        return len(store.uploads(bytes(16), "", 1000)[0])
    finally:
        store.close()


@pytest.mark.parametrize("length", [0, 100, 4096, 8192, 16_384])
def test_serve_and_check_say_so(served: Path, run: Run, length: int) -> None:
    ledger = ledger_of(served)
    os.truncate(ledger, length)
    for words in (("serve", served, "--listen", "127.0.0.1:0"), ("check", served)):
        ran = run(*words)
        assert ran.status == 1, ran
        said = ran.err + ran.out
        assert "ledger" in said
        assert "Traceback" not in said
    assert ledger.stat().st_size == length


def test_a_ledger_that_was_just_begun_is_no_damage(tmp_path: Path) -> None:
    """A kill between LMDB's creating its file and writing to it leaves an empty one."""
    ledger = ledger_of(tmp_path)
    ledger.parent.mkdir(parents=True)
    ledger.touch()
    LocalStore.open(tmp_path).close()


def test_a_served_folder_again(server: Server, run: Run, tmp_path: Path) -> None:
    """The file of a running server's ledger can be shorter than its pages: that is no damage."""
    (tmp_path / "a").write_bytes(b"a")
    assert run("put", tmp_path / "a", server.address + "/").status == 0
    server.kill()
    assert run("check", server.folder).status == 0
    assert Server(server.folder).stop() == 0
