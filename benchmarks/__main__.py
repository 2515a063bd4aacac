"""``python -m benchmarks``: blockproto beside other programs and beside the floor; table, JSON and plot.

Rules:
    1. One thing at a time: nothing else of ours runs while something is measured.
    2. A scenario that fails is reported as failed and stops no other.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from compileall import compile_dir
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import blockproto

from .arena import Arena, open_arena
from .commit import commit
from .contest import Options
from .crowded import crowded
from .dialects import dialects
from .figures import Row, Section
from .folder import small
from .greedy import greedy
from .long import long
from .memory import memory
from .micro import micro
from .peers import PEERS
from .places import Place, work_in
from .plot import draw
from .processes import CommandFailed
from .report import console, describe_machine, print_section, print_summary, write_json
from .resume import resume
from .secured import tls
from .startup import startup
from .targets import FOLDER_FILES, HELD_BLOCKS
from .throughput import download, upload

RESULTS = Path("benchmarks") / "results"

Scenario = Callable[[Arena, Options], Iterator[Section]]

CONTESTS: dict[str, Scenario] = {
    "upload": upload,
    "download": download,
    "small": small,
}
"""Beside the peers, at every place."""

OURS: dict[str, Scenario] = {
    "memory": memory,
    "commit": commit,
    "resume": resume,
    "long": long,
    "crowded": crowded,
    "dialects": dialects,
    "tls": tls,
    "greedy": greedy,
}
"""Of ours alone, at the first place only."""

PLACELESS: dict[str, Callable[[Options], Iterator[Section]]] = {"micro": micro, "startup": startup}

SCENARIOS = [*CONTESTS, *OURS, *PLACELESS]
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
    wanted = SCENARIOS if text is None else [one.strip() for one in text.split(",")]
    unknown = [one for one in wanted if one not in SCENARIOS]
    if unknown:
        raise click.BadParameter(f"'{unknown[0]}' is none of {', '.join(SCENARIOS)}")
    return wanted


@click.command()
@click.option(
    "--sizes", default="1GiB,4GiB", show_default=True, callback=_to_sizes, help="Sizes of single files."
)
@click.option("--pairs", default=9, show_default=True, type=click.IntRange(1), help="Pairs with each peer.")
@click.option("--only", callback=_to_scenarios, metavar="NAME,…", help=f"Some of: {', '.join(SCENARIOS)}.")
@click.option(
    "--place", type=click.Choice(["disk", "tmpfs", "both"]), default="both", show_default=True, help="Where."
)
@click.option(
    "--out",
    default=RESULTS,
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results go; 'disk' works in a folder of it.",
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
def main(
    sizes: tuple[int, ...],
    pairs: int,
    only: list[str],
    place: str,
    out: Path,
    files: int,
    memory_size: int,
    held_blocks: int,
    seed: int | None,
) -> None:
    """Measure blockproto beside rsync, nginx, vsftpd and scp, in pairs, and beside the bare floor.

    Prints a table for each scenario, and writes OUT/TIME.json and OUT/TIME.png.
    """
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    options = Options(sizes, pairs, files, memory_size, held_blocks, random.Random(seed), _tell)
    began = datetime.now(UTC)
    about: dict[str, Any] = {
        "began": began.isoformat(timespec="seconds"),
        "seed": seed,
        "asked": {
            "sizes": sizes,
            "pairs": pairs,
            "only": only,
            "place": place,
            "files": files,
            "memory_size": memory_size,
            "held_blocks": held_blocks,
        },
        "machine": describe_machine(),
    }
    out.mkdir(parents=True, exist_ok=True)
    compile_dir(Path(blockproto.__file__).parent, quiet=1)  # as pip does: an editable install may not be
    shown = console()
    sections: list[Section] = []
    began_s = time.monotonic()
    try:
        for section in _measure(only, ["disk", "tmpfs"] if place == "both" else [place], out, options, about):
            print_section(section, shown)
            sections.append(section)
    finally:
        about["took_s"] = round(time.monotonic() - began_s)
        stem = out / began.strftime("%Y-%m-%dT%H-%M-%SZ")
        write_json(stem.with_suffix(".json"), about, sections)
        drawn = draw(stem.with_suffix(".png"), sections, f"blockproto, {began:%Y-%m-%d %H:%M} UTC")
        print_summary(sections, shown)
        _tell(f"written: {stem}.json" + (f" and {stem.name}.png" if drawn else ""))


def _measure(
    only: list[str], places: list[str], out: Path, options: Options, about: dict[str, Any]
) -> Iterator[Section]:
    """The sections of everything that was asked for, one after another."""
    for number, name in enumerate(places):
        scenarios = {**CONTESTS, **(OURS if number == 0 else {})}
        wanted = {scenario: run for scenario, run in scenarios.items() if scenario in only}
        if not wanted:
            continue
        try:
            with work_in(name, out.absolute() / "work") as place:
                about.setdefault("file_systems", {})[name] = place.file_system
                for scenario, run in wanted.items():
                    yield from _measure_at(place, scenario, run, options)
        except ValueError as error:
            yield Section(name, [Row("no place to work", "", None, note=str(error))])
    for scenario, alone in PLACELESS.items():
        if scenario in only:
            yield from alone(options)


def _measure_at(place: Place, scenario: str, run: Scenario, options: Options) -> Iterator[Section]:
    """One scenario in a folder of its own, with servers of its own."""
    folder = place.folder / scenario
    folder.mkdir()
    try:
        peers = PEERS if scenario in CONTESTS else ()
        with open_arena(place._replace(folder=folder), peers=peers, tell=_tell) as arena:
            yield from run(arena, options)
    except (CommandFailed, OSError) as error:
        yield Section(f"{scenario}, {place.name}", [Row(scenario, "", None, note=str(error))])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()


def _tell(text: str) -> None:
    """Say what is being done; on a terminal in one line that changes."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}"[: shutil.get_terminal_size().columns + 4], err=True, nl=False)
    else:
        click.echo(text, err=True)


if __name__ == "__main__":
    main()
