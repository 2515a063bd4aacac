"""``python -m benchmarks``: blockproto beside other programs and beside the floor; table, JSON and plot.

Rules:
    1. One thing at a time: nothing else of ours runs while something is measured.
    2. A scenario that fails is reported as failed and stops no other.
    3. The status is 1 where something failed or is void. Whether targets were reached does not change it.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import blockproto

from .against import against, command_of, interpreter_of
from .arena import open_arena
from .contest import Options
from .figures import Row, Section, Verdict
from .peers import PEERS
from .places import Place, why_not_fresh, work_in
from .plan import SCENARIOS, Step, plan, wanted
from .plot import draw
from .processes import CommandFailed
from .report import console, describe_machine, print_section, print_summary, write_json
from .targets import FOLDER_FILES, HELD_BLOCKS

RESULTS = Path("benchmarks") / "results"

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_size(text: str) -> int:
    """The bytes of ``4GiB``, ``16 MiB`` or ``4096``; raises ValueError."""
    text = text.strip()
    unit = next((one for one in _UNITS if text.endswith(one)), "")
    size = int(text.removesuffix(unit)) * _UNITS.get(unit, 1)
    if size < 1:
        raise ValueError(text)
    return size


def _to_size(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError:
        raise click.BadParameter(f"'{text}' is no size such as 4GiB") from None


def _to_sizes(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    return tuple(_to_size(context, parameter, one) for one in text.split(","))


def _to_scenarios(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[str]:
    try:
        return wanted(None if text is None else [one.strip() for one in text.split(",")])
    except ValueError as error:
        raise click.BadParameter(f"'{error}' is none of {', '.join(SCENARIOS)}") from None


def _to_checkout(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and not command_of(path).exists():
        raise click.BadParameter(f"there is no '{command_of(path)}': install that checkout into its .venv")
    return path


@click.command()
@click.option(
    "--sizes", default="1GiB,4GiB", show_default=True, callback=_to_sizes, help="Sizes of single files."
)
@click.option("--pairs", default=9, show_default=True, type=click.IntRange(1), help="Pairs with each peer.")
@click.option("--only", callback=_to_scenarios, metavar="NAME,…", help=f"Some of: {', '.join(SCENARIOS)}.")
@click.option(
    "--place",
    type=click.Choice(["ext4", "tmpfs", "disk", "both"]),
    default="both",
    show_default=True,
    help="A fresh ext4 on a loop device (root), a tmpfs, the disk as it is, or the first that can be had and the tmpfs.",
)
@click.option(
    "--old",
    callback=_to_checkout,
    type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    help="Beside this checkout of another commit, with a .venv of its own, instead of other programs.",
)
@click.option(
    "--out",
    default=RESULTS,
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results go; 'ext4' and 'disk' work in a folder of it.",
)
@click.option(
    "--files", default=FOLDER_FILES, show_default=True, type=click.IntRange(1), help="Files of a folder."
)
@click.option(
    "--memory-size", default="8GiB", show_default=True, callback=_to_size, help="The file that shows memory."
)
@click.option(
    "--held-blocks",
    default=HELD_BLOCKS,
    show_default=True,
    type=click.IntRange(16),
    help="Blocks of the resume.",
)
@click.option("--seed", type=int, help="Draws the order again as in an earlier run.")
@click.pass_context
def main(
    ctx: click.Context, /, only: list[str], place: str, out: Path, seed: int | None, **asked: Any
) -> None:
    """Measure blockproto beside rsync, nginx, vsftpd and scp, in pairs, and beside the bare floor.

    Prints a table for each scenario, and writes OUT/TIME.json and OUT/TIME.png. Ends with status 1 where something failed or
    is void.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was mounted is let go of
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    options = Options(rng=random.Random(seed), tell=_tell, **asked)
    began = datetime.now(UTC)
    about: dict[str, Any] = {
        "began": began.isoformat(timespec="seconds"),
        "seed": seed,
        "asked": {"only": only, "place": place, **{name: _plain(value) for name, value in asked.items()}},
        "machine": describe_machine(options.old),
    }
    out.mkdir(parents=True, exist_ok=True)
    _compile(options.old)
    shown = console()
    sections: list[Section] = []
    began_s = time.monotonic()
    try:
        for section in _measure(plan(only, _places(place)), out.absolute() / "work", options):
            print_section(section, shown)
            sections.append(section)
    finally:
        about["took_s"] = round(time.monotonic() - began_s)
        stem = out / began.strftime("%Y-%m-%dT%H-%M-%SZ")
        write_json(stem.with_suffix(".json"), about, sections)
        drawn = draw(stem.with_suffix(".png"), sections, f"blockproto, {began:%Y-%m-%d %H:%M} UTC")
        print_summary(sections, shown)
        _tell(f"written: {stem}.json" + (f" and {stem.name}.png" if drawn else ""))
    bad = {row.verdict for section in sections for row in section.rows} & {Verdict.VOID, Verdict.FAILED}
    ctx.exit(1 if bad else 0)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _places(asked: str) -> list[str]:
    """The places of a run, the first for what is measured at one only."""
    if asked != "both":
        return [asked]
    why = why_not_fresh()
    if why is not None:
        _tell(f"on the disk as it is, not on a fresh ext4: {why}")
    return ["disk" if why else "ext4", "tmpfs"]


def _compile(old: Path | None) -> None:
    """Compile what is measured, as pip does when it installs: an editable install may not be."""
    packages = {sys.executable: Path(blockproto.__file__).parent}
    if old is not None:
        packages[str(interpreter_of(old))] = old / "blockproto"
    for interpreter, package in packages.items():
        subprocess.run([interpreter, "-m", "compileall", "-q", str(package)], check=True)


def _measure(steps: list[Step], disk: Path, options: Options) -> Iterator[Section]:
    """The sections of everything that was asked for, one after another."""
    with ExitStack() as at_the_end:
        for step in steps:
            title = f"{step.scenario}, {step.place}"
            try:
                with work_in(step.place, disk, at_the_end) as place:
                    yield from _measure_at(place, step.scenario, options)
            except (CommandFailed, ValueError, OSError) as error:
                yield Section(title, [Row(step.scenario, "", None, note=str(error))])


def _measure_at(place: Place, name: str, options: Options) -> Iterator[Section]:
    """One scenario with servers of its own, or by both checkouts."""
    scenario = SCENARIOS[name]
    if options.old is not None and not scenario.in_pairs:
        yield from against(name, place, options)
        return
    peers = PEERS if scenario.peers and options.old is None else ()
    old = None if options.old is None else str(command_of(options.old))
    with open_arena(place, peers=peers, old=old, tell=_tell) as arena:
        yield from scenario.run(arena, options)


def _tell(text: str) -> None:
    """Say what is being done; on a terminal in one line that changes."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}"[: shutil.get_terminal_size().columns + 4], err=True, nl=False)
    else:
        click.echo(text, err=True)


if __name__ == "__main__":
    main()
