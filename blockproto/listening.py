"""A folder served on a TCP port: opens the local store and the listeners, and runs the server between them."""

from __future__ import annotations

import ipaddress
import resource
from collections.abc import Collection
from pathlib import Path

import trio

from .dialects.known import dialects_of
from .errors import NotPermitted
from .server import Server
from .store.local import LocalStore
from .transfer.committing import run_in_thread


async def serve_folder(
    folder: Path,
    listen: tuple[str, int],
    state: Path | None,
    insecure: bool,
    dialects: Collection[str],
    task_status: trio.TaskStatus[list[tuple[str, int]]],
) -> None:
    """See ``blockproto.serve``."""
    host, port = listen
    if not insecure and not is_loopback(host):
        raise NotPermitted(
            f"{host} lets other machines in and there is no TLS yet: pass insecure=True if you accept that"
        )
    spoken = dialects_of(dialects)
    _raise_file_limit()
    listeners = await trio.open_tcp_listeners(port, host=host)
    try:
        store = await run_in_thread(lambda: LocalStore.open(folder, state=state))
        server = Server(store, dialects=spoken)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, listeners)
            task_status.started([listener.socket.getsockname()[:2] for listener in listeners])
    finally:
        for listener in listeners:
            with trio.CancelScope(shield=True):
                await listener.aclose()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets us have: each connection and big upload takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
