"""The client: ``connect``, which gives a ``Client`` the stores of this machine.

    async with blockproto.connect("bp://host:7878") as client:
        receipt = await client.upload("film.mp4")

The class is in ``client_side.client``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .client_side.authenticate import Authenticator, OnPrincipal
from .client_side.client import Client, connect_with
from .client_side.config import ClientConfig
from .client_side.connections import OnLine
from .client_side.dial import Dial, tcp_dial
from .client_side.resume_id import may_have_earlier_uploads, state_folder
from .errors import NotPermitted
from .identity.loopback import is_loopback
from .store import Destination, Discard, DownloadStore, LocalFiles, UploadStore

if TYPE_CHECKING:
    from .client_side.digest_cache import DigestCache
    from .client_side.trust import Trust
    from .observability.recorder import Recorder

__all__ = ["Client", "connect", "connect_with", "discard_download"]


@asynccontextmanager
async def connect(
    url: str,
    *,
    connections: int = 1,
    retry_for_s: float | None = None,
    mobile: bool = False,
    on_line: OnLine | None = None,
    token: str | None = None,
    trust: Trust | None = None,
    insecure: bool = False,
    on_principal: OnPrincipal | None = None,
    log: str | os.PathLike[str] | None = None,
) -> AsyncIterator[Client]:
    """Give a client of the server at ``url``; it connects when first needed, and its connections close at the end.

    Args:
        url: ``bp://HOST[:PORT]``, or ``bps://HOST[:PORT]`` for TLS.
        connections: the number of connections for a big file, at least 1.
        retry_for_s: for how many seconds without progress to reconnect and resume; None: two minutes, but only if the
            server could be reached before.
        mobile: let an idle connection be silent for as long as this network allows, so that a phone's radio can sleep;
            otherwise PING is sent every 15 s.
        on_line: called with ``Reconnecting``, ``Reconnected``, ``Resumed`` and ``Discarded``, to show them.
        token: the credential to authenticate with.
        trust: how to check the server of a ``bps://`` address; None: by the authorities of this machine.
        insecure: send ``token`` to another machine even without TLS, where everyone on the way can read it.
        on_principal: called with the principal that the server has recognised.
        log: a file to overwrite with what happens on the connections, for ``blockproto explain``; it contains names and
            sizes of files, never contents or credentials.

    After the end of the ``async with`` the client raises LocalProtocolError.

    Raises:
        ValueError: ``url`` is not of that form.
        NotPermitted: ``token`` would be sent without TLS (BP1-TLS-006).
        OSError: ``log`` cannot be written.

    Cancellation: the connections are closed; what was acknowledged is kept.
    """
    dial, server = _dial(url, token, trust, insecure)
    with _recorder(log, server) as recorder:
        async with connect_with(
            dial,
            server,
            _open_part_file,
            ClientConfig(
                connections=connections,
                retry_for_s=retry_for_s,
                mobile=mobile,
                on_line=on_line,
                authenticator=Authenticator(token, on_principal),
                open_downloads=_open_downloads,
                open_files=_open_files,
                open_memory=_open_memory,
                earlier_uploads=may_have_earlier_uploads(),
                recorder=recorder,
            ),
        ) as client:
            yield client


def _dial(url: str, token: str | None, trust: Trust | None, insecure: bool) -> tuple[Dial, str]:
    """How to dial ``url``, and the name of the server; raises as ``connect``."""
    if url.startswith("bps:"):
        from .client_side.trust import tls_dial

        return tls_dial(url, trust)
    dial, server = tcp_dial(url)
    if token is not None and not insecure and not _is_loopback(server):
        raise NotPermitted(f"a token for {server} can be read on the way: use bps://, or say insecure=True")
    return dial, server


@contextmanager
def _recorder(log: str | os.PathLike[str] | None, server: str) -> Iterator[Recorder | None]:
    """The recorder of ``log``, if that is given."""
    if log is None:
        yield None
        return
    from .observability.log_file import open_log
    from .observability.recorder import Recorder

    with open_log(log, "w") as file:
        yield Recorder(file, server=server, loopback=_is_loopback(server))


def _is_loopback(server: str) -> bool:
    """Whether HOST:PORT is on this machine."""
    return is_loopback(server.rpartition(":")[0].strip("[]"))


def discard_download(client: Client, name: str, dest: Path) -> None:
    """Remove the part file of an unfinished ``client.download(name, dest)``; harmless if there is none. Blocking.

    Raises:
        StoreInUse: that download is running.
        StoreFailed, NotPermitted: it cannot be removed.
    """
    from .store.part_file.store import PartFileStore

    store = PartFileStore(client.destination(name, dest))
    try:
        begun = store.begun()
        if begun is not None:
            store.decide([Discard(begun[0])])
    finally:
        store.close()


def _open_part_file(dest: Destination, first: int) -> UploadStore:
    from .store.part_file.store import PartFileStore

    return PartFileStore(dest, first=first)


def _open_memory(secret: bytes) -> DigestCache:
    from .client_side.digest_cache import DigestCache

    return DigestCache(state_folder() / "digests.sqlite3", secret)


def _open_downloads() -> DownloadStore:
    """The store of small downloads. Imports here what big ones need, too: later there may be no descriptor for that."""
    from .store.part_file import store  # noqa: F401
    from .store.part_file.brief_downloads import BriefDownloads

    return BriefDownloads()


def _open_files() -> LocalFiles:
    from .store.part_file.local_files import FolderFiles

    return FolderFiles()
