"""Authorisation of a connection: for which principal it speaks, and what it may do.

There is one ``AuthPolicy`` for the server and one ``ConnectionAuth`` for each connection. AUTH takes effect at its place
among the frames, so that requests behind it need not wait for the answer.

Rules:
    1. A refused AUTH changes nothing; the third ends the connection.
    2. When a credential expires, open streams go on and new requests are refused; when it is revoked, the connection ends.

Spec: BP1-AUT, BP1-PRN-004, BP1-PRN-008.
"""

from __future__ import annotations

from collections.abc import Callable

from ..connection.connection import Connection
from ..errors import BlockprotoError, CredentialExpired, Forbidden, Unauthenticated, UnexpectedMessage
from ..wire import (
    CREDENTIAL_LENGTH_MAX,
    PRINCIPAL_KIND,
    Auth,
    Message,
    PrincipalItem,
    Result,
    Scheme,
)
from .auth_policy import DENY_ALL, WANTS_TLS, WANTS_TOKEN, AuthPolicy
from .principals import Grant
from .realm import ANONYMOUS, Realm

REFUSALS_MAX = 3
"""How many refused AUTHs end a connection (BP1-AUT-007)."""


class ConnectionAuth:
    """The principal and the rights of one connection.

    Args:
        policy: the server's.
    """

    __slots__ = ("_grant", "_refusals", "_was_anonymous", "policy")

    def __init__(self, policy: AuthPolicy) -> None:
        self.policy = policy
        self._was_anonymous = policy.anonymous is not None
        self._grant: Grant | None = None
        self._refusals = 0

    @property
    def admitted(self) -> bool:
        """Whether the connection may make requests, or could until its credential expired."""
        return self._grant is not None or self.policy.anonymous is not None

    @property
    def principal(self) -> bytes:
        """The principal (16 bytes); zeros: anonymous."""
        return ANONYMOUS.principal if self._grant is None else self._grant.realm.principal

    @property
    def realm(self) -> Realm:
        """The realm of the principal, the anonymous one before AUTH."""
        return self.policy.anonymous or ANONYMOUS if self._grant is None else self._grant.realm

    @property
    def revoked(self) -> bool:
        """Whether the token of the connection was revoked (BP1-AUT-009)."""
        register = self.policy.register
        return self._grant is not None and (register is None or not register.holds(self._grant.token_id))

    @property
    def shut_out(self) -> bool:
        """Whether the connection was anonymous, and anonymous access has ended (BP1-AUT-014)."""
        return self._was_anonymous and self._grant is None and self.policy.anonymous is None

    def requesting(self) -> Realm:
        """The realm in which a request is made now.

        Raises:
            Unauthenticated: AUTH or TLS is required.
            CredentialExpired: the credential has expired.
        """
        if self._grant is None:
            realm = self.policy.anonymous
            if realm is None:
                raise Unauthenticated(WANTS_TLS if self.policy is DENY_ALL else WANTS_TOKEN)
            return realm
        self._judge_time(self._grant)
        return self._grant.realm

    def speaking_dialect(self) -> Realm:
        """The realm for a dialect, which has no AUTH (BP1-DIA-020).

        Raises:
            Unauthenticated: nothing is allowed without AUTH.
        """
        realm = self.policy.anonymous
        if realm is None:
            raise Unauthenticated("this server wants to know who is there, and this dialect cannot say it")
        return realm

    def judge(self, message: Auth) -> Result:
        """Answer AUTH; requests are made for its principal from then on.

        Raises:
            Unauthenticated: the credential is not known.
            CredentialExpired: it has expired.
            Forbidden: the connection speaks for another principal already.
        """
        try:
            grant = self._grant_for(message)
        except BlockprotoError:
            self._refusals += 1
            raise
        self._grant = grant
        return Result(PRINCIPAL_KIND, (self._item(grant),))

    @property
    def tried_too_often(self) -> bool:
        """Whether so many AUTHs were refused that the connection has to end (BP1-AUT-007)."""
        return self._refusals >= REFUSALS_MAX

    def _grant_for(self, message: Auth) -> Grant:
        if self.policy is DENY_ALL:
            raise Unauthenticated(WANTS_TLS)
        register = self.policy.register
        fits = message.scheme == Scheme.TOKEN and len(message.credential) <= CREDENTIAL_LENGTH_MAX
        grant = None if register is None else register.find(message.credential if fits else "")
        if grant is None:
            raise Unauthenticated
        self._judge_time(grant)
        if self._grant is not None and self._grant.realm.principal != grant.realm.principal:
            raise Forbidden("this connection speaks for another principal: open another one")
        return grant

    def _judge_time(self, grant: Grant) -> None:
        if grant.expires_ms is not None and self.policy.now_ms() >= grant.expires_ms:
            raise CredentialExpired

    def _item(self, grant: Grant) -> PrincipalItem:
        realm = grant.realm
        return PrincipalItem(
            principal=realm.principal,
            expires_ms=grant.expires_ms,
            server_time_ms=self.policy.now_ms(),
            quota=realm.quota,
            used=None,
            scopes=int(realm.scopes),
            name=realm.name,
        )


class AuthHandler:
    """Answers one AUTH.

    Args:
        connection, stream: where it came.
        connection_auth: the connection's.
        on_admitted: called when AUTH has succeeded.
    """

    waits = False

    def __init__(
        self,
        connection: Connection,
        stream: int,
        connection_auth: ConnectionAuth,
        on_admitted: Callable[[Connection, ConnectionAuth], object],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._connection_auth = connection_auth
        self._on_admitted = on_admitted

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if not isinstance(message, Auth):
            return
        try:
            result = self._connection_auth.judge(message)
        except BlockprotoError as error:
            if not self._connection_auth.tried_too_often:
                raise
            self._connection.forget(self._stream)
            self._connection.end_with(error)
            return
        self._on_admitted(self._connection, self._connection_auth)
        self._connection.post(self._stream, result)
        self._connection.forget(self._stream)

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        raise UnexpectedMessage("AUTH has no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
