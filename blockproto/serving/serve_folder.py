"""A folder served on a TCP port: opens the local store and the listeners, and runs the server between them."""

from __future__ import annotations

import logging
import resource
import socket
import sys
from collections.abc import AsyncIterable, Sequence

import trio

from ..common.names import RESERVED
from ..connection.unexpected_errors import unexpected
from ..dialects.registry import dialects_of
from ..errors import BlockprotoError, NotPermitted
from ..identity.loopback import is_loopback
from ..identity.server_auth import ServerAuth, open_server_auth
from ..server import Server
from ..store.local.store import LocalStore
from ..transfer.threads import run_in_thread
from .config import ServerConfig
from .connection_limits import connections_for
from .handshake_slots import scarcity_of, slots_for

log = logging.getLogger(__name__)

FINDINGS_TOLD_MAX = 20
"""The most lines a start logs about what it found."""


async def serve_folder(
    config: ServerConfig,
    *,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a folder until cancelled; raises, and leaves things at cancellation, as ``blockproto.serve``."""
    host, folder, state = config.host, config.folder, config.state
    if config.dialects and not config.auth.insecure and not is_loopback(host):
        raise NotPermitted(
            f"{host} lets other machines in, and dialects can neither encrypt nor ask who is there: pass insecure=True if "
            "you accept that"
        )
    spoken = dialects_of(config.dialects)
    files = _raise_file_limit()
    if (scarcity := scarcity_of(files)) is not None:
        log.warning("%s", scarcity, extra={"event": "few descriptors"})
    each = connections_for(files, config.connections_each)
    listeners = await _listeners(config.listen, config.sockets)
    try:
        store = await run_in_thread(
            lambda: LocalStore.open(folder, state=state, portable=config.portable_names)
        )
        try:
            _tell_findings(store.findings)
            server_auth = await run_in_thread(
                lambda: open_server_auth(state or folder / RESERVED, host, config.auth)
            )
            if config.on_server_auth is not None:
                config.on_server_auth(server_auth)
        except BaseException:
            store.close()
            raise
        server = Server(
            store,
            policy=server_auth.policy,
            dialects=spoken,
            tls=server_auth.tls,
            places=slots_for(files),
            connections_each=each,
            observer=config.observer,
            hooks=config.hooks,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, listeners)
            if config.reloads is not None:
                nursery.start_soon(_reload, server, server_auth, config.reloads)
            task_status.started([listener.socket.getsockname()[:2] for listener in listeners])
    finally:
        for listener in listeners:
            with trio.CancelScope(shield=True):
                await listener.aclose()


def _tell_findings(findings: Sequence[str]) -> None:
    """Say what the start found; ``blockproto check`` shows the losses again, all of them."""
    for finding in findings[:FINDINGS_TOLD_MAX]:
        log.warning("%s", finding, extra={"event": "found at the start"})
    if len(findings) > FINDINGS_TOLD_MAX:
        log.warning(
            "%d more of that kind: `blockproto check` shows them when the server has stopped",
            len(findings) - FINDINGS_TOLD_MAX,
            extra={"event": "found at the start"},
        )


async def _listeners(listen: tuple[str, int], sockets: Sequence[socket.socket]) -> list[trio.SocketListener]:
    if sockets:
        return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
    host, port = listen
    return await trio.open_tcp_listeners(port, host=host)


async def _reload(server: Server, server_auth: ServerAuth, reloads: AsyncIterable[object]) -> None:
    """Use what tokens and certificate are now, each time ``reloads`` says so."""
    async for _ in reloads:
        try:
            server.use_register(await run_in_thread(server_auth.reload))
            log.info("tokens and certificate were read anew", extra={"event": "read anew"})
        except BlockprotoError as exc:
            log.error("nothing was changed: %s", exc, extra={"event": "not read anew"})
        except Exception as exc:
            unexpected("reading tokens and certificate anew", exc)


def _raise_file_limit() -> int:
    """Allow as many open files as the system lets us have, and say how many: each connection and big upload takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard
