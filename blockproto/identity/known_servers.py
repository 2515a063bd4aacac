"""The servers that a client knows: a pin for each address, as ssh keeps hosts, in one small readable file.

    {"HOST:PORT": "64 hexadecimal digits"}

Spec: BP1-TLS-003, BP1-TLS-004.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_config_path

from ..errors import NotPermitted
from .certificates import parse_pin
from .private_files import locked, write_private

FILE_NAME = "known_servers.json"


@dataclass(frozen=True, slots=True)
class KnownServers:
    """The file of known servers.

    Args:
        path: where it is; it need not exist yet.
    """

    path: Path

    def pin(self, server: str) -> bytes | None:
        """The pin remembered for ``HOST:PORT``, or None.

        Raises:
            NotPermitted: the file cannot be read or has another format; then no server is trusted.
        """
        text = self._load().get(server)
        return None if text is None else parse_pin(text)

    def remember(self, server: str, pin: bytes) -> None:
        """Remember a pin durably, in place of an earlier one of that server. Raises NotPermitted."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                rows = self._load() | {server: pin.hex()}
                write_private(self.path, json.dumps(rows, indent=1, sort_keys=True).encode() + b"\n")
        except OSError as exc:
            raise NotPermitted(f"{self.path} cannot be written: {exc.strerror}") from exc

    def _load(self) -> dict[str, str]:
        try:
            rows = json.loads(self.path.read_text(encoding="utf-8"))
            for text in rows.values():
                parse_pin(text)
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise NotPermitted(f"{self.path} cannot be read: {exc.strerror}") from exc
        except (ValueError, AttributeError, TypeError) as exc:
            raise NotPermitted(f"{self.path} is not a list of servers: correct it or remove it") from exc
        return dict(rows)


def known_servers() -> KnownServers:
    """The file of the user who runs this program."""
    return KnownServers(user_config_path("blockproto", appauthor=False) / FILE_NAME)
