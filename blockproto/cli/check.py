"""``blockproto check``: the invariants of a served folder, against its ledger and the disk.

Findings go to stdout, one a line. Exit code 0 is clean, 1 is findings or a folder that a server is using.
"""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import BlockprotoError, StoreInUse
from ..names import RESERVED, show_name
from ..store.check import check_store
from .options import verbose_option
from .output import Status, fail, say, show_count, warn


@click.command("check")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where `serve --state` keeps its ledger.",
)
@click.option("--read", is_flag=True, help="Read every block and compare it with its digest.")
@verbose_option
def check(folder: Path, state: Path | None, read: bool) -> int:
    """Check a served folder against its ledger, while no server runs on it."""
    try:
        findings = check_store(folder, state, read)
    except StoreInUse as error:
        return fail(error, str(folder), "it is in use by a server: stop that server, then check")
    except BlockprotoError as error:
        return fail(error, str(folder))
    for finding in findings:
        click.echo(show_name(str(finding)))
    if findings:
        warn(show_name(f"blockproto: {folder}: {show_count(len(findings), 'finding')}"))
        return Status.FAILED
    if not ((state or folder / RESERVED) / "ledger").exists():
        say(
            show_name(f"{folder}: was never served: there is no ledger{' in ' + str(state) if state else ''}")
        )
        return Status.DONE
    say(show_name(f"{folder}: clean{', every block read' if read else ''}"))
    return Status.DONE
