"""The register: the principals and the tokens that speak for them, in one file of the server's state.

    {"version": 1,
     "principals": {NAME: {"principal": hex, "folder": … or null, "quota": bytes or null}},
     "tokens": [{"id": hex, "hash": hex, "name": NAME, "scopes": ["read", "write"], "created_ms": …,
                 "expires_ms": … or null}]}

The file is replaced as a whole, synced, readable by its owner only, and changed under a lock; a server reads it at its start
and on SIGHUP. No file of the server contains a token itself.

Spec: BP1-AUT-006, BP1-AUT-011, BP1-PRN.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..common.names import SafeName, show_name
from ..errors import NotPermitted
from ..wire import Scopes
from .private_files import locked, write_private
from .realm import EVERYTHING, Realm
from .tokens import hash_of, new_token, secret_of

FILE_NAME = "tokens.json"
FILE_VERSION = 1
_NO_HASH = hash_of(bytes(32))


@dataclass(frozen=True, slots=True)
class Principal:
    """A principal of the register.

    Attributes:
        principal: 32 hexadecimal digits.
        folder: its folder in the served one; None: all of that.
        quota: bytes, or None.
    """

    principal: str
    folder: str | None
    quota: int | None


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the register, without its text.

    Attributes:
        id: 8 hexadecimal digits, to refer to it.
        hash: 64 hexadecimal digits.
        name: of its principal.
        scopes: ``read``, ``write``.
        created_ms, expires_ms: Unix milliseconds; None: it does not expire.
    """

    id: str
    hash: str
    name: str
    scopes: tuple[str, ...]
    created_ms: int
    expires_ms: int | None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token gives: a realm, its expiry (Unix milliseconds or None), and the token's id."""

    realm: Realm
    expires_ms: int | None
    token_id: str


@dataclass(frozen=True)
class Register:
    """Principals by name, and their tokens; immutable."""

    principals: dict[str, Principal]
    tokens: tuple[Token, ...] = ()

    def find(self, credential: str) -> Grant | None:
        """The grant of a credential; None if it is not a token of the register.

        Takes the same time for every credential of a token's length.
        """
        try:
            sought = hash_of(secret_of(credential))
        except ValueError:
            sought = _NO_HASH
        found: Token | None = None
        for token in self.tokens:
            if hmac.compare_digest(bytes.fromhex(token.hash), sought):
                found = token
        return None if found is None else self._grant(found)

    def holds(self, token_id: str) -> bool:
        """Whether a token is in the register, that is, was not revoked."""
        return any(token.id == token_id for token in self.tokens)

    def _grant(self, token: Token) -> Grant:
        principal = self.principals[token.name]
        realm = Realm(
            principal=bytes.fromhex(principal.principal),
            name=token.name,
            folder=None if principal.folder is None else SafeName.parse(principal.folder),
            scopes=scopes_of(token.scopes),
            quota=principal.quota,
        )
        return Grant(realm, token.expires_ms, token.id)

    def with_token(
        self,
        name: str,
        *,
        folder: str | None,
        quota: int | None,
        scopes: Scopes,
        now_ms: int,
        expires_ms: int | None,
    ) -> tuple[Register, str]:
        """The register with one more token for ``name``, and the token's text.

        A known name keeps its principal and gets the folder and quota given here.

        Raises:
            NameRefused: the folder breaks a rule for names.
        """
        if folder is not None:
            SafeName.parse(folder)
        known = self.principals.get(name)
        number = secrets.token_hex(16) if known is None else known.principal
        text = new_token()
        token = Token(
            secrets.token_hex(4), hash_of(secret_of(text)).hex(), name, names_of(scopes), now_ms, expires_ms
        )
        principals = self.principals | {name: Principal(number, folder, quota)}
        return replace(self, principals=principals, tokens=(*self.tokens, token)), text

    def without(self, name_or_id: str) -> tuple[Register, tuple[Token, ...]]:
        """The register without the token of that id, or without all tokens of that name; and the removed ones.

        The principal stays, so that its files are still its own when it gets a new token.
        """
        gone = tuple(token for token in self.tokens if name_or_id in (token.id, token.name))
        left = tuple(token for token in self.tokens if token not in gone)
        return replace(self, tokens=left), gone


def scopes_of(names: Iterable[str]) -> Scopes:
    """Scopes by their names; unknown names are ignored."""
    return Scopes(sum(scope for scope in EVERYTHING if (scope.name or "").lower() in set(names)))


def names_of(scopes: Scopes) -> tuple[str, ...]:
    """The names of scopes."""
    return tuple((scope.name or "").lower() for scope in scopes)


def load(state: Path) -> Register:
    """The register of a server's state folder; an empty one if there is none.

    Raises:
        NotPermitted: the file cannot be read, can be read by others than its owner, or has another format.
    """
    path = state / FILE_NAME
    try:
        if path.stat().st_mode & 0o077:
            raise NotPermitted(f"{path} can be read by others: make it private with chmod 600")
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != FILE_VERSION:
            raise NotPermitted(f"{path} is of version {document['version']}: update blockproto")
        principals = {name: Principal(**row) for name, row in document["principals"].items()}
        tokens = tuple(Token(**{**row, "scopes": tuple(row["scopes"])}) for row in document["tokens"])
        register = Register(principals, tokens)
        for token in tokens:
            register._grant(token)
    except FileNotFoundError:
        return Register({})
    except OSError as exc:
        raise NotPermitted(f"{path} cannot be read: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise NotPermitted(f"{path} is not a list of tokens: {show_name(str(exc))}") from exc
    return register


def change(state: Path, how: Callable[[Register], Register]) -> Register:
    """Replace the register of a state folder by ``how(register)``, durably and under a lock.

    Raises:
        NotPermitted: it cannot be read or written.
    """
    path = state / FILE_NAME
    try:
        state.mkdir(parents=True, exist_ok=True)
        with locked(path):
            register = how(load(state))
            _replace(path, register)
    except OSError as exc:
        raise NotPermitted(f"{path} cannot be written: {exc.strerror}") from exc
    return register


def _replace(path: Path, register: Register) -> None:
    document: dict[str, Any] = {
        "version": FILE_VERSION,
        "principals": {name: asdict(principal) for name, principal in register.principals.items()},
        "tokens": [asdict(token) for token in register.tokens],
    }
    write_private(path, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
