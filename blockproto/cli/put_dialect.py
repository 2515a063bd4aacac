"""``blockproto put --dialect``: single files to a server that speaks an older wire format only.

A dialect can do less than the native protocol; what it cannot do is refused before anything is sent.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ..client_side.connections import OnLine
from ..common.names import refuse_in_progress, show_name
from ..dialects.registry import ONE_CONNECTION, SENDERS
from ..dialects.sending import DialectSender, Sent, send_file
from ..errors import BlockprotoError, ConnectionLost
from .address import SCHEME, Address
from .output import Status, fail, print_json, say, show_size
from .progress import Meter

SENT_FIELDS = (
    "filename",
    "filesize",
    "sourceid",
    "stored_as",
    "resumed",
    "payload_bytes_sent",
    "confirmed",
    "elapsed_s",
)
"""The fields of the object that ``put --dialect --json`` prints for each file, in this order; scripts rely on it."""


def check_usage(
    dialect: str,
    paths: tuple[str, ...],
    address: Address,
    as_name: str | None,
    connections: int | None,
    if_exists: str,
    checksum: bool = False,
) -> None:
    """Refuse what a dialect cannot do.

    Raises:
        click.UsageError: with what to do instead.
    """
    if dialect not in SENDERS:
        raise click.UsageError(f"there is no dialect '{dialect}': choose among {', '.join(SENDERS)}")
    instead = f"; leave --dialect {dialect} out if the server speaks blockproto itself"
    if not address.server.startswith(SCHEME):
        raise click.UsageError(
            f"{dialect} cannot be encrypted: write {SCHEME}… if that is what you want{instead}"
        )
    if "-" in paths:
        raise click.UsageError(f"{dialect} has to say the size first, so it cannot send stdin{instead}")
    for path in paths:
        if os.path.isdir(path):
            raise click.UsageError(f"{dialect} carries single files, and '{path}' is a folder{instead}")
    if address.path or (as_name is not None and "/" in as_name):
        raise click.UsageError(f"{dialect} knows no folders on the server{instead}")
    if connections is not None and connections > 1 and dialect in ONE_CONNECTION:
        raise click.UsageError(
            f"{dialect} sends a file over one connection: --connections is not for it{instead}"
        )
    if if_exists != "keep":
        raise click.UsageError(
            f"{dialect} cannot say what to do if a name is taken: both files are kept, and --if-exists {if_exists} is not "
            f"for it{instead}"
        )
    if checksum:
        raise click.UsageError(f"{dialect} cannot ask what the server has: --checksum is not for it{instead}")


async def put_in_dialect(
    dialect: str,
    paths: tuple[str, ...],
    address: Address,
    as_name: str | None,
    connections: int | None,
    as_json: bool,
    *,
    retry_for_s: float | None = None,
    on_line: OnLine | None = None,
) -> int:
    """Send the files one after another; returns the exit code."""
    status = Status.DONE
    with Meter(_total(paths), sys.stderr.isatty()) as meter:
        for path in paths:
            sender: DialectSender = SENDERS[dialect](connections)
            try:
                refuse_in_progress(as_name or Path(path).name)
                sent = await send_file(
                    sender,
                    address.server,
                    path,
                    name=as_name or Path(path).name,
                    progress=meter.update,
                    retry_for_s=retry_for_s,
                    on_line=on_line,
                )
            except ConnectionLost as error:
                return max(status, fail(error, address.server))
            except (BlockprotoError, OSError) as error:
                status = max(status, fail(error, path))
                meter.failed(as_name or Path(path).name)
                continue
            meter.finished(sent.filename, sent.filesize)
            if as_json:
                print_json({field: getattr(sent, field) for field in SENT_FIELDS})
            say(show_name(f"{path}: {_describe(sent)}"))
    return status


def _total(paths: tuple[str, ...]) -> int:
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path))


def _describe(sent: Sent) -> str:
    if sent.confirmed and sent.resumed and not sent.payload_bytes_sent:
        return f"already there ({show_size(sent.filesize)})"
    text = (
        f"sent, {show_size(sent.payload_bytes_sent)} of {show_size(sent.filesize)} in {sent.elapsed_s:.1f} s"
    )
    return f"{text}; {'stored' if sent.confirmed else 'this server cannot say whether it is safe'}"
