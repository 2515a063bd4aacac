"""Certificates for one case: of a server of its own, signed by itself or by an authority that the client is told to trust.

Spec: BP1-TLS-003.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ..tunnel import ALPN

HOST = "localhost"
_DAY = datetime.timedelta(days=1)


class Signer(NamedTuple):
    """A certificate and the key that it is about."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a server shows.

    Attributes:
        path: the certificate and its key, PEM.
        pin: SHA-256 of the certificate, hexadecimal.
    """

    path: Path
    pin: str

    def context(
        self, *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, protocols: tuple[str, ...] = (ALPN,)
    ) -> ssl.SSLContext:
        """TLS for the server that shows it: exactly this version, and what ALPN may choose."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = version
        context.num_tickets = 0
        context.set_alpn_protocols(list(protocols))
        context.load_cert_chain(self.path)
        return context


def make_authority(path: Path) -> Signer:
    """An authority that nobody has heard of; its certificate is written to ``path``, PEM."""
    made = _make("blockproto-conform authority", None, authority=True)
    path.write_bytes(made.certificate.public_bytes(serialization.Encoding.PEM))
    return made


def make_credentials(
    path: Path, signer: Signer | None = None, *, host: str = HOST, ended: bool = False
) -> Credentials:
    """Certificate and key of a server, in one file.

    Args:
        path: of the file.
        signer: who signs; None: the key itself.
        host: the name it is for, besides 127.0.0.1 if that is ``HOST``.
        ended: its time was over yesterday.
    """
    made = _make(host, signer, ended=ended)
    key = made.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(key + made.certificate.public_bytes(serialization.Encoding.PEM))
    der = made.certificate.public_bytes(serialization.Encoding.DER)
    return Credentials(path, hashlib.sha256(der).hexdigest())


def _make(host: str, signer: Signer | None, *, authority: bool = False, ended: bool = False) -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    issuer_key = key if signer is None else signer.key
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if signer is None else signer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * _DAY)
        .not_valid_after(now - _DAY if ended else now + _DAY)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .add_extension(_usage(authority), critical=True)
    )
    if not authority:
        names: list[x509.GeneralName] = [x509.DNSName(host)]
        names += [x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))] if host == HOST else []
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Signer(builder.sign(issuer_key, hashes.SHA256()), key)


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
