"""The server: accepts connections, gives each stream to whoever handles it, and leaves in good order.

    listener → doorway: a place among strangers, until enough was said → reception
        → Connection → stream's first message → Admitting · Incoming · BriefIncoming · ServedFetch · ServedBrief · Answerer
        → Visit → a dialect, where one is enabled

One committer serves all connections. Leaving (``Server.stop``): no new connections, GOAWAY to all, at most ``GRACE_S`` for
what is in flight, then what is known of unfinished blocks is recorded and everything queued is made durable.

Spec: BP1-END, BP1-DIA; the rest is in the modules above.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial

import trio

from .dialects import Dialect
from .dialects.visit import Visit
from .errors import (
    BlockprotoError,
    Code,
    ConnectionLost,
    GoingAway,
    StoreFailed,
    Unauthenticated,
    Unsupported,
)
from .identity.admission import LOCKED, WANTS_TLS, Admission, Admitting, Door
from .identity.register import Register
from .link.connection import GREETING_S, Acceptor, Connection, Sink
from .link.endpoint import Endpoint, SocketEndpoint, endpoint_of
from .link.unexpected import unexpected
from .protocol.session import Limits
from .realm import ANONYMOUS
from .routing import Verdict
from .serving.answers import Answers
from .serving.arrivals import PLACES, Arrivals, Place
from .serving.briefs import Briefs, ServedBrief, is_brief
from .serving.company import CONNECTIONS_EACH, Company
from .serving.digesting import Digesting
from .serving.doorway import Doorway, Stranger
from .serving.reception import Caller, receive
from .serving.requests import Answerer, ServedFetch
from .serving.ward import Ward, out_of_memory
from .store import FileStore, Work
from .transfer.budgets import Budgets
from .transfer.committing import Committer, Disk, run_anyhow, run_in_thread
from .transfer.comparing import Comparing
from .transfer.receiving import Incoming
from .transfer.receiving_brief import BriefIncoming
from .transfer.uploads import Uploads
from .watch import NOBODY, VISITOR, Load, Visitor, Watch
from .wire import FEATURE_IF_EXISTS, Auth, Block, Fetch, List, Message, Open, Remove, Scopes

GRACE_S = 2.0
RETRY_AFTER_MS = 500
SWEEP_EVERY_S = 3600.0
ACCEPT_AGAIN_S = 1.0
"""How long a listener rests after an error that nobody expected."""

log = logging.getLogger(__name__)


class Server:
    """Serves one store to any number of connections.

    Args:
        store: what is served; closed by ``run``.
        limits: what HELLO says; None for the defaults.
        door: who may come in; None: everybody, anonymously.
        dialects: what else is answered on the same port.
        tls: certificate and key; None: TLS is not answered.
        places: how many may be connected at once of whom it is not known who they are.
        connections_each: how many connections one principal may have; of those who say no token, one address.
        watch: hears what happens.
    """

    def __init__(
        self,
        store: FileStore,
        *,
        limits: Limits | None = None,
        door: Door | None = None,
        dialects: Sequence[Dialect] = (),
        tls: ssl.SSLContext | None = None,
        places: int = PLACES,
        connections_each: int = CONNECTIONS_EACH,
        watch: Watch = NOBODY,
    ) -> None:
        self.store = store
        self.committer = Committer(store, watch=watch)
        self.disk = Disk()
        self.committer.accounts = self._budgets = Budgets(store)
        self._comparing = Comparing(store, self.committer)
        self.uploads = Uploads(store, self.committer, self.disk, self._budgets, watch, self._comparing)
        self._digesting = Digesting(store, self.committer)
        self._watch = watch
        self._numbers = itertools.count(1)
        self.door = door or Door()
        self._budgets.hold(self.door.anonymous or ANONYMOUS)
        self._limits = replace(
            limits or Limits(agent="blockproto"), features=self.door.features | FEATURE_IF_EXISTS
        )
        self._dialects = tuple(dialects)
        self._tls = tls
        self._connections: dict[Connection | Visit, str] = {}  # its kind; in the order in which they came
        self._admissions: dict[Connection, Admission] = {}
        self._visits: dict[Visit, Admission] = {}
        self._unknown: dict[Connection, trio.Event] = {}  # who waits to be told who that is
        self._arrivals = Arrivals(places)
        self._company = Company(connections_each)
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
        """Serve until ``stop`` or cancellation; then leave in good order and close the store.

        Raises:
            StoreFailed: the disk reported an error; every client was told, nothing was acknowledged after it.

        Cancellation: unfinished blocks are recorded and what was received is made durable before this returns.
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
                nursery.start_soon(self._commit)
                nursery.start_soon(self._comparing.run)
                nursery.start_soon(self._sweep)
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept_from, listener)
                    self._started.set()
                    self._watch.serving(self.load)
                    task_status.started()
                    await self._stopping.wait()
                    accepting.cancel_scope.cancel()
                await self._leave()
                nursery.cancel_scope.cancel()
        finally:
            await run_anyhow(self.store.close)

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.stop()

    async def _commit(self) -> None:
        try:
            await self.committer.run()
        except StoreFailed as exc:
            self._fail(exc)

    def _fail(self, failure: StoreFailed) -> None:
        """The disk cannot be trusted any more: tell everybody and leave."""
        log.error("the store failed: %s", failure, extra={"event": "store failed"})
        self._failure = self._failure or failure
        self.stop()

    def use_register(self, register: Register) -> None:
        """Let the tokens of ``register`` count from now on.

        Connections that came in with one that is gone end (BP1-AUT-009), and so do those that came in without one where
        one is needed now (BP1-AUT-014, BP1-DIA-020).
        """
        self.door.use_register(register)
        self._limits = replace(self._limits, features=self.door.features | FEATURE_IF_EXISTS)
        for connection, admission in self._admissions.items():
            if admission.revoked:
                connection.end_with(Unauthenticated("the credential was revoked"))
            elif admission.shut_out:
                connection.end_with(Unauthenticated("this server wants a token now: say who you are"))
        for visit, admission in self._visits.items():
            if admission.shut_out:
                visit.end_with(Unauthenticated("this server wants a token now, and dialects have none"))

    def load(self) -> Load:
        """What there is to do at this moment."""
        kinds = Counter({"native": 0, "tls": 0} | {dialect.name: 0 for dialect in self._dialects})
        kinds.update(self._connections.values())
        return Load(kinds, self.uploads.count, self.committer.queued, self.disk.slow, self._budgets.used())

    def stop(self) -> None:
        """Begin to leave; ``run`` returns when everything is durable."""
        self._stopping.set()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection over any Trio stream; ``run`` must be running. Returns when it has ended."""
        await self._started.wait()
        await self.serve_endpoint(endpoint_of(stream))

    async def serve_endpoint(self, endpoint: Endpoint) -> None:
        """Serve one connection; returns when it has ended."""
        scope = trio.CancelScope()
        place = self._arrivals.take(endpoint.host, scope.cancel)
        await self._serve_stranger(endpoint, place, scope, trio.current_time())

    def _let_in(self, stranger: Stranger) -> None:
        """Serve who was at the door."""
        assert self._nursery is not None
        assert stranger.place is not None
        scope = trio.CancelScope()
        stranger.place.go = scope.cancel
        endpoint, begun_at = SocketEndpoint(stranger.sock), stranger.until - GREETING_S
        self._nursery.start_soon(self._serve_stranger, endpoint, stranger.place, scope, begun_at)

    async def _serve_stranger(
        self, endpoint: Endpoint, place: Place, scope: trio.CancelScope, begun_at: float
    ) -> None:
        """Serve one connection that has a place; whatever goes wrong in it, it ends and the others go on."""
        VISITOR.set(Visitor(next(self._numbers), endpoint.peer))
        new_session = partial(self._watch.session, self._limits)
        endpoint = self._watch.endpoint(endpoint)
        try:
            with scope:
                caller = await receive(
                    endpoint, new_session, self._dialects, self._tls, begun_at + GREETING_S
                )
            if scope.cancel_called or caller is None:
                await endpoint.aclose()
            elif isinstance(caller.spoken, Verdict):
                await self._converse(caller, place, begun_at)
            else:
                await self._visit(caller, caller.spoken, place, begun_at)
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

    async def _visit(self, caller: Caller, dialect: Dialect, place: Place, begun_at: float) -> None:
        """Serve a connection that speaks a dialect, as the anonymous principal."""
        admission = self._admission_for(caller)
        refusal: BlockprotoError | None = None
        try:
            admission.judge_dialect()
        except BlockprotoError as exc:
            refusal = exc
        anonymous = self.door.anonymous
        visit = Visit(
            dialect,
            caller.endpoint,
            caller.first,
            self.uploads,
            ANONYMOUS.principal,
            begun_at,
            refusal,
            anonymous is not None and Scopes.READ in anonymous.scopes,
        )
        if refusal is None:
            place.leave()
            self._count(visit, admission)
        else:
            facts = {"dialect": dialect.name, "code": refusal.code.name, "text": str(refusal)}
            extra = {"event": "not let in", "facts": facts}
            log.warning("%s was not let in: %s", caller.endpoint.peer, refusal, extra=extra)
            place.go = visit.close
        self._visits[visit] = admission
        try:
            await self._serve_until_ended(visit, visit.run(), dialect.name)
        finally:
            del self._visits[visit]
            self._company.leave(visit)

    def _admission_for(self, caller: Caller) -> Admission:
        open_to_all = caller.secured or self.door.plaintext_for(caller.endpoint.host)
        return Admission(self.door if open_to_all else LOCKED)

    async def _converse(self, caller: Caller, place: Place, begun_at: float) -> None:
        """Serve a native connection."""
        assert self._nursery is not None
        admission = self._admission_for(caller)
        connection = Connection(
            caller.endpoint, caller.session, accept=self._acceptor(self._nursery, admission)
        )
        place.go = connection.close
        self._admissions[connection] = admission
        ward = Ward(self._nursery, connection)
        ward.start_soon(self._see_in, connection, admission, place, begun_at)
        try:
            kind = "tls" if caller.secured else "native"
            await self._serve_until_ended(connection, connection.run(caller.received, begun_at), kind)
        finally:
            del self._admissions[connection]
            self._company.leave(connection)
            self._tell_admitted(connection)

    def _admit(self, connection: Connection, admission: Admission) -> None:
        self._tell_admitted(connection)
        self._budgets.hold(admission.realm)
        self._count(connection, admission)

    def _count(self, connection: Connection | Visit, admission: Admission) -> None:
        """Count a connection, whatever it speaks, among those of its principal (BP1-PRN-009)."""
        self._company.join(admission.principal, connection.endpoint.host, connection)

    def _tell_admitted(self, connection: Connection) -> None:
        waiting = self._unknown.get(connection)
        if waiting is not None:
            waiting.set()

    async def _see_in(
        self, connection: Connection, admission: Admission, place: Place, begun_at: float
    ) -> None:
        """Let nobody stay who has not said in time who they are (BP1-AUT-010); who has needs no place any more."""
        await connection.greeted.wait()
        if admission.door is LOCKED:
            connection.end_with(Unauthenticated(WANTS_TLS))
            return
        if not admission.admitted and connection.lost is None:
            admitted = self._unknown[connection] = trio.Event()
            with trio.move_on_at(begun_at + GREETING_S) as waiting:
                await admitted.wait()
            del self._unknown[connection]
            if waiting.cancelled_caught:
                connection.end_with(ConnectionLost("nobody has said who is asking"))
                return
        place.leave()
        if connection in self._admissions:  # else it has ended meanwhile
            self._count(connection, admission)

    async def _serve_until_ended(
        self, connection: Connection | Visit, ended: Coroutine[object, object, BlockprotoError], kind: str
    ) -> None:
        self._connections[connection] = kind
        self._watch.came(kind)
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

    def _acceptor(self, nursery: trio.Nursery, admission: Admission) -> Acceptor:
        briefs: Briefs | None = None
        answers: Answers | None = None

        def accept(connection: Connection, stream: int, message: Message) -> Sink:
            nonlocal briefs, answers
            if self._stopping.is_set():
                raise GoingAway(retry_after_ms=RETRY_AFTER_MS)
            if isinstance(message, Auth):
                if self.door.register is None:
                    raise Unsupported("this server knows no principals")
                return Admitting(connection, stream, admission, self._admit)
            realm = admission.realm_for(message)
            if isinstance(message, Open):
                return Incoming(connection, stream, self.uploads, realm)
            if isinstance(message, Block):
                return BriefIncoming(connection, stream, self.uploads, realm)
            if isinstance(message, Fetch) and is_brief(message):
                briefs = briefs or Briefs(connection, Ward(nursery, connection), self.store, self.disk)
                return ServedBrief(briefs, stream, realm)
            ward = Ward(nursery, connection, stream)
            if isinstance(message, Fetch):
                return ServedFetch(connection, stream, ward, self.store, self.uploads, self.disk, realm)
            assert isinstance(message, List | Remove)
            answers = answers or Answers(ward)
            return Answerer(connection, stream, answers, self.store, self.uploads, self._digesting, realm)

        return accept

    async def _accept_from(self, listener: trio.SocketListener) -> None:
        async with listener:
            while True:
                try:
                    with socket.socket(fileno=os.dup(listener.socket.fileno())) as sock:
                        await Doorway(sock, self._arrivals, self._dialects, self._let_in).run()
                except* Exception as group:
                    unexpected("accepting connections for a second", group)
                await trio.sleep(ACCEPT_AGAIN_S)

    async def _sweep(self) -> None:
        """Remove what has expired, a little at a time."""
        while True:
            now_ms = time.time_ns() // 1_000_000
            works: Sequence[Work] = ()
            try:
                works = await run_in_thread(partial(self.store.sweep, now_ms))
                for work in works:
                    self.committer.submit(work, lambda _: None, principal=ANONYMOUS.principal, small=True)
            except StoreFailed as exc:
                self._fail(exc)
                return
            except BlockprotoError as exc:
                extra = {"event": "expiry postponed"}
                log.warning("what has expired is looked for again in an hour: %s", exc, extra=extra)
            except Exception as exc:
                unexpected("looking for what has expired", exc)
                works = ()
            if works:
                await self.committer.drain()
            else:
                await trio.sleep(SWEEP_EVERY_S)

    async def _leave(self) -> None:
        self._arrivals.close()
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
        await self.committer.drain()
