"""Old clients against the command as real processes: kills, restarts, resets, and everybody on one port."""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from old_clients import TIMEOUT_S, OldClient, rest_of
from peers import MIB, bytes_of
from processes import Ran, Server, wait_until, wait_until_held

Start = Callable[..., Server]
Run = Callable[..., Ran]


@pytest.fixture
def old(start_server: Start) -> Server:
    """A running server that answers old clients."""
    return start_server(None, "--dialect", "sourceid")


def wait_for_file(path: Path, content: bytes) -> None:
    wait_until(path.exists)
    assert path.read_bytes() == content


@pytest.mark.clause("BP1-SID-008", "BP1-SID-017")
def test_every_byte_arrives_though_the_client_closes_right_after_its_last(old: Server) -> None:
    """A second line from the server would make this close a reset, and lose the end on the way."""
    for length in (0, 1, 70_000, MIB, 3_000_000):
        client = OldClient(old.port, b"film %d" % length, bytes_of(length))
        client.send()
        wait_for_file(old.folder / f"film {length}", client.content)
        assert 1 <= int(client.sourceid) < 1 << 63


@pytest.mark.clause("BP1-SID-009", "BP1-DIA-008")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_an_id_is_alive_after_the_server_ended(start_server: Start, signum: int) -> None:
    server = start_server(None, "--dialect", "sourceid")
    client = OldClient(server.port, b"film.mp4", bytes_of(5 * MIB + 1234))
    with client.ask() as connection:
        connection.sendall(client.content[: 3 * MIB + 500_000])
        trio.run(wait_until_held, server.address, 3)
        server.stop(signum)
    client.port = start_server(server.folder, "--dialect", "sourceid").port
    before = client.sourceid
    client.ask().close()
    assert client.sourceid == before
    assert client.position >= 3 * MIB
    if signum == signal.SIGTERM:
        assert client.position == 3 * MIB + 500_000
    client.send()
    wait_for_file(server.folder / "film.mp4", client.content)


@pytest.mark.clause("BP1-SID-013")
def test_a_finished_file_is_not_stored_twice(old: Server) -> None:
    client = OldClient(old.port, b"a.bin", bytes_of(MIB + 1))
    client.send()
    wait_for_file(old.folder / "a.bin", client.content)
    client.send()
    assert client.position == len(client.content)
    assert sorted(path.name for path in old.folder.iterdir()) == [".blockproto", "a.bin"]


@pytest.mark.clause("BP1-SID-014")
def test_the_newer_of_two_connections_wins(old: Server) -> None:
    client = OldClient(old.port, b"a.bin", bytes_of(2 * MIB))
    with client.ask() as older:
        older.sendall(client.content[:100_000])
        with client.ask() as newer:
            assert rest_of_reset(older) == b""
            newer.sendall(client.content[client.position :])
    wait_for_file(old.folder / "a.bin", client.content)


def rest_of_reset(connection: socket.socket) -> bytes:
    try:
        return rest_of(connection)
    except ConnectionResetError:
        return b""


@pytest.mark.clause("BP1-SID-003", "BP1-SID-006")
def test_the_ends_and_names_of_other_hands(old: Server) -> None:
    for number, end in enumerate((b"\n", b"%", b"/r/n")):
        name = f"照片 {number}.jpg"
        client = OldClient(old.port, name.encode("gbk"), bytes_of(70_000), "99", end)
        client.send()
        wait_for_file(old.folder / name, client.content)


@pytest.mark.clause("BP1-SID-015", "BP1-SID-016")
def test_a_refusal_arrives_whole_though_bytes_are_on_their_way(old: Server) -> None:
    with socket.create_connection(("127.0.0.1", old.port), TIMEOUT_S) as connection:
        connection.sendall(b"Content-Length=x;filename=a;sourceid=\r\n" + bytes(300_000))
        assert rest_of(connection).startswith(b"error=1;name=MALFORMED;text=Content-Length is 'x'")
    assert [path.name for path in old.folder.iterdir()] == [".blockproto"]


@pytest.mark.clause("BP1-DIA-006")
def test_everybody_is_served_at_once_on_one_port(start_server: Start, tmp_path: Path, run: Run) -> None:
    server = start_server(None, "--dialect", "sourceid", "--dialect", "struct82")
    contents = {f"old {number}": bytes_of(700_000 + number) for number in range(8)}
    contents |= {f"block {number}": bytes_of(2 * MIB + number) for number in range(1, 9)}
    native = tmp_path / "native.bin"
    native.write_bytes(bytes_of(20 * MIB))
    with ThreadPoolExecutor(16) as pool:
        sent = [
            pool.submit(OldClient(server.port, name.encode(), content).send)
            if name.startswith("old")
            else pool.submit(send_blocks, server.port, name.encode(), content)
            for name, content in contents.items()
        ]
        assert run("put", native, server.address).status == 0
        for one in sent:
            one.result()
    for name, content in contents.items():
        wait_for_file(server.folder / name, content)
    assert (server.folder / "native.bin").read_bytes() == native.read_bytes()


def send_blocks(port: int, name: bytes, content: bytes) -> None:
    """What a C program of the other dialect does: a header before each block, aligned, in the machine's byte order."""
    blocknum = -(-len(content) // MIB)
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        for blockno in range(blocknum):
            header = struct.pack("<50s20s2xiii", name, b"bin", len(content), blocknum, blockno)
            connection.sendall(header + content[blockno * MIB : (blockno + 1) * MIB])


@pytest.mark.clause("BP1-DIA-015")
def test_where_others_reach_the_port_the_dialect_needs_consent(tmp_path: Path, run: Run) -> None:
    refused = run("serve", tmp_path, "--listen", "0.0.0.0:0", "--dialect", "sourceid")
    assert refused.status == 2
    assert "--dialect sourceid can neither encrypt nor ask who is there" in refused.err
    assert "--insecure" in refused.err


def test_a_dialect_that_is_not_known_is_named_with_those_that_are(tmp_path: Path, run: Run) -> None:
    refused = run("serve", tmp_path, "--dialect", "ftp")
    assert refused.status == 2
    assert "'ftp'" in refused.err
    assert "sourceid" in refused.err
