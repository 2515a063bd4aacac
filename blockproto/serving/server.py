"""The server: accept connections, hand each stream to its handler, and stop gracefully.

    listener → acceptor, with a handshake slot, until enough has come → detect
        → Connection → first message of a stream
        → AuthHandler · UploadReceiver · BriefReceiver · FilesReceiver · ServedFetch · ServedBrief · RequestHandler
        → DialectConnection → a dialect, if one is enabled

One committer serves all connections. To stop (``Server.stop``): no new connections, GOAWAY to all, at most ``GRACE_S`` for
what is under way; then prefixes of unfinished blocks are recorded and everything queued is made durable.

Spec: BP1-END, BP1-DIA; the rest is in the modules above.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial

import trio

from ..connection.connection import GREETING_S, AcceptStream, Connection, StreamHandler
from ..connection.endpoint import Endpoint, SocketEndpoint, endpoint_of
from ..connection.unexpected_errors import unexpected
from ..dialects import Dialect
from ..dialects.dialect_connection import DialectConnection
from ..errors import (
    BlockprotoError,
    Code,
    ConnectionLost,
    GoingAway,
    Refused,
    StoreFailed,
    Unauthenticated,
    Unsupported,
)
from ..identity.auth_policy import DENY_ALL, WANTS_TLS, AuthPolicy
from ..identity.connection_auth import AuthHandler, ConnectionAuth
from ..identity.principals import Register
from ..identity.realm import ANONYMOUS
from ..observability.observed import observed_endpoint, observed_session
from ..observability.observer import CURRENT_CONNECTION, NULL_OBSERVER, ConnectionLabel, Load, Observer
from ..protocol.session import Limits, Side
from ..store import FileStore
from ..transfer.brief_receiver import BriefReceiver
from ..transfer.engine import FileEngine
from ..transfer.file_service import FileService, FileWriter
from ..transfer.files_receiver import FilesReceiver
from ..transfer.hooks import CommitHooks
from ..transfer.receiver import UploadReceiver
from ..wire import (
    FEATURE_FILES,
    FEATURE_IF_EXISTS,
    FEATURE_WANTED,
    WANTED_MAX,
    Auth,
    Block,
    Fetch,
    Files,
    List,
    Message,
    Open,
    Remove,
)
from .acceptor import Acceptor, PendingSocket
from .connection_limits import CONNECTIONS_EACH, ConnectionLimits
from .detect import DetectedConnection, detect
from .detect_rules import Detection
from .handlers.brief_fetch import BriefFetches, ServedBrief, is_brief
from .handlers.fetch import ServedFetch
from .handlers.requests import RequestHandler
from .handlers.served_files import ServedFiles
from .handshake_slots import SLOTS, HandshakeSlots, Slot
from .pending_requests import PendingRequests
from .task_guard import TaskGuard, out_of_memory

GRACE_S = 2.0
RETRY_AFTER_MS = 500
ACCEPT_AGAIN_S = 1.0
"""How long a listener pauses after an unexpected error."""

log = logging.getLogger(__name__)


class Server:
    """Serves one store to any number of connections.

    Args:
        store: what is served; closed by ``run``.
        limits: for HELLO; None: the defaults.
        policy: who may connect; None: everyone, anonymously.
        dialects: also answered on the same port.
        tls: certificate and key; None: TLS is not answered.
        places: the number of handshake slots.
        connections_each: how many connections one principal, or without a token one address, may have.
        files: whether FILES is answered (BP1-FIL-001); False makes it one of the servers that do not know it.
        observer: hears what happens.
        hooks: have to agree before a file gets its name, and hear of it afterwards; None: there are none.
    """

    def __init__(
        self,
        store: FileStore,
        *,
        limits: Limits | None = None,
        policy: AuthPolicy | None = None,
        dialects: Sequence[Dialect] = (),
        tls: ssl.SSLContext | None = None,
        places: int = SLOTS,
        connections_each: int = CONNECTIONS_EACH,
        files: bool = True,
        observer: Observer = NULL_OBSERVER,
        hooks: CommitHooks | None = None,
    ) -> None:
        self.engine = FileEngine(store, self._fail, observer=observer, hooks=hooks)
        self._observer = observer
        self._hooks = observer.hooks()
        self._numbers = itertools.count(1)
        self.policy = policy or AuthPolicy()
        self.engine.hold(self.policy.anonymous or ANONYMOUS)
        self._features = FEATURE_IF_EXISTS | (FEATURE_FILES | FEATURE_WANTED if files else 0)
        self._limits = replace(
            limits or Limits(agent="blockproto"), features=self.policy.features | self._features
        )
        self._dialects = tuple(dialects)
        self._tls = tls
        self._connections: dict[Connection | DialectConnection, str] = {}  # by kind; oldest first
        self._connection_auths: dict[Connection, ConnectionAuth] = {}
        self._dialect_connections: dict[DialectConnection, ConnectionAuth] = {}
        self._unknown: dict[Connection, trio.Event] = {}  # set when it is identified
        self._slots = HandshakeSlots(places)
        self._connection_limits = ConnectionLimits(connections_each)
        self._stopping = trio.Event()
        self._stopped = False
        self._failure: StoreFailed | None = None
        self._nursery: trio.Nursery | None = None
        self._started = trio.Event()

    async def run(
        self,
        listeners: Sequence[trio.SocketListener] = (),
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until ``stop`` or cancellation; then stop gracefully and close the store.

        Raises:
            StoreFailed: the disk reported an error; every client was told, and nothing was acknowledged after it.

        Cancellation: prefixes of unfinished blocks are recorded and what was received is made durable before this returns.
        """
        async with trio.open_nursery() as watching:
            watching.start_soon(self._stop_when_cancelled)
            with trio.CancelScope(shield=True):
                await self._serve(listeners, task_status)
            watching.cancel_scope.cancel()
        if self._failure is not None:
            raise StoreFailed(f"the store failed and the server left: {self._failure}") from self._failure

    async def _serve(
        self, listeners: Sequence[trio.SocketListener], task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.engine.run)
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept_from, listener)
                    self._started.set()
                    self._observer.serving(self.load)
                    task_status.started()
                    await self._stopping.wait()
                    accepting.cancel_scope.cancel()
                await self._leave()
                nursery.cancel_scope.cancel()
        finally:
            await self.engine.close()

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.stop()

    def _fail(self, failure: StoreFailed) -> None:
        """Tell all clients that the disk has failed, and stop."""
        log.error("the store failed: %s", failure, extra={"event": "store failed"})
        self._failure = self._failure or failure
        self.stop()

    def use_register(self, register: Register) -> None:
        """Use the tokens of ``register`` from now on.

        Connections with a revoked token end (BP1-AUT-009), and so do those without a token if one is needed now
        (BP1-AUT-014, BP1-DIA-020).
        """
        self.policy.use_register(register)
        self._limits = replace(self._limits, features=self.policy.features | self._features)
        for connection, connection_auth in self._connection_auths.items():
            if connection_auth.revoked:
                connection.end_with(Unauthenticated("the credential was revoked"))
            elif connection_auth.shut_out:
                connection.end_with(Unauthenticated("this server wants a token now: say who you are"))
        for dialect_connection, connection_auth in self._dialect_connections.items():
            if connection_auth.shut_out:
                dialect_connection.end_with(
                    Unauthenticated("this server wants a token now, and dialects have none")
                )

    def load(self) -> Load:
        """The load at this moment."""
        kinds = Counter({"native": 0, "tls": 0} | {dialect.name: 0 for dialect in self._dialects})
        kinds.update(self._connections.values())
        return self.engine.load(kinds)

    def stop(self) -> None:
        """Begin to stop; ``run`` returns when everything is durable."""
        self._stopping.set()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection over any Trio stream, to its end; ``run`` must be running. Cancellation: it is closed."""
        await self._started.wait()
        await self.serve_endpoint(endpoint_of(stream))

    async def serve_endpoint(self, endpoint: Endpoint) -> None:
        """Serve one connection to its end. Cancellation: it is closed."""
        scope = trio.CancelScope()
        place = self._slots.take(endpoint.host, scope.cancel)
        await self._serve_pending(endpoint, place, scope, trio.current_time())

    def _let_in(self, pending: PendingSocket) -> None:
        """Serve a connection that is ready."""
        assert self._nursery is not None
        assert pending.place is not None
        scope = trio.CancelScope()
        pending.place.go = scope.cancel
        endpoint, begun_at = SocketEndpoint(pending.sock), pending.until - GREETING_S
        self._nursery.start_soon(self._serve_pending, endpoint, pending.place, scope, begun_at)

    async def _serve_pending(
        self, endpoint: Endpoint, place: Slot, scope: trio.CancelScope, begun_at: float
    ) -> None:
        """Serve one connection that has a slot; an error ends it, and no other."""
        CURRENT_CONNECTION.set(ConnectionLabel(next(self._numbers), endpoint.peer))
        endpoint = observed_endpoint(endpoint, self._hooks)
        try:
            with scope:
                detected = await self._detect(endpoint, begun_at + GREETING_S)
            sent_away = scope.cancel_called
            del scope  # not kept in memory for the life of the connection
            if sent_away or detected is None:
                await endpoint.aclose()
            elif isinstance(detected.spoken, Detection):
                await self._converse(detected, place, begun_at)
            else:
                await self._serve_dialect(detected, detected.spoken, place, begun_at)
        except* MemoryError:
            out_of_memory(endpoint.peer)
            with trio.CancelScope(shield=True):
                await endpoint.aclose()
        except* Exception as group:
            unexpected(f"the connection to {endpoint.peer}", group)
            with trio.CancelScope(shield=True):
                await endpoint.aclose()
        finally:
            place.leave()

    async def _detect(self, endpoint: Endpoint, until: float) -> DetectedConnection | None:
        """Find out who speaks."""
        new_session = partial(observed_session, Side.SERVER, self._limits, self._hooks)
        return await detect(endpoint, new_session, self._dialects, self._tls, until)

    async def _serve_dialect(
        self, detected: DetectedConnection, dialect: Dialect, place: Slot, begun_at: float
    ) -> None:
        """Serve a connection that speaks a dialect, as the anonymous principal."""
        connection_auth = self._admission_for(detected)
        writer: FileWriter | BlockprotoError
        try:
            writer = FileService(self.engine, connection_auth.speaking_dialect()).writer()
        except BlockprotoError as exc:
            writer = exc
        dialect_connection = DialectConnection(
            dialect,
            detected.endpoint,
            detected.first,
            writer,
            begun_at,
        )
        refusal = dialect_connection.refusal
        if refusal is None:
            place.leave()
            self._count(dialect_connection, connection_auth)
        else:
            facts = {"dialect": dialect.name, "code": refusal.code.name, "text": str(refusal)}
            extra = {"event": "not let in", "facts": facts}
            log.warning("%s was not let in: %s", detected.endpoint.peer, refusal, extra=extra)
            place.go = dialect_connection.close
        self._dialect_connections[dialect_connection] = connection_auth
        try:
            await self._serve_until_ended(dialect_connection, dialect_connection.run(), dialect.name)
        finally:
            del self._dialect_connections[dialect_connection]
            self._connection_limits.leave(dialect_connection)

    def _admission_for(self, detected: DetectedConnection) -> ConnectionAuth:
        open_to_all = detected.secured or self.policy.plaintext_for(detected.endpoint.host)
        return ConnectionAuth(self.policy if open_to_all else DENY_ALL)

    async def _converse(self, detected: DetectedConnection, place: Slot, begun_at: float) -> None:
        """Serve a native connection."""
        assert self._nursery is not None
        connection_auth = self._admission_for(detected)
        connection = Connection(
            detected.endpoint, detected.session, accept=self._acceptor(self._nursery, connection_auth)
        )
        place.go = connection.close
        self._connection_auths[connection] = connection_auth
        guard = TaskGuard(self._nursery, connection)
        guard.start_soon(self._see_in, connection, connection_auth, place, begun_at)
        try:
            kind = "tls" if detected.secured else "native"
            await self._serve_until_ended(connection, connection.run(detected.received, begun_at), kind)
        finally:
            del self._connection_auths[connection]
            self._connection_limits.leave(connection)
            self._tell_admitted(connection)

    def _admit(self, connection: Connection, connection_auth: ConnectionAuth) -> None:
        self._tell_admitted(connection)
        self.engine.hold(connection_auth.realm)
        self._count(connection, connection_auth)

    def _count(self, connection: Connection | DialectConnection, connection_auth: ConnectionAuth) -> None:
        """Count a connection of any protocol among those of its principal (BP1-PRN-009)."""
        self._connection_limits.join(connection_auth.principal, connection.endpoint.host, connection)

    def _tell_admitted(self, connection: Connection) -> None:
        waiting = self._unknown.get(connection)
        if waiting is not None:
            waiting.set()

    async def _see_in(
        self, connection: Connection, connection_auth: ConnectionAuth, place: Slot, begun_at: float
    ) -> None:
        """End a connection that does not identify itself in time (BP1-AUT-010); free the slot of one that does."""
        await connection.greeted.wait()
        if connection_auth.policy is DENY_ALL:
            connection.end_with(Unauthenticated(WANTS_TLS))
            return
        if not connection_auth.admitted and connection.lost is None:
            admitted = self._unknown[connection] = trio.Event()
            with trio.move_on_at(begun_at + GREETING_S) as waiting:
                await admitted.wait()
            del self._unknown[connection]
            if waiting.cancelled_caught:
                connection.end_with(ConnectionLost("nobody has said who is asking"))
                return
        place.leave()
        if connection in self._connection_auths:  # else it has ended meanwhile
            self._count(connection, connection_auth)

    async def _serve_until_ended(
        self,
        connection: Connection | DialectConnection,
        ended: Coroutine[object, object, BlockprotoError],
        kind: str,
    ) -> None:
        self._connections[connection] = kind
        self._observer.came(kind)
        if self._stopped:
            connection.close(GoingAway())
        try:
            reason = await ended
            if isinstance(reason, StoreFailed):
                self._fail(reason)
            extra = {"event": "connection ended", "facts": {"why": str(reason)}}
            log.debug("%s: %s", connection.endpoint.peer, reason, extra=extra)
        finally:
            self._connections.pop(connection, None)

    def _acceptor(self, nursery: trio.Nursery, connection_auth: ConnectionAuth) -> AcceptStream:
        briefs: BriefFetches | None = None
        answers: PendingRequests | None = None
        service: FileService | None = None

        def accept(connection: Connection, stream: int, message: Message) -> StreamHandler:
            nonlocal briefs, answers, service
            if self._stopping.is_set():
                raise GoingAway(retry_after_ms=RETRY_AFTER_MS)
            if isinstance(message, Auth):
                if self.policy.register is None:
                    raise Unsupported("this server knows no principals")
                return AuthHandler(connection, stream, connection_auth, self._admit)
            realm = connection_auth.requesting()
            if service is None or service.realm is not realm:
                service = FileService(self.engine, realm)
            if isinstance(message, Open):
                return UploadReceiver(connection, stream, service.writer(), asks=message.root is not None)
            if isinstance(message, Block):
                return BriefReceiver(connection, stream, service.writer())
            if isinstance(message, Files) and message.wanted:
                answers = answers or PendingRequests(TaskGuard(nursery, connection))
                if answers.files.count >= WANTED_MAX:
                    raise Refused(f"more than {WANTED_MAX} streams ask for files", code=Code.BUSY)
                return ServedFiles(connection, stream, answers.files, service.reader())
            if isinstance(message, Files):
                return FilesReceiver(connection, stream, service.writer())
            if isinstance(message, Fetch) and is_brief(message):
                reader = service.reader()
                briefs = briefs or BriefFetches(connection, TaskGuard(nursery, connection), reader.disk)
                return ServedBrief(briefs, stream, reader)
            guard = TaskGuard(nursery, connection, stream)
            if isinstance(message, Fetch):
                return ServedFetch(connection, stream, guard, service.reader())
            assert isinstance(message, List | Remove)
            answers = answers or PendingRequests(guard)
            return RequestHandler(connection, stream, answers, service, message)

        return accept

    async def _accept_from(self, listener: trio.SocketListener) -> None:
        async with listener:
            while True:
                try:
                    with socket.socket(fileno=os.dup(listener.socket.fileno())) as sock:
                        await Acceptor(sock, self._slots, self._dialects, self._let_in).run()
                except* Exception as group:
                    unexpected("accepting connections for a second", group)
                await trio.sleep(ACCEPT_AGAIN_S)

    async def _leave(self) -> None:
        self._slots.close()
        connections = tuple(self._connections)
        for connection in connections:
            if self._failure is not None:
                connection.end_with(self._failure)
            else:
                connection.say_goodbye(
                    Code.GOING_AWAY, grace_ms=int(GRACE_S * 1000), retry_after_ms=RETRY_AFTER_MS
                )
        with trio.move_on_after(GRACE_S):
            for connection in connections:
                await connection.finished.wait()
        self._stopped = True
        for connection in tuple(self._connections):
            connection.close(GoingAway())
            await connection.finished.wait()
        await self.engine.drain()
