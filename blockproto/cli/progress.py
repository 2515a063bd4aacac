"""The progress of transfers: a bar with rate and time left on a terminal, nothing otherwise.

The engine reports after every block; the bar is drawn at most ten times a second, so showing it costs next to nothing.
``rich`` is imported only where stderr is a terminal.

Rules:
    1. ``done`` is what has arrived, resumed bytes included; ``total`` is what was asked for.
    2. The bar is on stderr, and stdout is never redirected: scripts read JSON from it meanwhile.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from ..common.names import show_name
from .output import show_size
from .stopped import STOP

_REDRAW_S = 0.1
_WIDE = 70
"""The least columns of a terminal on which everything is shown."""
_NAME_LENGTH = 32
_NAME_LENGTH_MIN = 8
_FIGURES_LENGTH = 26
"""The most columns that a size and the time left take."""


class Advance(Protocol):
    """What the bar needs of ``blockproto.Progress``."""

    filename: str
    filesize: int | None
    position_bytes_done: int


class Meter:
    """Adds up the progress of many files and shows it on a terminal.

    Use it as a context manager, pass ``update`` as the engine's progress callback, and call ``finished`` for each file
    that ended.

    Args:
        total: the bytes of all files, or None while unknown.
        shown: whether to show a bar; None asks whether stderr is a terminal.
        resumes: whether the same command goes on with what has come so far.
    """

    def __init__(self, total: int | None = None, shown: bool | None = None, *, resumes: bool = True) -> None:
        self.total = total
        self._resumes = resumes
        self.bytes_ended = 0
        self.files_ended = 0
        self._under_way: dict[str, int] = {}
        self._expected: dict[str, int] = {}
        self._drawn_at = 0.0
        self._bar = _Bar(total) if (sys.stderr.isatty() if shown is None else shown) else None

    @property
    def done(self) -> int:
        """Bytes that have arrived, of files that ended and of those that are running."""
        return self.bytes_ended + sum(self._under_way.values())

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        STOP.resumes = self._resumes and self.done > 0
        if self._bar is not None:
            self._bar.move(self.done, self._shown_total(), "")
            self._bar.stop(keep=self.done > 0 or self.files_ended > 0)

    def update(self, progress: Advance) -> None:
        """Note the progress of a file."""
        self._under_way[progress.filename] = progress.position_bytes_done
        self._draw(progress.filename)

    def finished(self, filename: str, filesize: int) -> None:
        """Note that a file of ``filesize`` bytes ended well."""
        self._under_way.pop(filename, None)
        expected = self._expected.pop(filename, None)
        if expected is not None and self.total is not None:
            self.total += filesize - expected  # it was replaced after it was listed
        self.bytes_ended += filesize
        self.files_ended += 1
        self._draw(filename)

    def failed(self, filename: str) -> None:
        """Note that a file failed: its bytes do not count."""
        self._under_way.pop(filename, None)
        self._expected.pop(filename, None)
        self._draw(filename)

    def expect(self, count: int, filename: str | None = None) -> None:
        """Add ``count`` bytes to the total; those of the file ``filename``, if one is named."""
        self.total = (self.total or 0) + count
        if filename is not None:
            self._expected[filename] = count

    def complete(self) -> None:
        """Note that all is done: what has arrived is the total."""
        self.total = self.done

    def _shown_total(self) -> int | None:
        return None if self.total is None else max(self.total, self.done)

    def _draw(self, filename: str) -> None:
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._drawn_at >= _REDRAW_S:
            self._drawn_at = now
            self._bar.move(self.done, self._shown_total(), show_name(filename))


class _Bar:
    """The bar itself: rich's, with the current name, size, rate and time left.

    A narrow terminal shows the size and the time left, and as much of the name as fits beside them.
    """

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        console = Console(stderr=True, soft_wrap=True)  # what is said beside the bar is not broken into lines
        narrow = console.width < _WIDE
        name_length = max(_NAME_LENGTH_MIN, console.width - _FIGURES_LENGTH) if narrow else _NAME_LENGTH

        def whole() -> Column:
            return Column(no_wrap=True)

        figures = [DownloadColumn(binary_units=True, table_column=whole())]
        left = TimeRemainingColumn(compact=narrow, table_column=whole())
        rate = TextColumn("{task.fields[rate]}", style="progress.data.speed", table_column=whole())
        self._progress = Progress(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(max_width=name_length, no_wrap=True, overflow="ellipsis"),
            ),
            *([*figures, left] if narrow else [BarColumn(), *figures, rate, left]),
            console=console,
            redirect_stdout=False,
        )
        self._task = self._progress.add_task("", total=total, rate="")

    def start(self) -> None:
        self._progress.start()

    def stop(self, *, keep: bool) -> None:
        """Keep the bar on the terminal, or remove it."""
        self._progress.live.transient = not keep
        self._progress.stop()

    def move(self, done: int, total: int | None, name: str) -> None:
        self._progress.update(self._task, completed=done, total=total, description=name or None)
        task = self._progress.tasks[0]
        speed = task.finished_speed or task.speed
        self._progress.update(self._task, rate="" if speed is None else f"{show_size(int(speed))}/s")
