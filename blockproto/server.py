"""The server: ``serve`` opens a folder's store and the listeners, and runs ``Server`` between them."""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
from collections.abc import AsyncIterable, Callable, Collection, Sequence
from pathlib import Path

import trio

from .common.names import RESERVED
from .connection.unexpected_errors import unexpected
from .dialects.registry import dialects_of
from .errors import BlockprotoError, NotPermitted
from .identity.loopback import is_loopback
from .identity.principals import scopes_of
from .identity.server_auth import AuthOptions, ServerAuth, open_server_auth
from .observability.observer import NULL_OBSERVER, Observer
from .serving.config import ServerConfig
from .serving.connection_limits import connections_for
from .serving.handshake_slots import scarcity_of, slots_for
from .serving.server import Server
from .store.local.store import LocalStore
from .transfer.hooks import CommitHooks
from .transfer.threads import run_in_thread

__all__ = ["Server", "serve", "serve_folder"]

log = logging.getLogger(__name__)

FINDINGS_TOLD_MAX = 20
"""The most lines a start logs about what it found."""


async def serve(
    folder: str | os.PathLike[str],
    *,
    listen: tuple[str, int] = ("127.0.0.1", 7878),
    sockets: Sequence[socket.socket] = (),
    state: str | os.PathLike[str] | None = None,
    insecure: bool = False,
    certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
    anonymous: Collection[str] | None = None,
    anonymous_quota: int | None = None,
    dialects: Collection[str] = (),
    on_server_auth: Callable[[ServerAuth], None] | None = None,
    reloads: AsyncIterable[object] | None = None,
    observer: Observer = NULL_OBSERVER,
    hooks: CommitHooks | None = None,
    portable_names: bool = False,
    connections_each: int | None = None,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``folder`` until cancelled; started with the list of (host, port) it listens on.

    Args:
        folder: what is served; partials and ledger are in its ``.blockproto``.
        listen: host and port; port 0 picks a free one.
        sockets: listening TCP sockets to use instead; owned from now on. Their addresses decide who may connect.
        state: keep partials and ledger there instead.
        insecure: let other machines connect without TLS.
        certificate: PEM files of a certificate and its key instead of the server's own.
        anonymous: what is allowed without a token, of "read" and "write". None: everything on loopback (or with
            ``insecure``) until the first token is made, then nothing; the clients of dialects need "write".
        anonymous_quota: bytes of the whole folder above which nothing is added without a token; or None.
        dialects: names of older wire formats to answer on the same port: "sourceid", "struct82" (spec/dialects.md).
        on_server_auth: called with who may connect and how, before anyone can.
        reloads: each item lets the server read tokens and certificate again.
        observer: hears what the server does, for metrics and logs (``blockproto.observability.observer``).
        hooks: have to agree before a file gets its name, and hear of it afterwards (``blockproto.transfer.hooks``).
        portable_names: take only names that Windows and macOS can keep as well, and none that differs only in case or
            normalisation from an existing one.
        connections_each: how many connections one principal (of those without a token: one address) may have, at least 1,
            at most half of the descriptors; None: 4,096.
        task_status: Trio's.

    Raises:
        ValueError: there is no such dialect.
        TypeError: ``listen`` is not a host and a port.
        NotPermitted: the folder cannot be served, a certificate or the list of tokens cannot be used, or ``listen`` and
            ``dialects`` need ``insecure``.
        StoreInUse: another server has it.
        StoreFailed: the disk reported an error.
        OSError: the address cannot be listened on.

    Cancellation: clients are told, what was received is made durable, then this ends.
    """
    if isinstance(listen, str):
        raise TypeError(f'listen={listen!r}: give a host and a port, as in ("127.0.0.1", 7878)')
    config = ServerConfig(
        folder=Path(folder),
        listen=listen,
        sockets=sockets,
        state=None if state is None else Path(state),
        auth=_auth_options(insecure, certificate, anonymous, anonymous_quota),
        dialects=tuple(dialects),
        portable_names=portable_names,
        connections_each=connections_each,
        observer=observer,
        hooks=hooks,
        on_server_auth=on_server_auth,
        reloads=reloads,
    )
    await serve_folder(config, task_status=task_status)


def _auth_options(
    insecure: bool,
    certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None,
    anonymous: Collection[str] | None,
    anonymous_quota: int | None,
) -> AuthOptions:
    """The options of ``serve`` for who may connect."""
    chain, key = (None, None) if certificate is None else map(Path, certificate)
    scopes = None if anonymous is None else scopes_of(anonymous)
    return AuthOptions(insecure, chain, key, scopes, anonymous_quota)


async def serve_folder(
    config: ServerConfig,
    *,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a folder until cancelled; raises, and leaves things at cancellation, as ``serve``."""
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
