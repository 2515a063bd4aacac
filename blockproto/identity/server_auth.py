"""Who may connect to a server, and how: from its state folder and the options of its operator.

    on loopback          no TLS; everyone on this machine, until the first token is made
    for other machines   TLS with the server's own certificate, and a token; the first start makes both
    insecure             also without TLS; everyone, until the first token is made

Revoking the last token does not open the server again. ``AuthOptions`` give another certificate, or other rights for
connections without a token.

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
    """An operator's options for who may connect.

    Attributes:
        insecure: let other machines connect without TLS.
        certificate, key: PEM files to use instead of the server's own certificate; both or neither.
        anonymous: what is allowed without a token; None: see the module.
        anonymous_quota: bytes of the whole folder above which nothing is added without a token; None: no quota.
    """

    insecure: bool = False
    certificate: Path | None = None
    key: Path | None = None
    anonymous: Scopes | None = None
    anonymous_quota: int | None = None


@dataclass(frozen=True, slots=True)
class ServerAuth:
    """Who may connect, and how.

    Attributes:
        policy: who.
        tls: certificate and key; None: TLS is not answered.
        pin: of the server's own certificate; None if there is none or the operator gave another.
        owner_token: the file with the first token, if that was just made.
        worry: what is wrong with the certificate's validity, or None.
    """

    policy: AuthPolicy
    state: Path
    tls: ssl.SSLContext | None = None
    certificate: tuple[Path, Path] | None = None
    pin: bytes | None = None
    owner_token: Path | None = None
    worry: str | None = None

    def reload(self) -> Register:
        """Read tokens and certificate again; returns the register to use from now on.

        Raises:
            NotPermitted: one of them cannot be used; nothing has changed.
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

    Makes certificate, key and the first token in ``state`` where they are needed and missing.

    Raises:
        NotPermitted: a file cannot be used, or the options contradict each other.
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
    """Make the first token, with all rights in the whole folder, in a file that only its owner can read."""
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
