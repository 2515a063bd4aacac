"""``blockproto serve``: a folder on a port, until SIGTERM or Ctrl-C.

Both signals end it in order: what is in flight is checkpointed and clients are told that they may come back. The second
Ctrl-C ends it at once; nothing that was acknowledged is lost by that either. SIGHUP reads tokens and certificate anew.
"""

from __future__ import annotations

import logging
import signal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import trio

from .. import serve as serve_folder
from ..dialects.known import DIALECTS
from ..errors import StoreInUse
from ..identity.certificates import pin_words
from ..identity.entrance import OWNER, Entrance
from ..loopback import is_loopback
from ..names import RESERVED
from .address import PORT_DEFAULT, show_host_port, to_listen
from .options import verbose_option, verbosity
from .output import Status, about, say, warn

ANONYMOUS_CHOICES = {"none": (), "read": ("read",), "write": ("read", "write")}


class Serving(NamedTuple):
    """What ``serve`` was told."""

    folder: Path
    listen: tuple[str, int]
    state: Path | None
    insecure: bool
    certificate: tuple[Path, Path] | None
    anonymous: tuple[str, ...] | None
    dialects: tuple[str, ...]


@click.command("serve")
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
    help="Keep partials, ledger, tokens and key here instead of in DIR/.blockproto.",
)
@click.option(
    "--cert", metavar="FILE", type=click.Path(path_type=Path), help="A certificate (PEM) to use; needs --key."
)
@click.option("--key", metavar="FILE", type=click.Path(path_type=Path), help="The key of --cert (PEM).")
@click.option(
    "--anonymous",
    type=click.Choice(list(ANONYMOUS_CHOICES)),
    help="What one may do without a token. Default: write on this machine as long as no token was made, else none.",
)
@click.option("--insecure", is_flag=True, help="Let other machines in without TLS too.")
@click.option(
    "--dialect",
    "dialects",
    multiple=True,
    type=click.Choice(list(DIALECTS)),
    help="Answer old clients of this wire format on the same port too; may be given several times.",
)
@verbose_option
def serve(folder: Path, cert: Path | None, key: Path | None, anonymous: str | None, **options: Any) -> int:
    """Serve DIR (default: the current folder): take uploads into it and hand its files out.

    Prints `listening on HOST:PORT` on stdout when it is ready.
    """
    if (cert is None) is not (key is None):
        raise click.UsageError("--cert and --key belong together: give both or neither")
    certificate = None if cert is None or key is None else (cert, key)
    scopes = None if anonymous is None else ANONYMOUS_CHOICES[anonymous]
    serving = Serving(folder, certificate=certificate, anonymous=scopes, **options)
    _check_usage(serving)
    level = logging.DEBUG if verbosity() == 1 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    with about(str(folder), partial(_advise, serving)):
        return trio.run(_serve, serving)


def _check_usage(serving: Serving) -> None:
    folder, host = serving.folder, serving.listen[0]
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise click.UsageError(f"'{folder}' {what}: name a folder, or make it first with mkdir")
    if is_loopback(host):
        return
    if not serving.insecure and serving.dialects:
        raise click.UsageError(
            f"'{host}' lets other machines in, and --dialect {serving.dialects[0]} can neither encrypt nor ask who is "
            "there: add --insecure if everybody who can reach this port may put files into the folder, or listen on "
            "127.0.0.1"
        )
    if serving.insecure:
        warn(f"not encrypted: everybody on the way to {host} can read and change what is transferred")
    for dialect in serving.dialects:
        warn(f"--dialect {dialect} can neither encrypt nor ask who is there, and never will")


def _advise(serving: Serving, error: BaseException) -> tuple[str, str]:
    """What an error of the start is about, and what to do."""
    if isinstance(error, StoreInUse):
        return str(serving.folder), "stop the server that serves it, or serve another folder"
    if isinstance(error, OSError) and not error.filename:
        return (
            f"--listen {show_host_port(*serving.listen)}",
            "choose an address of this machine and a port that is free",
        )
    return str(serving.folder), ""


def _welcome(serving: Serving, entrance: Entrance) -> None:
    """Say how a client comes in, where it needs to know more than the address."""
    if entrance.pin is not None:
        say(f"certificate: {entrance.pin.hex()}\n  in words: {pin_words(entrance.pin)}")
    if entrance.owner_token is not None:
        say(
            f"made the first token, for '{OWNER}': clients come in with --token-file {entrance.owner_token} (a copy of it); "
            f"make more with: blockproto token add NAME --state {serving.state or serving.folder / RESERVED}"
        )
    anonymous = entrance.door.anonymous
    if anonymous is not None and not is_loopback(serving.listen[0]):
        rights = "read" if not anonymous.scopes & 2 else "read, change and remove"
        warn(f"no token is asked for: everybody who can reach this port can {rights} what is in the folder")


async def _serve(serving: Serving) -> int:
    async with trio.open_nursery() as nursery:
        with (
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as ended,
            trio.open_signal_receiver(signal.SIGHUP) as reloads,
        ):
            run = partial(
                serve_folder,
                serving.folder,
                **{name: value for name, value in serving._asdict().items() if name != "folder"},
                on_entrance=partial(_welcome, serving),
                reloads=reloads,
            )
            for host, port in await nursery.start(run):
                click.echo(f"listening on {show_host_port(host, port)}")
            ended_by = await anext(ended)
            nursery.cancel_scope.cancel()
    if ended_by == signal.SIGINT:
        say("stopped by Ctrl-C; what was acknowledged is kept")
        return Status.INTERRUPTED
    return Status.DONE
