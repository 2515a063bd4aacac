"""``blockproto get --upload``: a file that is still being uploaded, read while it comes in."""

from __future__ import annotations

import os
import re
from contextlib import aclosing
from pathlib import Path

import click
import trio

from .. import Client, UploadInfo
from ..common.names import SafeName, show_name
from ..common.tasks import background_tasks
from ..errors import NameRefused, UnknownUpload, is_of_this_machine
from ..results import IfExistsWord
from .access import connect_as_told
from .address import Address
from .output import Status, about, ask_again, no_receipt, print_receipt, printing_failed, say, show_size
from .progress import Meter

WAIT_S = 5.0
"""Say that nothing has come after this long (s)."""
_ID = re.compile(r"[0-9a-fA-F]{32}")


def check_usage(
    wanted: str, addresses: list[Address], span: str | None, dest: str | None, if_exists: str
) -> None:
    """Raises click.UsageError if the command cannot mean anything."""
    if not _ID.fullmatch(wanted):
        raise click.UsageError(
            f"'{wanted}' is neither a sourceid nor a file id: 32 hexadecimal digits, as `blockproto uploads` lists them"
        )
    if len(addresses) != 1 or addresses[0].path or span is not None:
        raise click.UsageError("--upload is for one upload of a server: give bp://HOST:PORT and no --range")
    if dest == "-":
        raise click.UsageError(
            "--upload brings a file as it comes in, not in order: name a file of this machine, not '-'"
        )
    if if_exists in ("skip", "update"):
        raise click.UsageError(
            "--upload is for a file that is still being made: --if-exists keep, refuse or replace"
        )


async def get_upload(
    wanted: str,
    address: Address,
    dest: str | None,
    if_exists: IfExistsWord,
    as_json: bool,
    retry_for_s: float | None,
    log: Path | None,
) -> int:
    """Fetch the unfinished upload with that sourceid or file id; returns the exit code."""
    named = [wanted.lower()]
    places: list[Path] = []

    def advise(error: BaseException) -> tuple[str, str]:
        here = places and is_of_this_machine(error)
        return str(places[0]) if here else address.text, ask_again(error)

    with (
        about(address.text, advise),
        printing_failed(lambda: [no_receipt(named[-1])], as_json),
        Meter(None) as meter,
    ):
        async with connect_as_told(address.server, retry_for_s=retry_for_s, log=log) as client:
            upload = await _find(client, wanted.lower())
            named.append(upload.filename)
            place = _place(upload, dest)
            places.append(place)
            if upload.filesize is not None:
                meter.expect(upload.filesize)
            async with background_tasks() as nursery:
                nursery.start_soon(_tell_of_waiting, meter, upload)
                receipt = await client.download_upload(
                    upload, place, if_exists=if_exists, progress=meter.update
                )
        meter.finished(receipt.filename, receipt.filesize)
        meter.complete()
    if as_json:
        print_receipt(receipt)
    else:
        size = show_size(receipt.filesize)
        say(show_name(f"{receipt.filename}: complete, as '{receipt.stored_as}', {size}"))
    return Status.DONE


async def _tell_of_waiting(meter: Meter, upload: UploadInfo) -> None:
    """Say so when nothing has come for ``WAIT_S``, and again only after something did."""
    before, said = -1, False
    while True:
        await trio.sleep(WAIT_S)
        moved, before = meter.done != before, meter.done
        if not moved and not said:
            total = "" if upload.filesize is None else f" of {show_size(upload.filesize)}"
            name = show_name(upload.filename)
            say(f"{name}: {show_size(before)}{total} are here; waiting for its sender to go on")
        said = not moved


async def _find(client: Client, wanted: str) -> UploadInfo:
    async with aclosing(client.uploads()) as unfinished:
        async for upload in unfinished:
            if wanted in (upload.sourceid, upload.file_id):
                return upload
    raise UnknownUpload(f"there is no unfinished upload {wanted}: it may be finished (see `blockproto ls`)")


def _place(upload: UploadInfo, dest: str | None) -> Path:
    """Where it goes; the uploader's name is checked before anything is made here."""
    last = SafeName.parse(upload.filename).components[-1]
    if dest is None or dest.endswith("/") or os.path.isdir(dest):
        dest = os.path.join(dest or ".", last)
    if os.path.isdir(dest):
        raise NameRefused(f"a folder stands where the file should go: '{dest}'")
    return Path(dest)
