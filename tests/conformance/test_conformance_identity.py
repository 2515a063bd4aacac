"""The harness's chapters TLS, AUT and PRN against our own servers; and the clauses of IDENTITY that only a test sees."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from mutants.identity import make_cast, serve_options
from peers import RawPeer, WatchedStore
from processes import Ran, Server
from trio.testing import memory_stream_pair

from blockproto.cli.output import Status
from blockproto.client import Client, connect_with
from blockproto.client_side.authenticate import Authenticator
from blockproto.client_side.config import ClientConfig
from blockproto.conformance import forge
from blockproto.conformance.cast import Cast
from blockproto.conformance.outcome import Report
from blockproto.conformance.runner import Runner
from blockproto.conformance.server import ServerSubject, all_cases
from blockproto.conformance.target import Target
from blockproto.conformance.timing import Patience
from blockproto.conformance.transcript import Transcript, describe_bytes
from blockproto.conformance.tunnel import PinDiffers
from blockproto.conformance.verdicts import Verdict
from blockproto.connection.endpoint import StreamEndpoint
from blockproto.errors import BlockprotoError, Code, Scope
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.identity.certificates import own_certificate, pin_of_file, server_context
from blockproto.observability.observer import ConnectionLabel, Hook, Observer
from blockproto.serving.server import Server as Served
from blockproto.store import UploadStore
from blockproto.testing.memory_store import MemoryStore
from blockproto.wire import (
    FEATURE_AUTH,
    FEATURE_AUTH_REQUIRED,
    Auth,
    Error,
    Hello,
    Message,
    encode_frame,
)

Run = Callable[..., Ran]
CASES = [case for case in all_cases() if case.profile == "IDENTITY"]
PROFILES = frozenset({"CORE", "IDENTITY"})


class Nobody:
    """Nobody is told."""

    def begin(self, total: int) -> None: ...

    def ended(self, outcome: object) -> None: ...

    def said(self, text: str) -> None: ...


def verdicts(target: Target) -> dict[str, tuple[Verdict, str]]:
    """What each case of the profile ends with, and why."""
    subject = ServerSubject(target, PROFILES)
    subject.reach()
    report = Runner(subject, Nobody(), jobs=4).run(CASES, Report("ours"))
    subject.clean()
    return {one.case.name: (one.verdict, one.message) for one in report.outcomes}


def not_passed(found: dict[str, tuple[Verdict, str]]) -> dict[str, tuple[Verdict, str]]:
    return {name: verdict for name, verdict in found.items() if verdict[0] is not Verdict.PASS}


@pytest.mark.long
def test_our_server_passes_every_case_of_the_profile(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """With tokens of all kinds over TLS, where AUTH is required; what cannot be seen there is seen below."""
    folder = tmp_path / "served"
    folder.mkdir()
    tokens, pin = make_cast(folder)
    server = start_server(folder, *serve_options(folder))
    target = Target("127.0.0.1", server.port, Patience(4), tls=True, pin=pin, cast=Cast(tokens))
    left = not_passed(verdicts(target))
    assert set(left) == {"bp1/prn/anonymous/without-auth", "bp1/tls/plaintext/refused-after-hello"}, left
    assert {verdict for verdict, _ in left.values()} == {Verdict.UNSUPPORTED}
    assert len(CASES) > 40
    stored = [path for path in folder.rglob("*") if path.is_file() and ".blockproto" not in path.parts]
    assert stored == [], "a run removes what it stored"
    with pytest.raises(PinDiffers):
        target.with_(pin=bytes(32)).connect()


def test_a_server_that_asks_nobody_is_open(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """Without AUTH_REQUIRED and without tokens or TLS: what needs them is not examined, nothing fails."""
    server = start_server()
    found = verdicts(Target("127.0.0.1", server.port, Patience(4)))
    passed = {name for name, (verdict, _) in found.items() if verdict is Verdict.PASS}
    assert passed == {
        "bp1/aut/features/as-it-behaves",
        "bp1/aut/refused/third",
        "bp1/prn/anonymous/without-auth",
    }
    assert {verdict for verdict, _ in not_passed(found).values()} == {Verdict.UNSUPPORTED}


@contextmanager
def wants_tls(tmp_path: Path) -> Iterator[int]:
    """A server for which everybody is another machine, in a thread; its port."""
    ready, stop, ports = threading.Event(), trio.Event(), []
    tokens: list[trio.lowlevel.TrioToken] = []

    async def serve() -> None:
        context = server_context(*own_certificate(tmp_path / "state"))
        server = Served(MemoryStore(), tls=context, policy=AuthPolicy(plaintext=False))
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, listeners)
            ports.append(listeners[0].socket.getsockname()[1])
            tokens.append(trio.lowlevel.current_trio_token())
            ready.set()
            await stop.wait()
            server.stop()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(20)
        yield ports[0]
    finally:
        tokens[0].run_sync_soon(stop.set)
        thread.join(20)


@pytest.mark.clause("BP1-TLS-009", "BP1-TLS-006")
def test_who_comes_without_tls_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockproto.identity.auth_policy.is_loopback", lambda host: False)
    [case] = [case for case in CASES if case.name == "bp1/tls/plaintext/refused-after-hello"]
    with wants_tls(tmp_path) as port:
        pin = pin_of_file(tmp_path / "state" / "server.crt")
        subject = ServerSubject(Target("127.0.0.1", port, Patience(4), tls=True, pin=pin), PROFILES)
        outcome = Runner(subject, Nobody()).examine(case)
    assert outcome.verdict is Verdict.PASS, outcome.message


def test_the_command_takes_tokens(start_server: Callable[..., Server], tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    tokens, pin = make_cast(folder)
    server = start_server(folder, *serve_options(folder))
    (tmp_path / "alice").write_text(tokens[0])
    words = [
        "conform",
        "server",
        f"127.0.0.1:{server.port}",
        "--profile",
        "IDENTITY",
        "--tls",
        "-k",
        "bp1/aut/order",
    ]
    ran = run(*words, "--pin", pin.hex(), "--token-file", tmp_path / "alice", "--slow", "4")
    assert ran.status == Status.DONE, ran.err
    assert "2 PASS" in ran.err
    assert tokens[0] not in ran.err
    assert run(*words, "--pin", "00").status == Status.USAGE
    assert run(*words, "--token-file", tmp_path / "none").status == Status.USAGE


# ---- what only a look inside shows


@pytest.mark.clause("BP1-AUT-011")
def test_no_credential_is_in_a_transcript(tmp_path: Path) -> None:
    token = make_cast(tmp_path)[0][0]
    transcript, raw = Transcript(), forge.frame(1, Auth(token))
    transcript.add(1, ">", describe_bytes(raw), raw)
    (entry,) = transcript.entries
    assert "credential (hidden)" in entry.text
    assert token[4:12] not in entry.text
    assert token[4:12].encode() not in entry.raw
    assert len(entry.raw) == len(raw)


@pytest.mark.clause("BP1-TLS-006")
def test_a_token_goes_unencrypted_only_where_that_was_said(tmp_path: Path, run: Run) -> None:
    (tmp_path / "token").write_text(make_cast(tmp_path)[0][0])
    ran = run("ls", "bp://203.0.113.7/", "--token-file", tmp_path / "token")
    assert ran.status == Status.USAGE
    assert "--insecure" in ran.err


class Heard(Observer, Hook):
    """Remembers the codes that a server said ERROR with, and on which connection."""

    def __init__(self) -> None:
        self.refusals: list[tuple[int, int]] = []

    def hooks(self) -> tuple[Hook, ...]:
        return (self,)

    def said(
        self, connection_label: ConnectionLabel | None, stream: int, message: Message, payload_length: int
    ) -> None:
        if isinstance(message, Error) and connection_label is not None:
            self.refusals.append((connection_label.number, message.code))


@asynccontextmanager
async def known_to_nobody(heard: Heard) -> AsyncIterator[Client]:
    """A client with a token, of a server that has no AUTH among its features."""
    server = Served(WatchedStore(), observer=heard)
    assert server.policy.features == 0

    async def dial() -> StreamEndpoint:
        ours, theirs = memory_stream_pair()
        nursery.start_soon(server.serve_stream, theirs)
        return StreamEndpoint(ours, "memory")

    def no_sidecar(*_: object) -> UploadStore:
        raise AssertionError

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            authenticator = Authenticator("bp1_" + "a" * 58)
            async with connect_with(
                dial, "memory", no_sidecar, ClientConfig(authenticator=authenticator)
            ) as client:
                yield client
            server.stop()


@pytest.mark.clause("BP1-TLS-010")
async def test_auth_is_said_whatever_the_features_say() -> None:
    """And what such a server answers is no reason to stop."""
    heard = Heard()
    async with known_to_nobody(heard) as client:
        assert [entry async for entry in client.listing()] == []
    assert heard.refusals == [(1, Code.UNSUPPORTED)]


@pytest.mark.clause("BP1-AUT-013")
async def test_a_newer_token_is_said_on_the_connection_there_is() -> None:
    heard = Heard()
    async with known_to_nobody(heard) as client:
        assert [entry async for entry in client.listing()] == []
        client.use_token("bp1_" + "b" * 58)
        assert [entry async for entry in client.listing()] == []
    assert heard.refusals == [(1, Code.UNSUPPORTED)] * 2


async def test_a_transfer_hears_why_its_token_was_refused_and_not_what_came_of_it() -> None:
    """An expired token refuses every request behind it too, in other words; both answers come in one read."""
    ours, theirs = memory_stream_pair()
    raised: list[BlockprotoError] = []

    async def dial() -> StreamEndpoint:
        return StreamEndpoint(ours, "memory")

    def no_sidecar(*_: object) -> UploadStore:
        raise AssertionError

    async def list_all() -> None:
        authenticator = Authenticator("bp1_" + "a" * 58)
        async with connect_with(
            dial, "memory", no_sidecar, ClientConfig(authenticator=authenticator, tries=1)
        ) as client:
            with pytest.raises(BlockprotoError) as caught:
                await client.stat("a")
            raised.append(caught.value)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(list_all)
            peer = RawPeer(theirs)
            await peer.greet(Hello(features=FEATURE_AUTH | FEATURE_AUTH_REQUIRED))
            assert isinstance((await peer.hear()).message, Auth)
            assert (await peer.hear()).stream == 3
            ended = encode_frame(1, Error(Code.CREDENTIAL_EXPIRED, Scope.STREAM, False, "it has ended"))
            await peer.send_bytes(
                ended + encode_frame(3, Error(Code.UNAUTHENTICATED, Scope.STREAM, False, "who?"))
            )
    assert [error.code for error in raised] == [Code.CREDENTIAL_EXPIRED]
