"""Real servers and commands on a folder full of odd things: nobody ends, nothing is printed that a person cannot read.

``make odd`` does the same with things that change meanwhile, and with every pair and triple of messages.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from odd_folder import Churn, Odd, fill, remove
from processes import Ran, Server

from blockproto.cli.output import Status

Run = Callable[..., Ran]


class Watched(Server):
    """A server whose standard error is kept."""

    def __init__(self, folder: Path, log: Path, *options: str) -> None:
        self.log = log
        with log.open("wb") as file:
            super().__init__(folder, *options, stderr=file)

    def lives(self, run: Run, here: Path) -> None:
        """It takes a good file, and has said nothing that nobody expected."""
        assert self.process.poll() is None
        assert "Traceback" not in self.log.read_text(errors="replace"), self.log.read_text(errors="replace")
        (here / "good-again").write_bytes(b"good")
        done = run("put", str(here / "good-again"), self.address, "--if-exists", "replace")
        assert done.status == Status.DONE, done.err


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Odd]:
    folder = tmp_path / "odd"
    folder.mkdir()
    yield fill(folder, sparse=0)
    remove(folder)


@pytest.fixture
def server(tmp_path: Path, odd: Odd) -> Iterator[Watched]:
    server = Watched(odd.folder, tmp_path / "log")
    yield server
    server.kill()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "here").mkdir()
    yield tmp_path / "here"
    remove(tmp_path / "here")


def readable(ran: Ran) -> Ran:
    """What a command printed is for people: no traceback, nothing that a terminal obeys."""
    for text in (ran.out, ran.err):
        assert "Traceback" not in text, text
        assert "\x1b" not in text
    return ran


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_odd_folder_is_listed_looked_at_and_fetched(
    server: Watched, odd: Odd, run: Run, here: Path
) -> None:
    assert readable(run("ls", server.address)).status == Status.DONE
    assert readable(run("ls", "-r", server.address)).status == Status.DONE
    listed = run("ls", "-r", "--json", server.address)
    assert listed.status == Status.DONE, listed.err
    assert set(odd.good) <= {one["filename"] for one in listed.objects}
    for name in ("times/2300", "deep/d/d"):
        assert readable(run("stat", f"{server.address}/{name}")).status == Status.DONE
    for name in ("kinds/pipe", "kinds/loop-a"):
        assert readable(run("stat", f"{server.address}/{name}")).status == Status.FAILED
        assert readable(run("get", f"{server.address}/{name}", str(here / "x"))).status == Status.FAILED
    server.lives(run, here)
    fetched = readable(run("get", server.address + "/", str(here / "all")))
    assert fetched.status in (Status.DONE, Status.FAILED), fetched.err
    for name, content in odd.good.items():
        assert (here / "all" / name).read_bytes() == content, name
    server.lives(run, here)
    again = run("get", server.address + "/times", str(here / "all"), "--json")
    assert again.status == Status.DONE, again.err
    assert sum(one["payload_bytes_sent"] for one in again.objects) == 0
    server.lives(run, here)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_odd_folder_is_sent(server: Watched, odd: Odd, run: Run, here: Path) -> None:
    sent = readable(run("put", str(odd.folder / "times"), server.address + "/sent/", "--json"))
    assert sent.status == Status.DONE, sent.err
    again = run("put", str(odd.folder / "times"), server.address + "/sent/", "--json")
    assert again.status == Status.DONE, again.err
    assert sum(one["payload_bytes_sent"] for one in again.objects) == 0
    assert len({one["stored_as"] for one in again.objects}) == len(again.objects)
    assert not [one["stored_as"] for one in again.objects if "(1)" in one["stored_as"]]
    server.lives(run, here)
    for name in ("names", "kinds", "modes", "deep", "a", "a" * 200):
        ran = readable(run("put", str(odd.folder / name), server.address + "/sent/"))
        assert ran.status in (Status.DONE, Status.FAILED), (name, ran.err)
        server.lives(run, here)
    assert (odd.folder / "sent" / "kinds" / "hard").read_bytes() == odd.good["good-1.txt"]
    assert stat.S_IMODE((odd.folder / "sent" / "modes" / "7777").stat().st_mode) & 0o7000 == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_odd_folder_is_removed(server: Watched, odd: Odd, run: Run, here: Path) -> None:
    for one in run("ls", "--json", server.address).objects:
        ran = readable(run("rm", "-r", f"{server.address}/{one['filename']}"))
        assert (ran.status == Status.DONE) is (one["filename"] != "names"), (one, ran.err)
    server.lives(run, here)
    assert {name for name in os.listdir(odd.folder) if name != ".blockproto"} == {"names", "good-again"}
    assert server.stop() == 0
    assert readable(run("check", str(odd.folder))).status == Status.DONE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_folder_that_changes_meanwhile(server: Watched, odd: Odd, run: Run, here: Path) -> None:
    with Churn(odd.folder) as churn:
        for number in range(1):
            readable(run("ls", "-r", server.address))
            readable(run("get", server.address + "/churn", str(here / f"churn-{number}")))
            readable(run("put", str(odd.folder / "churn"), server.address + f"/sent-{number}/"))
            readable(run("rm", "-r", server.address + "/churn"))
        server.lives(run, here)
    assert churn.steps
    remove(odd.folder / "churn")
    server.lives(run, here)


def _without_roots_rights() -> None:
    """Meet the rights of files as everybody does: what root executes from now on cannot override them."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if libc.prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
            raise OSError(ctypes.get_errno(), "a right could not be given up")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rights_that_are_taken_away_meanwhile(tmp_path: Path, run: Run, here: Path) -> None:
    """A server meets folders that it may not enter any more."""
    folder = tmp_path / "served"
    for path in (folder, folder / "open", folder / "closed"):
        path.mkdir()
    (folder / "closed" / "file").write_bytes(b"closed")
    with (tmp_path / "log").open("wb") as log:
        drop = _without_roots_rights if os.geteuid() == 0 else None
        server = Server(folder, preexec_fn=drop, stderr=log)
    try:
        readable(run("put", str(_made(here / "a", b"a")), server.address + "/closed/"))
        (folder / "closed").chmod(0)
        for command in (
            ("ls", "-r", server.address),
            ("ls", server.address + "/closed"),
            ("stat", server.address + "/closed/file"),
            ("get", server.address + "/closed/file", str(here / "x")),
            ("get", server.address + "/", str(here / "all")),
            ("put", str(_made(here / "a", b"a")), server.address + "/closed/"),
            ("put", str(_made(here / "b", b"b")), server.address + "/closed/"),
            ("rm", "-r", server.address + "/closed"),
        ):
            readable(run(*command))
        assert run("get", server.address + "/closed/file", str(here / "x")).status == Status.FAILED
        done = run("put", str(_made(here / "c", b"c")), server.address + "/open/")
        assert done.status == Status.DONE, done.err
        assert (folder / "open" / "c").read_bytes() == b"c"
        assert "Traceback" not in (tmp_path / "log").read_text()
        (folder / "closed").chmod(0o755)
        assert run("get", server.address + "/closed/file", str(here / "y")).status == Status.DONE
    finally:
        (folder / "closed").chmod(0o755)
        server.kill()


def _made(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
