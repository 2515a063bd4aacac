"""This project's client as the conformance harness gives it work: one job, one line, one exit code.

    python tests/client_adapter.py '{"job": "upload", …}'

Spec: the chapter "Client jobs" of ``spec/conformance.md``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from blockproto.cli.output import leaves_of
from blockproto.client import Client, _dial, _open_downloads, _open_files, _open_part_file, connect_with
from blockproto.client_side import resume_id
from blockproto.client_side.authenticate import Authenticator
from blockproto.client_side.config import ClientConfig
from blockproto.client_side.dial import Dial
from blockproto.client_side.trust import Trust
from blockproto.connection import keepalive
from blockproto.errors import BadCheck, BlockprotoError, ConnectionLost, GoingAway
from blockproto.identity.certificates import parse_pin
from blockproto.results import Receipt, UploadJob
from blockproto.transfer.send_source import Progress

Job = dict[str, Any]
Answer = dict[str, Any]

DONE, REFUSED, USAGE, LOST, UNKNOWN_JOB = 0, 1, 2, 3, 127
CRASHED = 70
"""A bug is no answer: any exit code that means nothing says so."""
IF_EXISTS = {0: "keep", 1: "refuse", 2: "replace"}
EVERY_JOB = {"job", "server", "state", "tries", "keepalive_s", "pin", "authorities", "token_file"}


class GivenUp(Exception):
    """The job was given up, as it said."""


# ---- one function for each job


async def upload(client: Client, job: Job) -> Answer:
    async with giving_up(client, job) as progress:
        receipt = await client.upload(
            job["path"], name=job["filename"], if_exists=IF_EXISTS[job.get("if_exists", 0)], progress=progress
        )
    return told(receipt)


async def upload_stream(client: Client, job: Job) -> Answer:
    if_exists = IF_EXISTS[job.get("if_exists", 0)]
    async with await trio.open_file(job["path"], "rb") as source:
        return told(await client.upload(source, name=job["filename"], if_exists=if_exists))


async def upload_many(client: Client, job: Job) -> Answer:
    stored, failed = 0, []
    async for _, outcome in client.upload_all(
        [UploadJob(Path(one["path"]), one["filename"]) for one in job["files"]]
    ):
        if isinstance(outcome, Receipt):
            stored += 1
        else:
            failed.append(outcome)
    if failed:
        raise failed[0]
    return {"files": stored}


async def download(client: Client, job: Job) -> Answer:
    span = None
    if "first" in job:
        span = (job["first"], job["first"] + job["length"] - 1)
    async with giving_up(client, job) as progress:
        receipt = await client.download(
            job["filename"], job["path"], if_exists="replace", span=span, progress=progress
        )
    return told(receipt)


async def list_folder(client: Client, job: Job) -> Answer:
    entries = client.listing(job["folder"], recursive=job.get("recursive", False))
    return {
        "entries": [
            {"filename": one.filename, "filesize": one.filesize, "folder": one.folder}
            async for one in entries
        ]
    }


async def stat(client: Client, job: Job) -> Answer:
    entry = await client.stat(job["filename"], b3sum=True)
    return {"filename": entry.filename, "filesize": entry.filesize, "b3sum": entry.b3sum}


async def uploads(client: Client, job: Job) -> Answer:
    return {
        "uploads": [
            {"sourceid": one.sourceid, "filename": one.filename, "position": one.position}
            async for one in client.uploads()
        ]
    }


async def remove(client: Client, job: Job) -> Answer:
    await client.remove(job["filename"], recursive=job.get("recursive", False))
    return {}


async def cancel(client: Client, job: Job) -> Answer:
    await client.cancel_upload(job["sourceid"])
    return {}


JOBS: dict[str, tuple[Callable[[Client, Job], Awaitable[Answer]], set[str]]] = {
    "upload": (upload, {"path", "filename", "if_exists", "give_up_after"}),
    "upload-stream": (upload_stream, {"path", "filename", "if_exists"}),
    "upload-many": (upload_many, {"files"}),
    "download": (download, {"filename", "path", "first", "length", "give_up_after"}),
    "list": (list_folder, {"folder", "recursive"}),
    "stat": (stat, {"filename"}),
    "uploads": (uploads, set()),
    "remove": (remove, {"filename", "recursive"}),
    "cancel": (cancel, {"sourceid"}),
}


# ---- what they share


@asynccontextmanager
async def giving_up(client: Client, job: Job) -> AsyncIterator[Callable[[Progress], None] | None]:
    """Cancel what is inside when as much was transferred as ``give_up_after`` says."""
    after = job.get("give_up_after")
    if after is None:
        yield None
        return
    with trio.CancelScope() as scope:

        def progress(state: Progress) -> None:
            if max(state.payload_bytes_sent, state.position_bytes_done) >= after:
                scope.cancel()

        yield progress
    if scope.cancelled_caught:
        await wait_said(client, timeout_s=1.0)
        raise GivenUp


async def wait_said(client: Client, timeout_s: float) -> None:
    """Wait until the last word has gone out; closing the connection would take it along."""
    connection = await client.connection()
    with trio.move_on_after(timeout_s):
        while not connection.quiet:  # noqa: ASYNC110 - the library tells nobody when it is
            await trio.sleep(0.005)


def told(receipt: Receipt) -> Answer:
    return {"stored_as": receipt.stored_as, "filesize": receipt.filesize, "root": receipt.root}


def token_of(job: Job) -> str | None:
    """The token to come in with, or None."""
    return Path(job["token_file"]).read_text(encoding="utf-8").strip() if "token_file" in job else None


def dial_of(job: Job, token: str | None) -> tuple[Dial, str]:
    """How the server of the job is reached, and what it is called."""
    trust = None
    if "pin" in job:
        trust = Trust(pin=parse_pin(job["pin"]))
    elif "authorities" in job:
        trust = Trust(authorities=Path(job["authorities"]))
    return _dial(f"{'bp' if trust is None else 'bps'}://{job['server']}", token, trust, insecure=False)


async def do(job: Job) -> Answer:
    """Do the job on connections of its own."""
    work, _ = JOBS[job["job"]]
    token = token_of(job)
    dial, server = dial_of(job, token)
    options: dict[str, Any] = {"tries": job["tries"]} if "tries" in job else {}
    config = ClientConfig(
        open_downloads=_open_downloads,
        open_files=_open_files,
        authenticator=Authenticator(token),
        **options,
    )
    async with connect_with(dial, server, _open_part_file, config) as client:
        return await work(client, job)


def main(words: Sequence[str]) -> int:
    """Do the job in the last word; returns the exit code."""
    try:
        job = json.loads(words[-1])
        known = job["job"] in JOBS and set(job) <= EVERY_JOB | JOBS[job["job"]][1]
    except (ValueError, KeyError, TypeError, IndexError):
        return USAGE
    if not known:
        return UNKNOWN_JOB
    os.environ[resume_id.SECRET_VARIABLE] = job["state"]
    if "keepalive_s" in job:
        keepalive.ACTIVE_S = job["keepalive_s"]
    try:
        answer = trio.run(do, job)
    except (Exception, BaseExceptionGroup) as error:
        return failed(leaves_of(error))
    print(json.dumps(answer), flush=True)
    return DONE


def failed(errors: Sequence[BaseException]) -> int:
    """Say why; a bug is raised again."""
    error = errors[0]
    for bug in errors:
        if not isinstance(bug, (BlockprotoError, OSError, GivenUp)):
            raise bug
    if isinstance(error, GivenUp):
        print(json.dumps({"error": "CANCELLED"}), flush=True)
        return REFUSED
    assert isinstance(error, (BlockprotoError, OSError))
    print(error, file=sys.stderr)
    lost = isinstance(error, ConnectionLost) and error.code is ConnectionLost.code
    name = "CONNECTION_LOST" if lost or isinstance(error, OSError) else error.code.name
    print(json.dumps({"error": name}), flush=True)
    return LOST if isinstance(error, (ConnectionLost, GoingAway, BadCheck)) else REFUSED


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception:
        traceback.print_exc()
        sys.exit(CRASHED)
