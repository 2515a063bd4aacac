"""Who may come in to a server: with which tokens, and what without one.

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
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class AuthPolicy:
    """Who may come in.

    Args:
        register: the tokens that are known; None: AUTH is not understood at all.
        anonymous: what one may do without AUTH; None: nothing.
        now_ms: Unix milliseconds.
        plaintext: whether other machines may come in without TLS too (BP1-TLS-009).
        until_token: ``anonymous`` holds only as long as nobody has ever been given a token.
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
        """Let the tokens of ``register`` count from now on.

        The first principal ends anonymous access that was only the default, for good: without its last token the register
        still knows that somebody was asked for one (BP1-AUT-014).
        """
        self.register = register
        if self._until_token and register.principals:
            self.anonymous = None

    @property
    def features(self) -> int:
        """What HELLO says of it (BP1-AUT-001)."""
        if self.register is None:
            return 0
        return FEATURE_AUTH if self.anonymous is not None else FEATURE_AUTH | FEATURE_AUTH_REQUIRED

    def plaintext_for(self, host: str) -> bool:
        """Whether a peer may come in without TLS."""
        return self._plaintext or is_loopback(host)


WANTS_TOKEN = "say who you are first: this server wants a token"
WANTS_TLS = "this server wants TLS: use bps:// instead of bp://"
DENY_ALL = AuthPolicy(None, None)
"""Where nobody comes in: for who comes without TLS although it is wanted."""
