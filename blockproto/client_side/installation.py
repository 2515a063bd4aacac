"""What this installation calls its transfers with one server, so that each run finds what an earlier one has begun.

Spec: BP1-RES-001, BP1-RES-002.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..common.names import refuse_in_progress
from ..errors import NotPermitted
from ..store import Destination
from .earlier_uploads import EarlierUploads
from .option_names import ANY_RULE, Rule
from .resume_id import (
    another_sourceid,
    derive_earlier_sourceid,
    derive_label,
    derive_sourceid,
    installation_secret,
)


class Installation:
    """Names uploads and downloads in progress.

    Args:
        server: what the server is called, part of what the label of a download in progress is derived from.
        earlier: the uploads that an earlier version has left unfinished.
    """

    def __init__(self, server: str, earlier: EarlierUploads) -> None:
        self._server = server
        self._earlier = earlier
        self._secret: bytes | None = None
        self._real_folders: dict[str, str] = {}

    def secret(self) -> bytes:
        """The installation's secret, 32 bytes, read or made at the first call."""
        if self._secret is None:
            self._secret = installation_secret()
        return self._secret

    def sourceid_of(self, path: Path, name: str, facts: os.stat_result, again: bytes = b"") -> bytes:
        """The sourceid of the file at ``path`` when it is sent as ``name``; ``again``: of another content of it."""
        secret, real = self.secret(), self._real(path)
        sourceid = derive_sourceid(secret, name, real, facts)
        if self._earlier:
            earlier = derive_earlier_sourceid(secret, self._server, name, real, facts)
            sourceid = earlier if earlier in self._earlier else sourceid
        return another_sourceid(secret, sourceid, again) if again else sourceid

    def destination(self, name: str, path: Path, rule: Rule = ANY_RULE) -> Destination:
        """Where the file ``name`` of the server goes, and what is called there that is in progress of it.

        Raises:
            NameRefused: a component of ``name``, or the last of ``path``, belongs to a download in progress.
            NotPermitted: ``path`` names no file.
        """
        if path.name in ("", ".."):
            raise NotPermitted(f"'{path}' is a folder: name the file that is to be made")
        refuse_in_progress(name)
        refuse_in_progress(path.name)
        label = derive_label(self.secret(), self._server, name.strip("/"), self._real(path))
        return Destination(path, label, rule.below, rule.made)

    def _real(self, path: Path) -> str:
        """``path`` without links in its folder."""
        folder, base = os.path.split(path)
        if folder not in self._real_folders:
            self._real_folders = {folder: os.path.realpath(folder)}
        return f"{self._real_folders[folder]}/{base}"
