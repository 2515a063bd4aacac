"""The policy of a server: which tokens are valid, and what is allowed without one.

Spec: BP1-AUT, BP1-PRN-004, BP1-PRN-008.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..wire import (
    FEATURE_AUTH,
    FEATURE_AUTH_REQUIRED,
)
from .loopback import is_loopback
from .principals import Register
from .realm import ANONYMOUS, Realm


def wall_clock_ms() -> int:
    """The time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


class AuthPolicy:
    """Who may connect, and what they may do.

    Args:
        register: the valid tokens; None: AUTH is not supported.
        anonymous: what is allowed without AUTH; None: nothing.
        now_ms: returns the time in Unix milliseconds.
        plaintext: whether other machines may connect without TLS (BP1-TLS-009).
        until_token: end anonymous access when the first token is made.
    """

    def __init__(
        self,
        register: Register | None = None,
        anonymous: Realm | None = ANONYMOUS,
        now_ms: Callable[[], int] = wall_clock_ms,
        *,
        plaintext: bool = True,
        until_token: bool = False,
    ) -> None:
        self.register = register
        self.anonymous = anonymous
        self.now_ms = now_ms
        self._plaintext = plaintext
        self._until_token = until_token

    def use_register(self, register: Register) -> None:
        """Use the tokens of ``register`` from now on.

        If anonymous access was only the default, the first principal ends it for good: the register still has the principal
        when its last token is revoked (BP1-AUT-014).
        """
        self.register = register
        if self._until_token and register.principals:
            self.anonymous = None

    @property
    def features(self) -> int:
        """The features for HELLO (BP1-AUT-001)."""
        if self.register is None:
            return 0
        return FEATURE_AUTH if self.anonymous is not None else FEATURE_AUTH | FEATURE_AUTH_REQUIRED

    def plaintext_for(self, host: str) -> bool:
        """Whether a peer at ``host`` may connect without TLS."""
        return self._plaintext or is_loopback(host)


WANTS_TOKEN = "say who you are first: this server wants a token"
WANTS_TLS = "this server wants TLS: use bps:// instead of bp://"
DENY_ALL = AuthPolicy(None, None)
"""Allows nothing: for connections without TLS where it is required."""
