"""``connect`` and ``serve``: the only place that picks a concrete store."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from .client import Client, connect_with
from .dialling import tcp_dial
from .lines import OnLine
from .store import DownloadStore, UploadStore

if TYPE_CHECKING:
    from .identity.entrance import Entrance


@asynccontextmanager
async def connect(
    url: str,
    *,
    connections: int = 1,
    retry_for_s: float | None = None,
    mobile: bool = False,
    on_line: OnLine | None = None,
) -> AsyncIterator[Client]:
    """A client of the server at ``url``; its connections are made when they are first needed, and closed at the end.

    Args:
        url: ``bp://HOST[:PORT]``.
        connections: over how many connections a big file is sent, at least 1.
        retry_for_s: for how many seconds a transfer that gets no further comes back after a lost connection; None: two
            minutes, but a server that was never there is not waited for.
        mobile: let an idle connection be silent for as long as this network bears it (a phone's radio sleeps meanwhile);
            else PING comes every 15 s.
        on_line: called with ``Reconnecting``, ``Reconnected`` and ``Resumed``, for whoever wants to show them.

    Raises:
        ValueError: ``url`` is not of that form.
    """
    dial, server = tcp_dial(url)
    async with connect_with(
        dial,
        server,
        _open_sidecar,
        connections=connections,
        retry_for_s=retry_for_s,
        mobile=mobile,
        on_line=on_line,
        open_downloads=_open_downloads,
    ) as client:
        yield client


async def serve(
    folder: str | os.PathLike[str],
    *,
    listen: tuple[str, int] = ("127.0.0.1", 7878),
    state: str | os.PathLike[str] | None = None,
    insecure: bool = False,
    dialects: Collection[str] = (),
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``folder`` until cancelled; started with the list of (host, port) it listens on.

    Args:
        folder: what is served; partials and ledger are in its ``.blockproto``.
        listen: host and port; port 0 picks a free one.
        state: keep partials and ledger there instead.
        insecure: must be True to listen on anything but loopback: there is no TLS yet.
        dialects: names of older wire formats to answer on the same port: "sourceid", "struct82" (spec/dialects.md).
        task_status: Trio's.

    Raises:
        ValueError: there is no such dialect.
        NotPermitted: the folder cannot be served, or ``listen`` needs ``insecure``.
        StoreInUse: another server has it.
        StoreFailed: the disk reported an error.
        OSError: the address cannot be listened on.

    Cancellation: clients are told, what was received is made durable, then this returns.
    """
    from .listening import serve_folder

    state = None if state is None else Path(state)
    await serve_folder(Path(folder), listen, state, insecure, dialects, task_status)


def _open_sidecar(dest: Path, first: int) -> UploadStore:
    from .store.sidecar import SidecarStore

    return SidecarStore(dest, first=first)


def _open_downloads() -> DownloadStore:
    from .store.brief_downloads import BriefDownloads

    return BriefDownloads()
