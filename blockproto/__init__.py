"""Files over raw TCP, in verified blocks of 1 MiB, resumed where they stopped.

    async with blockproto.connect("bp://host:7878") as client:
        receipt = await client.upload("film.mp4")
        await client.download("film.mp4", "copy.mp4")

    await blockproto.serve("/srv/files", listen=("127.0.0.1", 7878))     # inside your nursery

This is the public face; what is promised is in ``spec/``. Names are imported when they are first used, so that a program
that only asks for the version does not wait for Trio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import Client, connect
    from .client_side.connections import Discarded, LineEvent, Reconnected, Reconnecting, Resumed
    from .errors import BlockprotoError
    from .queue import QueuedTransfer, TransferQueue, TransferState
    from .results import DownloadJob, FileInfo, LeftOut, Receipt, UploadInfo, UploadJob
    from .server import serve
    from .transfer.send_source import Progress

__all__ = [
    "BlockprotoError", "Client", "Discarded", "DownloadJob", "FileInfo", "LeftOut", "LineEvent", "Progress",
    "QueuedTransfer", "Receipt", "Reconnected", "Reconnecting", "Resumed", "TransferQueue", "TransferState", "UploadInfo",
    "UploadJob", "connect", "serve",
]  # fmt: skip

__version__ = "0.1.0"

_HOMES = {
    "BlockprotoError": ".errors",
    "Client": ".client",
    "Discarded": ".client_side.connections",
    "DownloadJob": ".results",
    "FileInfo": ".results",
    "LeftOut": ".results",
    "LineEvent": ".client_side.connections",
    "Progress": ".transfer.send_source",
    "QueuedTransfer": ".queue",
    "Receipt": ".results",
    "Reconnected": ".client_side.connections",
    "Reconnecting": ".client_side.connections",
    "Resumed": ".client_side.connections",
    "TransferQueue": ".queue",
    "TransferState": ".queue",
    "UploadInfo": ".results",
    "UploadJob": ".results",
    "connect": ".client",
    "serve": ".server",
}


def __getattr__(name: str) -> object:
    """Import a public name from where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'blockproto' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    """What there is, also what was not used yet: for a prompt that completes names."""
    return sorted({*globals(), *_HOMES})
