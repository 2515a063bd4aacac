"""The dialect ``struct82`` against real servers: plain sockets, several threads, two hosts, SIGKILL in the middle."""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from partials import partials_of
from peers import bytes_of
from processes import TIMEOUT_S, Ran, Server, wait_until
from struct82_peers import LAYOUTS, MIB, Reply, Sent

Start = Callable[..., Server]
Run = Callable[..., Ran]
RSS_KIB_MAX = 64 << 10


class Program:
    """A sender on a plain socket."""

    def __init__(self, port: int, file: Sent, host: str = "127.0.0.1") -> None:
        self.file = file
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S, (host, 0))

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def receive(self, length: int) -> bytes:
        raw = b""
        while len(raw) < length:
            some = self.socket.recv(length - len(raw))
            if not some:
                raise ConnectionResetError
            raw += some
        return raw

    def ask(self) -> tuple[Reply, set[int]]:
        self.socket.sendall(self.file.header(-1))
        reply = self.file.layout.reply(self.receive(48))
        bitmap = self.receive(self.file.blocknum // 8 + 1)
        if reply.complete:
            self.receive(256)
        return reply, {no for no in self.file.numbers if bitmap[no // 8] & (1 << no % 8)}

    def put(self, number: int) -> Reply:
        self.socket.sendall(self.file.block(number))
        return self.file.layout.reply(self.receive(48))


def put_blocks(port: int, file: Sent, numbers: Iterable[int], acknowledged: set[int]) -> None:
    """Send blocks over one connection until the server is gone, noting what it acknowledged."""
    try:
        with Program(port, file) as program:
            program.ask()
            for number in numbers:
                reply = program.put(number)
                assert (reply.code, reply.blockno, reply.digest) == (0, number, file.digest(number))
                acknowledged.add(number)
    except ConnectionError:
        pass


@pytest.mark.clause("BP1-S82-017", "BP1-S82-021", "BP1-DIA-008")
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kill_after", [1, 15])
def test_what_was_acknowledged_is_never_asked_for_again_after_a_kill(
    start_server: Start, run: Run, first: int, kill_after: int
) -> None:
    file = Sent(bytes_of(24 * MIB + 77), first=first, layout=LAYOUTS["aligned big"])
    order = list(file.numbers)
    random.Random(kill_after).shuffle(order)
    server = start_server(None, "--dialect", "struct82")
    acknowledged: set[int] = set()
    with ThreadPoolExecutor(5) as threads:
        # the last block waits for the numbering, so it goes alone: nobody queues behind it
        ordered = [number for number in order if number != file.numbers[-1]]
        for thread in range(5):
            threads.submit(put_blocks, server.port, file, ordered[thread::5], acknowledged)
        wait_until(lambda: len(acknowledged) >= kill_after)
        server.kill()
    told = set(acknowledged)
    assert len(told) >= kill_after
    assert not (server.folder / "film.bin").exists()
    assert run("check", server.folder, "--read").status == 0
    server = start_server(server.folder, "--dialect", "struct82")
    with Program(server.port, file) as program:
        _, held = program.ask()
        assert held >= told
        for number in sorted(set(file.numbers) - held, key=lambda number: (number != first, number)):
            reply = program.put(number)
        assert reply.complete == 1
    assert (server.folder / "film.bin").read_bytes() == file.content
    assert server.stop() == 0
    assert run("check", server.folder, "--read").status == 0


@pytest.mark.clause("BP1-S82-030", "BP1-S82-024")
def test_five_connections_that_never_read_and_close_at_once(start_server: Start) -> None:
    file = Sent(bytes_of(20 * MIB + 1), layout=LAYOUTS["packed big"])
    server = start_server(None, "--dialect", "struct82")

    def send(numbers: range) -> None:
        with Program(server.port, file) as program:
            for number in numbers:
                program.socket.sendall(file.block(number))

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(send, [file.numbers[thread::5] for thread in range(5)]))
    wait_until((server.folder / "film.bin").exists)
    assert (server.folder / "film.bin").read_bytes() == file.content


@pytest.mark.clause("BP1-S82-012", "BP1-DIA-009")
def test_two_hosts_with_the_same_name_and_size(start_server: Start) -> None:
    one, two = Sent(bytes_of(MIB + 5, 1)), Sent(bytes_of(MIB + 5, 2))
    server = start_server(None, "--dialect", "struct82")
    with Program(server.port, one, "127.0.0.2") as first, Program(server.port, two, "127.0.0.3") as second:
        first.ask(), second.ask()
        assert (first.put(0).held, second.put(0).held) == (1, 1)
        assert (first.put(1).complete, second.put(1).complete) == (1, 1)
    stored = {path.name: path.read_bytes() for path in server.folder.glob("*.bin")}
    assert stored == {"film.bin": one.content, "film (1).bin": two.content}


def test_hostile_names_stay_in_the_folder(start_server: Start, tmp_path: Path) -> None:
    server = start_server(None, "--dialect", "struct82")
    for name in (b"../../up.txt", b"/tmp/up.txt", b"..\\..\\up.txt", b"a/../../up.txt"):
        with Program(server.port, Sent(name * 3, name=name)) as program:
            program.socket.sendall(program.file.block(0))
            program.socket.shutdown(socket.SHUT_WR)
            assert program.socket.recv(1) == b""
    names = sorted(path.name for path in server.folder.iterdir() if path.name != ".blockproto")
    assert names == ["up (1).txt", "up (2).txt", "up (3).txt", "up.txt"]
    assert not (tmp_path / "up.txt").exists()


def test_memory_is_bounded_whatever_the_size_of_the_file(start_server: Start) -> None:
    file = Sent(bytes_of(200 * MIB))
    server = start_server(None, "--dialect", "struct82")
    acknowledged: set[int] = set()
    with ThreadPoolExecutor(5) as threads:
        for thread in range(5):
            threads.submit(put_blocks, server.port, file, file.numbers[thread::5], acknowledged)
    assert acknowledged == set(file.numbers)
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    assert peak <= RSS_KIB_MAX, f"{peak} KiB"


def test_native_senders_and_this_one_at_the_same_time(start_server: Start, run: Run, tmp_path: Path) -> None:
    file = Sent(bytes_of(3 * MIB + 1))
    server = start_server(None, "--dialect", "struct82", "--dialect", "sourceid")
    (tmp_path / "native.bin").write_bytes(b"native")
    with Program(server.port, file) as program:
        program.ask()
        program.put(0)
        assert run("put", tmp_path / "native.bin", f"{server.address}/").status == 0
        unfinished = run("uploads", server.address, "--json").objects
        assert [(one["filename"], one["held_count"]) for one in unfinished] == [("film.bin", 1)]
        for number in (1, 2, 3):
            program.put(number)
    assert (server.folder / "film.bin").read_bytes() == file.content
    assert server.stop(signal.SIGTERM) == 0


@pytest.mark.clause("BP1-S82-020", "BP1-S82-030")
def test_what_lies_on_the_way_when_a_program_closes_arrives(start_server: Start) -> None:
    """A reply that it does not read would make its close a reset, and lose what the server had not taken yet."""
    file = Sent(bytes_of(3 * MIB))
    server = start_server(None, "--dialect", "struct82")
    with Program(server.port, file) as program:
        program.socket.sendall(file.block(0))
        with Program(server.port, file) as other:
            wait_until(lambda: other.ask()[1] == {0})
        server.process.send_signal(signal.SIGSTOP)
        program.socket.sendall(file.block(1) + file.block(2))
    server.process.send_signal(signal.SIGCONT)
    wait_until((server.folder / "film.bin").exists)
    assert (server.folder / "film.bin").read_bytes() == file.content


# ---- the command ----------------------------------------------------------------------------------------------


def test_the_command_sends_resumes_and_sends_nothing_twice(
    start_server: Start, run: Run, tmp_path: Path
) -> None:
    content = bytes_of(9 * MIB + 11)
    (tmp_path / "film.bin").write_bytes(content)
    server = start_server(None, "--dialect", "struct82")
    put = ("put", tmp_path / "film.bin", f"{server.address}/", "--dialect", "struct82", "--json")
    first, again = run(*put), run(*put)
    assert (first.status, again.status) == (0, 0), first.err + again.err
    assert (server.folder / "film.bin").read_bytes() == content
    (sent,), (nothing,) = first.objects, again.objects
    assert (sent["payload_bytes_sent"], sent["stored_as"], sent["confirmed"]) == (
        len(content),
        "film.bin",
        True,
    )
    assert (nothing["payload_bytes_sent"], nothing["resumed"]) == (0, True)
    assert "already there" in again.err


def test_the_command_goes_on_after_the_server_was_killed(
    start_server: Start, run: Run, tmp_path: Path
) -> None:
    content = bytes_of(128 * MIB)
    (tmp_path / "film.bin").write_bytes(content)
    server = start_server(None, "--dialect", "struct82")
    put = ("put", tmp_path / "film.bin", f"{server.address}/", "--dialect", "struct82", "--json")
    with ThreadPoolExecutor(1) as threads:
        going = threads.submit(run, *put, "--connections", 3)
        wait_until(lambda: any(partials_of(server.folder / ".blockproto").iterdir()))
        server.kill()
        assert not (server.folder / "film.bin").exists()
        start_server(server.folder, "--dialect", "struct82", port=server.port)
        ran = going.result(TIMEOUT_S)
    assert ran.status == 0, ran.err
    assert (server.folder / "film.bin").read_bytes() == content


@pytest.mark.parametrize(
    ("name", "length", "why"),
    [("empty", 0, "an empty file cannot be sent"), ("n" * 51, 1, "51 bytes, and 50 fit")],
)
def test_the_command_says_what_the_dialect_cannot_do(
    start_server: Start, run: Run, tmp_path: Path, name: str, length: int, why: str
) -> None:
    (tmp_path / name).write_bytes(bytes(length))
    server = start_server(None, "--dialect", "struct82")
    ran = run("put", tmp_path / name, f"{server.address}/", "--dialect", "struct82")
    assert ran.status == 1
    assert why in ran.err


def test_a_server_without_the_dialect_is_named(server: Server, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    ran = run("put", tmp_path / "a", f"{server.address}/", "--dialect", "struct82")
    assert ran.status in (1, 3)  # it may say a line of text before it closes
    assert "is it served with --dialect struct82?" in ran.err
