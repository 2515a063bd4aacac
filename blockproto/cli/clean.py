"""``blockproto clean``: list and remove what unfinished downloads have left.

Running downloads, and files that are not certainly ours, are never touched: see ``store.part_file.leftovers``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from ..common.names import show_name
from ..errors import BlockprotoError
from ..store.part_file.leftovers import FailedFolder, Leftover, find_leftovers, remove_leftover
from .options import EXIT_CODES_HERE, Duration, json_option, verbose_option
from .output import Status, fail, print_json, say, show_count, show_size


@click.command("clean", epilog=EXIT_CODES_HERE)
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Remove them without asking.")
@click.option(
    "--older-than",
    "older_than_s",
    metavar="TIME",
    type=Duration(),
    default="0",
    help="Only what nobody has changed for this long: 90s, 10m, 12h, 30d.",
)
@json_option
@verbose_option
def clean(folder: Path, yes: bool, older_than_s: float, as_json: bool) -> int:
    """List what unfinished downloads have left in DIR and below it, and remove it with --yes, or after asking on a terminal.

    A download that is left can go on: the `get` that began it finds it again. What runs now is not touched.
    """
    now_s = time.time()
    status = Status.DONE

    def failed(path: Path, error: OSError | BlockprotoError) -> None:
        nonlocal status
        status = max(status, fail(error, str(path)))

    found = [one for one in find_leftovers(folder, now_s, failed) if now_s - one.changed_s >= older_than_s]
    for one in found:
        if not as_json:
            say(show_name(_describe(one, now_s)))
    chosen = [one for one in found if not one.running]
    removed = set(_remove(chosen, folder, failed)) if chosen and (yes or _agreed(chosen, as_json)) else set()
    if as_json:
        for one in found:
            print_json(_object(one, now_s, one.path in removed))
    _sum_up(folder, found, chosen, removed)
    return status


def _agreed(chosen: list[Leftover], as_json: bool) -> bool:
    """Ask, on a terminal."""
    if as_json or not sys.stdin.isatty():
        return False
    size = show_size(sum(one.filesize for one in chosen))
    return click.confirm(f"Remove what is left of {show_count(len(chosen), 'download')} ({size})?", err=True)


def _remove(chosen: list[Leftover], folder: Path, failed: FailedFolder) -> list[Path]:
    removed = []
    for one in chosen:
        try:
            if remove_leftover(one, folder):
                removed.append(one.path)
        except (OSError, BlockprotoError) as error:
            failed(one.path, error)
    return removed


def _sum_up(folder: Path, found: list[Leftover], chosen: list[Leftover], removed: set[Path]) -> None:
    if not found:
        say(show_name(f"{folder}: nothing is left of downloads"))
        return
    parts = []
    if removed:
        size = show_size(sum(one.filesize for one in chosen if one.path in removed))
        parts.append(f"{show_count(len(removed), 'download')} removed ({size})")
    left = len(chosen) - len(removed)
    parts += [f"{left} can be removed with --yes"] if left and not removed else []
    parts += [f"{left} taken up meanwhile or not removed"] if left and removed else []
    running = len(found) - len(chosen)
    parts += [f"{running} in use"] if running else []
    say(show_name(f"{folder}: {'; '.join(parts)}"))


def _describe(one: Leftover, now_s: float) -> str:
    of = f"of '{one.of}'" if one.of is not None else "of a small file"
    of = "of a folder that is not complete" if one.names == (one.lock,) else of
    held = f", {one.held} of {one.blocknum} blocks" if one.blocknum is not None else ""
    running = "  (in use)" if one.running else ""
    return f"{show_size(one.filesize):>10}  {_show_age(now_s - one.changed_s):>8}  {one.path}  {of}{held}{running}"


def _show_age(age_s: float) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if age_s >= length_s:
            return f"{age_s / length_s:.0f} {unit}"
    return f"{max(age_s, 0):.0f} s"


def _object(one: Leftover, now_s: float, removed: bool) -> dict[str, object]:
    return {
        "path": str(one.path),
        "files": [str(one.folder / name) for name in one.names],
        "filename": one.of,
        "filesize": one.filesize,
        "age_s": round(max(now_s - one.changed_s, 0.0), 3),
        "held": one.held,
        "blocknum": one.blocknum,
        "running": one.running,
        "removed": removed,
    }
