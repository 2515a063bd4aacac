"""What ``get`` does to files that are here already, by real processes: nothing of the user's is destroyed."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from processes import COMMAND, Chaos, Process, Ran, Server, wait_until

from blockproto.cli.output import Status
from blockproto.store.part_file.ledger import read_ledger
from blockproto.store.part_file.target_folder import TargetFolder

Run = Callable[..., Ran]
MIB = 1 << 20
OLD_NS, NEW_NS = 1_500_000_000_000_000_000, 1_600_000_000_000_000_000
RULES = ["keep", "refuse", "replace", "skip", "update"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def put_file(path: Path, content: bytes, mtime_ns: int = NEW_NS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def check_claims(ran: Ran, here: Path) -> None:
    """What ``--json`` says of each file is what lies there."""
    for claim in ran.objects:
        if claim["outcome"] == "failed":
            assert claim["stored_as"] is None
            continue
        path = here / claim["stored_as"]
        assert path.stat().st_size == claim["filesize"]


# ---- names of what is in progress ----------------------------------------------------------------------------------


def test_a_file_beside_one_that_is_called_like_an_old_partial(server: Server, here: Path, run: Run) -> None:
    content = os.urandom(3 * MIB)
    files = {
        "y": content,
        "y.blockproto-part": b"of the user",
        "y.blockproto-ledger": b"",
        "z.blockproto-lock": b"1",
    }
    for name, one in files.items():
        put_file(server.folder / "d" / name, one)
    ran = run("get", server.address + "/d", "--json", cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert contents(here / "d") == files
    check_claims(ran, here)


@pytest.mark.parametrize("size", [100, MIB, 3 * MIB])
def test_the_user_s_own_file_of_that_name_is_kept(size: int, server: Server, here: Path, run: Run) -> None:
    put_file(server.folder / "y", os.urandom(size))
    own = {f"y.blockproto-{ending}": b"mine" for ending in ("part", "ledger", "lock")}
    for name, content in own.items():
        put_file(here / "d" / name, content)
    ran = run("get", server.address + "/y", "d/", cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert contents(here / "d") == own | {"y": (server.folder / "y").read_bytes()}


@pytest.mark.parametrize(
    "name", [".blockproto-0123456789abcdef.part", ".BlockProto-x", "d/.blockproto-x/inside"]
)
def test_what_is_in_progress_is_taken_from_no_server_and_sent_to_none(
    name: str, server: Server, here: Path, run: Run
) -> None:
    put_file(server.folder / "top" / name, b"a trap")
    put_file(server.folder / "top" / "good", b"good")
    ran = run("get", server.address + "/top", "copy", cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert "left out" in ran.err
    assert contents(here / "copy") == {"good": b"good"}
    alone = run("get", f"{server.address}/top/{name}", cwd=here)
    assert alone.status == Status.FAILED
    assert "begins with '.blockproto-'" in alone.err
    put_file(here / "up" / name, b"in progress here")
    put_file(here / "up" / "good", b"good")
    sent = run("put", "up", server.address, cwd=here)
    assert sent.status == Status.DONE, sent.err
    assert "left out" in sent.err
    assert contents(server.folder / "up") == {"good": b"good"}
    named = run("put", here / "up" / name, server.address)
    assert named.status == Status.FAILED or name.startswith("d/")
    assert run("put", "up/good", server.address, "--as", ".blockproto-x", cwd=here).status == Status.FAILED
    assert not [path for path in server.folder.iterdir() if path.name.startswith(".blockproto-")]


@pytest.fixture
def slow(server: Server) -> Iterator[Chaos]:
    chaos = Chaos(server.port, "--rate", "20mbit")
    yield chaos
    chaos.kill()


def held_blocks(folder: Path) -> int:
    """How many blocks the ledger of the only download in a folder speaks of."""
    with suppress(OSError, StopIteration):
        ledger = next(folder.glob(".blockproto-*.ledger"))
        begun = read_ledger(TargetFolder(folder), ledger.name)
        return 0 if begun is None else len(begun.blocks)
    return 0


def test_a_killed_get_goes_on_and_fetches_no_acknowledged_byte_twice(
    server: Server, slow: Chaos, here: Path, run: Run
) -> None:
    content = os.urandom(8 * MIB)
    put_file(server.folder / "film", content)
    command = [*COMMAND, "get", slow.address + "film", "--json"]
    with Process(command, cwd=here) as getting:
        wait_until(lambda: held_blocks(here) >= 2)
        getting.send_signal(signal.SIGSTOP)  # it holds its lock, however long the rest of this takes
        (partial,) = here.glob(".blockproto-*.part")
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
        assert len(partial.name) == len(".blockproto-0123456789abcdef.part")
        cleaned = run("clean", here, "--yes", "--json")
        (leftover,) = cleaned.objects
        assert (leftover["running"], leftover["removed"], leftover["filename"]) == (True, False, "film")
        getting.kill()
        getting.wait()
    held = held_blocks(here)
    again = run("get", slow.address + "film", "--json", cwd=here)
    assert again.status == Status.DONE, again.err
    (receipt,) = again.objects
    assert receipt["resumed"]
    assert receipt["payload_bytes_sent"] <= len(content) - held * MIB
    assert contents(here) == {"film": content}


@pytest.mark.parametrize("size", [1000, 2 * MIB])
def test_two_runs_at_once_make_one_file(size: int, server: Server, slow: Chaos, here: Path) -> None:
    content = os.urandom(size)
    put_file(server.folder / "film", content)
    command = [*COMMAND, "get", slow.address + "film"]
    with Process(command, cwd=here) as one, Process(command, cwd=here) as other:
        assert (one.wait(), other.wait()) == (Status.DONE, Status.DONE)
    assert contents(here) == {"film": content}


# ---- another file has the name ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [10, 2 * MIB + 1])
@pytest.mark.parametrize("folder", [False, True])
def test_what_has_the_name_already(
    rule: str, size: int, folder: bool, server: Server, here: Path, run: Run
) -> None:
    ours, theirs = b"m" * size, os.urandom(size)  # of one size: contents have to be compared
    put_file(server.folder / "top" / "a.txt", theirs, NEW_NS)
    put_file(here / "top" / "a.txt", ours, OLD_NS)
    address = server.address + ("/top" if folder else "/top/a.txt")
    ran = run("get", address, *([] if folder else ["top/"]), "--if-exists", rule, "--json", cwd=here)
    expected = {
        "keep": {"top/a.txt": ours, "top/a (1).txt": theirs},
        "refuse": {"top/a.txt": ours},
        "replace": {"top/a.txt": theirs},
        "skip": {"top/a.txt": ours},
        "update": {"top/a.txt": theirs},
    }
    assert contents(here) == expected[rule]
    assert ran.status == (Status.FAILED if rule == "refuse" else Status.DONE), ran.err
    check_claims(ran, here) if rule != "refuse" else None
    if rule != "refuse":
        (claim,) = ran.objects
        assert claim["outcome"] == ("left" if rule == "skip" else "sent")
    again = run("get", address, *([] if folder else ["top/"]), "--if-exists", rule, "--json", cwd=here)
    assert contents(here) == expected[rule]
    assert sum(claim["payload_bytes_sent"] or 0 for claim in again.objects) == 0


def test_keep_is_the_default(server: Server, here: Path, run: Run) -> None:
    put_file(server.folder / "a.tar.gz", b"theirs")
    put_file(here / "a.tar.gz", b"mine")
    ran = run("get", server.address + "/a.tar.gz", cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert contents(here) == {"a.tar.gz": b"mine", "a (1).tar.gz": b"theirs"}


def test_update_leaves_what_is_as_new(server: Server, here: Path, run: Run) -> None:
    put_file(server.folder / "a", b"theirs!", OLD_NS)
    for mtime_ns in (OLD_NS, NEW_NS):
        put_file(here / "a", b"mine", mtime_ns)
        ran = run("get", server.address + "/a", "--if-exists", "update", "--json", cwd=here)
        assert ran.status == Status.DONE, ran.err
        (claim,) = ran.objects
        assert (claim["outcome"], claim["filesize"], claim["root"]) == ("left", 4, None)
        assert contents(here) == {"a": b"mine"}


@pytest.mark.parametrize("rule", ["keep", "refuse", "replace"])
@pytest.mark.parametrize("size", [0, 1000, 2 * MIB])
def test_the_same_content_is_the_file(rule: str, size: int, server: Server, here: Path, run: Run) -> None:
    content = os.urandom(size)
    put_file(server.folder / "a", content, NEW_NS)
    (server.folder / "a").chmod(0o640)
    put_file(here / "a", content, OLD_NS)
    (here / "a").chmod(0o600)
    inode = (here / "a").stat().st_ino
    ran = run("get", server.address + "/a", "--if-exists", rule, "--json", cwd=here)
    assert ran.status == Status.DONE, ran.err
    (claim,) = ran.objects
    assert (claim["outcome"], claim["payload_bytes_sent"]) == ("there", 0)
    assert contents(here) == {"a": content}
    found = (here / "a").stat()
    touched = rule == "replace"
    assert found.st_ino == inode
    assert found.st_mtime_ns == (NEW_NS if touched else OLD_NS)
    assert stat.S_IMODE(found.st_mode) == (0o640 if touched else 0o600)


def test_a_file_that_is_here_under_another_name_is_not_fetched_again(
    server: Server, here: Path, run: Run
) -> None:
    put_file(server.folder / "top" / "a", b"v2")
    put_file(here / "top" / "a", b"v1", OLD_NS)
    for _ in range(3):
        ran = run("get", server.address + "/top", cwd=here)
        assert ran.status == Status.DONE, ran.err
        os.utime(here / "top" / "a (1)")
    assert contents(here / "top") == {"a": b"v1", "a (1)": b"v2"}


def test_checksum_finds_what_size_and_time_hide(server: Server, here: Path, run: Run) -> None:
    put_file(server.folder / "a", b"right", NEW_NS)
    put_file(here / "a", b"wrong", NEW_NS)
    command = ("get", server.address + "/a", "--if-exists", "replace", "--json")
    assert run(*command, cwd=here).objects[0]["outcome"] == "there"
    assert run(*command, "--checksum", cwd=here).objects[0]["outcome"] == "sent"
    assert contents(here) == {"a": b"right"}


@pytest.mark.parametrize("size", [3, MIB + 3])
@pytest.mark.parametrize("rule", ["keep", "replace", "update"])
def test_two_files_of_one_run_never_replace_each_other(
    rule: str, size: int, server: Server, here: Path, run: Run
) -> None:
    for folder in ("x", "y"):
        put_file(server.folder / folder / "a", folder.encode() * size, NEW_NS + ord(folder))
    addresses = [f"{server.address}/{folder}/a" for folder in ("x", "y")]
    ran = run("get", *addresses, "d/", "--if-exists", rule, "--json", cwd=here)
    both = {"a": b"x" * size, "a (1)": b"y" * size}
    if rule == "keep":
        assert ran.status == Status.DONE, ran.err
        assert contents(here / "d") == both
        assert run("get", *addresses, "d/", cwd=here).status == Status.DONE
        assert contents(here / "d") == both
    else:
        assert ran.status == Status.FAILED
        assert "would replace each other" in ran.err
        assert contents(here / "d") == {"a": b"x" * size}
    check_claims(ran, here)


# ---- what is no regular file ----------------------------------------------------------------------------------------


def make_special(path: Path, kind: str, other: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        path.symlink_to(other if kind == "link" else other.with_name("nowhere"))


def what_it_is(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize("rule", ["keep", "replace", "skip"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link", "dangling link"])
def test_what_is_no_regular_file_is_never_written(
    kind: str, rule: str, server: Server, here: Path, run: Run
) -> None:
    put_file(server.folder / "top" / "a", b"content")
    other = here / "other"
    put_file(other, b"other")
    (here / "top").mkdir()
    make_special(here / "top" / "a", kind, other)
    before = what_it_is(here / "top" / "a")
    for words in ([server.address + "/top/a", "top/a"], [server.address + "/top"]):
        ran = run("get", *words, "--if-exists", rule, cwd=here)
        assert ran.status == (Status.DONE if rule == "skip" else Status.FAILED), ran.err
        assert "stands where the file should go" in ran.err or rule == "skip"
        assert what_it_is(here / "top" / "a") == before
    assert other.read_bytes() == b"other"
    assert sorted(path.name for path in here.iterdir()) == ["other", "top"]
    assert [path.name for path in (here / "top").iterdir()] == ["a"]


def test_dest_is_followed_and_links_below_it_only_on_request(server: Server, here: Path, run: Run) -> None:
    put_file(server.folder / "top" / "sub" / "a", b"small")
    put_file(server.folder / "top" / "sub" / "big", b"b" * (MIB + 1))
    elsewhere = here / "elsewhere"
    (elsewhere / "top").mkdir(parents=True)
    (here / "outside").mkdir()
    (elsewhere / "top" / "sub").symlink_to(here / "outside")
    (here / "dest").symlink_to(elsewhere)
    ran = run("get", server.address + "/top", "dest", cwd=here)
    assert ran.status == Status.FAILED
    assert "--keep-dirlinks" in ran.err
    assert contents(here / "outside") == {}
    ran = run("get", server.address + "/top", "dest", "--keep-dirlinks", cwd=here)
    assert ran.status == Status.DONE, ran.err
    assert contents(here / "outside") == {"a": b"small", "big": b"b" * (MIB + 1)}
    again = run("get", server.address + "/top", "dest", cwd=here)
    assert again.status == Status.FAILED  # what is behind the link does not count as here


def test_a_file_where_a_folder_must_be(server: Server, here: Path, run: Run) -> None:
    put_file(server.folder / "top" / "a" / "b", b"deep")
    put_file(server.folder / "top" / "c", b"flat")
    put_file(here / "top" / "a", b"mine")
    ran = run("get", server.address + "/top", "--if-exists", "replace", cwd=here)
    assert ran.status == Status.FAILED
    assert contents(here / "top") == {"a": b"mine", "c": b"flat"}


# ---- stdout -------------------------------------------------------------------------------------------------------------


def get_bytes(*words: object, cwd: Path) -> tuple[int, bytes]:
    with Process([*COMMAND, "get", *map(str, words)], cwd=cwd, stdout=-1) as getting:
        out, _ = getting.communicate()
        return getting.returncode, out


@pytest.mark.parametrize("size", [0, 1, 33 * MIB + 5])
def test_stdout(size: int, server: Server, here: Path) -> None:
    content = os.urandom(size)
    put_file(server.folder / "a", content)
    put_file(server.folder / "b", b"and b")
    assert get_bytes(server.address + "/a", "-", cwd=here) == (Status.DONE, content)
    assert get_bytes(server.address + "/a", server.address + "/b", "-", cwd=here) == (
        Status.DONE,
        content + b"and b",
    )
    assert list(here.iterdir()) == []


def test_a_range_to_stdout_and_what_cannot_go_there(server: Server, here: Path, run: Run) -> None:
    put_file(server.folder / "a", b"0123456789")
    (server.folder / "folder").mkdir()
    assert get_bytes(server.address + "/a", "-", "--range", "2-4", cwd=here) == (Status.DONE, b"234")
    assert run("get", server.address + "/a", "-", "--range", "10-11", cwd=here).status == Status.FAILED
    assert run("get", server.address + "/folder", "-", cwd=here).status == Status.FAILED
    assert run("get", server.address + "/missing", "-", cwd=here).status == Status.FAILED
    assert run("get", server.address + "/a", "-", "--json", cwd=here).status == Status.USAGE
    assert list(here.iterdir()) == []
