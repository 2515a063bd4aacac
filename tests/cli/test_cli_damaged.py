"""A stored file whose bytes are not those that were committed: `get` says so, and gives nothing its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest
from hostile_server import Asked, HostileServer, frame
from processes import Ran, Server
from test_hostile_answers import ID, NAME, entry, honest

from blockproto.cli import main
from blockproto.cli.output import Status
from blockproto.common.blocks import BLOCK_LENGTH, digest_of, root_of
from blockproto.wire import Block, Commit, Fetch, Open

Run = Callable[..., Ran]
SAID = "the stored file is damaged on the server: its bytes are not those that were committed"


def flip(path: Path) -> None:
    """Change one byte and restore the time, as neither people nor programs do; a bad disk has the same effect."""
    found = path.stat()
    with path.open("r+b") as file:
        file.seek(found.st_size // 2)
        byte = file.read(1)[0]
        file.seek(found.st_size // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@contextmanager
def closing_server(folder: Path, log: TextIO) -> Iterator[Server]:
    server = Server(folder, stderr=log)
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.clause("BP1-FET-020")
def test_damage_is_said_and_not_served(tmp_path: Path, run: Run) -> None:
    (tmp_path / "served").mkdir()
    with (tmp_path / "log").open("w") as log, closing_server(tmp_path / "served", log) as server:
        source = tmp_path / "source"
        source.mkdir()
        for name, length in (("small", 10), ("big", 3 * BLOCK_LENGTH), ("good", 10)):
            (source / name).write_bytes(os.urandom(length))
        assert run("put", source, server.address + "/").status == Status.DONE
        flip(server.folder / "source" / "small")
        flip(server.folder / "source" / "big")
        for name in ("small", "big"):
            ran = run("get", f"{server.address}/source/{name}", tmp_path / "one", "--json")
            assert ran.status == Status.FAILED
            assert (
                f"source/{name}: {SAID}; tell whoever runs the server (`blockproto check --read`" in ran.err
            )
            assert (ran.objects[0]["outcome"], ran.objects[0]["code"]) == ("failed", "DIGEST_MISMATCH")
            assert not (tmp_path / "one").exists()
        ran = run("get", f"{server.address}/source", tmp_path / "all")
        assert (ran.status, ran.err.count(SAID)) == (Status.FAILED, 2)
        assert [path.name for path in (tmp_path / "all").iterdir() if path.name[0] != "."] == ["good"]
        (server.folder / "source" / "big").touch()  # somebody means it to be as it is
        assert run("get", f"{server.address}/source/big", tmp_path / "meant").status == Status.DONE
        assert run("rm", f"{server.address}/source/small").status == Status.DONE
        assert run("put", source / "small", f"{server.address}/source/").status == Status.DONE
        assert run("get", f"{server.address}/source/small", tmp_path / "again").status == Status.DONE
        assert (tmp_path / "again").read_bytes() == (source / "small").read_bytes()
        flip(server.folder / "source" / "small")
        server.stop()
    assert (
        "source/small is damaged: its bytes are not those that were committed"
        in (tmp_path / "log").read_text()
    )
    checked = run("check", server.folder, "--read")
    assert checked.out.splitlines() == ["source/small: its bytes are not those that were committed"]


@pytest.mark.parametrize(("rule", "kept"), [("keep", True), ("replace", False)])
def test_checksum_sends_what_was_changed_there(
    server: Server, tmp_path: Path, run: Run, rule: str, kept: bool
) -> None:
    """Its size and time are those of the receipt, which says that it is there; what was only touched is not sent."""
    source = tmp_path / "source"
    source.mkdir()
    for name, length in (("small", 10), ("big", BLOCK_LENGTH + 1), ("touched", 10)):
        (source / name).write_bytes(os.urandom(length))
    words = ["put", source, f"{server.address}/", "--if-exists", rule, "--json"]
    assert run(*words).status == Status.DONE
    stored = server.folder / "source"
    flip(stored / "small")
    flip(stored / "big")
    (stored / "touched").chmod(0o600)
    assert {one["outcome"] for one in run(*words).objects} == {"there"}
    for outcome in ("sent", "there"):
        ran = run(*words, "--checksum")
        assert {Path(one["filename"]).name: one["outcome"] for one in ran.objects} == {
            "small": outcome,
            "big": outcome,
            "touched": "there",
        }
    for name in ("small", "big"):
        good = stored / (f"{name} (1)" if kept else name)
        assert good.read_bytes() == (source / name).read_bytes()
    assert len(list(stored.iterdir())) == (5 if kept else 3)


@pytest.mark.clause("BP1-FET-021")
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "words", [["a", "dest"], ["", "all/"], ["a", "-"]], ids=["alone", "in a folder", "to stdout"]
)
def test_another_root_than_the_one_that_was_named_is_damage(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the server has noticed: the client knows which root the file should have."""
    monkeypatch.chdir(tmp_path)
    content = b"0123456789"

    def answer(asked: Asked) -> Iterable[object]:
        if not isinstance(asked.message, Fetch):
            yield from honest(asked)
            return
        there = digest_of(b"9876543210")
        yield frame(
            asked.stream,
            Open(
                bytes(16), 0, 10, 1, NAME, "text/plain", mtime_ns=10**18, mode=0o644, root=there, version=ID, file_id=ID
            ),
        )  # fmt: skip
        block = Block(bytes(16), 10, 1, 0, 0, NAME, "text/plain", digest=digest_of(content))
        yield frame(asked.stream, block, content)
        yield frame(asked.stream, Commit(bytes(16), digest_of(content), 10, 1))

    with HostileServer(answer) as server:
        status = main(["get", f"{server.address}/{words[0]}", words[1], "--retry-for", "0"])
    assert status == Status.FAILED
    assert SAID in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name[0] != "."] == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damaged", [False, True])
def test_stretches_that_are_damaged_together_are_said(
    damaged: bool, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """`get … -` fetches a big file in ranges, of which no root is known: it computes that of the whole itself."""
    monkeypatch.setattr("blockproto.cli.get_stdout.STRETCH_LENGTH", BLOCK_LENGTH)
    blocks = [b"a" * BLOCK_LENGTH, b"b" * 10]
    filesize = sum(map(len, blocks))
    digests = [digest_of(block) for block in blocks]
    root = root_of(digests[::-1] if damaged else digests, 2)

    def answer(asked: Asked) -> Iterable[object]:
        message = asked.message
        if not isinstance(message, Fetch):
            yield from honest(asked, entry(filesize=filesize, root=root))
            return
        number, name = message.first // BLOCK_LENGTH, "text/plain"
        yield frame(
            asked.stream,
            Open(bytes(16), 0, filesize, 2, NAME, name, mtime_ns=10**18, mode=0o644, version=ID, file_id=ID),
        )
        block = Block(bytes(16), filesize, 2, number, message.first, NAME, name, digest=digests[number])
        yield frame(asked.stream, block, blocks[number])
        yield frame(asked.stream, Commit(bytes(16), digests[number], filesize, 2))

    with HostileServer(answer) as server:
        status = main(["get", f"{server.address}/a", "-", "--retry-for", "0"])
    said = capsysbinary.readouterr()
    assert said.out == b"".join(blocks)
    assert (status, SAID.encode() in said.err) == (Status.FAILED if damaged else Status.DONE, damaged)
