"""``serve`` and ``check`` as real processes: signals, ports, folders that will not do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import COMMAND, Process, Ran, Server

from blockproto.cli import main
from blockproto.cli.output import Status

Run = Callable[..., Ran]


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, Status.DONE), (signal.SIGINT, Status.INTERRUPTED)]
)
def test_signals_end_it_in_order(
    signum: int, status: Status, server: Server, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    assert run("put", tmp_path / "a", server.address + "/").status == Status.DONE
    assert server.stop(signum) == status


def test_help_says_the_exit_codes_that_it_has(run: Run) -> None:
    said = " ".join(run("serve", "--help").out.split())
    assert "0 ended by SIGTERM, 1 the folder cannot be served, 2 usage, 130 Ctrl-C." in said


def test_port_in_use_is_one_sentence(server: Server, tmp_path: Path, run: Run) -> None:
    other = tmp_path / "other"
    other.mkdir()
    ran = run("serve", other, "--listen", f"127.0.0.1:{server.port}")
    assert ran.status == Status.FAILED
    assert f"127.0.0.1:{server.port}" in ran.err
    assert "in use" in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_an_address_that_is_not_ours(tmp_path: Path, run: Run) -> None:
    ran = run("serve", tmp_path, "--listen", "203.0.113.7:0", "--insecure")
    assert ran.status == Status.FAILED
    assert "203.0.113.7" in ran.err
    assert "Traceback" not in ran.err


def test_a_folder_that_is_served_already(server: Server, run: Run) -> None:
    ran = run("serve", server.folder, "--listen", "127.0.0.1:0")
    assert ran.status == Status.FAILED
    assert str(server.folder) in ran.err
    assert ran.err.count("\n") == 1


def test_a_read_only_folder(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "read only"
    folder.mkdir()
    folder.chmod(0o555)
    if os.geteuid() == 0:
        folder = Path("/sys")  # the one folder where root may not make anything either
    ran = run("serve", folder, "--listen", "127.0.0.1:0")
    assert ran.status == Status.FAILED
    assert ran.err.startswith(f"blockproto: {folder}: ")
    assert ran.err.count("\n") == 1


def test_state_lives_where_it_is_told(start_server: Callable[..., Server], tmp_path: Path, run: Run) -> None:
    server = start_server(None, "--state", str(tmp_path / "state"))
    (tmp_path / "a").write_bytes(b"1")
    assert run("put", tmp_path / "a", server.address + "/").status == Status.DONE
    assert sorted(path.name for path in server.folder.iterdir()) == ["a"]
    server.stop()
    assert run("check", server.folder, "--state", tmp_path / "state", "--read").status == Status.DONE


def test_everybody_may_listen_with_insecure_and_is_warned(tmp_path: Path) -> None:
    command = [*COMMAND, "serve", str(tmp_path), "--listen", "0.0.0.0:0", "--insecure"]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("listening on 0.0.0.0:")
        process.terminate()
        assert "not encrypted" in process.stderr.read()


def test_ipv6(tmp_path: Path, run: Run) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "a").write_bytes(b"1")
    command = [*COMMAND, "serve", str(tmp_path / "served"), "--listen", "[::1]:0"]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            pytest.skip(f"no IPv6 here: {process.stderr.read()}")
        assert line.startswith("listening on [::1]:")
        ran = run("put", tmp_path / "a", f"bp://[::1]:{line.rpartition(':')[2].strip()}/")
        process.terminate()
    assert ran.status == Status.DONE, ran.err


def test_check(server: Server, tmp_path: Path, run: Run) -> None:
    (tmp_path / "a").write_bytes(os.urandom(2 << 20))
    run("put", tmp_path / "a", server.address + "/")
    busy = run("check", server.folder)
    assert busy.status == Status.FAILED
    assert "in use" in busy.err or "using" in busy.err
    server.stop()
    clean = run("check", server.folder, "--read")
    assert clean.status == Status.DONE, clean.out
    assert clean.out == ""
    assert "clean" in clean.err
    stored = server.folder / "a"
    facts = stored.stat()
    with stored.open("r+b") as file:
        file.write(b"damage")
    os.utime(stored, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    damaged = run("check", server.folder, "--read")
    assert damaged.status == Status.FAILED
    assert damaged.out.startswith("a: ")
    assert "1 finding" in damaged.err


def test_check_says_what_it_could_not_compare(server: Server, tmp_path: Path, run: Run) -> None:
    """A file that was changed, is gone or came some other way has no digest: "every block read" would be no comfort."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
    run("put", tmp_path / "a", tmp_path / "b", tmp_path / "c", server.address + "/")
    server.stop()
    assert "clean, every block read" in run("check", server.folder, "--read").err
    (server.folder / "a").write_bytes(b"changed")
    (server.folder / "b").unlink()
    (server.folder / "d").write_bytes(b"copied")
    ran = run("check", server.folder, "--read")
    assert (ran.status, ran.out) == (Status.DONE, "")
    assert ran.err.splitlines() == [
        "not compared: 1 file: changed since it came through the server",
        "not compared: 1 file: not there any more",
        "not compared: 1 file: did not come through the server",
        f"{server.folder}: clean; 2 files not compared",
    ]
    assert "  d\n" in run("check", server.folder, "--read", "-v").err


def test_check_of_a_folder_that_was_never_served(tmp_path: Path, run: Run) -> None:
    """Perhaps its name is mistyped: a script must not take it for clean."""
    ran = run("check", tmp_path)
    assert ran.status == Status.FAILED
    assert "was never served" in ran.err


def test_verbose_says_who_came(tmp_path: Path, run: Run) -> None:
    command = [*COMMAND, "serve", str(tmp_path), "--listen", "127.0.0.1:0", "-v"]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = process.stdout.readline().rpartition(":")[2].strip()
        assert run("ls", f"bp://127.0.0.1:{port}/", "-vv").status == Status.DONE
        process.terminate()
        assert "DEBUG" in process.stderr.read()


def test_a_demo_with_a_surprise_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("blockproto.cli.demo.COMMAND", [sys.executable, "-c", "print('what?')"])
    assert main(["demo", "--size", "32"]) == Status.FAILED
    assert "the server did not start" in capsys.readouterr().err


def test_demo(run: Run) -> None:
    ran = run("demo", "--size", "128")
    assert ran.status == Status.DONE, ran.err
    assert "SIGKILL" in ran.out
    assert "verified" in ran.out


def test_metrics_are_not_announced_by_a_server_that_does_not_start(
    server: Server, tmp_path: Path, run: Run
) -> None:
    pytest.importorskip("prometheus_client")
    ran = run("serve", server.folder, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    assert ran.status == Status.FAILED
    assert "metrics:" not in ran.err
