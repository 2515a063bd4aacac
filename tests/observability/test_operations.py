"""What who runs a server sees and does: metrics, logs, sockets that are passed, SIGHUP, systemd's opinion of the units."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from peers import MIB, Sample, bytes_of, serving
from peers import run as run_quickly
from processes import COMMAND, TIMEOUT_S, Process, Ran, wait_for_line
from prometheus_client import generate_latest
from trio.testing import wait_all_tasks_blocked

import blockproto
from blockproto.cli.output import Status
from blockproto.identity.certificates import parse_pin
from blockproto.identity.tokens import new_token
from blockproto.observability.logs import JsonFormatter, Log, TextFormatter, tell
from blockproto.observability.metrics import PRINCIPALS_MAX, Metrics
from blockproto.observability.observer import (
    CURRENT_CONNECTION,
    ConnectionLabel,
    Entered,
    Load,
    Observer,
    ObserverPair,
)
from blockproto.protocol.session import Session, Side
from blockproto.store import Upload
from blockproto.wire import PREFACE, Opened, encode_frame

Run = Callable[..., Ran]
HELLO = Session(Side.CLIENT).greeting()
UNITS = Path(__file__).resolve().parents[2] / "packaging" / "systemd"


@contextmanager
def process(*command: object) -> Iterator[subprocess.Popen[str]]:
    with Process([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def ended(running: subprocess.Popen[str], *signums: int) -> tuple[int, str]:
    """Send the signals; the exit code and what is left of stderr."""
    for signum in signums:
        running.send_signal(signum)
    assert running.stderr is not None
    err = running.stderr.read()
    return running.wait(TIMEOUT_S), err


async def shown(metrics: Metrics) -> dict[str, float]:
    """What somebody who reads them sees, without histograms' buckets."""
    text = (await trio.to_thread.run_sync(generate_latest, metrics.registry)).decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines if "_bucket" not in name}


# ---- what a server tells ------------------------------------------------------------------------------------------


async def _lively(observer: Observer, tmp_path: Path, look: Callable[[], Any]) -> Any:
    """Serve, with one upload of three blocks, one small one, one download, one refusal and a removal."""
    (tmp_path / "served").mkdir()
    big, small = tmp_path / "big \x1b[31m.bin", tmp_path / "small"
    big.write_bytes(bytes_of(2 * MIB + 5))
    small.write_bytes(b"small")
    async with trio.open_nursery() as nursery:
        serve = lambda **status: blockproto.serve(  # noqa: E731
            tmp_path / "served", listen=("127.0.0.1", 0), observer=observer, **status
        )
        [(host, port)] = await nursery.start(lambda task_status: serve(task_status=task_status))
        async with blockproto.connect(f"bp://{host}:{port}") as client:
            await client.upload(big, name="a b.bin")
            await client.upload(small)
            await client.download("a b.bin", tmp_path / "back")
            with pytest.raises(blockproto.BlockprotoError):
                await client.remove("not there")
            await client.remove("small")
            seen = await look()
        nursery.cancel_scope.cancel()
    return seen


async def test_metrics_count_what_happened(tmp_path: Path) -> None:
    metrics = Metrics()
    seen = await _lively(metrics, tmp_path, lambda: shown(metrics))
    expected = {
        'blockproto_connections{kind="native"}': 1,
        'blockproto_connections_came_total{kind="native"}': 1,
        "blockproto_open_uploads": 0,
        "blockproto_queued_works": 0,
        "blockproto_disk_slow": seen["blockproto_disk_slow"],
        'blockproto_uploads_total{how="begun"}': 1,
        "blockproto_files_committed_total": 2,
        "blockproto_blocks_durable_total": 4,
        "blockproto_block_bytes_durable_total": 2 * MIB + 5 + 5,
        "blockproto_downloads_total": 1,
        'blockproto_refusals_total{code="UNKNOWN_FILE"}': 1,
    }
    assert {name: seen.get(name) for name in expected} == expected
    assert seen["blockproto_acks_total"] >= 1
    assert seen["blockproto_batch_seconds_count"] == seen["blockproto_batch_works_count"] >= 3
    assert seen["blockproto_received_bytes_total"] > 2 * MIB + 10
    assert seen["blockproto_sent_bytes_total"] > 2 * MIB + 5
    assert not [name for name in seen if "a b.bin" in name or "small" in name]


async def test_gauges_are_gone_with_the_server(tmp_path: Path) -> None:
    metrics = Metrics()

    async def nothing() -> None:
        return None

    def life() -> None:
        trio.run(_lively, metrics, tmp_path, nothing)

    await trio.to_thread.run_sync(life)
    seen = await shown(metrics)
    assert seen["blockproto_files_committed_total"] == 2
    assert "blockproto_open_uploads" not in seen


async def test_principals_are_ids_and_only_as_long_as_they_are_few() -> None:
    metrics = Metrics()
    used: dict[bytes, int] = {bytes([7]) * 16: 12}
    metrics.serving(lambda: Load({"native": 0}, 3, 4, True, used))
    seen = await shown(metrics)
    assert seen['blockproto_principal_used_bytes{principal="' + "07" * 16 + '"}'] == 12
    assert (
        seen["blockproto_open_uploads"],
        seen["blockproto_queued_works"],
        seen["blockproto_disk_slow"],
    ) == (
        3,
        4,
        1,
    )
    used |= {number.to_bytes(16, "big"): 1 for number in range(PRINCIPALS_MAX)}
    assert not [name for name in await shown(metrics) if "principal" in name]


async def test_logs_say_what_happened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "blockproto")
    caplog.handler.setFormatter(JsonFormatter())
    metrics = Metrics()
    await _lively(ObserverPair(Log(), metrics), tmp_path, lambda: shown(metrics))
    said = [json.loads(line) for line in caplog.text.splitlines()]
    by_event = {line["event"]: line for line in said if line["event"] != "upload committed"}
    committed = [line for line in said if line["event"] == "upload committed"]
    begun, download = by_event["upload begun"], by_event["download"]
    assert begun["name"] == "a b.bin"
    assert begun["filesize"] == 2 * MIB + 5
    assert begun["connection"] == download["connection"] == 1
    assert begun["file"] == download["file"] == committed[0]["file"]
    assert [line["name"] for line in committed] == ["a b.bin", "small"]
    assert by_event["removed"]["name"] == "small"
    assert by_event["refused"]["code"] == "UNKNOWN_FILE"
    assert by_event["connection"]["kind"] == "native"
    assert begun["peer"].startswith("127.0.0.1:")
    assert begun["level"] == "info"


@pytest.mark.trio(run=run_quickly)
async def test_it_is_told_how_streams_come_to_an_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Heard(Observer):
        def entered(self, upload: Upload, how: Entered) -> None:
            heard.append(how)

    sample = Sample(bytes_of(2 * MIB + 5))
    async with serving() as served:
        monkeypatch.setattr(served.server.engine.uploads, "_observer", Heard())
        peers = [await served.peer() for _ in range(4)]
        for peer, attempt in zip(peers, (1, 1, 2, 3), strict=True):
            if attempt == 3:  # nobody sends it any more
                await peers[2].stream.aclose()
                await wait_all_tasks_blocked()
            await peer.say(1, sample.open(attempt))
            await peer.expect(Opened, 1)
            if not heard[1:]:
                await peer.say(1, *sample.block(0))
                await peer.wait_acked(0)
    assert heard == ["begun", "joined", "taken over", "resumed"]


def test_a_line_shows_no_name_as_it_is() -> None:
    record = logging.LogRecord("blockproto", logging.INFO, __file__, 1, "upload begun", None, None)
    record.facts = {"name": "a=b c", "filesize": None}
    token = CURRENT_CONNECTION.set(ConnectionLabel(7, "[::1]:9", "eve\x1b[2J"))
    try:
        text, line = TextFormatter().format(record), json.loads(JsonFormatter().format(record))
    finally:
        CURRENT_CONNECTION.reset(token)
    assert text.endswith(
        'upload begun  connection=7 peer=[::1]:9 principal=eve\\x1b[2J name="a=b c" filesize=None'
    )
    assert line["principal"] == "eve\\x1b[2J"
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "why" in TextFormatter().format(record)
    assert "why" in json.loads(JsonFormatter().format(record))["traceback"]


def test_what_is_not_logged_is_not_made(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "blockproto")
    tell(logging.INFO, "quiet")
    assert not caplog.records


# ---- the command --------------------------------------------------------------------------------------------------


def test_metrics_and_json_lines_of_a_process(tmp_path: Path, run: Run) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "a").write_bytes(b"1")
    options = ("--metrics", "127.0.0.1:0", "--log-format", "json", "--log-level", "info")
    with process(*COMMAND, "serve", tmp_path / "served", "--listen", "127.0.0.1:0", *options) as running:
        port = wait_for_line(running, TIMEOUT_S).rpartition(":")[2]
        assert running.stderr is not None
        url = running.stderr.readline().split()[1]
        assert run("put", tmp_path / "a", f"bp://127.0.0.1:{port}/").status == Status.DONE
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            text = answer.read().decode()
        status, err = ended(running, signal.SIGTERM)
    assert "blockproto_files_committed_total 1.0" in text
    assert status == Status.DONE
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert events == ["listening", "upload committed", "stopping", "stopped"]


def test_who_is_not_let_in_is_named_without_the_credential(tmp_path: Path, run: Run) -> None:
    (tmp_path / "served").mkdir()
    assert run("token", "add", "alice", "--state", tmp_path / "served" / ".blockproto").status == Status.DONE
    wrong = tmp_path / "wrong"
    wrong.write_text(new_token())
    with process(
        *COMMAND, "serve", tmp_path / "served", "--listen", "127.0.0.1:0", "--log-format", "json"
    ) as running:
        port = wait_for_line(running, TIMEOUT_S).rpartition(":")[2]
        assert run("ls", f"bp://127.0.0.1:{port}/", "--token-file", wrong).status == Status.FAILED
        _, err = ended(running, signal.SIGTERM)
    lines = [json.loads(line) for line in err.splitlines()]
    assert {(line["event"], line["level"], line["code"]) for line in lines} == {
        ("not let in", "warning", "UNAUTHENTICATED")
    }
    assert lines[0]["peer"].startswith("127.0.0.1:")
    assert wrong.read_text()[:10] not in err


def test_metrics_are_for_this_machine(tmp_path: Path, run: Run) -> None:
    ran = run("serve", tmp_path, "--listen", "127.0.0.1:0", "--metrics", "0.0.0.0:0")
    assert ran.status == Status.USAGE
    assert "--insecure" in ran.err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = run("serve", tmp_path, "--listen", "127.0.0.1:0", "--metrics", where)
    assert ran.status == Status.FAILED
    assert where in ran.err
    assert ran.err.count("\n") == 1


def test_sighup_does_not_end_a_server_that_is_stopping(tmp_path: Path) -> None:
    with process(*COMMAND, "serve", tmp_path, "--listen", "127.0.0.1:0") as running:
        port = int(wait_for_line(running, TIMEOUT_S).rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as peer:
            peer.sendall(HELLO)
            greeting = peer.recv(1000)
            assert greeting.startswith(PREFACE)
            peer.sendall(
                encode_frame(1, Sample(bytes_of(2 * MIB)).open(1))
            )  # it waits for this transfer's end
            assert peer.recv(1000)
            running.send_signal(signal.SIGTERM)
            assert peer.recv(1000), "GOAWAY"
            running.send_signal(signal.SIGHUP)
        status, err = ended(running)
    assert status == Status.DONE, err


# ---- sockets that are passed --------------------------------------------------------------------------------------

PASSING = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + int(sys.argv[2]))}
os.execv(sys.executable, [sys.executable, "-m", "blockproto", "serve", *sys.argv[3:]])
"""


@contextmanager
def passed_to(sock: socket.socket, *options: object, for_another: int = 0) -> Iterator[subprocess.Popen[str]]:
    """``serve`` as a service manager starts it, with ``sock`` as descriptor 3."""
    command = [sys.executable, "-c", PASSING, str(sock.fileno()), str(for_another), *map(str, options)]
    with Process(
        command, pass_fds=[sock.fileno()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def test_a_passed_socket_is_used(tmp_path: Path, run: Run) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "a").write_bytes(b"1")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        address = f"bp://127.0.0.1:{port}/"
        with passed_to(sock, tmp_path / "served") as running:
            ran = run("put", tmp_path / "a", address)  # perhaps before it listens: the port is there already
            assert ran.status == Status.DONE, ran.err
            assert wait_for_line(running, TIMEOUT_S) == f"listening on 127.0.0.1:{port}"
            assert ended(running, signal.SIGTERM)[0] == Status.DONE
    assert sorted(path.name for path in (tmp_path / "served").iterdir()) == [".blockproto", "a"]


def test_a_passed_socket_that_others_reach_wants_tls_and_a_token(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a").write_bytes(b"1")
    served = tmp_path / "served"
    served.mkdir()
    with (
        socket.create_server(("0.0.0.0", 0)) as sock,
        passed_to(sock, served) as running,
    ):
        assert wait_for_line(running, TIMEOUT_S).startswith("listening on 0.0.0.0:")
        assert running.stderr is not None
        pin = running.stderr.readline().split()[1]
        assert len(parse_pin(pin)) == 32
        address = f"127.0.0.1:{sock.getsockname()[1]}/"
        assert run("put", tmp_path / "a", f"bp://{address}").status == Status.FAILED
        token = served / ".blockproto" / "owner.token"
        ran = run("put", tmp_path / "a", f"bps://{address}", "--pin", pin, "--token-file", token)
        assert ran.status == Status.DONE, ran.err
        assert ended(running, signal.SIGTERM)[0] == Status.DONE


def test_sockets_and_listen_exclude_each_other(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        passed_to(sock, tmp_path, "--listen", "127.0.0.1:0") as running,
    ):
        status, err = ended(running)
    assert status == Status.USAGE
    assert "leave out --listen" in err


@pytest.mark.parametrize(
    ("family", "kind"), [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)]
)
def test_what_does_not_listen_is_refused(family: int, kind: int, tmp_path: Path) -> None:
    with socket.socket(family, kind) as sock, passed_to(sock, tmp_path) as running:
        status, err = ended(running)
    assert status == Status.FAILED
    assert "descriptor 3" in err
    assert err.count("\n") == 1


def test_sockets_for_another_process_are_left_alone(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        passed_to(sock, tmp_path, "--listen", "127.0.0.1:0", for_another=1) as running,
    ):
        line = wait_for_line(running, TIMEOUT_S)
        assert line.startswith("listening on 127.0.0.1:")
        assert not line.endswith(f":{sock.getsockname()[1]}")
        assert ended(running, signal.SIGTERM)[0] == Status.DONE


# ---- the units ----------------------------------------------------------------------------------------------------


def _analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here: apt install systemd")
    return subprocess.run([analyze, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT_S)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for unit in UNITS.glob("blockproto.*"):  # the command is where it is installed, which verify looks for
        text = unit.read_text().replace("/usr/bin/blockproto", sys.executable)
        (tmp_path / unit.name).write_text(text)
    ran = _analyze("verify", "--man=no", *sorted(tmp_path.iterdir()))
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_service_is_locked_in() -> None:
    ran = _analyze("security", "--offline=true", "--threshold=15", UNITS / "blockproto.service")
    assert ran.returncode == 0, ran.stdout
