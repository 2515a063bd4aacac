"""The three standard streams, made safe: closed ones, full ones, and readers that have gone.

    closed at the start   the descriptor is taken by one on which the stream's use fails, so that no file or connection that
                          is opened later gets its number and what is said to people never lands in it
    stdout                what cannot be written ends the command with ``StdoutFailed``: exit code 1, one sentence; where its
                          reader has gone with ``NoReader``: SIGPIPE, and not a word
    stderr                what cannot be written is dropped: nobody is left to be told

Rule: a command whose output nobody wanted, because it has none, is not failed by a stream that it does not use.
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
    """What a script should read could not be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout: {error.strerror}; nothing can be written there")

    def show(self, file: Any = None) -> None:
        """See click.ClickException."""
        click.echo(f"blockproto: {self.message}", err=True)


class NoReader(StdoutFailed):
    """Who read stdout has gone: nobody is told, and the process ends as SIGPIPE ends others in a pipeline."""

    exit_code = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1

    def show(self, file: Any = None) -> None:
        """See click.ClickException."""


class _Raw(io.RawIOBase):
    """A descriptor that is written to."""

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
    """Make the standard streams safe. Harmless where somebody has replaced them, as tests do."""
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
    raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is no buffer between
    return isinstance(raw, io.FileIO) and raw.fileno() == fd


def _stream(fd: int, before: Any, *, drops: bool) -> io.TextIOWrapper:
    encoding = "utf-8" if before is None else before.encoding
    if before is not None:
        before.flush()
    buffer = io.BufferedWriter(_Raw(fd, drops=drops), _BUFFER_LENGTH)
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=drops or os.isatty(fd))


def silence(fd: int) -> None:
    """Let everything that is still written to ``fd`` vanish: nobody reads it any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)
