"""``blockproto serve``: a folder on a port, until SIGTERM or Ctrl-C.

Both signals end it in order: what is in flight is checkpointed and clients are told that they may come back. The second
Ctrl-C ends it at once; nothing that was acknowledged is lost by that either. SIGHUP reads tokens and certificate anew.

A service manager may pass listening sockets (socket activation); they are used instead of ``--listen``.
"""

from __future__ import annotations

import gc
import logging
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio
from click.core import ParameterSource

from ..common.names import RESERVED
from ..dialects.registry import DIALECTS
from ..errors import StoreInUse
from ..identity.certificates import pin_words
from ..identity.loopback import is_loopback
from ..identity.principals import scopes_of
from ..identity.server_auth import OWNER, OWNER_TOKEN_NAME, AuthOptions, ServerAuth
from ..observability.log_limiter import LogLimiter
from ..observability.logs import FORMATS, Log, log, tell
from ..observability.observer import NULL_OBSERVER, Observer, ObserverPair
from ..serving.config import ServerConfig
from ..serving.socket_activation import passed_sockets
from ..wire import Scopes
from .address import PORT_DEFAULT, show_host_port, to_listen
from .options import to_size, verbose_option, verbosity
from .output import Status, about, say, warn
from .state_folder import to_other_state
from .streams import StdoutFailed

COLLECT_AFTER = (700, 10, 200)
"""Thresholds of the garbage collector; the third (Python's own is 10) is how many collections go before a full one.

A full one stops the server for a tenth of a second with thousands of connections, and finds little more.
"""
SWITCH_EVERY_S = 0.0002
"""How long a thread that hashes or lists may keep the interpreter while the connections wait for it (Python: 0.005).

Each system call of a connection may wait that long. With eight kinds of load at once, in pairs on a busy machine, an honest
file waited 0.78 times as long as with 0.001 (p99; in the median 0.77).
"""
LEVELS = ("debug", "info", "warning", "error")
ANONYMOUS_CHOICES = {"none": (), "read": ("read",), "write": ("read", "write")}


_EXAMPLES = """\b
blockproto serve ~/inbox
blockproto serve ~/inbox --listen 0.0.0.0:7878

Exit codes: 0 ended by SIGTERM, 1 the folder cannot be served, 2 usage, 130 Ctrl-C.
"""


@click.command("serve", epilog=_EXAMPLES)
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option(
    "--listen",
    default=f"127.0.0.1:{PORT_DEFAULT}",
    show_default=True,
    callback=to_listen,
    metavar="HOST:PORT",
    help="Where to listen; port 0 picks a free one. Where other machines can reach it, TLS and a token are asked for.",
)
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(path_type=Path),
    callback=to_other_state,
    help="Keep partials, ledger, tokens and key here instead of in DIR/.blockproto.",
)
@click.option(
    "--cert", metavar="FILE", type=click.Path(path_type=Path), help="A certificate (PEM) to use; needs --key."
)
@click.option("--key", metavar="FILE", type=click.Path(path_type=Path), help="The key of --cert (PEM).")
@click.option(
    "--anonymous",
    type=click.Choice(list(ANONYMOUS_CHOICES)),
    help="What one may do without a token; dialects need write. Default: write on this machine (with --insecure: anywhere) "
    "until the first token was made, then none, also after the last one was revoked.",
)
@click.option(
    "--anonymous-quota",
    metavar="SIZE",
    callback=to_size,
    help="Take files without a token, those of dialects too, until the files in DIR hold this many bytes, as in 10GB.",
)
@click.option("--insecure", is_flag=True, help="Let other machines in without TLS too.")
@click.option(
    "--dialect",
    "dialects",
    multiple=True,
    type=click.Choice(list(DIALECTS)),
    help="Answer old clients of this wire format on the same port too; may be given several times.",
)
@click.option(
    "--names",
    type=click.Choice(["wire", "portable"]),
    default="wire",
    show_default=True,
    help="portable: refuse names that Windows or macOS cannot keep, and those that differ only in case from one there.",
)
@click.option(
    "--connections-each",
    type=click.IntRange(1),
    metavar="N",
    help="How many connections one token's owner may have, and of those without a token one address; one more ends the one "
    "that was silent longest.  [default: 4096]",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    callback=to_listen,
    help="Show numbers for Prometheus there, over HTTP: to this machine only, unless --insecure. Names are not among them.",
)
@click.option(
    "--log-format",
    type=click.Choice(list(FORMATS)),
    default="text",
    help="How a line of the log looks (stderr).",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    help="What is logged; info: every upload, download, removal.  [default: warning; with -v: debug]",
)
@verbose_option
def serve(
    folder: Path, cert: Path | None, key: Path | None, anonymous: str | None, names: str, **options: Any
) -> int:
    """Serve DIR (default: the current folder): take uploads into it and hand its files out.

    Prints `listening on HOST:PORT` on stdout when it is ready. Sockets that a service manager passes (LISTEN_FDS) are used
    instead of --listen.
    """
    if (cert is None) is not (key is None):
        raise click.UsageError("--cert and --key belong together: give both or neither")
    scopes = None if anonymous is None else scopes_of(ANONYMOUS_CHOICES[anonymous])
    metrics, log_format, log_level = (options.pop(name) for name in ("metrics", "log_format", "log_level"))
    auth = AuthOptions(options.pop("insecure"), cert, key, scopes, options.pop("anonymous_quota"))
    with about(str(folder)):
        sockets = tuple(passed_sockets())
    config = ServerConfig(
        folder=folder, sockets=sockets, auth=auth, portable_names=names == "portable", **options
    )
    _check_usage(config, metrics)
    _log_to_stderr(log_format, log_level or ("debug" if verbosity() else "warning"))
    with about(str(folder), partial(_advise, config)), _observer(metrics) as observer:
        told = replace(config, on_server_auth=partial(_welcome, config), observer=observer[0])
        return trio.run(_serve, told, observer[1])


def _log_to_stderr(form: str, level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATS[form]())
    handler.addFilter(LogLimiter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


@contextmanager
def _observer(metrics: tuple[str, int] | None) -> Iterator[tuple[Observer, str]]:
    """The observer of the server: the log, if its level shows anything of it, and the metrics; and where these are shown."""
    observer: Observer = Log() if log.isEnabledFor(logging.WARNING) else NULL_OBSERVER
    if metrics is None:
        yield observer, ""
        return
    try:
        from ..observability.metrics import Metrics, shown
    except ImportError as error:
        raise click.UsageError("--metrics needs more: pip install 'blockproto[metrics]'") from error
    counts = Metrics()
    with shown(counts, *metrics) as port:
        yield ObserverPair(observer, counts), f"http://{show_host_port(metrics[0], port)}/metrics"


def _check_usage(config: ServerConfig, metrics: tuple[str, int] | None) -> None:
    folder, host = config.folder, config.host
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise click.UsageError(f"'{folder}' {what}: name a folder, or make it first with mkdir")
    if (
        config.sockets
        and click.get_current_context().get_parameter_source("listen") is not ParameterSource.DEFAULT
    ):
        raise click.UsageError("sockets were passed to listen on: leave out --listen, or start without them")
    if (
        config.auth.anonymous_quota is not None
        and config.auth.anonymous is not None
        and not config.auth.anonymous & Scopes.WRITE
    ):
        raise click.UsageError(
            "--anonymous-quota is for files that come without a token: leave it out, or say --anonymous write"
        )
    if {"struct82-from-0", "struct82-from-1"} <= set(config.dialects):
        raise click.UsageError(
            "--dialect struct82-from-0 and struct82-from-1 contradict each other: give one of them"
        )
    if metrics is not None and not is_loopback(metrics[0]) and not config.auth.insecure:
        raise click.UsageError(
            f"--metrics {show_host_port(*metrics)} is not encrypted and asks nobody who is there: name 127.0.0.1, or add "
            "--insecure"
        )
    if is_loopback(host):
        return
    if not config.auth.insecure and config.dialects:
        raise click.UsageError(
            f"'{host}' lets other machines in, and --dialect {config.dialects[0]} can neither encrypt nor ask who is "
            "there: add --insecure if everybody who can reach this port may put files into the folder, or listen on "
            "127.0.0.1"
        )
    if config.auth.insecure:
        warn(f"not encrypted: everybody on the way to {host} can read and change what is transferred")
    for dialect in config.dialects:
        warn(f"--dialect {dialect} can neither encrypt nor ask who is there, and never will")


def _advise(config: ServerConfig, error: BaseException) -> tuple[str, str]:
    """The input that an error at the start concerns, and what to do."""
    if isinstance(error, StoreInUse):
        return str(config.folder), "stop the server that serves it, or serve another folder"
    if isinstance(error, OSError) and not error.filename and not config.sockets:
        return (
            f"--listen {show_host_port(*config.listen)}",
            "ports below 1024 are for root: choose a greater one"
            if isinstance(error, PermissionError) and 0 < config.listen[1] < 1024
            else "choose an address of this machine and a port that is free",
        )
    return str(config.folder), ""


def _welcome(config: ServerConfig, server_auth: ServerAuth) -> None:
    """Say how a client connects, if it needs more than the address."""
    if server_auth.pin is not None:
        say(f"certificate: {server_auth.pin.hex()}\n  in words: {pin_words(server_auth.pin)}")
    if server_auth.worry is not None:
        warn(server_auth.worry)
    if server_auth.owner_token is not None:
        state = str(config.state or config.folder / RESERVED)
        say(
            f"made the first token, for '{OWNER}': {server_auth.owner_token}\n"
            f"  a client, with a copy of that file: {_example(config, server_auth)}\n"
            f"  more tokens: blockproto token add NAME --state {shlex.quote(state)}"
        )
    anonymous = server_auth.policy.anonymous
    register = server_auth.policy.register
    if anonymous is None and register is not None and not register.tokens:
        warn(
            "no token is left, so nobody can come in: make one with `blockproto token add NAME`, or add --anonymous"
        )
    if config.dialects and (anonymous is None or not anonymous.scopes & 2):
        warn(
            f"clients of --dialect {config.dialects[0]} are not let in: they cannot say who they are, and without a token "
            "nobody may write; add --anonymous write if everybody may"
        )
    if anonymous is not None and not is_loopback(config.host):
        rights = "read" if not anonymous.scopes & 2 else "read, change and remove"
        warn(f"no token is asked for: everybody who can reach this port can {rights} what is in the folder")


def _example(config: ServerConfig, server_auth: ServerAuth) -> str:
    """A command that sends a first file here from another machine."""
    scheme = "bp" if server_auth.tls is None else "bps"
    port = f":{config.listen[1]}" if config.listen[1] and not config.sockets else ":PORT"
    pin = "" if server_auth.pin is None else f" --pin {server_auth.pin.hex()}"
    return f"blockproto put FILE {scheme}://HOST{port}/ --token-file {OWNER_TOKEN_NAME}{pin}"


async def _serve(config: ServerConfig, metrics: str) -> int:
    from ..server import serve_folder

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # restored at the end: it never ends a server
    with trio.open_signal_receiver(signal.SIGHUP) as reloads:
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as ended:
                addresses = await nursery.start(serve_folder, replace(config, reloads=reloads))
                if metrics:
                    say(f"metrics: {metrics}")
                for host, port in addresses:
                    with suppress(StdoutFailed):  # without a reader the server runs all the same
                        click.echo(f"listening on {show_host_port(host, port)}")
                    tell(logging.INFO, "listening", address=show_host_port(host, port))
                _tend_memory()
                sys.setswitchinterval(SWITCH_EVERY_S)
                ended_by = await anext(ended)
            tell(logging.INFO, "stopping")
            nursery.cancel_scope.cancel()
    tell(logging.INFO, "stopped")
    if ended_by == signal.SIGINT:
        say("stopped by Ctrl-C; what was acknowledged is kept")
        return Status.INTERRUPTED
    return Status.DONE


def _tend_memory() -> None:
    """Collect garbage of all generations seldom, and never of the objects made so far."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
