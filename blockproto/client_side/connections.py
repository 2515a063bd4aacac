"""The connections of one client to its server: made when they are first needed, made again when they are gone.

    a transfer loses its connection → Retries: may it come back, and how long may that take?
                                    → Lines: one wait for all transfers, then one dials and all go on

A connection that had worked is made again at once. When that fails, the wait is a random time below a bound that grows
(``BOUNDS_S``): a server that thousands lost at the same time gets them back over seconds, not all in one. What has worked is
told by those who use the connection (``worked``), because a line that accepts everybody and carries nothing must not be
dialled in a circle. What a connection carried just before it broke is known only when the next one says where things stand;
so one that carried much has worked too, but not the next one if nothing got further meanwhile.

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
from .authenticate import Authenticator
from .dial import Dial
from .stall_timeout import end_when_stalled

if TYPE_CHECKING:
    from ..observability.recorder import Recorder

BOUNDS_S = (0.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""The longest random wait (s) before a dial, by how many dials have failed in a row; the last one goes for all further."""
RETRY_FOR_S = 120.0
"""How long a server that has answered once is waited for without any progress, unless told otherwise."""
UNGREETED_S = 10.0
"""The same for one that was connected to and has never answered."""
AFTER_MOST_S = 2.0
"""The longest random wait (s) added to a peer's retry_after_ms."""
AFTER_LONGEST_S = 3600.0
"""Treat a peer that asks for a longer wait (s) than this before the next try as one that refuses."""
JOIN_S = 0.1
"""Longest wait (s) of a task that lost its connection before it joins another one."""
WORKED_S = 15.0
"""Treat a connection that lived this long (s) as one that worked, even if it was idle; longer than a greeting may take."""
WORKED_BYTES = 16 * 1024
"""Treat a connection that carried this much of a file as one that worked."""
_ROUNDING_S = 0.001
"""What is left of a time after a wait for all of it, because floats round, is not waited for again and again."""
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


LineEvent = Reconnecting | Reconnected | Resumed
OnLine = Callable[[LineEvent], None]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to give up.

    Attributes:
        retry_for_s: how long to come back without any progress; None: ``RETRY_FOR_S``; but ``UNGREETED_S`` if the server
            has never answered, and not at all if nobody was ever there, because then the address is wrong more often
            than the server is late.
        tries: how often at most; None: as often as there is time for.
    """

    retry_for_s: float | None = None
    tries: int | None = None


class Connections:
    """What a client speaks over.

    Args:
        dial: makes a byte stream to the server.
        nursery: where connections live.
        count: how many connections a big file may use.
        retry_policy: when to give up.
        keep_alive: how long an idle connection may be silent.
        on_line: hears of losses and returns.
        authenticator: says who we are on every connection.
        recorder: writes down what happens on them; None: nobody does.
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
        """How long to come back without any progress."""
        if self.retry_policy.retry_for_s is not None:
            return self.retry_policy.retry_for_s
        answers = (one is not None and one.session.peer_hello is not None for one in self._connections)
        if self._answered or any(answers):
            return RETRY_FOR_S
        return UNGREETED_S if self._dialled else 0.0

    @property
    def up(self) -> bool:
        """Whether some connection can take new streams."""
        return any(one is not None and _usable(one) for one in self._connections)

    @property
    def first_up(self) -> bool:
        """Whether the connection that everything begins on can take new streams."""
        first = self._connections[0]
        return first is not None and _usable(first)

    def close(self) -> None:
        """Let nothing begin any more: the nursery of the connections is about to end."""
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
            limits = Limits(agent="blockproto")
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
        """What one connection found out of the line is good for the one that replaces it."""
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
        """Say a newer credential of the same principal, here and on every connection to come (BP1-AUT-013)."""
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
        """Something was done over a connection: the next loss is a new one."""
        self._failures = 0
        self._trusted = False

    def network_changed(self) -> None:
        """This machine has another address, or another network: come back at once, knowing nothing of it."""
        self._keep_alive.network_changed()
        self._paces = [None] * self.count
        self.worked()
        for connection in self._connections:
            if connection is not None:
                connection.close(ConnectionLost("this machine's network changed"))
        self._wake()

    def tell(self, event: LineEvent) -> None:
        """Tell whoever wants to show it."""
        if self._recorder is not None and isinstance(event, Reconnecting):
            self._recorder.reconnecting(event.after_s, event.why)
        if self._on_line is not None:
            self._on_line(event)

    async def pause(self, error: BlockprotoError, until: float) -> None:
        """Wait until it is time to dial again: no longer than there is no connection, nor longer than ``until``."""
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
            self._failures += 1  # of all who dial meanwhile, for whatever is new, this one wait counts
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
        """What ``request`` gives, asked again after a lost connection; raises what it raises in the end."""
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
    """The coming back of one transfer or question."""

    def __init__(self, lines: Connections) -> None:
        self._owner = lines
        self._tries = 0
        self._carried = 0
        self._since: float | None = None

    def progressed(self, length: int | None = None) -> None:
        """Something got further, by ``length`` bytes or as a whole (None): what failed before does not count.

        A line that carries a few bytes and breaks, again and again, is still not dialled in a circle, and a server that
        gives a byte now and then is not waited for without end: until ``WORKED_BYTES`` have come, nothing got further.
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
        """Wait until it makes sense to try again; raises ``error`` when that cannot help or took too long."""
        now = trio.current_time()
        self._since = now if self._since is None else self._since
        self._tries += 1
        limit_s = self._owner.retry_for_s
        spent = now - self._since >= limit_s - _ROUNDING_S or self._tries == self._owner.retry_policy.tries
        after_s = error.retry_after_ms / 1000
        too_late = after_s > min(AFTER_LONGEST_S, limit_s - (now - self._since))
        if spent or too_late or not error.retryable or not _comes_back(error):
            raise error
        if self._owner.up:
            bound = bound_s(self._tries - 1)
            if isinstance(error, ConnectionLost | GoingAway) and self._owner.first_up:
                bound = min(bound, JOIN_S)  # somebody was quicker to come back: the connection is another one
            await trio.sleep(max(random.uniform(0, bound), after_s))
        else:
            await self._owner.pause(error, self._since + limit_s)


def bound_s(failures: int) -> float:
    """The bound of the wait after so many failures in a row (BP1-END-017)."""
    return BOUNDS_S[min(failures, len(BOUNDS_S) - 1)]


def _usable(connection: Connection) -> bool:
    return connection.lost is None and connection.going_away is None


def _carried_much(connection: Connection | None) -> bool:
    if connection is None:
        return False
    return max(connection.session.payload_received, connection.session.sent(0)) >= WORKED_BYTES


def _comes_back(error: BlockprotoError) -> bool:
    return isinstance(error, ConnectionLost | GoingAway) or error.code in _COMING_BACK
