"""Authorisation of a connection: what it may do, as far as it has said who it is.

One ``AuthPolicy`` for the server says who may come in; one ``ConnectionAuth`` for each connection remembers who came.
AUTH is judged where it stands among the frames, so that requests behind it need not wait.

Rules:
    1. A refused AUTH changes nothing; the third ends the connection.
    2. A credential that ends by its time ends no stream, and lets nothing new begin; one that is revoked ends the
       connection.

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
"""The refused AUTH that ends a connection (BP1-AUT-007)."""


class ConnectionAuth:
    """Who speaks on one connection.

    Args:
        policy: where it came in.
    """

    __slots__ = ("_grant", "_refusals", "_was_anonymous", "policy")

    def __init__(self, policy: AuthPolicy) -> None:
        self.policy = policy
        self._was_anonymous = policy.anonymous is not None
        self._grant: Grant | None = None
        self._refusals = 0

    @property
    def admitted(self) -> bool:
        """Whether the connection may make requests, now or once it is told a newer credential."""
        return self._grant is not None or self.policy.anonymous is not None

    @property
    def principal(self) -> bytes:
        """Who speaks, as far as is known: 16 bytes; zeros: nobody in particular."""
        return ANONYMOUS.principal if self._grant is None else self._grant.realm.principal

    @property
    def realm(self) -> Realm:
        """Who was let in, and what is the whole world to them; the anonymous one until then."""
        return self.policy.anonymous or ANONYMOUS if self._grant is None else self._grant.realm

    @property
    def revoked(self) -> bool:
        """Whether what the connection came in with is not known any more (BP1-AUT-009)."""
        register = self.policy.register
        return self._grant is not None and (register is None or not register.holds(self._grant.token_id))

    @property
    def shut_out(self) -> bool:
        """Whether the connection made its requests anonymously, and may not any more (BP1-AUT-014)."""
        return self._was_anonymous and self._grant is None and self.policy.anonymous is None

    def requesting(self) -> Realm:
        """In whose name a request is made now.

        Raises:
            Unauthenticated: nobody has said who is asking.
            CredentialExpired: it was said with a credential that has ended meanwhile.
        """
        if self._grant is None:
            realm = self.policy.anonymous
            if realm is None:
                raise Unauthenticated(WANTS_TLS if self.policy is DENY_ALL else WANTS_TOKEN)
            return realm
        self._judge_time(self._grant)
        return self._grant.realm

    def speaking_dialect(self) -> Realm:
        """In whose name a connection brings files that can never say who it is (BP1-DIA-020).

        Raises:
            Unauthenticated: nothing may be done here without saying who one is.
        """
        realm = self.policy.anonymous
        if realm is None:
            raise Unauthenticated("this server wants to know who is there, and this dialect cannot say it")
        return realm

    def judge(self, message: Auth) -> Result:
        """The answer to AUTH; from now on requests are made in the name of that principal.

        Raises:
            Unauthenticated: the credential is not known.
            CredentialExpired: it was known and has ended.
            Forbidden: the connection speaks for somebody else already.
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
        """Whether the connection has to end (BP1-AUT-007)."""
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
    """The stream of one AUTH, as its connection sees it.

    Args:
        connection, stream: where it came.
        connection_auth: the connection's.
        on_admitted: called when it is known who speaks.
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
