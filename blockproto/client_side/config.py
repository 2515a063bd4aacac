"""What a client is told about how to work, and which parts of this machine it uses."""

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
"""Opens what is remembered of this machine's files, by the installation's secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How a client works.

    Attributes:
        connections: over how many connections a big file is sent.
        retry_for_s: how long to come back without any progress; None: see ``connections.RetryPolicy``.
        tries: how often at most; None: as often as there is time for.
        mobile: whether an idle connection may be silent as long as the network lets it; else PING comes every 15 s.
        on_line: hears when the connection is lost and made again, and when a transfer goes on.
        authenticator: says who we are; None: nobody in particular.
        open_downloads: opens the store for many small downloads; None: each is downloaded like a big one.
        open_files: opens the finished files of this machine; None: nothing is ever there.
        open_memory: opens what is remembered of files between runs; None: nothing is.
        earlier_uploads: whether an earlier version of this installation may have left uploads unfinished.
        recorder: writes down what happens on the connections; None: nothing is written.
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
