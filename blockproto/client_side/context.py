"""What the transfers of one client share: connections, the names of uploads and downloads, digests of files.

Spec: BP1-RES-001, BP1-RES-002.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import trio

from ..common.names import refuse_in_progress
from ..connection.connection import Connection
from ..connection.keepalive import KeepAlive
from ..errors import ConnectionLost, NotPermitted
from ..store import Destination, IfExists, LocalFiles
from ..wire import List, ReceiptItem, Result
from .config import ClientConfig, OpenPartFile
from .connections import Connections, RetryPolicy
from .dial import Dial
from .earlier_uploads import EarlierUploads
from .file_digests import FileDigests
from .option_names import ANY_RULE, Rule
from .paging import list_receipts, list_uploads
from .request import ask_once
from .resume_id import (
    Attempts,
    another_sourceid,
    derive_earlier_sourceid,
    derive_label,
    derive_sourceid,
    installation_secret,
)

RECEIPTS_MAX = 2000
FRAME_STREAMS_MAX = 4
"""Streams with frames of files that a client has at once."""


class Context:
    """What one client's transfers share.

    Args:
        dial, server, nursery, open_part_file, config: as for ``Client``.

    Attributes:
        connections: over which everything goes.
        attempts: the numbers of the client's attempts.
        digests: what the files of this machine contain.
        open_part_file: opens the store of one download.
        config: how the client works.
        frame_streams: limits the streams with frames of files.
    """

    def __init__(
        self,
        dial: Dial,
        server: str,
        nursery: trio.Nursery,
        open_part_file: OpenPartFile,
        config: ClientConfig,
    ) -> None:
        self.config = config
        self.open_part_file = open_part_file
        self.attempts = Attempts()
        self.frame_streams = trio.CapacityLimiter(FRAME_STREAMS_MAX)
        self.connections = Connections(
            dial,
            nursery,
            config.connections,
            RetryPolicy(config.retry_for_s, config.tries),
            KeepAlive(mobile=config.mobile),
            config.on_line,
            config.authenticator,
            config.recorder,
        )
        open_memory = config.open_memory
        self.digests = FileDigests(None if open_memory is None else lambda: open_memory(self._secret()))
        self._server = server
        self._earlier = EarlierUploads(config.earlier_uploads, lambda: list_uploads(self.connections))
        self._secret_bytes: bytes | None = None
        self._real_folders: dict[str, str] = {}
        self._files: LocalFiles | None = None

    async def close(self) -> None:
        """Let go of what is open on this machine; harmless a second time. Cancellation: waits for it."""
        await self.digests.close()
        if self._files is not None:
            self._files.close()

    def files(self) -> LocalFiles | None:
        """The finished files of this machine, opened at the first call; None: nothing is ever there."""
        if self._files is None and self.config.open_files is not None:
            self._files = self.config.open_files()
        return self._files

    # ---- questions --------------------------------------------------------------------------------------------

    async def connection(self) -> Connection:
        """A live connection, made now if there is none. Raises ConnectionLost."""
        return await self.connections.connection()

    async def ask(self, message: List) -> Result:
        """The answer to one question, not asked again after a lost connection. Raises BlockprotoError."""
        return await ask_once(self.connections, message)

    async def features(self) -> int:
        """What the server's HELLO says that it can do; waits for it. Raises ConnectionLost."""
        connection = await self.connection()
        await connection.greeted.wait()
        hello = connection.session.peer_hello
        if hello is None:
            raise connection.lost or ConnectionLost()
        return hello.features

    async def receipts(
        self, sourceids: Sequence[bytes], if_exists: IfExists | None = None
    ) -> dict[bytes, ReceiptItem]:
        """Which of these uploads are committed, and what as; None: under any rule. Raises ConnectionLost."""
        found: dict[bytes, ReceiptItem] = {}
        connection = await self.connection()
        most = min(RECEIPTS_MAX, (connection.session.head_length_max - 64) // 16)
        for at in range(0, len(sourceids), most):
            ids = tuple(sourceids[at : at + most])
            async with aclosing(list_receipts(self.connections, ids, most, if_exists)) as items:
                async for item in items:
                    found[item.sourceid] = item
        return found

    async def learn_earlier_uploads(self) -> None:
        """See ``EarlierUploads.learn``; before this, ``sourceid_of`` does not know them."""
        await self._earlier.learn()

    # ---- names ------------------------------------------------------------------------------------------------

    def sourceid_of(
        self, path: str | os.PathLike[str], name: str, facts: os.stat_result, again: bytes = b""
    ) -> bytes:
        """The sourceid of the file at ``path`` when it is sent as ``name``; ``again``: of another content of it."""
        secret, real = self._secret(), self._real(path)
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
        label = derive_label(self._secret(), self._server, name.strip("/"), self._real(path))
        return Destination(path, label, rule.below, rule.made)

    def _secret(self) -> bytes:
        """The installation's secret, 32 bytes, read or made at the first call."""
        if self._secret_bytes is None:
            self._secret_bytes = installation_secret()
        return self._secret_bytes

    def _real(self, path: str | os.PathLike[str]) -> str:
        """``path`` without links in its folder."""
        folder, base = os.path.split(path)
        if folder not in self._real_folders:
            self._real_folders = {folder: os.path.realpath(folder)}
        return f"{self._real_folders[folder]}/{base}"
