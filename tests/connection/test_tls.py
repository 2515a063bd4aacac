"""TLS on the same port: the handshake, pins, authorities, and what happens where there is none. Real sockets on loopback."""

from __future__ import annotations

import datetime
import math
import random
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import RawPeer, WatchedStore, content_of
from trio.testing import MockClock, memory_stream_pair

from blockproto import connect
from blockproto.client import connect_with
from blockproto.client_side.config import ClientConfig
from blockproto.client_side.trust import Trust, tls_dial
from blockproto.connection.endpoint import Deadline, Part, endpoint_of, never
from blockproto.connection.tls import RECORD_LENGTH_MAX, TlsEndpoint, answer_tls
from blockproto.errors import Code, ConnectionLost, NotPermitted, Scope, Unauthenticated
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.certificates import (
    ALPN,
    CERTIFICATE_NAME,
    KEY_NAME,
    client_context,
    own_certificate,
    parse_pin,
    pin_of_file,
    pin_words,
    server_context,
)
from blockproto.identity.known_servers import KnownServers
from blockproto.identity.tokens import new_token
from blockproto.serving.server import Server
from blockproto.wire import PREFACE


@asynccontextmanager
async def listening(
    tls: ssl.SSLContext | None, policy: AuthPolicy | None = None
) -> AsyncIterator[tuple[Server, int]]:
    """A server on a loopback port."""
    server = Server(WatchedStore(), tls=tls, policy=policy)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, listeners)
            yield server, listeners[0].socket.getsockname()[1]
            server.stop()


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path]:
    return own_certificate(tmp_path / "state")


async def send(dial: Any, tmp_path: Path, content: bytes = b"hello") -> None:
    """Upload ``content`` as note.txt."""
    path = tmp_path / "note.txt"
    path.write_bytes(content)

    def no_sidecar(*_: Any) -> Any:
        raise AssertionError("nothing is downloaded here")

    async with connect_with(dial, "server", no_sidecar, ClientConfig(tries=1)) as client:
        await client.upload(path)


# ---- certificates and pins


def test_a_certificate_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = own_certificate(state)
    pin = pin_of_file(first[0])
    assert own_certificate(state) == first == (state / CERTIFICATE_NAME, state / KEY_NAME)
    assert pin_of_file(first[0]) == pin
    assert first[1].stat().st_mode & 0o777 == 0o600
    assert own_certificate(tmp_path / "other") != first
    assert pin_of_file(tmp_path / "other" / CERTIFICATE_NAME) != pin
    first[1].chmod(0o644)
    with pytest.raises(NotPermitted, match="chmod 600"):
        own_certificate(state)


def test_files_that_do_not_belong_together_are_said_so(tmp_path: Path, own: tuple[Path, Path]) -> None:
    other = own_certificate(tmp_path / "other")
    for certificate, key in ((own[0], other[1]), (own[1], own[0]), (own[0], tmp_path / "nothing")):
        with pytest.raises(NotPermitted, match=r"not a certificate and its key|cannot be read"):
            server_context(certificate, key)
    with pytest.raises(NotPermitted, match="holds no certificate"):
        pin_of_file(own[1])
    notes = tmp_path / "notes.txt"
    notes.write_text("no PEM")
    for certificate, key, wrong in (
        (notes, own[1], f"{notes} holds no certificate in PEM"),
        (own[0], notes, f"{notes} is not a key in PEM"),
    ):
        with pytest.raises(NotPermitted, match=f"not a certificate and its key: {wrong}") as refused:
            server_context(certificate, key)
        assert "None" not in str(refused.value)


@pytest.mark.clause("BP1-TLS-008")
def test_a_pin_is_24_words_and_64_digits() -> None:
    pin = bytes(range(32))
    words = pin_words(pin)
    assert len(words.split()) == 24
    digits = pin.hex()
    colons = ":".join(digits[at : at + 2] for at in range(0, 64, 2))
    for text in (words, words.upper(), f"  {words} ", digits, digits.upper(), colons, f"sha256:{digits}"):
        assert parse_pin(text) == pin


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 words"),
        ("abandon", "1 word$"),
        ("ab" * 31, "1 word$"),
        (" ".join(["abandon"] * 24), "a word of it is wrong"),
        (" ".join(["blockproto"] * 24), "'blockproto' is not a word"),
    ],
)
def test_a_wrong_pin_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_pin(text)


# ---- known servers


def test_a_pin_is_remembered_for_its_server(tmp_path: Path) -> None:
    known = KnownServers(tmp_path / "conf" / "known.json")
    assert known.pin("host:1") is None
    known.remember("host:1", bytes(32))
    known.remember("host:2", b"2" * 32)
    known.remember("host:1", b"1" * 32)
    again = KnownServers(known.path)
    assert (again.pin("host:1"), again.pin("host:2"), again.pin("host:3")) == (b"1" * 32, b"2" * 32, None)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"host:1": "short"}', '{"host:1": 1}'])
def test_a_damaged_list_trusts_nobody(tmp_path: Path, content: str) -> None:
    known = KnownServers(tmp_path / "known.json")
    known.path.write_text(content)
    for use in (lambda: known.pin("host:1"), lambda: known.remember("host:1", bytes(32))):
        with pytest.raises(NotPermitted, match="not a list of servers"):
            use()
    assert known.path.read_text() == content


# ---- decrypted where it came


class Far:
    """An endpoint with the far end of TLS behind it: what that has said comes in cuts, and then nothing does."""

    peer = host = "far"

    def __init__(self, context: ssl.SSLContext) -> None:
        self._heard, self.said = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._heard, self.said, server_side=True)
        self.cuts = cycle([1 << 20])

    async def receive_into(self, view: memoryview, deadline: Deadline = never) -> int | None:
        came = self.said.read(min(next(self.cuts), len(view)))
        view[: len(came)] = came
        return len(came) or None

    async def send(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self._heard.write(part)
        if self.tls.version() is None:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                return

    def limit_unsent(self, limited: bool) -> None:
        raise AssertionError("nobody limits this")

    async def end_sending(self) -> None:
        raise AssertionError("nobody ends this")

    async def aclose(self) -> None:
        raise AssertionError("nobody closes this")


async def near_and_far(own: tuple[Path, Path]) -> tuple[TlsEndpoint, Far]:
    """Both ends of a TLS connection that stands."""
    far = Far(server_context(*own))
    near = TlsEndpoint(far, client_context(pinned=True), server_hostname="far")
    await near.shake_hands()
    return near, far


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return own_certificate(tmp_path_factory.mktemp("state"))


_lengths = st.lists(st.one_of(st.integers(1, 600), st.integers(1, 70_000)), min_size=1, max_size=5)
_around = st.one_of(_lengths, st.lists(st.sampled_from([16_384, 16_406, RECORD_LENGTH_MAX]), min_size=1))


@given(said=_around, cuts=_around, views=_around)
@settings(deadline=None, max_examples=40)
def test_what_is_said_arrives_however_it_is_cut(
    certificate: tuple[Path, Path], said: list[int], cuts: list[int], views: list[int]
) -> None:
    """In the caller's own memory, of any length, with nothing of it lost or twice."""

    async def receive() -> None:
        near, far = await near_and_far(certificate)
        far.cuts = cycle(cuts)
        content = bytearray()
        for number, length in enumerate(said):
            content += bytes((number + at) % 251 for at in range(length))
            far.tls.write(content[-length:])
        arrived = bytearray()
        for length in cycle(views):
            view = memoryview(bytearray(length))
            received = await near.receive_into(view)
            if received is None:
                break
            assert received >= 1
            arrived += view[:received]
        assert arrived == content

    trio.run(receive)


@pytest.mark.parametrize("before", [1, 5, 15_000, 16_021, 1 << 20])
async def test_many_records_come_at_once(certificate: tuple[Path, Path], before: int) -> None:
    """Also when a part of the first was here before: then its plain text is longer than what came of it now."""
    near, far = await near_and_far(certificate)
    content = random.Random(before).randbytes(208_000)
    for at in range(0, len(content), 16_000):
        far.tls.write(content[at : at + 16_000])
    far.cuts = cycle([before, 1 << 20])
    view = memoryview(bytearray(256 * 1024))
    assert await near.receive_into(view) == len(content)
    assert bytes(view[: len(content)]) == content


async def test_the_end_of_tls_is_an_end_of_stream_after_what_came_before(
    certificate: tuple[Path, Path],
) -> None:
    near, far = await near_and_far(certificate)
    far.tls.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        far.tls.unwrap()  # says close_notify, and would wait for ours
    view = memoryview(bytearray(100))
    assert [await near.receive_into(view) for _ in range(3)] == [4, 0, 0]
    assert bytes(view[:4]) == b"last"


async def test_a_changed_byte_ends_the_connection(certificate: tuple[Path, Path]) -> None:
    near, far = await near_and_far(certificate)
    far.tls.write(b"true")
    record = bytearray(far.said.read())
    record[-1] ^= 1
    far.said.write(record)
    with pytest.raises(ConnectionLost, match="the connection to far broke"):
        await near.receive_into(memoryview(bytearray(100)))


KEY_UPDATE = b"K\n"
"""The command of s_client that changes its key and asks for ours to change."""

OUR_KEY_UPDATE = re.compile(rb"<<< TLS 1.3, Handshake.*KeyUpdate")


async def test_a_new_key_is_taken_and_answered_with_the_next_bytes(certificate: tuple[Path, Path]) -> None:
    """A peer may change its key at any time and ask for ours to change; reading does not write, so sending does."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: nobody else here says KeyUpdate")
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    command = [openssl, "s_client", "-brief", "-msg", "-connect", f"127.0.0.1:{port}"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    async with listeners[0]:
        with trio.fail_after(20):
            client = await trio.lowlevel.open_process(command, **pipes)
            try:
                inside = await answer_tls(
                    endpoint_of(await listeners[0].accept()), b"", server_context(*certificate), math.inf
                )
                view = memoryview(bytearray(100))
                for words in (b"old key\n", b"new key\n"):
                    await client.stdin.send_all(words)
                    assert await inside.receive_into(view) == len(words)
                    assert bytes(view[: len(words)]) == words
                    await inside.send([words.upper()])
                    told = await heard_on(client.stdout, words.upper())
                    assert bool(OUR_KEY_UPDATE.search(told)) is (words == b"new key\n")
                    if words == b"old key\n":
                        await client.stdin.send_all(KEY_UPDATE)
                        await heard_on(client.stderr, b"KEYUPDATE")
                await inside.aclose()
            finally:
                client.kill()
                await client.wait()


async def heard_on(stream: trio.abc.ReceiveStream, words: bytes) -> bytes:
    """Read on until ``words`` have come; returns everything."""
    heard = b""
    while words not in heard:
        heard += await stream.receive_some()
    return heard


# ---- connections


@pytest.mark.clause("BP1-TLS-001", "BP1-TLS-002")
async def test_a_pinned_server_takes_an_upload(tmp_path: Path, own: tuple[Path, Path]) -> None:
    content = bytes(range(256)) * 12_000
    async with listening(server_context(*own)) as (server, port):
        dial, _ = tls_dial(f"bps://127.0.0.1:{port}", Trust(pin=pin_of_file(own[0])))
        await send(dial, tmp_path, content)
        assert content_of(server.engine.store, "note.txt") == content  # type: ignore[arg-type]
        secured = await dial()
        assert secured.tls.selected_alpn_protocol() == ALPN  # type: ignore[attr-defined]
        assert secured.tls.version() == "TLSv1.3"  # type: ignore[attr-defined]
        await secured.aclose()


@pytest.mark.clause("BP1-TLS-003", "BP1-TLS-004")
async def test_another_certificate_is_a_hard_stop_and_nothing_was_sent(
    tmp_path: Path, own: tuple[Path, Path]
) -> None:
    asked: list[bytes] = []

    async def say_yes(server: str, pin: bytes) -> bool:
        asked.append(pin)
        return True

    swapped = own_certificate(tmp_path / "other")
    async with listening(server_context(*swapped)) as (server, port):
        known = KnownServers(tmp_path / "known.json")
        known.remember(f"127.0.0.1:{port}", pin_of_file(own[0]))
        there = f"write that one in that file for '127.0.0.1:{port}', or remove the line there"
        for trust, then in (
            (Trust(pin=pin_of_file(own[0]), known=known, ask=say_yes), "give that one"),
            (Trust(known=known, ask=say_yes), f"known.json is [0-9a-f]*.*{there}"),
        ):
            dial, _ = tls_dial(f"bps://127.0.0.1:{port}", trust)
            with pytest.raises(Unauthenticated, match=f"somebody stands between.*{then}"):
                await send(dial, tmp_path)
        assert asked == []
        assert known.pin(f"127.0.0.1:{port}") == pin_of_file(own[0])
        assert server.engine.store.files("", True, "", 10)[0] == []


async def test_an_unknown_server_is_remembered_after_one_yes(tmp_path: Path, own: tuple[Path, Path]) -> None:
    answers = [False, True]
    asked: list[tuple[str, bytes]] = []

    async def ask(server: str, pin: bytes) -> bool:
        asked.append((server, pin))
        await trio.lowlevel.checkpoint()
        return answers.pop(0)

    async with listening(server_context(*own)) as (_, port):
        name = f"127.0.0.1:{port}"
        known = KnownServers(tmp_path / "known.json")
        dial, _ = tls_dial(f"bps://{name}", Trust(known=known, ask=ask))
        with pytest.raises(Unauthenticated, match="nobody has said yes"):
            await dial()
        assert known.pin(name) is None
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(_dial_and_close, dial)
        assert asked == [(name, pin_of_file(own[0]))] * 2
        assert known.pin(name) == pin_of_file(own[0])
        again, _ = tls_dial(f"bps://{name}", Trust(known=known))
        await send(again, tmp_path)


async def _dial_and_close(dial: Any) -> None:
    await (await dial()).aclose()


async def test_nobody_to_ask_is_a_no(tmp_path: Path, own: tuple[Path, Path]) -> None:
    async with listening(server_context(*own)) as (_, port):
        dial, _ = tls_dial(f"bps://127.0.0.1:{port}", Trust(known=KnownServers(tmp_path / "known.json")))
        with pytest.raises(Unauthenticated, match="in words"):
            await dial()


@pytest.mark.clause("BP1-TLS-003")
async def test_an_authority_vouches_for_a_host_name(tmp_path: Path) -> None:
    authority, pair = signed_for("localhost", tmp_path)
    async with listening(server_context(*pair)) as (_, port):
        for host, fails in (("localhost", False), ("127.0.0.1", True)):
            dial, _ = tls_dial(f"bps://{host}:{port}", Trust(authorities=authority))
            if fails:
                with pytest.raises(ConnectionLost, match=r"handshake with .* failed"):
                    await dial()
            else:
                await send(dial, tmp_path)
        dial, _ = tls_dial(f"bps://localhost:{port}")
        with pytest.raises(ConnectionLost, match=r"handshake with .* failed"):
            await dial()


def signed_for(host: str, folder: Path) -> tuple[Path, tuple[Path, Path]]:
    """An authority, and a certificate and key that it signed for ``host``: PEM files."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", host)]
    identifier = x509.SubjectKeyIdentifier.from_public_key(keys[0].public_key())
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    certificates = []
    for name, key, is_authority in zip(names, keys, (True, False), strict=True):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if is_authority:
            builder = builder.add_extension(identifier, critical=False).add_extension(usage, critical=True)
        else:
            alternative = x509.SubjectAlternativeName([x509.DNSName(host)])
            builder = builder.add_extension(alternative, critical=False).add_extension(
                authority_id, critical=False
            )
        certificates.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key_pem = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = [folder / name for name in ("authority.pem", "host.pem", "host.key")]
    for path, content in zip(files, (*certificates, key_pem), strict=True):
        path.write_bytes(content)
    return files[0], (files[1], files[2])


@pytest.mark.clause("BP1-TLS-005")
async def test_a_server_without_tls_is_not_spoken_to_without_it(tmp_path: Path) -> None:
    async with listening(None) as (server, port):
        dial, _ = tls_dial(f"bps://127.0.0.1:{port}", Trust(pin=bytes(32)))
        with pytest.raises(ConnectionLost, match=r"handshake with .* failed"):
            await send(dial, tmp_path)
        assert server.engine.store.files("", True, "", 10)[0] == []


@pytest.mark.clause("BP1-TLS-002")
async def test_a_server_that_does_not_choose_our_protocol_is_not_spoken_to(own: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own)
    heard = bytearray()

    async def serve(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        try:
            await tls.do_handshake()
            heard.extend(await tls.receive_some(100))
        except trio.BrokenResourceError:
            return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        dial, _ = tls_dial(f"bps://127.0.0.1:{port}", Trust(pin=pin_of_file(own[0])))
        with pytest.raises(ConnectionLost, match=f"not {ALPN} in it"):
            await dial()
        nursery.cancel_scope.cancel()
    assert not heard


async def test_an_older_tls_is_refused(own: tuple[Path, Path]) -> None:
    async with listening(server_context(*own)) as (_, port):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="x")
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)


@pytest.mark.clause("BP1-TLS-007")
async def test_the_end_of_tls_means_no_more_than_that_of_tcp(tmp_path: Path, own: tuple[Path, Path]) -> None:
    """A truncated connection leaves an upload that is resumed, never a file that is short."""
    async with listening(server_context(*own)) as (server, port):
        dial, _ = tls_dial(f"bps://127.0.0.1:{port}", Trust(pin=pin_of_file(own[0])))
        endpoint = await dial()
        await endpoint.send([PREFACE])
        await endpoint.aclose()
        await send(dial, tmp_path)
        assert content_of(server.engine.store, "note.txt") == b"hello"  # type: ignore[arg-type]


@pytest.mark.clause("BP1-TLS-009")
async def test_a_server_that_wants_tls_refuses_others_without_it(
    tmp_path: Path, own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.identity.auth_policy.is_loopback", lambda host: False)
    async with listening(server_context(*own), AuthPolicy(plaintext=False)) as (server, port):
        peer = RawPeer(await trio.open_tcp_stream("127.0.0.1", port))
        await peer.greet()
        error = await peer.expect_error(Code.UNAUTHENTICATED, Scope.CONNECTION, 0)
        assert "bps://" in error.text
        await peer.stream.aclose()
        dial, _ = tls_dial(f"bps://127.0.0.1:{port}", Trust(pin=pin_of_file(own[0])))
        await send(dial, tmp_path)
        assert content_of(server.engine.store, "note.txt") == b"hello"  # type: ignore[arg-type]


async def test_a_handshake_that_never_ends_is_ended(
    own: tuple[Path, Path], autojump_clock: MockClock
) -> None:
    server = Server(WatchedStore(), tls=server_context(*own))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        here, there = memory_stream_pair()
        nursery.start_soon(server.serve_stream, there)
        begun = trio.current_time()
        await here.send_all(b"\x16\x03\x01\x02")
        assert await here.receive_some(100) == b""
        assert trio.current_time() - begun == pytest.approx(10)
        server.stop()


@pytest.mark.clause("BP1-TLS-006")
async def test_a_token_does_not_travel_to_another_machine_without_tls() -> None:
    for url in ("bp://192.0.2.1:7878", "bp://[2001:db8::1]:7878", "bp://server.example"):
        with pytest.raises(NotPermitted, match="can be read on the way"):
            async with connect(url, token=new_token()):
                raise AssertionError("nobody may come in here")
        async with connect(url, token=new_token(), insecure=True), connect(url):
            pass
    for url in ("bp://127.0.0.1:1", "bp://[::1]:1", "bp://localhost", "bps://server.example"):
        async with connect(url, token=new_token()):
            pass
