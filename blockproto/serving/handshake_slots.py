"""Handshake slots: connections that have not said yet who they are, and their slots.

A stranger costs little and stays briefly: one small buffer, at most ten seconds, and one of a number of places kept for
strangers alone. When the slots are taken, who comes gets that of the one who has waited longest:

    the address has its quarter of them    of the same address
    all are taken                          of the address that has most

So who comes is never sent away, and those who fill the slots send away one another: many have to come while an honest
client says who it is before it can meet that one. Who has been seen in has no place here any more; addresses with
thousands of known clients behind them are nothing special.

Spec: BP1-LIM-004.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable

SLOTS = 4096
"""Slots for strangers, where the system's limit of open files allows so many."""
FILES_FOR_HANDSHAKES = 4
"""Strangers get one in so many of the files the system lets us open: the store and those who were seen in need the rest."""
FILES_ENOUGH = 4096
"""With fewer a server says so when it starts."""
_V6_NETWORK_LENGTH = 8


def slots_for(files: int) -> int:
    """How many places there are where so many files may be open."""
    return max(4, min(SLOTS, files // FILES_FOR_HANDSHAKES))


def scarcity_of(files: int) -> str | None:
    """What to tell an operator where so few files may be open that a small crowd is felt; None: they are enough."""
    if files >= FILES_ENOUGH:
        return None
    return (
        f"only {files:,} files may be open: that is room for fewer connections, {slots_for(files):,} of them for clients "
        "that have not said yet who they are. More wait until others end; allow more files with LimitNOFILE= (systemd) or "
        "ulimit -n"
    )


@functools.lru_cache(SLOTS)
def neighbourhood(host: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 of an IPv6 one, which is what one household gets."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return address.packed[:_V6_NETWORK_LENGTH].hex()


class Slot:
    """The slot of one stranger.

    Attributes:
        go: ends the connection at once; called when another gets the slot.
    """

    __slots__ = ("_slots", "address", "go")

    def __init__(self, slots: HandshakeSlots, address: str, go: Callable[[], object]) -> None:
        self._slots = slots
        self.address = address
        self.go = go

    def leave(self) -> None:
        """It is free: the connection was seen in, or has ended. Harmless when repeated."""
        self._slots.free(self)


class HandshakeSlots:
    """The slots of strangers.

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
        self._at: dict[str, dict[Slot, None]] = {}  # of each address in the order in which they came
        self._having: list[dict[str, None]] = [{}]  # the addresses that have so many

    def __len__(self) -> int:
        return self._taken

    def take(self, host: str, go: Callable[[], object]) -> Slot:
        """A slot for a connection from ``host``; if need be, another stranger loses theirs and has to go."""
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
        """Send away the oldest stranger of the address that has most; False if there is none."""
        if self._taken:
            self._send_away(next(iter(self._having[-1])))
            return True
        return False

    def close(self) -> None:
        """Nobody is seen in any more: all have to go, and so has who comes later."""
        self._closed = True
        for neighbours in tuple(self._at.values()):
            for place in tuple(neighbours):
                self._let_go(place)

    def _count(self, address: str, before: int, now: int) -> None:
        """Note that an address has one more or one less; looking through all of them would take longer than accepting."""
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
