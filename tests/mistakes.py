"""Engines with one mistake each, made by patching: a test that cannot tell them from the real one is not working."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

Patch = pytest.MonkeyPatch
Mutant = Callable[[Patch], None]


class Mutants(dict[str, Mutant]):
    """Mistakes by name; decorates the functions that make them."""

    def __call__(self, make: Mutant) -> Mutant:
        self[make.__name__] = make
        return make

    @contextmanager
    def at_work(self, name: str) -> Iterator[None]:
        """While this lasts, that mistake is made."""
        with Patch.context() as patch:
            self[name](patch)
            yield


def nothing(*_: Any) -> None:
    """Do nothing."""
