"""A client as a command: started with a job, it prints one line and ends with an exit code.

Spec: the chapter "Client jobs" of ``spec/conformance.md``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from ..verdicts import Failed, Hung

DONE, REFUSED, USAGE, LOST, UNKNOWN_JOB = 0, 1, 2, 3, 127
"""What an exit code means."""

MEANT = (DONE, REFUSED, USAGE, LOST)
"""Exit codes with which a run may end; any other is a crash."""

STDERR_SHOWN = 2_000
"""Characters of the end of stderr that a report shows."""


class Process(Protocol):
    """A started command; ``subprocess.Popen`` is one."""

    stdout: IO[bytes] | None

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; subprocess.TimeoutExpired if it still runs then."""

    def kill(self) -> None:
        """End it at once."""


Launch = Callable[[Sequence[str], IO[bytes]], Process]
"""Starts the command with these words; its stderr goes to the file."""


def launch(words: Sequence[str], stderr: IO[bytes]) -> Process:
    """Start a command as everybody does."""
    return subprocess.Popen(list(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)


@dataclass(frozen=True)
class Command:
    """The client that is examined.

    Attributes:
        words: the command as it is started; the job becomes one more word.
        launch: how it is started.
    """

    words: tuple[str, ...]
    launch: Launch = launch

    def start(self, job: dict[str, Any], stderr: Path) -> Run:
        """Give it a job; OSError if it cannot be started."""
        with stderr.open("ab") as file:
            process = self.launch([*self.words, json.dumps(job, ensure_ascii=False)], file)
        return Run(process, stderr)


class Run:
    """One run of the command."""

    def __init__(self, process: Process, stderr: Path) -> None:
        self.process = process
        self._stderr = stderr

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def result(self, timeout_s: float) -> tuple[int, dict[str, Any]]:
        """Its exit code and the object that it printed; {} if it printed none.

        Raises:
            Hung: it does not end in time.
            Failed: what it printed is not one line with a JSON object.
        """
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Hung("the client does not end", got=self.words()) from None
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            lines = stdout.read().decode("utf-8", "replace").splitlines()
        if not lines:
            return code, {}
        try:
            answer = json.loads(lines[-1])
        except ValueError:
            answer = None
        if len(lines) != 1 or not isinstance(answer, dict):
            raise Failed("stdout is not one line with a JSON object", got="\n".join(lines)[:STDERR_SHOWN])
        return code, answer

    def words(self) -> str:
        """The end of what it said to people."""
        return self._stderr.read_text(encoding="utf-8", errors="replace")[-STDERR_SHOWN:].strip()

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self.running:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
