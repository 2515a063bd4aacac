"""What the version before left on disk is opened and goes on: uploads, downloads, the queue, the client's configuration."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from old_store import OldStore, content_of, unpack
from processes import Ran, Server

from blockproto.cli.output import Status
from blockproto.client_side.resume_id import derive_earlier_sourceid, installation_secret
from blockproto.common.blocks import BLOCK_LENGTH, BlockSet
from blockproto.common.names import SafeName
from blockproto.identity.known_servers import KnownServers
from blockproto.store import Facts, UploadKey
from blockproto.store.local.check import check_store, inspect_store
from blockproto.store.local.store import LocalStore
from blockproto.store.local.upload import LocalUpload

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


def test_check_alone_finds_nothing_wrong_with_it_and_changes_nothing(old: OldStore) -> None:
    with old.ledger() as txn:
        before = list(txn.cursor())
    report = inspect_store(old.served, read=True)
    assert (report.findings, report.foreign, report.losses) == ([], [], [])
    with old.ledger() as txn:
        assert list(txn.cursor()) == before
    assert len(list((old.state / "partials").iterdir())) == 4


def test_its_partials_get_a_folder_of_their_own(old: OldStore) -> None:
    pending = old.state / "partials" / ("ab" * 16)
    pending.write_bytes(b"perhaps another state's")
    LocalStore.open(old.served).close()
    own = next(path for path in (old.state / "partials").iterdir() if path.is_dir())
    assert len(list(own.iterdir())) == 3  # the fourth has its name now
    assert pending.exists()
    assert [one.name for one in inspect_store(old.served).foreign] == [pending.name.encode()]
    LocalStore.open(old.served).close()
    assert pending.exists()


@pytest.mark.parametrize(
    "call", ["os.mkdir", "blockproto.store.local.opening.begin", "blockproto.store.local.opening.move_new"]
)
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_while_it_is_upgraded_costs_nothing(
    old: OldStore, monkeypatch: pytest.MonkeyPatch, call: str, after: bool
) -> None:
    """Killed before and after each step, as often as there are such steps: the next start goes on."""
    module, _, name = call.rpartition(".")
    real = getattr(importlib.import_module(module), name)
    left = [0]

    def stop(*args: object, **options: object) -> object:
        left[0] -= 1
        if left[0] >= 0:
            return real(*args, **options)
        if after:
            with suppress(FileExistsError):
                real(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(call, stop)
        for at in range(20):
            left[0] = at
            try:
                LocalStore.open(old.served).close()
                break
            except KeyboardInterrupt:
                left[0] = 1000
                assert inspect_store(old.served).findings == []
    assert 0 < at < 19
    test_the_store_opens_with_everything_it_had(old)


def test_an_upload_whose_name_is_not_taken_any_more_is_a_loss(old: OldStore) -> None:
    """The version before knew ``.blockproto`` at the top only."""
    with old.ledger() as txn:
        key = b"u" + old.principal + bytes.fromhex(old.facts["unfinished"]["later/half.bin"]["sourceid"])
        txn.put(key, txn.get(key).replace(b"later/half.bin", b"aa/.blockproto"))
    assert len(inspect_store(old.served).findings) == 1
    store = LocalStore.open(old.served)
    assert [("'aa/.blockproto'" in finding) for finding in store.findings] == [True]
    entries, _ = store.uploads(old.principal, "", 100)
    assert len(entries) == len(old.facts["unfinished"]) - 1
    store.close()
    report = inspect_store(old.served, read=True)
    assert (report.findings, [loss.text for loss in report.losses]) == ([], store.findings)


def test_an_upload_goes_on(old: OldStore, start_server: Start, run: Run) -> None:
    """Under the sourceid that the version before derived: with the server's address."""
    secret = (old.config / "secret").read_bytes()
    source = old.here / "cut.bin"
    server = start_server(old.served, port=0)
    server.stop()
    where = f"127.0.0.1:{server.port}", "cut.bin", os.path.realpath(source)
    old.rename_upload("cut.bin", derive_earlier_sourceid(secret, *where, source.stat()))
    server = start_server(old.served, port=server.port)
    ran = run(
        "put", source, server.address, "--json", *token(old), env={"BLOCKPROTO_CONFIG": str(old.config)}
    )
    assert ran.status == Status.DONE, ran.err
    (receipt,) = ran.objects
    held = len(old.facts["unfinished"]["cut.bin"]["held"]) * BLOCK_LENGTH
    assert (receipt["resumed"], receipt["payload_bytes_sent"]) == (True, source.stat().st_size - held)
    assert (old.served / "cut.bin").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("same", [True, False], ids=["its receipt", "another installation"])
@pytest.mark.parametrize("name", ["film.bin", "small.txt", "empty"])
def test_a_file_it_has_is_not_sent_or_stored_again(
    name: str, same: bool, old: OldStore, start_server: Start, run: Run
) -> None:
    """Neither by the client that brought it, whose receipt it has, nor by one that nobody knows."""
    source = old.here / name
    server = start_server(old.served, port=0)
    server.stop()
    if same:
        secret = (old.config / "secret").read_bytes()
        where = f"127.0.0.1:{server.port}", f"docs/{name}", os.path.realpath(source)
        old.rename_receipt(f"docs/{name}", derive_earlier_sourceid(secret, *where, source.stat()))
    before = {path: path.stat().st_ino for path in old.served.rglob("*") if ".blockproto" not in path.parts}
    server = start_server(old.served, port=server.port)
    for config in (old.config, old.config if same else old.place / "other"):
        ran = run(
            *("put", source, server.address + "/docs/", "--json", *token(old)),
            env={"BLOCKPROTO_CONFIG": str(config)},
        )
        assert ran.status == Status.DONE, ran.err
        (receipt,) = ran.objects
        assert (receipt["stored_as"], receipt["payload_bytes_sent"]) == (f"docs/{name}", 0)
    after = {path: path.stat().st_ino for path in old.served.rglob("*") if ".blockproto" not in path.parts}
    assert after == before
    server.stop()
    assert check_store(old.served, read=True) == []


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
        sourceid = derive_earlier_sourceid(secret, row["server"], row["name"], row["path"], facts)
        assert sourceid.hex() == row["sourceid"]
