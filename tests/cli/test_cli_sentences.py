"""The sentences and objects with which a command ends: where files went, which name was taken, and what to do."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from processes import COMMAND, Chaos, Process, Ran, Server, wait_until_held

from blockproto.cli.output import Status
from blockproto.common.blocks import BLOCK_LENGTH

Run = Callable[..., Ran]


def test_the_sum_says_where_the_files_went(server: Server, tmp_path: Path, run: Run) -> None:
    source = tmp_path / "a photo"
    source.mkdir()
    (source / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    at = server.address
    for words, place in (
        ([source, f"{at}/"], f"{at}/a photo"),
        ([source, f"{at}/in/", "--as", "named"], f"{at}/in/named"),
        ([source, tmp_path / "b", f"{at}/in/"], f"{at}/in"),
    ):
        ran = run("put", *words)
        assert ran.status == Status.DONE
        assert f" s, to {place}" in ran.err
    (tmp_path / "there").mkdir()
    for words, place in (
        ([f"{at}/a photo", tmp_path / "new"], f"{tmp_path}/new"),
        ([f"{at}/a photo", tmp_path / "there"], f"{tmp_path}/there/a photo"),
        ([f"{at}/a photo", f"{at}/in/b", tmp_path / "there"], f"{tmp_path}/there"),
    ):
        ran = run("get", *words)
        assert f" s, in '{place}'" in ran.err
    refused = run("put", source, f"{at}/in/", "--as", "named/a/a")
    assert refused.status == Status.FAILED
    assert ", to " not in refused.err


def test_a_folder_that_is_there_is_gone_into_with_or_without_a_slash(
    server: Server, tmp_path: Path, run: Run
) -> None:
    """As `cp -r` does."""
    (tmp_path / "a").write_bytes(b"1")
    run("put", tmp_path / "a", f"{server.address}/x/")
    for number, dest in enumerate(("one", "two/")):
        place = tmp_path / dest
        place.mkdir()
        typed = f"{tmp_path}/{dest}"
        assert run("get", f"{server.address}/x/a", typed).status == Status.DONE
        assert run("get", f"{server.address}/x", typed).status == Status.DONE
        assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == ["a", "x", "x/a"], number


@pytest.mark.parametrize("others", [[], ["file"]], ids=["alone", "beside a file"])
def test_a_pipe_that_was_named_has_an_object(
    server: Server, tmp_path: Path, run: Run, others: list[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"1")
    paths = [tmp_path / name for name in ("pipe", *others)]
    ran = run("put", *paths, f"{server.address}/in/", "--json")
    assert ran.status == Status.FAILED
    objects = {one["filename"]: one for one in ran.objects}
    assert sorted(objects) == sorted(f"in/{path.name}" for path in paths)
    pipe = objects["in/pipe"]
    assert (pipe["outcome"], pipe["code"]) == ("failed", None)
    assert pipe["error"] == "it is a pipe, and only files and folders are sent"


def test_the_name_that_is_taken_is_said(server: Server, tmp_path: Path, run: Run) -> None:
    """It is the one on the server, which was perhaps not typed."""
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    run("put", tmp_path / "a", f"{server.address}/in/", "--as", "name")
    to = [f"{server.address}/in/", "--as", "name", "--if-exists", "refuse", "--json"]
    for ran in (run("put", tmp_path / "b", *to), run("put", "-", *to, stdin=b"2")):
        assert ran.status == Status.FAILED
        assert ": the name 'in/name' is taken there by other content; choose another name" in ran.err
        assert ran.objects[0]["code"] == "FILE_EXISTS"
        assert "'in/name' is taken there" in ran.objects[0]["error"]


@pytest.mark.parametrize("words", [["put", "a"], ["get"], ["ls"], ["uploads"]], ids=" ".join)
def test_where_nothing_listens_it_is_said_what_to_do(tmp_path: Path, run: Run, words: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    address = f"bp://127.0.0.1:{port}/" + ("a" if words == ["get"] else "")
    ran = run(*words, address, "--retry-for", "0", cwd=tmp_path)
    if ran.status == Status.USAGE:  # it has no --retry-for
        ran = run(*words, address, cwd=tmp_path)
    assert ran.status == Status.UNREACHABLE
    assert f"cannot reach 127.0.0.1:{port}: Connection refused: nothing listens there; see that" in ran.err
    assert "`blockproto serve` runs there and that the port is right, then run the same command" in ran.err
    assert "goes on" not in ran.err


def test_who_is_taken_over_is_told_by_whom_and_what_to_do(server: Server, tmp_path: Path, run: Run) -> None:
    (tmp_path / "film").write_bytes(os.urandom(4 * BLOCK_LENGTH))
    words = ["put", str(tmp_path / "film")]
    line = Chaos(server.port, "--rate", "16mbit")
    try:
        with Process([*COMMAND, *words, line.address], stderr=-1, text=True) as first:
            trio.run(wait_until_held, server.address, 1)
            assert run(*words, f"{server.address}/").status == Status.DONE
            said = first.communicate()[1]
    finally:
        line.kill()
    assert first.returncode == Status.FAILED
    assert (
        "another process, here or on another machine, sends the same file and took this upload over" in said
    )
    assert "; leave it to that one; or stop that one and run this command again" in said
