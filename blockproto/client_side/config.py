"""The configuration of a client: how it works, and which stores of this machine it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..store import Destination, DownloadStore, LocalFiles, UploadStore
from .authenticate import Authenticator
from .connections import OnLine

if TYPE_CHECKING:
    from ..observability.recorder import Recorder
    from .digest_cache import DigestCache

OpenPartFile = Callable[[Destination, int], UploadStore]
"""Opens the store of one download, for its destination and the position where its bytes begin."""
OpenDownloads = Callable[[], DownloadStore]
OpenFiles = Callable[[], LocalFiles]
OpenMemory = Callable[[bytes], "DigestCache"]
"""Opens the cache of this machine's file digests; takes the installation's secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How a client works.

    Attributes:
        connections: how many connections a big file is sent over.
        retry_for_s: how long to keep trying without progress; None: see ``connections.RetryPolicy``.
        tries: the greatest number of tries; None: no limit but the time.
        mobile: whether an idle connection may be silent for as long as the network allows; else PING is sent every 15 s.
        on_line: called when the connection is lost or made again, and when a transfer goes on.
        authenticator: sends the token; None: the client has none.
        open_downloads: opens the store for many small downloads; None: each is downloaded like a big one.
        open_files: opens the finished files of this machine; None: there are none.
        open_memory: opens the cache of file digests; None: there is none.
        earlier_uploads: whether an earlier version of this installation may have left uploads unfinished.
        recorder: logs what happens on the connections; None: no log.
    """

    connections: int = 1
    retry_for_s: float | None = None
    tries: int | None = None
    mobile: bool = False
    on_line: OnLine | None = None
    authenticator: Authenticator | None = None
    open_downloads: OpenDownloads | None = None
    open_files: OpenFiles | None = None
    open_memory: OpenMemory | None = None
    earlier_uploads: bool = False
    recorder: Recorder | None = None
