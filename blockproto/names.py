"""SafeName: a name that cannot leave the root; and show_name() for showing foreign names to people."""

from __future__ import annotations

from dataclasses import dataclass

FILENAME_LENGTH_MAX = 1024
COMPONENT_LENGTH_MAX = 255
RESERVED = ".blockproto"


@dataclass(frozen=True, slots=True)
class SafeName:
    """A relative path that obeys every rule of the wire profile; build it with ``parse`` only."""

    text: str

    @classmethod
    def parse(cls, text: str, *, portable: bool = False) -> SafeName:
        """Check ``text``; raises NameRefused with rule and profile."""
        raise NotImplementedError

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(self.text.split("/"))


def show_name(name: str) -> str:
    """``name`` with control, bidi and undecodable characters escaped, safe for terminals and logs."""
    raise NotImplementedError
