"""What the version before left on disk is opened and goes on: uploads, downloads, the queue, the client's configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from old_store import OldStore, content_of, unpack
from processes import Ran, Server

from blockproto.blocks import BLOCK_LENGTH, BlockSet
from blockproto.calling.sourceid import derive_sourceid, installation_secret
from blockproto.cli.output import Status
from blockproto.identity.known import KnownServers
from blockproto.names import SafeName
from blockproto.store import Facts, UploadKey
from blockproto.store.check import check_store
from blockproto.store.local import LocalStore
from blockproto.store.upload import LocalUpload

Run = Callable[..., Ran]
Start = Callable[..., Server]


@pytest.fixture
def old(tmp_path: Path) -> OldStore:
    return unpack(tmp_path / "old")


def token(old: OldStore) -> tuple[object, ...]:
    return ("--token-file", old.state / "owner.token")


def test_the_store_opens_with_everything_it_had(old: OldStore) -> None:
    store = LocalStore.open(old.served)
    try:
        assert store.findings == []
        entries, _ = store.uploads(old.principal, "", 100)
        assert {entry.filename.text: entry.key.sourceid.hex() for entry in entries} == {
            name: upload["sourceid"] for name, upload in old.facts["unfinished"].items()
        }
        for name, facts in old.facts["unfinished"].items():
            wanted = Facts(SafeName.parse(name), "", facts["filesize"])
            key = UploadKey(old.principal, bytes.fromhex(facts["sourceid"]))
            upload = store.open_upload(key, wanted, 1 << 60)
            assert isinstance(upload, LocalUpload)
            assert upload.held == BlockSet((blockno, 1) for blockno in facts["held"])
            upload.close()
        committed = [bytes.fromhex(facts["sourceid"]) for facts in old.facts["under_way"].values()]
        receipts = store.receipts(old.principal, committed)
        assert [receipt.stored_as for receipt in receipts] == list(old.facts["under_way"])
    finally:
        store.close()
    for name, filesize in old.facts["finished"].items():
        assert (old.served / name).read_bytes() == content_of(Path(name).name, filesize)
    for name, facts in old.facts["under_way"].items():
        assert (old.served / name).read_bytes() == content_of(name, facts["filesize"])
    assert check_store(old.served, read=True) == []


def test_check_alone_finds_nothing_wrong_with_it(old: OldStore) -> None:
    assert check_store(old.served, read=True) == []


def test_an_upload_goes_on(old: OldStore, start_server: Start, run: Run) -> None:
    secret = (old.config / "secret").read_bytes()
    source = old.here / "cut.bin"
    server = start_server(old.served, port=0)
    server.stop()
    name = f"127.0.0.1:{server.port}"
    old.rename_upload(
        "cut.bin", derive_sourceid(secret, name, "cut.bin", os.path.realpath(source), source.stat())
    )
    server = start_server(old.served, port=server.port)
    ran = run(
        "put", source, server.address, "--json", *token(old), env={"BLOCKPROTO_CONFIG": str(old.config)}
    )
    assert ran.status == Status.DONE, ran.err
    (receipt,) = ran.objects
    held = len(old.facts["unfinished"]["cut.bin"]["held"]) * BLOCK_LENGTH
    assert (receipt["resumed"], receipt["payload_bytes_sent"]) == (True, source.stat().st_size - held)
    assert (old.served / "cut.bin").read_bytes() == source.read_bytes()


def test_a_download_goes_on(old: OldStore, start_server: Start, run: Run) -> None:
    server = start_server(old.served)
    there = (old.here / "copy.bin.blockproto-part").stat().st_size
    assert there >= BLOCK_LENGTH
    ran = run("get", server.address + "/docs/film.bin", old.here / "copy.bin", "--json", *token(old))
    assert ran.status == Status.DONE, ran.err
    (receipt,) = ran.objects
    assert receipt["resumed"] is True
    assert receipt["payload_bytes_sent"] < (old.served / "docs/film.bin").stat().st_size
    assert (old.here / "copy.bin").read_bytes() == (old.served / "docs/film.bin").read_bytes()
    assert not list(old.here.glob("*blockproto*"))


def test_the_queue_goes_on(old: OldStore, start_server: Start, run: Run) -> None:
    server = start_server(old.served)
    old.point_queue_at(server.address)
    options = ("--until-empty", "--server", server.address, *token(old))
    ran = run("queue", "run", "--queue", old.queue, *options, env={"BLOCKPROTO_CONFIG": str(old.config)})
    assert ran.status == Status.DONE, ran.err
    assert (old.served / "queued.bin").read_bytes() == (old.here / "queued.bin").read_bytes()
    assert (old.here / "fetched.bin").read_bytes() == (old.served / "docs/film.bin").read_bytes()


def test_the_client_is_the_same_installation(old: OldStore, tmp_path: Path) -> None:
    secret = installation_secret(old.config)
    assert secret == (old.config / "secret").read_bytes()
    assert KnownServers(old.config / "known_servers.json").pin(old.facts["server"]) is not None
    for row in old.facts["sourceids"]:
        facts = os.stat_result(
            (0o100644, row["ino"], 0, 1, 0, 0, row["size"], 0, 0, 0, 0.0, 0.0, 0.0, 0, row["mtime_ns"], 0)
        )
        sourceid = derive_sourceid(secret, row["server"], row["name"], row["path"], facts)
        assert sourceid.hex() == row["sourceid"]
