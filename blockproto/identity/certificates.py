"""Certificates and pins: a server's own certificate, made at its first start, and how a client checks it.

A client knows a server in one of two ways: by a pin, the SHA-256 of the certificate's DER bytes, as ssh knows hosts; or
because an authority that it trusts has signed the certificate for the host name. People see a pin as 24 words.

The library that makes and reads certificates takes a tenth of a command's start to load; it is imported where it is used,
because a client with a pin does not need it.

Spec: BP1-TLS.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import ssl
from pathlib import Path

from mnemonic import Mnemonic

from ..errors import NotPermitted
from .private_files import write_private

ALPN = "blockproto/1"
"""The only application protocol (BP1-TLS-002)."""

CERTIFICATE_NAME = "server.crt"
KEY_NAME = "server.key"
_YEARS = 20
_HEX = re.compile(r"(?:sha256[:=])?((?:[0-9a-f]{2}:?){32})", re.I)


def own_certificate(state: Path) -> tuple[Path, Path]:
    """The certificate and key in a server's state folder; they are made if they are missing.

    Raises:
        NotPermitted: they cannot be read or written, or the key can be read by others.
    """
    certificate, key = state / CERTIFICATE_NAME, state / KEY_NAME
    try:
        if not (certificate.exists() and key.exists()):
            state.mkdir(parents=True, exist_ok=True)
            certificate_pem, key_pem = _make()
            write_private(key, key_pem)
            write_private(certificate, certificate_pem)
        if key.stat().st_mode & 0o077:
            raise NotPermitted(f"{key} can be read by others: make it private with chmod 600")
    except OSError as exc:
        raise NotPermitted(f"{exc.filename or state} cannot be used: {exc.strerror}") from exc
    return certificate, key


def _make() -> tuple[bytes, bytes]:
    """A new self-signed certificate and its key, both as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "blockproto")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS for a server: 1.3 only, without session tickets, which would not be used.

    Raises:
        NotPermitted: the files cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.set_alpn_protocols([ALPN])
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise NotPermitted(
                f"{certificate} and {key} are not a certificate and its key: {key} is not the key of {certificate}"
            ) from exc
        wrong = _what_is_wrong(certificate) or f"{key} is not a key in PEM without a password"
        raise NotPermitted(f"{certificate} and {key} are not a certificate and its key: {wrong}") from exc
    except OSError as exc:
        raise NotPermitted(f"{certificate} or {key} cannot be read: {exc.strerror}") from exc
    return context


def _what_is_wrong(certificate: Path) -> str:
    """Why a file is not a certificate; "" if it is one."""
    try:
        pin_of_file(certificate)
    except NotPermitted as error:
        return str(error)
    return ""


def time_worry(certificate: Path, now: datetime.datetime) -> str | None:
    """What is wrong with the validity of a certificate, or of another one in its file; None: nothing.

    Args:
        certificate: a PEM file.
        now: in UTC.

    Raises:
        NotPermitted: it holds no certificate.
    """
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
    except (OSError, ValueError) as exc:
        raise NotPermitted(f"{certificate} holds no certificate in PEM") from exc
    effect = "clients that ask an authority (--ca) will not trust this server; renew it"
    for at, one in enumerate(chain):
        which = f"{certificate}" if at == 0 else f"certificate {at + 1} in {certificate}"
        if now > one.not_valid_after_utc:
            return f"{which} expired on {_minute(one.not_valid_after_utc)}: {effect}"
        if now < one.not_valid_before_utc:
            return f"{which} is valid only from {_minute(one.not_valid_before_utc)} on: {effect}, or set the clock"
    return None


def _minute(at: datetime.datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")


def client_context(*, pinned: bool, authorities: Path | None = None) -> ssl.SSLContext:
    """TLS for a client.

    Args:
        pinned: the caller compares the certificate with a pin, so it may be signed by anyone.
        authorities: PEM file of the authorities to trust instead of the system's.

    Raises:
        NotPermitted: ``authorities`` cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    if pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authorities is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(authorities)
        except OSError as exc:
            raise NotPermitted(
                f"{authorities} holds no certificates: {exc.strerror or 'no PEM file'}"
            ) from exc
    return context


def pin_of_file(certificate: Path) -> bytes:
    """The pin of the first certificate in a PEM file. Raises NotPermitted."""
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_certificate

    try:
        return pin_of(load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER))
    except (OSError, ValueError) as exc:
        raise NotPermitted(f"{certificate} holds no certificate in PEM") from exc


def pin_of(certificate_der: bytes) -> bytes:
    """The pin of a certificate: 32 bytes."""
    return hashlib.sha256(certificate_der).digest()


def pin_words(pin: bytes) -> str:
    """A pin as 24 words (BP1-TLS-008)."""
    return Mnemonic("english").to_mnemonic(pin)


def parse_pin(text: str) -> bytes:
    """A pin from 24 words, or from 64 hexadecimal digits with or without colons.

    Raises:
        ValueError: it is neither; the text says what is wrong.
    """
    words = text.lower().split()
    if len(words) == 1 and (found := _HEX.fullmatch(words[0])):
        return bytes.fromhex(found[1].replace(":", ""))
    if len(words) != 24:
        raise ValueError(
            f"a pin is 24 words or 64 hexadecimal digits; this has {len(words)} word{'' if len(words) == 1 else 's'}"
        )
    english = Mnemonic("english")
    for word in words:
        if word not in english.wordlist:
            raise ValueError(f"'{word}' is not a word of a pin")
    try:
        return bytes(english.to_entropy(words))
    except ValueError:
        raise ValueError("a word of it is wrong, or two are exchanged") from None
