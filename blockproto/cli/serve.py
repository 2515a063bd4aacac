"""``blockproto serve``: a folder on a port, until SIGTERM or Ctrl-C.

Both signals end it in order: what is in flight is checkpointed and clients are told that they may come back. The second
Ctrl-C ends it at once; nothing that was acknowledged is lost by that either.
"""

from __future__ import annotations

import logging
import signal
from functools import partial
from pathlib import Path

import click
import trio

from .. import serve as serve_folder
from ..dialects.known import DIALECTS
from ..errors import StoreInUse
from .address import PORT_DEFAULT, is_loopback, show_host_port, to_listen
from .options import verbose_option, verbosity
from .output import Status, about, say, warn


@click.command("serve")
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option(
    "--listen",
    default=f"127.0.0.1:{PORT_DEFAULT}",
    show_default=True,
    callback=to_listen,
    metavar="HOST:PORT",
    help="Where to listen; port 0 picks a free one.",
)
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Keep partials and ledger here instead of in DIR/.blockproto.",
)
@click.option(
    "--insecure", is_flag=True, help="Listen to other machines too, unencrypted (there is no TLS yet)."
)
@click.option(
    "--dialect",
    "dialects",
    multiple=True,
    type=click.Choice(list(DIALECTS)),
    help="Answer old clients of this wire format on the same port too; may be given several times.",
)
@verbose_option
def serve(
    folder: Path, listen: tuple[str, int], state: Path | None, insecure: bool, dialects: tuple[str, ...]
) -> int:
    """Serve DIR (default: the current folder): take uploads into it and hand its files out.

    Prints `listening on HOST:PORT` on stdout when it is ready.
    """
    _check_usage(folder, listen[0], insecure, dialects)
    if verbosity() == 1:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(levelname)s %(message)s")
    with about(str(folder), partial(_advise, folder, listen)):
        return trio.run(_serve, folder, listen, state, insecure, dialects)


def _check_usage(folder: Path, host: str, insecure: bool, dialects: tuple[str, ...]) -> None:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise click.UsageError(f"'{folder}' {what}: name a folder, or make it first with mkdir")
    if is_loopback(host):
        return
    if not insecure and dialects:
        raise click.UsageError(
            f"'{host}' lets other machines in, and --dialect {dialects[0]} can neither encrypt nor ask who is there: add "
            "--insecure if everybody who can reach this port may put files into the folder, or listen on 127.0.0.1"
        )
    if not insecure:
        raise click.UsageError(
            f"'{host}' lets other machines in and there is no encryption yet: add --insecure if everybody who can reach "
            "this port may read, change and remove what is in the folder, or listen on 127.0.0.1"
        )
    warn(
        f"not encrypted, no passwords: everybody who can reach {host} can read, change and remove what is in the folder"
    )
    for dialect in dialects:
        warn(f"--dialect {dialect} can neither encrypt nor ask who is there, and never will")


def _advise(folder: Path, listen: tuple[str, int], error: BaseException) -> tuple[str, str]:
    """What an error of the start is about, and what to do."""
    if isinstance(error, StoreInUse):
        return str(folder), "stop the server that serves it, or serve another folder"
    if isinstance(error, OSError) and not error.filename:
        return (
            f"--listen {show_host_port(*listen)}",
            "choose an address of this machine and a port that is free",
        )
    return str(folder), ""


async def _serve(
    folder: Path, listen: tuple[str, int], state: Path | None, insecure: bool, dialects: tuple[str, ...]
) -> int:
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            run = partial(
                serve_folder, folder, listen=listen, state=state, insecure=insecure, dialects=dialects
            )
            for host, port in await nursery.start(run):
                click.echo(f"listening on {show_host_port(host, port)}")
            ended_by = await anext(received)
            nursery.cancel_scope.cancel()
    if ended_by == signal.SIGINT:
        say("stopped by Ctrl-C; what was acknowledged is kept")
        return Status.INTERRUPTED
    return Status.DONE
