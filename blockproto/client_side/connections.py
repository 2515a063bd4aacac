"""The connections of one client to its server: made when they are first needed, made again when they are gone.

    a transfer loses its connection → Retries: whether it may try again, and for how long
                                    → Connections: all transfers wait together, then one dials and all go on

A connection that had worked is made again at once. When that fails, the wait is random, below a bound that grows with each
failure (``BOUNDS_S``): a server that thousands of clients lost at once gets them back over seconds. The users of a
connection report that it worked (``worked``), so that a server that accepts connections and transfers nothing is not
redialled in a tight loop. What arrived just before a connection broke is known only when the next one says so; therefore one
that carried much counts as working, but the next one does not, unless there was progress.

Spec: BP1-END-017, BP1-RES-024, BP1-ERR-006.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import trio

from ..connection.connection import Connection
from ..connection.keepalive import KeepAlive
from ..connection.pace import Pace
from ..errors import BlockprotoError, Code, ConnectionLost, GoingAway, LocalProtocolError
from ..observability.observed import observed_endpoint, observed_session
from ..protocol.session import Limits, Side
from ..wire import FEATURE_FILES, FEATURE_WANTED
from .authenticate import Authenticator
from .dial import Dial
from .stall_timeout import end_when_stalled

if TYPE_CHECKING:
    from ..observability.recorder import Recorder

BOUNDS_S = (0.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""The longest random wait (s) before a dial, by how many dials have failed in a row; the last one goes for all further."""
RETRY_FOR_S = 120.0
"""How long to keep trying without progress (s) once the server has answered, unless the caller says otherwise."""
UNGREETED_S = 10.0
"""The same (s) for a server that accepted a connection and never answered."""
AFTER_MOST_S = 2.0
"""The longest random wait (s) added to a peer's retry_after_ms."""
AFTER_LONGEST_S = 3600.0
"""Treat a peer that asks for a longer wait (s) than this before the next try as one that refuses."""
JOIN_S = 0.1
"""Longest wait (s) of a task that lost its connection before it uses one that another task has made."""
WORKED_S = 15.0
"""Treat a connection that lived this long (s) as one that worked, even if it was idle; longer than a greeting may take."""
WORKED_BYTES = 16 * 1024
"""Treat a connection that carried this much of a file as one that worked."""
_ROUNDING_S = 0.001
"""Treat a rest this short (s) as none: a wait for all of a time can end this much early, because floats round."""
_COMING_BACK = {Code.BUSY, Code.BAD_CHECK, Code.TIMEOUT, Code.HOOK_REFUSED}
"""Errors after which the same request can succeed, perhaps on a new connection."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The connection is gone and will be made again.

    Attributes:
        after_s: seconds until it is tried.
        why: what ended it, or why the last try failed.
    """

    after_s: float
    why: BlockprotoError


@dataclass(frozen=True, slots=True)
class Reconnected:
    """There is a connection again."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A transfer goes on after its connection was lost.

    Attributes:
        filename: which.
        position: how many of its bytes need not travel again.
    """

    filename: str
    position: int


@dataclass(frozen=True, slots=True)
class Discarded:
    """The upload of a stream has failed or was stopped; nobody can go on with it, because nobody can read it again.

    Attributes:
        filename: which.
        sourceid: of the upload, as 32 hexadecimal digits.
        position: how many of its bytes the server had acknowledged.
        removed: whether the server has removed them; else it keeps them until they expire.
    """

    filename: str
    sourceid: str
    position: int
    removed: bool


LineEvent = Reconnecting | Reconnected | Resumed | Discarded
OnLine = Callable[[LineEvent], None]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to give up.

    Attributes:
        retry_for_s: how long to keep trying without progress; None: ``RETRY_FOR_S``, ``UNGREETED_S`` if the server has never
            answered, and no time at all if it could never be connected to: then the address is probably wrong.
        tries: the greatest number of tries; None: no limit but the time.
    """

    retry_for_s: float | None = None
    tries: int | None = None


class Connections:
    """The connections of a client to its server.

    Args:
        dial: makes a byte stream to the server.
        nursery: where connections live.
        count: how many connections a big file may use.
        retry_policy: when to give up.
        keep_alive: how long an idle connection may be silent.
        on_line: called when the connection is lost, made again, and when a transfer goes on.
        authenticator: sends the token on every connection.
        recorder: logs what happens on them; None: no log.
    """

    def __init__(
        self,
        dial: Dial,
        nursery: trio.Nursery,
        count: int,
        retry_policy: RetryPolicy,
        keep_alive: KeepAlive,
        on_line: OnLine | None = None,
        authenticator: Authenticator | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._recorder = recorder
        self.retry_policy = retry_policy
        self._authenticator = authenticator or Authenticator()
        self._dial = dial
        self._nursery = nursery
        self._keep_alive = keep_alive
        self._on_line = on_line
        self._connections: list[Connection | None] = [None] * count
        self._paces: list[Pace | None] = [None] * count
        self._dialling = [trio.Lock() for _ in range(count)]
        self._answered = self._dialled = False
        self._made_at = math.inf
        self._failures = 0
        self._missed = self._trusted = False
        self._pausing = trio.Lock()
        self._nudge = trio.Event()
        self._closed = False

    @property
    def count(self) -> int:
        """How many connections there may be."""
        return len(self._connections)

    def index_of(self, connection: Connection) -> int:
        """Which one ``connection`` is or was; 0 if another has its place."""
        return next((index for index, one in enumerate(self._connections) if one is connection), 0)

    @property
    def retry_for_s(self) -> float:
        """How long to keep trying without progress, in seconds."""
        if self.retry_policy.retry_for_s is not None:
            return self.retry_policy.retry_for_s
        answers = (one is not None and one.session.peer_hello is not None for one in self._connections)
        if self._answered or any(answers):
            return RETRY_FOR_S
        return UNGREETED_S if self._dialled else 0.0

    @property
    def up(self) -> bool:
        """Whether any connection can take new streams."""
        return any(one is not None and _usable(one) for one in self._connections)

    @property
    def first_up(self) -> bool:
        """Whether the first connection, where every transfer begins, can take new streams."""
        first = self._connections[0]
        return first is not None and _usable(first)

    def close(self) -> None:
        """Begin nothing from now on: the nursery of the connections is about to end."""
        self._closed = True

    def demand_open(self) -> None:
        """Raise LocalProtocolError if this was closed."""
        if self._closed:
            raise LocalProtocolError("this client is closed: use it inside its `async with`")

    async def connection(self, index: int = 0) -> Connection:
        """A live connection, made now if there is none.

        Raises:
            ConnectionLost: the server cannot be reached.
            LocalProtocolError: the client was closed.
        """
        self.demand_open()
        async with self._dialling[index]:
            current = self._connections[index]
            if current is not None and _usable(current):
                return current
            if current is not None:
                current.close(GoingAway())
            self._failures = max(1, self._failures)  # until it has worked
            endpoint = await self._dial()
            self._dialled = True
            self._made_at = trio.current_time()
            limits = Limits(agent="blockproto", features=FEATURE_FILES | FEATURE_WANTED)
            hooks = () if self._recorder is None else (self._recorder.hook(),)
            session = observed_session(Side.CLIENT, limits, hooks)
            connection = Connection(observed_endpoint(endpoint, hooks), session, keep_alive=self._keep_alive)
            self._go_on_at_the_pace(index, connection.pace)
            if self._recorder is not None:
                self._recorder.made(connection, *hooks)
            self._authenticator.say_on(connection)
            self._nursery.start_soon(self._live, connection)
            self._connections[index] = connection
            self._wake()
            if self._missed:
                self._missed = False
                self.tell(Reconnected())
            return connection

    def _go_on_at_the_pace(self, index: int, pace: Pace) -> None:
        """Start at the pace that the connection before this one had found."""
        before, self._paces[index] = self._paces[index], pace
        if before is not None:
            pace.go_on_from(before)

    async def _live(self, connection: Connection) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end_when_stalled, connection)
                await connection.run()
                nursery.cancel_scope.cancel()
        finally:
            if self._recorder is not None:
                self._recorder.ended(connection)
        self._answered = self._answered or connection.session.peer_hello is not None

    def use_token(self, token: str) -> None:
        """Send a newer token of the same principal, now and on every later connection (BP1-AUT-013)."""
        self._authenticator.token = token
        for connection in self._connections:
            if connection is not None and _usable(connection):
                self._authenticator.say_on(connection)

    async def keep_connected(self) -> None:
        """See ``Client.keep_connected``."""
        retries = Retries(self)
        while True:
            try:
                connection = await self.connection()
                await connection.greeted.wait()
                if connection.lost is None:
                    retries = Retries(self)
                await connection.finished.wait()
                assert connection.lost is not None
                raise connection.lost
            except BlockprotoError as exc:
                await retries.wait(exc)

    def worked(self) -> None:
        """Report progress over a connection: the next loss is the first one again."""
        self._failures = 0
        self._trusted = False

    def network_changed(self) -> None:
        """Reconnect at once, because this machine has another address or network, and forget what the old one was like."""
        self._keep_alive.network_changed()
        self._paces = [None] * self.count
        self.worked()
        for connection in self._connections:
            if connection is not None:
                connection.close(ConnectionLost("this machine's network changed"))
        self._wake()

    def tell(self, event: LineEvent) -> None:
        """Pass an event to the caller's ``on_line``, and to the recorder."""
        if self._recorder is not None and isinstance(event, Reconnecting):
            self._recorder.reconnecting(event.after_s, event.why)
        if self._on_line is not None:
            self._on_line(event)

    async def pause(self, error: BlockprotoError, until: float) -> None:
        """Wait until it is time to dial again; return early at ``until``, or when there is a connection."""
        async with self._pausing:
            if self.up:
                return
            if trio.current_time() >= self._made_at + WORKED_S:
                self.worked()
            elif (
                self._made_at < math.inf and not self._trusted and any(map(_carried_much, self._connections))
            ):
                self.worked()
                self._trusted = True
            self._made_at = math.inf
            after_s = min(self._wait_s(error), max(0.0, until - trio.current_time()))
            self._missed = True
            self._failures += 1  # once for this wait, however many tasks dial during it
            self.tell(Reconnecting(after_s, error))
            with trio.move_on_after(after_s):
                await self._nudge.wait()

    def _wait_s(self, error: BlockprotoError) -> float:
        if error.retry_after_ms:
            return min(error.retry_after_ms / 1000, AFTER_LONGEST_S) + random.uniform(0, AFTER_MOST_S)
        return random.uniform(0, bound_s(self._failures))

    def _wake(self) -> None:
        nudge, self._nudge = self._nudge, trio.Event()
        nudge.set()

    async def retrying(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        """The result of ``request``, repeated after a lost connection; raises its last error."""
        retries = Retries(self)
        while True:
            try:
                answer = await request()
            except BlockprotoError as exc:
                await retries.wait(exc)
            else:
                self.worked()
                return answer


class Retries:
    """The retries of one transfer or question."""

    def __init__(self, connections: Connections) -> None:
        self._owner = connections
        self._tries = 0
        self._carried = 0
        self._since: float | None = None

    def progressed(self, length: int | None = None) -> None:
        """Report progress of ``length`` bytes, or of something whole (None): earlier failures do not count any more.

        Less than ``WORKED_BYTES`` in all is no progress: otherwise a connection that carries a few bytes and breaks would be
        redialled in a tight loop, and a server that sends a byte now and then would be waited for without end.
        """
        self._carried += WORKED_BYTES if length is None else length
        if self._carried < WORKED_BYTES:
            return
        self._carried = 0
        self._tries = 0
        self._since = None
        if length is None or length >= WORKED_BYTES:
            self._owner.worked()

    async def wait(self, error: BlockprotoError) -> None:
        """Wait until the next try; raises ``error`` when another try cannot help, or the time is over."""
        now = trio.current_time()
        self._since = now if self._since is None else self._since
        self._tries += 1
        limit_s = self._owner.retry_for_s
        tries = self._owner.retry_policy.tries
        spent = now - self._since >= limit_s - _ROUNDING_S or (tries is not None and self._tries >= tries)
        after_s = error.retry_after_ms / 1000
        too_late = after_s > min(AFTER_LONGEST_S, limit_s - (now - self._since))
        if spent or too_late or not may_pass(error):
            raise error
        if self._owner.up:
            bound = bound_s(self._tries - 1)
            if isinstance(error, ConnectionLost | GoingAway) and self._owner.first_up:
                bound = min(bound, JOIN_S)  # another task was faster: there is a new connection already
            left_s = max(0.0, limit_s - (now - self._since))
            await trio.sleep(min(max(random.uniform(0, bound), after_s), left_s))
        else:
            await self._owner.pause(error, self._since + limit_s)


def bound_s(failures: int) -> float:
    """The longest wait (s) after this many failures in a row (BP1-END-017)."""
    return BOUNDS_S[min(failures, len(BOUNDS_S) - 1)]


def _usable(connection: Connection) -> bool:
    return connection.lost is None and connection.going_away is None


def _carried_much(connection: Connection | None) -> bool:
    if connection is None:
        return False
    return max(connection.session.payload_received, connection.session.sent(0)) >= WORKED_BYTES


def may_pass(error: BlockprotoError) -> bool:
    """Whether the same request can succeed a little later, without anybody's doing."""
    comes_back = isinstance(error, ConnectionLost | GoingAway) or error.code in _COMING_BACK
    return error.retryable and comes_back
