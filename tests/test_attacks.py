"""Attacks from outside: slices of the campaigns (``make attack`` runs them whole), secrets, and somebody on the way."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from campaigns import attack_bounds, attack_crowd, attack_names, attack_sessions, odd
from campaigns.tools import Place
from processes import COMMAND, Process, Server

import blockproto
from blockproto.cli.output import Status
from blockproto.client_side.trust import Trust
from blockproto.errors import BlockprotoError, ConnectionLost, Unauthenticated
from blockproto.identity.certificates import pin_of_file
from blockproto.identity.server_auth import OWNER_TOKEN_NAME
from blockproto.identity.tokens import new_token
from blockproto.wire import HEADER_LENGTH, PREFACE, Hello, decode_head, decode_header, encode_frame

Run = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


# ---- slices of the campaigns


@pytest.mark.long
@pytest.mark.clause("BP1-LIM-004", "BP1-AUT-010")
def test_a_crowd_of_strangers_does_not_keep_an_honest_client_waiting(place: Place) -> None:
    figures = attack_crowd.run(place, strangers=300, what="dribble", honest_s=5.0)
    assert figures["honest_times"] > 50


@pytest.mark.clause("BP1-NAM-006")
def test_no_name_and_no_link_leads_out(place: Place) -> None:
    figures = attack_names.run(place, swaps=3000, every=3001, seed=1, share=6)
    assert figures["names"] > 500


@pytest.mark.clause("BP1-ERR-010")
def test_an_odd_folder_and_odd_conversations_end_no_server(place: Place) -> None:
    """``make odd`` in short: a real process, and from half of the rounds on the system starts no more threads."""
    assert odd.with_a_process(place, rounds=60, seed=3)["conversations"] == 60


def test_broken_conversations_are_forgotten(place: Place) -> None:
    assert attack_sessions.run(place, sessions=1000, seed=1)["sessions"] == 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["digests", "no_credit", "descriptors", "sparse", "listing", "metrics", "unknown_ids"]
)
def test_what_one_peer_can_take_is_bounded(place: Place, what: str) -> None:
    """A twentieth of each attack; the machine may be busy with other things, so time is judged by the whole campaign."""
    figures = attack_bounds.run(place, [what], scale=0.05, seconds=1.0, patience=40.0)
    assert figures[what]["honest"] > 0


# ---- no descriptor left


@pytest.mark.clause("BP1-LIM-006")
def test_without_descriptors_the_server_goes_on_and_accepts_again_later(tmp_path: Path, run: Run) -> None:
    """Peers that were seen in take every descriptor there is; those that are there are served, and later ones too."""
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit (util-linux) is not installed")
    server = FewFiles(tmp_path / "served")
    try:
        (tmp_path / "note.txt").write_bytes(b"hello")
        with crowd_of(server.port, 100):
            assert server.process.poll() is None
        assert run("put", tmp_path / "note.txt", server.address).status == Status.DONE
        assert server.stop() == 0
    finally:
        server.kill()


class FewFiles(Server):
    """A server that may open 64 files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        command = COMMAND.copy()
        COMMAND[:0] = ["prlimit", "--nofile=64:64"]
        try:
            super().__init__(folder)
        finally:
            COMMAND[:] = command


@contextmanager
def crowd_of(port: int, number: int) -> Iterator[None]:
    """So many connections that have greeted; the last of them wait to be accepted."""
    with ExitStack() as stack:
        socks = []
        for _ in range(number):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(PREFACE + encode_frame(0, Hello(agent="seen in")))
            socks.append(sock)
        for sock in socks[:20]:
            assert sock.recv(8) == PREFACE
        yield


# ---- secrets


class Open(NamedTuple):
    """A server for other machines, all it says, and its first token."""

    folder: Path
    port: int
    token: Path
    said: Path


@pytest.fixture
def open_to_all(tmp_path: Path) -> Iterator[Open]:
    folder, said = tmp_path / "served", tmp_path / "server.log"
    folder.mkdir()
    command = [*COMMAND, "-v", "serve", str(folder), "--listen", "0.0.0.0:0"]
    with (
        said.open("wb") as log,
        Process(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rpartition(":")[2])
        yield Open(folder, port, folder / ".blockproto" / OWNER_TOKEN_NAME, said)
        process.terminate()
        assert process.wait(20) == 0


class Watcher(threading.Thread):
    """Looks at the arguments of every process again and again, as anybody on the machine can."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self._ends = threading.Event()

    def run(self) -> None:
        while not self._ends.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue

    def end(self) -> bytes:
        self._ends.set()
        self.join()
        return b"\n".join(self.seen)


@pytest.mark.clause("BP1-AUT-011")
def test_secrets_are_in_no_argument_no_log_and_no_error(
    open_to_all: Open, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher()
    watcher.start()
    folder, port, token_file, said = open_to_all
    wrong = tmp_path / "wrong.token"
    wrong.write_text(new_token())
    pin = pin_of_file(folder / ".blockproto" / "server.crt").hex()
    (tmp_path / "note.bin").write_bytes(os.urandom(2_000_000))
    address = f"bps://127.0.0.1:{port}/"
    heard = b""
    for arguments, status in (
        (("put", tmp_path / "note.bin", address, "--token-file", token_file), Status.DONE),
        (("put", tmp_path / "note.bin", address, "--token-file", wrong), Status.FAILED),
        (("get", f"{address}nothing", tmp_path / "back", "--token-file", token_file), Status.FAILED),
    ):
        ran = run("-v", *arguments, "--pin", pin, forked=False)
        assert ran.status == status, ran.err
        heard += (ran.out + ran.err).encode()
    log = tmp_path / "line.log"
    trio.run(_upload_with_a_log, address, token_file.read_text().strip(), bytes.fromhex(pin), log, tmp_path)
    everything = {
        "arguments": watcher.end(), "what commands said": heard, "the server's log": said.read_bytes(),
        "the line's log": log.read_bytes(), "the register": (folder / ".blockproto" / "tokens.json").read_bytes(),
    }  # fmt: skip
    assert str(port).encode() in everything["arguments"]
    key = (folder / ".blockproto" / "server.key").read_bytes().split(b"\n")[1]
    for where, content in everything.items():
        for secret in (token_file.read_bytes().strip(), wrong.read_bytes().strip(), key):
            assert secret not in content, f"a secret is in {where}"
            assert secret[4:30] not in content, f"a part of a secret is in {where}"


async def _upload_with_a_log(address: str, token: str, pin: bytes, log: Path, folder: Path) -> None:
    async with blockproto.connect(address, token=token, trust=Trust(pin=pin), log=log) as client:
        await client.upload(folder / "note.bin", name="again.bin")


# ---- somebody on the way


class OnTheWay:
    """A proxy that may change what a server says, and remembers what a client said."""

    def __init__(self, port: int, change: Callable[[bytes], bytes]) -> None:
        self.said = bytearray()
        self._port = port
        self._change = change

    async def serve(self, stream: trio.SocketStream) -> None:
        onward = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._up, stream, onward)
            nursery.start_soon(self._down, onward, stream)

    async def _up(self, stream: trio.SocketStream, onward: trio.SocketStream) -> None:
        try:
            async for some in stream:
                self.said += some
                await onward.send_all(some)
        except trio.BrokenResourceError:
            pass
        await onward.aclose()

    async def _down(self, onward: trio.SocketStream, stream: trio.SocketStream) -> None:
        first = b""
        try:
            async for some in onward:
                if first is not None:
                    first += some
                    changed = self._change(bytes(first))
                    if not changed:
                        continue
                    some, first = changed, None  # type: ignore[assignment]
                await stream.send_all(some)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await stream.aclose()


def without_features(first: bytes) -> bytes:
    """A server's greeting that says it knows no AUTH; empty as long as it is not all there."""
    at = len(PREFACE)
    if len(first) < at + HEADER_LENGTH:
        return b""
    header = decode_header(first, at)
    end = at + HEADER_LENGTH + header.head_length
    if len(first) < end:
        return b""
    hello = decode_head(header, first[at + HEADER_LENGTH : end])
    assert isinstance(hello, Hello)
    assert hello.features
    return PREFACE + encode_frame(0, Hello(agent=hello.agent)) + first[end:]


@asynccontextmanager
async def on_the_way(port: int, change: Callable[[bytes], bytes]) -> AsyncIterator[tuple[int, OnTheWay]]:
    proxy = OnTheWay(port, change)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, proxy.serve, 0)
        yield listeners[0].socket.getsockname()[1], proxy
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def served(tmp_path: Path, *, everybody: bool) -> AsyncIterator[tuple[int, str, Path]]:
    """A folder on a loopback port (or for other machines): port, the owner's token, the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    server_auths: list[Any] = []
    async with trio.open_nursery() as nursery:
        serve = blockproto.serve
        listening = await nursery.start(
            lambda task_status: serve(
                folder,
                listen=("0.0.0.0" if everybody else "127.0.0.1", 0),
                anonymous=(),
                on_server_auth=server_auths.append,
                task_status=task_status,
            )
        )
        token = (folder / ".blockproto" / OWNER_TOKEN_NAME).read_text().strip()
        yield listening[0][1], token, folder
        nursery.cancel_scope.cancel()


@pytest.mark.clause("BP1-TLS-010")
async def test_features_that_were_taken_away_make_nobody_anonymous(tmp_path: Path) -> None:
    """Without TLS somebody on the way can change HELLO; the client says who it is all the same, and the server wants it."""
    note = tmp_path / "note.txt"
    note.write_bytes(b"hello")
    async with (
        served(tmp_path, everybody=False) as (port, token, folder),
        on_the_way(port, without_features) as (there, proxy),
    ):
        async with blockproto.connect(f"bp://127.0.0.1:{there}", token=token) as client:
            await client.upload(note)
        assert (folder / "note.txt").read_bytes() == b"hello"
        assert token.encode() in proxy.said
        async with blockproto.connect(f"bp://127.0.0.1:{there}") as client:
            with pytest.raises(BlockprotoError, match="token"):
                await client.upload(note, name="anonymous.txt")
        assert not (folder / "anonymous.txt").exists()


@pytest.mark.clause("BP1-TLS-003", "BP1-TLS-005")
@pytest.mark.parametrize(
    "answer", [PREFACE + encode_frame(0, Hello(agent="plain")), b"HTTP/1.1 200 OK\r\n\r\n"]
)
async def test_who_answers_tls_in_plain_hears_no_secret(tmp_path: Path, answer: bytes) -> None:
    note = tmp_path / "note.txt"
    note.write_bytes(b"hello, secret content")
    async with (
        served(tmp_path, everybody=True) as (port, token, folder),
        on_the_way(port, lambda first: answer if first else b"") as (there, proxy),
    ):
        trust = Trust(pin=pin_of_file(folder / ".blockproto" / "server.crt"))
        async with blockproto.connect(f"bps://127.0.0.1:{there}", token=token, trust=trust) as client:
            with pytest.raises(ConnectionLost, match="handshake"):
                await client.upload(note)
        for secret in (PREFACE, token.encode(), b"secret content", b"note.txt"):
            assert secret not in proxy.said
        assert not (folder / "note.txt").exists()


async def test_a_byte_changed_inside_tls_ends_the_connection_and_stores_nothing_wrong(tmp_path: Path) -> None:
    note = tmp_path / "note.bin"
    note.write_bytes(os.urandom(300_000))
    flips = [5, 60, 900, 2000]

    def flipped(first: bytes) -> bytes:
        if flips and len(first) > 100:
            at = flips.pop() % len(first)
            return first[:at] + bytes([first[at] ^ 1]) + first[at + 1 :]
        return first

    async with (
        served(tmp_path, everybody=True) as (port, token, folder),
        on_the_way(port, flipped) as (there, proxy),
    ):
        trust = Trust(pin=pin_of_file(folder / ".blockproto" / "server.crt"))
        address = f"bps://127.0.0.1:{there}"
        for _ in range(6):
            async with blockproto.connect(address, token=token, trust=trust, retry_for_s=0) as client:
                try:
                    await client.upload(note)
                except BlockprotoError:
                    assert not (folder / "note.bin").exists()
        assert (folder / "note.bin").read_bytes() == note.read_bytes()
        assert token.encode() not in proxy.said
    assert not flips


async def test_another_certificate_on_the_way_hears_no_secret(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_bytes(b"hello")
    async with served(tmp_path, everybody=True) as (port, token, folder):
        trust = Trust(pin=bytes(32))
        async with blockproto.connect(f"bps://127.0.0.1:{port}", token=token, trust=trust) as client:
            with pytest.raises(Unauthenticated, match="somebody stands between"):
                await client.upload(note)
        assert not (folder / "note.txt").exists()
