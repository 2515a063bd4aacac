"""The three standard streams, made safe: closed ones, full ones, and those whose reader has gone.

    closed at the start   the descriptor is opened on /dev/null so that using the stream fails; otherwise a file or
                          connection that is opened later would get its number, and messages would be written into it
    stdout                a failed write ends the command with ``StdoutFailed``: exit code 1, one sentence; if its reader has
                          gone with ``NoReader``: SIGPIPE, and no message
    stderr                a failed write is ignored: there is no other place for messages

Rule: a stream that a command does not use does not fail it.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

import click

_BUFFER_LENGTH = 64 * 1024


class StdoutFailed(click.ClickException):
    """Output for scripts could not be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout: {error.strerror}; nothing can be written there")

    def show(self, file: Any = None) -> None:
        """See click.ClickException."""
        click.echo(f"blockproto: {self.message}", err=True)


class NoReader(StdoutFailed):
    """The reader of stdout has gone: the process ends without a message, as SIGPIPE ends others in a pipeline."""

    exit_code = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1

    def show(self, file: Any = None) -> None:
        """See click.ClickException."""


class _Raw(io.RawIOBase):
    """A descriptor to write to."""

    def __init__(self, fd: int, *, drops: bool) -> None:
        self._fd = fd
        self._drops = drops

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any) -> int:
        """Write some; raises StdoutFailed, or drops what cannot be written."""
        try:
            return os.write(self._fd, data)
        except OSError as exc:
            if not self._drops:
                silence(self._fd)
                raise (NoReader if isinstance(exc, BrokenPipeError) else StdoutFailed)(exc) from exc
        return memoryview(data).nbytes


def secure() -> None:
    """Make the standard streams safe. Does nothing to streams that were replaced, as tests do."""
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            taken = os.open(os.devnull, flags)
            if taken != fd:
                os.dup2(taken, fd)
                os.close(taken)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    if _is_ours(sys.stdout, 1):
        sys.stdout = _stream(1, sys.stdout, drops=False)
    if _is_ours(sys.stderr, 2):
        sys.stderr = _stream(2, sys.stderr, drops=True)


def _is_ours(stream: Any, fd: int) -> bool:
    if stream is None:
        return True
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is no buffer in between
    return isinstance(raw, io.FileIO) and raw.fileno() == fd


def _stream(fd: int, before: Any, *, drops: bool) -> io.TextIOWrapper:
    encoding = "utf-8" if before is None else before.encoding
    if before is not None:
        before.flush()
    buffer = io.BufferedWriter(_Raw(fd, drops=drops), _BUFFER_LENGTH)
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=drops or os.isatty(fd))


def raw_stdin() -> Any:
    """The binary file under stdin, which may be read in a thread that is left behind.

    ``sys.stdin.buffer`` holds a lock while it reads. A thread that waits there for a terminal or a silent pipe would keep
    it, and Python aborts (SIGABRT) where it cannot take that lock at its end.
    """
    buffer = sys.stdin.buffer
    return getattr(buffer, "raw", buffer)


def silence(fd: int) -> None:
    """Discard everything that is still written to ``fd``."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)
