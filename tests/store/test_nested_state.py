"""A folder that was once served itself has a ``.blockproto`` in it: as invisible below the top as at the top."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from old_clients import OldClient
from processes import Ran, Server

from blockproto.cli.output import Status
from blockproto.common.names import SafeName
from blockproto.errors import NameRefused, NotEmpty, UnknownFile
from blockproto.store import BlockDone, Facts, Remove, StoredFile, UploadKey
from blockproto.store.local.records import UploadRecord
from blockproto.store.local.store import LocalStore

Run = Callable[..., Ran]
NAMES = [".blockproto", ".BLOCKPROTO", ".BlockProto", "．ｂlockproto", ".block\u200dproto", ".blockproto."]


def nest(folder: Path, name: str = ".blockproto") -> Path:
    """A place where another server kept its state, two folders down."""
    inside = folder / "old" / "served" / name
    (inside / "partials").mkdir(parents=True)
    (inside / "tokens.json").write_text("secret")
    (inside / "partials" / "0").write_bytes(b"of an upload")
    (inside.parent / "note.txt").write_text("hello")
    return inside


@pytest.mark.clause("BP1-NAM-007")
@pytest.mark.parametrize("name", NAMES)
def test_it_is_in_no_listing_and_cannot_be_removed(tmp_path: Path, name: str) -> None:
    inside = nest(tmp_path, name)
    before = sorted(inside.rglob("*"))
    store = LocalStore.open(tmp_path)
    try:
        found, _ = store.files("", True, "", 100)
        assert [entry.filename.text for entry in found] == ["old", "old/served", "old/served/note.txt"]
        found, _ = store.files("old/served", False, "", 100)
        assert [entry.filename.text for entry in found] == ["old/served/note.txt"]
        [outcome] = store.decide([Remove(SafeName("old"), None, recursive=True)])
        assert isinstance(outcome, NotEmpty)
        assert sorted(inside.rglob("*")) == before
        assert not (inside.parent / "note.txt").exists()
    finally:
        store.close()


def test_every_command_is_told_that_it_is_no_name(server: Server, tmp_path: Path, run: Run) -> None:
    inside = nest(server.folder)
    (tmp_path / "a").write_bytes(b"1")
    assert "blockproto" not in run("ls", "-r", server.address).out
    for name in ("old/served/.blockproto/tokens.json", "old/served/.BLOCKPROTO/tokens.json"):
        at = f"{server.address}/{name}"
        for words in (
            ["stat", at], ["get", at, tmp_path / "stolen"], ["rm", at], ["ls", at],
            ["put", tmp_path / "a", f"{server.address}/", "--as", name],
            ["put", tmp_path / "a", f"{server.address}/old/served/.blockproto/"],
        ):  # fmt: skip
            ran = run(*words)
            assert ran.status == Status.FAILED, words
            assert "rule reserved" in ran.err, ran.err
    assert run("get", f"{server.address}/old", tmp_path / "copy").status == Status.DONE
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*")) == ["note.txt", "served"]
    removed = run("rm", "-r", f"{server.address}/old")
    assert removed.status == Status.FAILED
    assert (inside / "tokens.json").read_text() == "secret"


def test_a_dialect_cannot_put_there_either(start_server: Callable[..., Server]) -> None:
    server = start_server(None, "--dialect", "sourceid")
    nest(server.folder)
    OldClient(server.port, b"old/served/.blockproto/evil", b"12").send()
    assert not list(server.folder.rglob(".blockproto/evil"))


def test_put_leaves_it_out_and_says_so(server: Server, tmp_path: Path, run: Run) -> None:
    nest(tmp_path / "mine")
    ran = run("put", tmp_path / "mine", server.address + "/")
    assert ran.status == Status.DONE
    assert "what a server keeps of a folder it serves, left out" in ran.err
    assert (server.folder / "mine/old/served/note.txt").read_text() == "hello"
    assert not (server.folder / "mine/old/served/.blockproto").exists()


def test_an_upload_that_was_begun_under_such_a_name_is_dropped_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore.open(tmp_path)
    pack = UploadRecord.pack

    def as_it_was(record: UploadRecord) -> bytes:
        return pack(record).replace(b"a/xblockproto/b", b"a/.blockproto/b")

    facts = Facts(SafeName("a/xblockproto/b"), "text/plain", 5)
    with monkeypatch.context() as patch:
        patch.setattr(UploadRecord, "pack", as_it_was)
        upload = store.open_upload(UploadKey(bytes(16), bytes(15) + b"1"), facts, 1)
        assert not isinstance(upload, StoredFile)
        upload.write(0, memoryview(b"hello"))
        store.decide([BlockDone(upload, 1, 0, 5, blake3(b"hello").digest())])
        upload.close()
    store.close()
    assert len(os.listdir(tmp_path / ".blockproto/partials")) == 1
    store = LocalStore.open(tmp_path)
    try:
        assert store.uploads(bytes(16), "", 10)[0] == []
        assert any("rule reserved" in finding for finding in store.findings)
        with pytest.raises(UnknownFile):
            store.open_file(None, b"1" * 16)
        with pytest.raises(NameRefused):
            SafeName("a/.blockproto/b")
    finally:
        store.close()
