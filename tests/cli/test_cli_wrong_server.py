"""Servers that are there and not the right ones: exit code 1, and the sentence says what to do."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hostile_server import HostileServer
from processes import Ran, Server
from test_serve_certificates import DAY, TODAY, make

from blockproto.cli.output import Status

Run = Callable[..., Ran]
HOUR = timedelta(hours=1)


@contextmanager
def tls_port(certificate: Path, key: Path) -> Iterator[int]:
    """Something that speaks TLS and nothing of ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(20)
            try:
                with context.wrap_socket(connection, server_side=True) as inside:
                    inside.recv(1)
            except OSError:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


@pytest.mark.parametrize(
    ("first", "last", "name", "host", "why", "advice"),
    [
        (TODAY - 9 * DAY, TODAY - DAY, "localhost", "localhost", "expired", "have its owner renew it"),
        (TODAY + DAY, TODAY + 9 * DAY, "localhost", "localhost", "not yet valid", "clock"),
        (TODAY - DAY, TODAY + DAY, "elsewhere", "localhost", "Hostname mismatch", "use the name"),
        (TODAY - DAY, TODAY + DAY, "localhost", "localhost", "self", "--pin"),
    ],
)
def test_a_certificate_that_is_not_trusted_is_no_server_that_cannot_be_reached(
    first: object, last: object, name: str, host: str, why: str, advice: str, tmp_path: Path, run: Run
) -> None:
    certificate, key = make(tmp_path, first, last, name)  # type: ignore[arg-type]
    authority = "system" if why == "self" else certificate
    (tmp_path / "x").write_bytes(b"1")
    with tls_port(certificate, key) as port:
        for words in (
            ["ls", f"bps://{host}:{port}/"],
            ["put", tmp_path / "x", f"bps://{host}:{port}/", "--retry-for", "1h"],
        ):
            ran = run(*words, "--ca", authority)
            assert ran.status == Status.FAILED, ran.err
            assert "is not trusted" in ran.err
            assert why in ran.err
            assert advice in ran.err
            assert "reach" not in ran.err
            assert ran.err.count("\n") == 1


def test_bps_on_a_port_without_tls(server: Server, run: Run) -> None:
    ran = run("ls", server.address.replace("bp:", "bps:"), "--pin", "00" * 32)
    assert ran.status == Status.FAILED
    assert "use bp:// instead of bps://" in ran.err
    assert ran.err.count("\n") == 1


def test_bps_on_a_port_of_something_else(run: Run) -> None:
    with HostileServer(hello=b"SSH-2.0-OpenSSH_9.2\r\n") as other:
        ran = run("ls", other.address.replace("bp:", "bps:"), "--pin", "00" * 32)
    assert ran.status == Status.FAILED
    assert "not in TLS" in ran.err


def test_bp_on_a_port_with_tls_only(run: Run) -> None:
    with HostileServer(hello=b"\x15\x03\x03\x00\x02\x02\x46") as other:  # the alert that OpenSSL says
        ran = run("ls", other.address)
    assert ran.status == Status.FAILED
    assert "use bps:// instead of bp://" in ran.err
    assert ran.err.count("\n") == 1
