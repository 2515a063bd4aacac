"""Realm: a principal, its rights, and the part of the served folder that it can see.

Names on the wire are relative to the realm's folder. ``inward`` prepends the folder and ``outward`` removes it, so that
nothing outside can even be named; by an id the store finds only what is in the folder.

Spec: BP1-PRN.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..common.names import SafeName
from ..errors import Forbidden, NameRefused
from ..wire import ZERO_ID, Scopes

EVERYTHING = Scopes.READ | Scopes.WRITE


@dataclass(frozen=True, slots=True)
class Realm:
    """A principal and what it may do.

    Attributes:
        principal: 16 bytes; zeros: anonymous (BP1-PRN-008).
        name: for people.
        folder: its folder in the served one; None: all of that.
        scopes: what it may do.
        quota: bytes that its files and uploads may have together, or None.
    """

    principal: bytes = ZERO_ID
    name: str = ""
    folder: SafeName | None = None
    scopes: Scopes = EVERYTHING
    quota: int | None = None

    def inward(self, filename: str) -> SafeName:
        """The store's name for a name on the wire. Raises NameRefused, with a text that does not name the folder."""
        return self.inside(SafeName.parse(filename))

    def inside(self, name: SafeName) -> SafeName:
        """The store's name for a name in the realm. Raises NameRefused, as ``inward``."""
        if self.folder is None:
            return name
        try:
            return SafeName(self.above + name.text)
        except NameRefused as exc:
            raise NameRefused(
                f"the name is too long for this server (rule {exc.rule}, profile {exc.profile})",
                rule=exc.rule,
                profile=exc.profile,
            ) from None

    @property
    def above(self) -> str:
        """The prefix of the realm's names in the store: its folder and a slash, or nothing."""
        return "" if self.folder is None else self.folder.text + "/"

    def cursor_inward(self, cursor: str) -> str:
        """The store's cursor for a cursor on the wire."""
        return self.above + cursor if cursor else ""

    def cursor_outward(self, cursor: str) -> str:
        """The cursor on the wire, relative to the realm, for a cursor of the store (BP1-PRN-002)."""
        return cursor.removeprefix(self.above)

    def outward(self, stored: str) -> str:
        """The name on the wire for a name of the store.

        Of a name outside the folder, which was another when the file came, only the last component is given.
        """
        if self.folder is None:
            return stored
        return stored.removeprefix(self.above) if stored.startswith(self.above) else stored.rpartition("/")[2]

    def demand(self, scope: Scopes) -> None:
        """Raise Forbidden if the principal does not have ``scope`` (BP1-PRN-004)."""
        if scope not in self.scopes:
            raise Forbidden(f"you may not {(scope.name or '').lower()} here")


ANONYMOUS = Realm()
"""The realm of connections without AUTH, where that is allowed."""
