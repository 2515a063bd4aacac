"""Cast: whose tokens the harness was given, and what each may do, as the server says.

Tokens are met once, each on a connection of its own. A case asks for a principal by what it may do; where there is none, it
cannot be examined.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from .. import wire
from .peer import Peer
from .verdicts import Unsupported

BOTH = wire.Scopes.READ | wire.Scopes.WRITE


@dataclass(frozen=True, slots=True)
class Player:
    """A token and whom the server says it stands for.

    Attributes:
        token: as text.
        item: what AUTH was answered; None: it was refused.
        refusal: what it was refused with, or None.
    """

    token: str
    item: wire.PrincipalItem | None
    refusal: int | None = None

    @property
    def writes(self) -> bool:
        """Whether it may store and remove."""
        return self.item is not None and bool(self.item.scopes & wire.Scopes.WRITE)


class Cast:
    """The principals that can be played.

    Args:
        tokens: as text; principals with folders of their own.
    """

    def __init__(self, tokens: tuple[str, ...] = ()) -> None:
        self._tokens = tokens
        self._players: list[Player] | None = None
        self._lock = threading.Lock()

    def players(self, dial: Callable[[], Peer]) -> list[Player]:
        """Everybody, in the order of the tokens."""
        with self._lock:
            if self._players is None:
                self._players = [_meet(dial(), token) for token in self._tokens]
            return self._players

    def owners(self, dial: Callable[[], Peer], count: int = 1) -> list[Player]:
        """So many different principals that may read and write; Unsupported if there are fewer."""
        found: dict[bytes, Player] = {}
        for player in self.players(dial):
            if player.item is not None and player.item.scopes & BOTH == BOTH:
                found.setdefault(player.item.principal, player)
        if len(found) < count:
            raise Unsupported(
                f"needs {count} tokens of different principals that may read and write (--token-file)"
            )
        return list(found.values())[:count]

    def one(
        self, dial: Callable[[], Peer], wanted: Callable[[wire.PrincipalItem], bool], what: str
    ) -> Player:
        """The first whose item is ``wanted``; Unsupported, with ``what`` it would be, if there is none."""
        for player in self.players(dial):
            if player.item is not None and wanted(player.item):
                return player
        raise Unsupported(f"needs a token {what} (--token-file)")

    def ended(self, dial: Callable[[], Peer]) -> Player:
        """One whose token has ended: the first that is refused; Unsupported if there is none."""
        for player in self.players(dial):
            if player.refusal is not None:
                return player
        raise Unsupported("needs a token that has ended (--token-file)")


def _meet(peer: Peer, token: str) -> Player:
    peer.say(1, wire.Auth(token))
    message = peer.hear("the answer to AUTH").message
    if isinstance(message, wire.Error):
        return Player(token, None, message.code)
    if (
        isinstance(message, wire.Result)
        and message.items
        and isinstance(message.items[0], wire.PrincipalItem)
    ):
        return Player(token, message.items[0])
    return Player(token, None)
