"""What is typed behind ``get``: addresses and DEST."""

from __future__ import annotations

import click

from .address import SCHEME, is_address


def split_words(words: tuple[str, ...]) -> tuple[list[str], str | None]:
    """The addresses, and DEST if there is one; raises click.UsageError."""
    addresses = [word for word in words if is_address(word)]
    others = [word for word in words if word not in addresses]
    if not addresses:
        wrong = others[0] if others else ""
        raise click.UsageError(
            f"'{wrong}': give one or more addresses {SCHEME}HOST:PORT/NAME, as in {SCHEME}localhost/{wrong.lstrip('/')}, "
            "then at most one DEST on this machine"
        )
    if len(others) > 1 or (others and words[-1] != others[0]):
        wrong = others[0] if others else words[0]
        raise click.UsageError(
            f"'{wrong}': give one or more addresses {SCHEME}HOST:PORT/NAME, then at most one DEST on this machine"
        )
    return addresses, others[0] if others else None
