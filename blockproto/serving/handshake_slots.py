"""Handshake slots: they bound how many connections are unidentified, that is, have not said yet who they are.

An unidentified connection costs little and stays briefly: a small buffer, at most ten seconds, and one of the slots. New
connections are always accepted; when no slot is free, one gets the slot of the connection that has waited longest

    if its address has a quarter of the slots    of those from the same address
    if all slots are taken                       of those from the address that has most

So attackers who fill the slots close each other's connections: to hit an honest client they need many new ones within the
time it takes to identify itself. A connection that is identified needs no slot, so addresses with thousands of known clients
behind them are no special case.

Spec: BP1-LIM-004.
"""

from __future__ import annotations

from collections.abc import Callable

from ..common.addresses import neighbourhood

SLOTS = 4096
"""The most slots, where the system's limit of open files allows them."""
FILES_FOR_HANDSHAKES = 4
"""Divisor of that limit: the store and identified connections need the rest."""
FILES_ENOUGH = 4096
"""With a lower limit a server warns when it starts."""


def slots_for(files: int) -> int:
    """How many slots there are if ``files`` may be open."""
    return max(4, min(SLOTS, files // FILES_FOR_HANDSHAKES))


def scarcity_of(files: int) -> str | None:
    """The warning for an operator if only ``files`` may be open; None if they are enough."""
    if files >= FILES_ENOUGH:
        return None
    return (
        f"only {files:,} files may be open: that is room for fewer connections, {slots_for(files):,} of them for clients "
        "that have not said yet who they are. More wait until others end; allow more files with LimitNOFILE= (systemd) or "
        "ulimit -n"
    )


class Slot:
    """The slot of one connection.

    Attributes:
        go: ends the connection at once; called when another one gets the slot.
    """

    __slots__ = ("_slots", "address", "go")

    def __init__(self, slots: HandshakeSlots, address: str, go: Callable[[], object]) -> None:
        self._slots = slots
        self.address = address
        self.go = go

    def leave(self) -> None:
        """Free it: the connection is identified, or has ended. Harmless when repeated."""
        self._slots.free(self)


class HandshakeSlots:
    """The slots of one server.

    Args:
        places: how many there are, at least 1.

    Attributes:
        each: how many of them one address may have.
    """

    def __init__(self, places: int = SLOTS) -> None:
        self._places = places
        self.each = max(1, places // 4)
        self._taken = 0
        self._closed = False
        self._at: dict[str, dict[Slot, None]] = {}  # by address, oldest first
        self._having: list[dict[str, None]] = [{}]  # the addresses that have 0, 1, 2 … slots

    def __len__(self) -> int:
        return self._taken

    def take(self, host: str, go: Callable[[], object]) -> Slot:
        """Give a slot to a connection from ``host``, if need be that of another connection, which is ended."""
        address = neighbourhood(host)
        if len(self._at.get(address, ())) >= self.each:
            self._send_away(address)
        elif self._taken >= self._places:
            self.make_room()
        place = Slot(self, address, go)
        neighbours = self._at.setdefault(address, {})
        neighbours[place] = None
        self._count(address, len(neighbours) - 1, len(neighbours))
        self._taken += 1
        if self._closed:
            self._let_go(place)
        return place

    def free(self, place: Slot) -> None:
        """See ``Slot.leave``."""
        neighbours = self._at.get(place.address, {})
        if place in neighbours:
            del neighbours[place]
            self._count(place.address, len(neighbours) + 1, len(neighbours))
            self._taken -= 1
            if not neighbours:
                del self._at[place.address]

    def make_room(self) -> bool:
        """End the oldest connection of the address that has most slots; False if there is none."""
        if self._taken:
            self._send_away(next(iter(self._having[-1])))
            return True
        return False

    def close(self) -> None:
        """End all connections that have a slot, and those that get one later."""
        self._closed = True
        for neighbours in tuple(self._at.values()):
            for place in tuple(neighbours):
                self._let_go(place)

    def _count(self, address: str, before: int, now: int) -> None:
        """Keep the addresses by their number of slots: searching them all would take longer than accepting."""
        if before:
            del self._having[before][address]
        if now:
            if now == len(self._having):
                self._having.append({})
            self._having[now][address] = None
        while len(self._having) > 1 and not self._having[-1]:
            self._having.pop()

    def _send_away(self, address: str) -> None:
        self._let_go(next(iter(self._at[address])))

    def _let_go(self, place: Slot) -> None:
        self.free(place)
        place.go()
