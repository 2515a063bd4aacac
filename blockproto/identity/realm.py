"""Realm: who is asking, and which part of the served folder is the whole world to them.

Names on the wire are relative to the realm's folder. ``inward`` puts the folder before them and ``outward`` takes it off
again, so that what lies outside cannot even be named; what is asked for by an id, the store finds in the folder only.

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
        folder: its folder in the served one; None: the whole served folder.
        scopes: what it may do.
        quota: bytes that its files and uploads may have together, or None.
    """

    principal: bytes = ZERO_ID
    name: str = ""
    folder: SafeName | None = None
    scopes: Scopes = EVERYTHING
    quota: int | None = None

    def inward(self, filename: str) -> SafeName:
        """A name from the wire as the store knows it. Raises NameRefused, whose text tells nothing of the folder."""
        return self.inside(SafeName.parse(filename))

    def inside(self, name: SafeName) -> SafeName:
        """A name of the realm as the store knows it. Raises NameRefused, as ``inward``."""
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
        """What stands before every name of the realm in the store's names: its folder and a slash, or nothing."""
        return "" if self.folder is None else self.folder.text + "/"

    def cursor_inward(self, cursor: str) -> str:
        """A place in a list of files, from the wire, as the store knows it."""
        return self.above + cursor if cursor else ""

    def cursor_outward(self, cursor: str) -> str:
        """A place in a list of the realm's files as the wire says it: it begins where the realm does (BP1-PRN-002)."""
        return cursor.removeprefix(self.above)

    def outward(self, stored: str) -> str:
        """A name of the store as the wire says it.

        One outside the folder (it was another when the file came) loses its folders.
        """
        if self.folder is None:
            return stored
        return stored.removeprefix(self.above) if stored.startswith(self.above) else stored.rpartition("/")[2]

    def demand(self, scope: Scopes) -> None:
        """Raises Forbidden if the principal may not do what needs ``scope`` (BP1-PRN-004)."""
        if scope not in self.scopes:
            raise Forbidden(f"you may not {(scope.name or '').lower()} here")


ANONYMOUS = Realm()
"""Everybody, where nobody has to say who they are."""
