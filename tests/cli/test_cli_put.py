"""``put`` against a real server process: every kind of path, repeated runs, refusals, a server that goes away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from processes import COMMAND, TIMEOUT_S, Process, Ran, Server, wait_until_held

from blockproto.cli.output import RECEIPT_FIELDS, Status
from blockproto.cli.put import name_of

Run = Callable[..., Ran]
MIB = 1 << 20


def b3(content: bytes) -> str:
    return blake3(content).hexdigest()


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3])
def test_a_file_arrives_whole_with_time_and_rights(
    size: int, server: Server, tmp_path: Path, run: Run
) -> None:
    content = os.urandom(size)
    source = tmp_path / "a.bin"
    source.write_bytes(content)
    source.chmod(0o640)
    os.utime(source, ns=(1_700_000_000_123_456_789, 1_600_000_000_987_654_321))
    ran = run("put", source, server.address + "/sub/", "--json")
    assert ran.status == Status.DONE, ran.err
    (receipt,) = ran.objects
    assert list(receipt) == list(RECEIPT_FIELDS)
    stored = server.folder / "sub" / "a.bin"
    assert stored.read_bytes() == content
    assert stored.stat().st_mode & 0o777 == 0o640
    assert stored.stat().st_mtime_ns == 1_600_000_000_987_654_321
    blocknum = -(-size // MIB)
    wanted = {
        "filename": "sub/a.bin",
        "filesize": size,
        "blocknum": blocknum,
        "stored_as": "sub/a.bin",
        "resumed": False,
        "blocks_sent": blocknum,
        "blocks_skipped": 0,
        "payload_bytes_sent": size,
        "connections": 1,
    }
    assert {key: receipt[key] for key in wanted} == wanted
    if blocknum <= 1:
        assert receipt["root"] == b3(content)
    assert len(bytes.fromhex(receipt["sourceid"])) == 16
    assert receipt["elapsed_s"] >= 0


def test_the_same_again_sends_nothing(server: Server, tmp_path: Path, run: Run) -> None:
    for name, size in (("small", 10), ("big", 3 * MIB)):
        source = tmp_path / name
        source.write_bytes(os.urandom(size))
        first = run("put", source, server.address + "/", "--json").objects[0]
        again = run("put", source, server.address + "/", "--json")
        assert again.status == Status.DONE
        (receipt,) = again.objects
        assert receipt["payload_bytes_sent"] == 0
        assert receipt["blocks_sent"] == 0
        assert receipt["resumed"] is True
        assert (receipt["stored_as"], receipt["root"]) == (name, first["root"])
        assert "already there" in again.err
    assert sorted(path.name for path in server.folder.iterdir() if path.name != ".blockproto") == [
        "big",
        "small",
    ]


def test_if_the_name_is_taken(server: Server, tmp_path: Path, run: Run) -> None:
    source = tmp_path / "a.txt"
    for content, policy in ((b"1", "keep"), (b"2", "keep"), (b"3", "refuse"), (b"4", "replace")):
        source.write_bytes(content)
        ran = run("put", source, server.address + "/", "--if-exists", policy, "--json")
        assert ran.status == (Status.FAILED if policy == "refuse" else Status.DONE), ran.err
        if policy == "refuse":
            assert str(source) in ran.err
            assert [one["outcome"] for one in ran.objects] == ["failed"]
    assert (server.folder / "a.txt").read_bytes() == b"4"
    assert (server.folder / "a (1).txt").read_bytes() == b"2"


def test_another_name_is_told(server: Server, tmp_path: Path, run: Run) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(b"1")
    run("put", source, server.address + "/")
    source.write_bytes(b"22")
    assert "stored as 'a (1).txt'" in run("put", source, server.address + "/").err


def test_a_tree_travels_with_everything_that_can(server: Server, tmp_path: Path, run: Run) -> None:
    tree = tmp_path / "some tree 中文"
    (tree / "empty").mkdir(parents=True)
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "er" / "50% off #1?.txt").write_bytes(b"x" * 3000)
    (tree / "deep" / "big").write_bytes(os.urandom(2 * MIB + 1))
    (tree / "run.sh").write_bytes(b"#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("run.sh")
    os.mkfifo(tree / "pipe")
    (tree / "deep").chmod(0o750)
    os.utime(tree / "deep", ns=(0, 1_500_000_000_000_000_000))
    ran = run("put", str(tree) + "/", server.address + "/", "--json")
    assert ran.status == Status.DONE, ran.err
    assert len(ran.objects) == 3
    assert "link: a symbolic link, left out" in ran.err
    assert "pipe: a pipe, left out" in ran.err
    stored = server.folder / tree.name
    assert (stored / "empty").is_dir()
    assert (stored / "run.sh").stat().st_mode & 0o777 == 0o755
    assert not (stored / "link").exists()
    assert not (stored / "pipe").exists()
    for path in ("deep/big", "deep/er/50% off #1?.txt"):
        assert (stored / path).read_bytes() == (tree / path).read_bytes()
    assert (stored / "deep").stat().st_mode & 0o777 == 0o750
    assert (stored / "deep").stat().st_mtime_ns == 1_500_000_000_000_000_000
    again = run("put", tree, server.address + "/", "--json")
    assert again.status == Status.DONE, again.err
    assert [one["payload_bytes_sent"] for one in again.objects] == [0, 0, 0]
    assert sorted(path.name for path in server.folder.iterdir()) == [".blockproto", tree.name]


@pytest.mark.parametrize("policy", ["keep", "refuse", "replace"])
def test_folders_of_one_name_become_one(policy: str, server: Server, tmp_path: Path, run: Run) -> None:
    for source, files in (("one", {"a": b"1", "sub/b": b"2"}), ("two", {"c": b"3", "sub/d": b"4"})):
        (tmp_path / source / "tree" / "sub").mkdir(parents=True)
        (tmp_path / source / "tree" / "empty").mkdir()
        for name, content in files.items():
            (tmp_path / source / "tree" / name).write_bytes(content)
        for _ in range(2):
            ran = run("put", tmp_path / source / "tree", server.address + "/", "--if-exists", policy)
            assert ran.status == Status.DONE, ran.err
    stored = server.folder / "tree"
    assert {str(path.relative_to(stored)) for path in stored.rglob("*")} == {
        "a", "c", "empty", "sub", "sub/b", "sub/d",
    }  # fmt: skip
    assert sorted(path.name for path in server.folder.iterdir()) == [".blockproto", "tree"]


def test_the_rest_of_the_command_still_goes(server: Server, tmp_path: Path, run: Run) -> None:
    (tmp_path / "good").write_bytes(b"1")
    (tmp_path / "bad\udcff").write_bytes(b"2")
    ran = run("put", tmp_path / "missing", tmp_path / "bad\udcff", tmp_path / "good", server.address + "/")
    assert ran.status == Status.FAILED
    assert f"{tmp_path}/missing: No such file or directory" in ran.err
    assert "bad" in ran.err
    assert (server.folder / "good").read_bytes() == b"1"


def test_a_special_file_named_itself_is_a_failure(server: Server, run: Run) -> None:
    ran = run("put", "/dev/null", server.address + "/")
    assert ran.status == Status.FAILED
    assert "/dev/null: a device, left out" in ran.err


@pytest.mark.parametrize("size", [0, 5, MIB, 3 * MIB + 7])
def test_stdin(size: int, server: Server, run: Run) -> None:
    content = os.urandom(size)
    ran = run("put", "-", server.address + "/", "--as", "from a pipe.bin", "--json", stdin=content)
    assert ran.status == Status.DONE, ran.err
    assert (server.folder / "from a pipe.bin").read_bytes() == content
    assert ran.objects[0]["filesize"] == size
    assert run("put", "-", server.address + "/x/", stdin=content).status == Status.DONE
    assert (server.folder / "x" / "stdin").read_bytes() == content


def test_stdin_refused_and_a_file_beside_it(server: Server, tmp_path: Path, run: Run) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (server.folder / "stdin").write_bytes(b"taken")
    ran = run("put", "-", tmp_path / "a", server.address + "/", "--if-exists", "refuse", stdin=b"new")
    assert ran.status == Status.FAILED
    assert "blockproto: stdin: the name 'stdin' is taken there" in ran.err
    assert (server.folder / "stdin").read_bytes() == b"taken"
    assert (server.folder / "a").read_bytes() == b"1"


def test_as_and_percent(server: Server, tmp_path: Path, run: Run) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"1")
    assert run("put", source, server.address + "/my%20folder/", "--as", "100%25 中文").status == Status.DONE
    assert (server.folder / "my folder" / "100%25 中文").read_bytes() == b"1"


def test_a_dot_at_the_beginning_of_a_remote_name_means_nothing(
    server: Server, tmp_path: Path, run: Run
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"1")
    assert run("put", source, server.address + "/./q/").status == Status.DONE
    assert run("put", source, server.address + "/././", "--as", "./q/b").status == Status.DONE
    assert sorted(os.listdir(server.folder / "q")) == ["a", "b"]
    assert run("put", source, server.address + "/q/./r/").status == Status.FAILED


def test_as_with_a_slash_names_a_folder_only(server: Server, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    refused = run("put", folder / "a", server.address + "/", "--as", "q/")
    assert refused.status == Status.USAGE
    assert "write --as 'q/a'" in refused.err
    assert not (server.folder / "q").exists()
    assert run("put", folder, server.address + "/", "--as", "q/").status == Status.DONE
    assert (server.folder / "q" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("connections", [2, 4])
def test_several_connections(connections: int, server: Server, tmp_path: Path, run: Run) -> None:
    source = tmp_path / "a"
    source.write_bytes(os.urandom(12 * MIB + 5))
    ran = run("put", source, server.address + "/", "--connections", connections, "--json")
    assert ran.status == Status.DONE, ran.err
    assert ran.objects[0]["connections"] == connections
    assert (server.folder / "a").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", ["../up", "a/../b", "/abs", ".blockproto/x", "a//b", "x" * 256, "tab\there"])
def test_names_that_break_a_rule_are_refused(name: str, server: Server, tmp_path: Path, run: Run) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"1")
    ran = run("put", source, server.address + "/", "--as", name)
    assert ran.status == Status.FAILED
    assert f"blockproto: {source}: " in ran.err
    assert "Traceback" not in ran.err


def test_nobody_there_is_3_and_says_how_to_go_on(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ran = run("put", source, f"bp://127.0.0.1:{port}/")
    assert ran.status == Status.UNREACHABLE
    assert f"bp://127.0.0.1:{port}" in ran.err
    assert "run the same command again" in ran.err
    assert "Traceback" not in ran.err


def test_somebody_else_on_the_port(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a").write_bytes(b"1")
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        pool.submit(_answer_in_http, listener)
        address = f"bp://127.0.0.1:{listener.getsockname()[1]}"
        ran = run("put", tmp_path / "a", address + "/")
        listener.shutdown(socket.SHUT_RDWR)
    assert ran.status in (Status.FAILED, Status.UNREACHABLE)
    assert address in ran.err
    assert "Traceback" not in ran.err


def _answer_in_http(listener: socket.socket) -> None:
    """What a web server says to anything it does not understand, until the listener is shut down."""
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_name_that_no_resolver_knows(tmp_path: Path, run: Run) -> None:
    ran = run("put", __file__, "bp://nowhere.invalid/", "--insecure")
    assert ran.status == Status.UNREACHABLE
    assert "nowhere.invalid" in ran.err
    assert "Traceback" not in ran.err


def test_killed_in_the_middle_the_same_command_goes_on(
    start_server: Callable[..., Server], tmp_path: Path, run: Run
) -> None:
    source = tmp_path / "big file"
    source.write_bytes(os.urandom(256 * MIB))
    server = start_server()
    command = ["put", str(source), server.address + "/", "--json"]
    with Process([*COMMAND, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        trio.run(wait_until_held, server.address, 16)
        client.send_signal(signal.SIGKILL)
        server.kill()
    start_server(server.folder, port=server.port)
    ran = run(*command)
    assert ran.status == Status.DONE, ran.err
    (receipt,) = ran.objects
    assert receipt["resumed"] is True
    assert receipt["blocks_skipped"] >= 16
    assert receipt["payload_bytes_sent"] <= (256 - 16) * MIB
    assert (server.folder / source.name).read_bytes() == source.read_bytes()


def test_name_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "x")
    assert name_of("a/b/") == "b"
    assert name_of(".") == "x"
    assert name_of("y/..") == "x"
    assert name_of("..") == tmp_path.name
    assert name_of("/") == ""


# ---- coming back ----------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_yet_is_waited_for_when_asked(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    command = [*COMMAND, "put", str(source), f"bp://127.0.0.1:{port}/", "--retry-for", "1h", "-v"]
    client = Process(command, stderr=subprocess.PIPE, text=True)
    try:
        assert client.stderr is not None
        assert "Connection refused: nothing listens there; trying again in" in client.stderr.readline()
        served = start_server(port=port).folder
        assert client.wait(TIMEOUT_S) == Status.DONE
        assert (served / "a").read_bytes() == b"1"
    finally:
        client.kill()
        client.communicate()


def test_ctrl_c_while_it_waits_for_the_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    command = [*COMMAND, "put", __file__, f"bp://127.0.0.1:{port}/", "--retry-for", "1h", "-v"]
    client = Process(command, stderr=subprocess.PIPE, text=True)
    try:
        assert client.stderr is not None
        assert "trying again in" in client.stderr.readline()
        client.send_signal(signal.SIGINT)
        assert client.wait(TIMEOUT_S) == Status.INTERRUPTED
    finally:
        client.kill()
        client.communicate()


def test_what_stands_where_a_folder_should_be_is_said_once_and_first(
    server: Server, tmp_path: Path, run: Run
) -> None:
    (server.folder / "a").mkdir()
    (server.folder / "a/taken").write_text("a file")
    for name in ("a/taken/1", "a/taken/sub/2", "a/free"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    ran = run("put", "a", server.address + "/", "--if-exists", "replace", "--json", cwd=tmp_path)
    assert ran.status == Status.FAILED
    first, *rest = ran.err.splitlines()
    assert first.startswith("blockproto: a/taken: something there has the name of this folder")
    assert "--if-exists" not in first
    assert len(rest) == 1
    assert rest[0].startswith("1 file, ")
    assert rest[0].endswith("; 4 failed")
    failed = [one for one in ran.objects if one["outcome"] == "failed"]
    assert sorted(one["filename"] for one in failed) == [
        "a/taken",
        "a/taken/1",
        "a/taken/sub",
        "a/taken/sub/2",
    ]
    typed = run("put", tmp_path / "a/free", server.address + "/a/taken/")
    assert typed.status == Status.FAILED
    assert "/free: on bp://" in typed.err
    assert "something that is no folder stands in the path; name a folder there" in typed.err


@pytest.mark.parametrize("wrong", ["soon", "10", "-1s", "1w", "1 2s"])
def test_a_time_without_a_unit_is_refused(wrong: str, run: Run) -> None:
    ran = run("put", __file__, "bp://localhost/", "--retry-for", wrong)
    assert ran.status == Status.USAGE
    assert "as in 90s, 10m or 1h" in ran.err


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_folder_is_summed_up_however_little_is_in_it(
    count: int, server: Server, tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}").write_bytes(b"x")
    ran = run("put", folder, server.address)
    assert ran.status == Status.DONE, ran.err
    assert ran.err.startswith(f"{count} file{'' if count == 1 else 's'}, {count} B in ")


def test_what_to_do_about_a_taken_name_can_be_said_once_for_all_commands(
    server: Server, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (server.folder / "a").write_bytes(b"old")
    ours = {"BLOCKPROTO_IF_EXISTS": "replace"}
    assert run("put", tmp_path / "a", server.address + "/", env=ours).status == Status.DONE
    assert [one.name for one in server.folder.iterdir() if one.is_file()] == ["a"]
    assert (server.folder / "a").read_bytes() == b"new"
    wrong = run("put", tmp_path / "a", server.address + "/", env={"BLOCKPROTO_IF_EXISTS": "ask"})
    assert wrong.status == Status.USAGE
    assert "BLOCKPROTO_IF_EXISTS" in run("put", "--help").out
