"""Who may connect to a server, and how: from its state folder and what its operator said.

    on loopback          no TLS, everybody on this machine, as long as no token was ever made
    for other machines   TLS with the server's own certificate, and a token; the first start makes both
    insecure             also without TLS; and, as long as no token was ever made, everybody

Revoking the last token opens nothing: then nobody comes in until there is another. A certificate of an authority, or more or
fewer rights for connections without a token, are said with ``AuthOptions``.

Spec: BP1-TLS, BP1-AUT-001, BP1-PRN-008.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ..errors import NotPermitted
from ..wire import Scopes
from . import principals as registers
from .auth_policy import AuthPolicy, wall_clock_ms
from .certificates import own_certificate, pin_of_file, server_context, time_worry
from .loopback import is_loopback
from .principals import Register
from .private_files import write_private
from .realm import ANONYMOUS, EVERYTHING, Realm

log = logging.getLogger(__name__)

OWNER = "owner"
OWNER_TOKEN_NAME = "owner.token"


@dataclass(frozen=True, slots=True)
class AuthOptions:
    """What an operator can say of who may connect.

    Attributes:
        insecure: other machines may come in without TLS too.
        certificate, key: PEM files to use instead of the server's own certificate; both or neither.
        anonymous: what one may do without a token; None: as the module says.
        anonymous_quota: bytes that the folder may have where somebody without a token adds to it; None: no quota.
    """

    insecure: bool = False
    certificate: Path | None = None
    key: Path | None = None
    anonymous: Scopes | None = None
    anonymous_quota: int | None = None


@dataclass(frozen=True, slots=True)
class ServerAuth:
    """Who may come in, and how.

    Attributes:
        policy: who.
        tls: certificate and key; None: TLS is not answered.
        pin: of the server's own certificate; None where an authority's is used or none.
        owner_token: the file in which the first token was just put, or None.
        worry: what is wrong with the certificate's time, or None.
    """

    policy: AuthPolicy
    state: Path
    tls: ssl.SSLContext | None = None
    certificate: tuple[Path, Path] | None = None
    pin: bytes | None = None
    owner_token: Path | None = None
    worry: str | None = None

    def reload(self) -> Register:
        """Read tokens and certificate anew: the register, to be used from now on.

        Raises:
            NotPermitted: one of them cannot be used; then nothing has changed.
        """
        register = registers.load(self.state)
        if self.tls is not None and self.certificate is not None:
            server_context(*self.certificate)
            self.tls.load_cert_chain(*self.certificate)
            worry = time_worry(self.certificate[0], datetime.now(UTC))
            if worry is not None:
                log.warning("%s", worry, extra={"event": "certificate not valid now"})
        return register


def open_server_auth(state: Path, host: str, auth_options: AuthOptions) -> ServerAuth:
    """Find out who may connect to a server that listens on ``host``.

    Makes certificate, key and the first token in ``state`` where they are needed and not there.

    Raises:
        NotPermitted: a file cannot be used, or the options do not fit each other.
    """
    if (auth_options.certificate is None) is not (auth_options.key is None):
        raise NotPermitted("a certificate needs its key, and a key its certificate: give both")
    here = is_loopback(host)
    register = registers.load(state)
    pair, pin = _certificate(state, auth_options, needed=not here and not auth_options.insecure)
    free = here or auth_options.insecure
    anonymous = _anonymous(register, auth_options, free=free)
    owner_token: Path | None = None
    if anonymous is None and not register.principals:
        register, owner_token = _add_owner(state)
    policy = AuthPolicy(register, anonymous, plaintext=free, until_token=auth_options.anonymous is None)
    tls = None if pair is None else server_context(*pair)
    worry = None if pair is None else time_worry(pair[0], datetime.now(UTC))
    return ServerAuth(policy, state, tls, pair, pin, owner_token, worry)


def _certificate(
    state: Path, auth_options: AuthOptions, *, needed: bool
) -> tuple[tuple[Path, Path] | None, bytes | None]:
    if auth_options.certificate is not None and auth_options.key is not None:
        return (auth_options.certificate, auth_options.key), None
    if not needed:
        return None, None
    pair = own_certificate(state)
    return pair, pin_of_file(pair[0])


def _anonymous(register: Register, auth_options: AuthOptions, *, free: bool) -> Realm | None:
    scopes = auth_options.anonymous
    if scopes is None:
        scopes = EVERYTHING if free and not register.principals else Scopes(0)
    return replace(ANONYMOUS, scopes=scopes, quota=auth_options.anonymous_quota) if scopes else None


def _add_owner(state: Path) -> tuple[Register, Path]:
    """Make the first token: it may do everything in the whole folder, and lies in a file that only its owner can read."""
    path = state / OWNER_TOKEN_NAME
    tokens: list[str] = []

    def add(register: Register) -> Register:
        changed, token = register.with_token(
            OWNER, folder=None, quota=None, scopes=EVERYTHING, now_ms=wall_clock_ms(), expires_ms=None
        )
        tokens.append(token)
        return changed

    register = registers.change(state, add)
    try:
        write_private(path, tokens[0].encode() + b"\n")
    except OSError as exc:
        raise NotPermitted(f"{path} cannot be written: {exc.strerror}") from exc
    return register, path
