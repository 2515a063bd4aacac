"""``serve --cert``: what is wrong with a certificate is said at the start, and when it is read anew."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from processes import COMMAND, Process, Ran, wait_for_line

from blockproto.cli.output import Status

Run = Callable[..., Ran]
TODAY = datetime.now(UTC)
DAY = timedelta(days=1)


def make(folder: Path, first: datetime, last: datetime, name: str = "localhost") -> tuple[Path, Path]:
    """A certificate that signed itself, valid from ``first`` to ``last``, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    return paths


def said_at_start(
    folder: Path, certificate: Path, key: Path, *, hup: Callable[[], None] | None = None
) -> str:
    """What a server says of a certificate until it has started, and of what is there after ``hup``."""
    served = folder / "served"
    served.mkdir(exist_ok=True)
    words = [
        "serve",
        served,
        "--listen",
        "127.0.0.1:0",
        "--cert",
        certificate,
        "--key",
        key,
        "--log-level",
        "info",
    ]
    command = [*COMMAND, *map(str, words)]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert wait_for_line(process, 30).startswith("listening")
        said = ""
        if hup is not None:
            hup()
            process.send_signal(signal.SIGHUP)
            assert process.stderr is not None
            while "read anew" not in said and "nothing was changed" not in said:
                said += process.stderr.readline()
        process.terminate()
        return said + str(process.communicate(timeout=30)[1])


@pytest.mark.parametrize(
    ("first", "last", "what"),
    [
        (TODAY - 400 * DAY, TODAY - DAY, "expired on"),
        (TODAY + DAY, TODAY + 400 * DAY, "is valid only from"),
        (TODAY - DAY, TODAY + DAY, ""),
    ],
)
def test_the_time_of_a_certificate(first: datetime, last: datetime, what: str, tmp_path: Path) -> None:
    said = said_at_start(tmp_path, *make(tmp_path, first, last))
    assert (what in said) if what else "expired" not in said + "valid only"
    assert bool(what) == ("clients that ask an authority" in said)
    assert ("localhost.crt" in said) is bool(what)


def test_one_that_stands_behind_the_first(tmp_path: Path) -> None:
    good, key = make(tmp_path, TODAY - DAY, TODAY + DAY)
    old, _ = make(tmp_path, TODAY - 3 * DAY, TODAY - DAY, "authority")
    good.write_bytes(good.read_bytes() + old.read_bytes())
    assert "certificate 2 in" in said_at_start(tmp_path, good, key)


def test_one_that_is_read_anew(tmp_path: Path) -> None:
    certificate, key = make(tmp_path, TODAY - DAY, TODAY + DAY)
    said = said_at_start(
        tmp_path, certificate, key, hup=lambda: [make(tmp_path, TODAY - 3 * DAY, TODAY - DAY)].clear()
    )
    assert "expired on" in said
    assert "were read anew" in said


def test_the_key_of_another(tmp_path: Path, run: Run) -> None:
    certificate, _ = make(tmp_path, TODAY - DAY, TODAY + DAY)
    _, key = make(tmp_path, TODAY - DAY, TODAY + DAY, "other")
    for pair in ((certificate, key), (certificate, tmp_path / "nothing"), (key, key)):
        ran = run("serve", tmp_path, "--listen", "127.0.0.1:0", "--cert", pair[0], "--key", pair[1])
        assert ran.status == Status.FAILED
        assert ran.err.count("\n") == 1
        assert str(pair[1]) in ran.err
    ran = run("serve", tmp_path, "--listen", "127.0.0.1:0", "--cert", certificate, "--key", key)
    assert f"{key} is not the key of {certificate}" in ran.err
