"""``blockproto chaos`` as a process between a real client and a real server."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peers import bytes_of
from processes import COMMAND, TIMEOUT_S, Chaos, Process, Ran, Server, wait_for_line

from blockproto.cli import main
from blockproto.cli.output import Status

Run = Callable[..., Ran]
MIB = 1 << 20


@pytest.fixture
def chaos(server: Server) -> Iterator[Callable[..., Chaos]]:
    started: list[Chaos] = []

    def start(*options: str, target: int = server.port) -> Chaos:
        started.append(Chaos(target, *options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_a_line_that_breaks_twice_and_what_it_tells(
    chaos: Callable[..., Chaos], server: Server, tmp_path: Path, run: Run
) -> None:
    content = bytes_of(6 * MIB)
    (tmp_path / "film").write_bytes(content)
    line = chaos("--reset-after", "1MiB-2MiB", "--first", "2", "--seed", "7", "--rate", "400mbit")
    ran = run("put", tmp_path / "film", line.address, "--json")
    assert ran.status == Status.DONE, ran.err
    assert (server.folder / "film").read_bytes() == content
    *told, total = line.stop()
    events = [(one["connection"], one["event"]) for one in told]
    assert [event for event in events if event[1] in {"opened", "reset"}] == [
        (1, "opened"),
        (1, "reset"),
        (2, "opened"),
        (2, "reset"),
        (3, "opened"),
    ]
    for one in told:
        if one["event"] == "reset":
            assert MIB <= one["up_bytes"] + one["down_bytes"] <= 2 * MIB
    assert (total["event"], total["connections"], total["resets"]) == ("total", 3, 2)
    (receipt,) = ran.objects
    assert receipt["payload_bytes_sent"] >= total["up_bytes"] - 10_000
    assert total["up_bytes"] >= len(content)


def test_the_same_seed_breaks_at_the_same_byte(chaos: Callable[..., Chaos], tmp_path: Path, run: Run) -> None:
    (tmp_path / "film").write_bytes(bytes_of(3 * MIB))
    ended_at = []
    for name in ("one", "two"):
        line = chaos("--reset-after", "1MB-2MB", "--first", "1", "--seed", "3")
        assert run("put", tmp_path / "film", line.address, "--as", name).status == Status.DONE
        ended_at += [one["up_bytes"] + one["down_bytes"] for one in line.stop() if one["event"] == "reset"]
    assert len(ended_at) == 2
    assert ended_at[0] == ended_at[1]


def test_bit_by_bit_and_one_byte_at_a_time(
    chaos: Callable[..., Chaos], server: Server, tmp_path: Path, run: Run
) -> None:
    """A flipped bit in a head ends the connection, one in a payload is sent again; slices change nothing."""
    content = bytes_of(2 * MIB)
    (tmp_path / "film").write_bytes(content)
    line = chaos("--flip-every", "4MB", "--seed", "5", "--slice", "7001B")
    for _ in range(5):
        ran = run("put", tmp_path / "film", line.address)
        if ran.status == Status.DONE:
            break
    assert (server.folder / "film").read_bytes() == content
    (tmp_path / "small").write_bytes(b"one byte at a time")
    assert run("put", tmp_path / "small", chaos("--slice", "1B").address).status == Status.DONE


def test_a_black_hole_that_heals(
    chaos: Callable[..., Chaos], server: Server, tmp_path: Path, run: Run
) -> None:
    content = bytes_of(2 * MIB)
    (tmp_path / "film").write_bytes(content)
    line = chaos("--black-hole-after", "1MB", "--heal-after", "300ms")
    ran = run("put", tmp_path / "film", line.address, "--json")
    assert ran.status == Status.DONE, ran.err
    (receipt,) = ran.objects
    assert receipt["payload_bytes_sent"] == len(content)
    assert receipt["elapsed_s"] >= 0.3
    events = [one["event"] for one in line.stop()]
    assert events[:3] == ["opened", "black hole", "healed"]
    assert events[-1] == "total"


def test_nobody_behind_it(chaos: Callable[..., Chaos], tmp_path: Path, run: Run) -> None:
    """The port stays bound and nobody listens there: one that a server has left may be anybody's a moment later."""
    (tmp_path / "a").write_bytes(b"1")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        line = chaos(target=reserved.getsockname()[1])
        ran = run("put", tmp_path / "a", line.address, "--retry-for", "0s")
        told = line.stop()
    assert ran.status == Status.UNREACHABLE
    assert told[0]["event"] == "refused"
    assert told[-1]["refused"] >= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate", "fast"], "write 8mbit or 256kbit"),
        (["--rate", "0mbit"], "above 0"),
        (["--delay", "100"], "write 100ms or 20s"),
        (["--reset-after", "5MB-1MB"], "smaller number first"),
        (["--reset-after", "1MB-5s"], "span"),
        (["--reset-after", "1MB", "--close-after", "1MB"], "ends in one way"),
        (["--heal-after", "1s"], "--black-hole-after"),
        (["--listen", "0.0.0.0:0"], "--insecure"),
        (["--to", "127.0.0.1:0"], "the port that the server printed"),
        (["--to", "nowhere"], "port"),
    ],
)
def test_what_people_get_wrong_is_one_sentence(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chaos", *options]) == Status.USAGE
    assert said in capsys.readouterr().err


def test_the_help_shows_uses_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "--help"]) == Status.DONE
    assert "\n  A train in a tunnel: --rate 8mbit --delay 100ms" in capsys.readouterr().out


def test_a_port_that_is_taken(server: Server, run: Run) -> None:
    ran = run("chaos", "--listen", f"127.0.0.1:{server.port}")
    assert ran.status == Status.FAILED
    assert f"--listen 127.0.0.1:{server.port}: " in ran.err
    assert "choose an address of this machine and a port that is free" in ran.err
    assert ran.err.count("\n") == 1


def test_people_are_told_on_stderr(server: Server, tmp_path: Path, run: Run) -> None:
    process = Process(
        [*COMMAND, "chaos", "--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{server.port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = "bp://" + wait_for_line(process, TIMEOUT_S).removeprefix("listening on ")
        (tmp_path / "a").write_bytes(b"1")
        assert run("put", tmp_path / "a", address + "/").status == Status.DONE
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, out) == (Status.DONE, "")
        assert "connection 1 (127.0.0.1:" in err
        assert err.splitlines()[-1].startswith("1 connection, ")
    finally:
        process.kill()
        process.communicate()
