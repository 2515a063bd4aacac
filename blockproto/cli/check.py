"""``blockproto check``: the invariants of a served folder, against its ledger and the disk.

Findings go to stdout, one a line; so do losses that earlier starts found, and partials of another state. What ``--read``
could not compare is said on stderr. The exit code is 0 if the folder is clean, also with partials of another state; 1 with
findings or losses, if a server is using the folder, or if it was never served: most likely its name is mistyped.
"""

from __future__ import annotations

from pathlib import Path

import click

from ..common.names import show_name
from ..errors import BlockprotoError, StoreInUse
from ..store.local.check import NotCompared, Report, inspect_store
from .options import verbose_option, verbosity
from .output import Status, fail, say, show_count, show_time, warn
from .state_folder import to_other_state


@click.command("check", epilog="Exit codes: 0 clean, 1 not clean, never served or being served, 2 usage.")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    callback=to_other_state,
    help="Where `serve --state` keeps its ledger.",
)
@click.option(
    "--read",
    is_flag=True,
    help="Read every block that has a recorded digest, and compare it; say what has none.",
)
@click.option(
    "--remove-foreign",
    "drop_foreign",
    is_flag=True,
    help="Remove the partials that are not of this state; a server with another --state may have acknowledged their bytes.",
)
@click.option(
    "--forget-losses",
    is_flag=True,
    help="Show once more what earlier starts found lost, then forget it.",
)
@verbose_option
def check(folder: Path, state: Path | None, read: bool, drop_foreign: bool, forget_losses: bool) -> int:
    """Check a served folder against its ledger, while no server runs on it.

    Prints what is wrong, what earlier starts found lost, and partials of other states; without the options that say so it
    changes nothing. The exit code is 0 if the folder is clean, and 1 if it is not, was never served, or is being served.
    """
    try:
        report = inspect_store(folder, state, read, drop_foreign=drop_foreign, forget_losses=forget_losses)
    except StoreInUse as error:
        return fail(error, str(folder), "stop the server that is using it, then check")
    except BlockprotoError as error:
        return fail(error, str(folder))
    _show(report, drop_foreign)
    _show_not_compared(report.not_compared)
    count = len(report.findings) + len(report.losses)
    if count:
        warn(show_name(f"blockproto: {folder}: {show_count(count, 'finding')}"))
        return Status.FAILED
    if not report.served:
        where = f" in {state}" if state else ""
        advice = "name the folder that is served" + (
            "" if state else ", and --state if its ledger is elsewhere"
        )
        warn(show_name(f"blockproto: {folder}: was never served: there is no ledger{where}; {advice}"))
        return Status.FAILED
    say(show_name(f"{folder}: clean{_how_far(report.not_compared) if read else ''}"))
    return Status.DONE


def _how_far(skipped: NotCompared) -> str:
    count = len(skipped.changed) + len(skipped.never_recorded)
    return f"; {show_count(count, 'file')} not compared" if count else ", every block read"


def _show_not_compared(skipped: NotCompared) -> None:
    """Say how many files were not read, and why; with -v, which ones."""
    for names, why in (
        (skipped.changed, "changed since it came through the server"),
        (skipped.gone, "not there any more"),
        (skipped.never_recorded, "did not come through the server"),
    ):
        if names:
            say(f"not compared: {show_count(len(names), 'file')}: {why}")
        for name in names if verbosity() else ():
            say(f"  {show_name(name)}")


def _show(report: Report, dropped: bool) -> None:
    for finding in report.findings:
        click.echo(show_name(finding))
    for loss in report.losses:
        click.echo(f"found lost at the start of {show_time(loss.found_ms * 10**6)}: {show_name(loss.text)}")
    for foreign in report.foreign:
        click.echo(f"{'removed' if dropped else 'foreign'}: {foreign}")
    if report.foreign and not dropped:
        say(
            "foreign: not of this state; a server with another --state may need it, else add --remove-foreign"
        )
