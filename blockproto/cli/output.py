"""Everything the command says: exit codes, JSON objects for scripts, sentences for people.

Foreign text (names, a peer's words) goes through ``show_name`` before it reaches a terminal. JSON escapes it by itself.

Rules:
    1. An error is one sentence: which input, what was wrong, what to do.
    2. stdout carries what scripts read and nothing else.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import click

from ..common.names import show_lines, show_name
from ..errors import (
    ERRORS,
    BadCheck,
    BlockprotoError,
    Code,
    ConnectionLost,
    DigestMismatch,
    GoingAway,
    InTheWay,
    NewerLedger,
    NotListening,
    RangeOutside,
    SpeaksTls,
    StoreFailed,
    TooFewFiles,
    Untrusted,
)

RECEIPT_FIELDS = (
    "filename",
    "filetype",
    "filesize",
    "blocknum",
    "sourceid",
    "root",
    "b3sum",
    "stored_as",
    "resumed",
    "blocks_sent",
    "blocks_skipped",
    "payload_bytes_sent",
    "connections",
    "elapsed_s",
    "outcome",
)
"""The fields of the object that ``put --json`` and ``get --json`` print for each file, in this order; scripts rely on it."""

_RESUME = (
    "see that the server runs there, then run the same command again: it goes on from what was acknowledged"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SAID_OF_IT = ("changed", "cannot ", "is ", "was ")
"""How a sentence continues that begins with its input."""
_NOT_LET_IN = {
    Code.UNAUTHENTICATED, Code.CREDENTIAL_EXPIRED, Code.FORBIDDEN, Code.UNSUPPORTED_VERSION, Code.NOT_BLOCKPROTO,
}  # fmt: skip
"""Errors with which a server that can be reached ends every connection."""
_FOR_ALL = {Code.UNAUTHENTICATED, Code.CREDENTIAL_EXPIRED, Code.FORBIDDEN, Code.STORE_FULL, Code.STORE_FAILED}
"""Refusals that are not about one file."""
_AGAIN_THEN_REPORT = "run the same command again; if that fails too, report it to whoever runs the server"
_COMMANDS_FOR = {
    Code.UNKNOWN_FILE: "`blockproto ls` shows what is there",
    Code.NOT_EMPTY: "add -r to remove it with what is in it",
    Code.FILE_EXISTS: "choose another name, or give --if-exists keep or replace",
    Code.SUPERSEDED: "leave it to that one; or stop that one and run this command again, which goes on where it was",
    Code.DIGEST_MISMATCH: _AGAIN_THEN_REPORT,
    Code.DIGESTS_DIFFER: _AGAIN_THEN_REPORT,
    Code.BAD_FACTS: "report it to whoever runs the server",
    Code.NOT_PERMITTED: "",  # rights are one reason of many, and the text says which it is
}
"""What to do, in the words of this command, where the error table has a library's."""
WITHHELD = "blockproto.withheld"
"""Where a command's context says what to advise instead of another token: why none was sent, or nothing."""
_MAY_NOT = "change its rights, or those of the folders it is in, or run this as a user who may"
_LOCAL_ADVICE = {errno.EACCES: _MAY_NOT, errno.EPERM: _MAY_NOT}
_ASK_AGAIN = "see that the server runs there, then try again"


class ShownFormatter(logging.Formatter):
    """Formats the log of the engine where no log was asked for: foreign text is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        text = show_name(record.getMessage())
        return f"{text}\n{show_lines(self.formatException(record.exc_info))}" if record.exc_info else text


class Status(IntEnum):
    """Exit codes; the greatest one is used when several apply."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    INTERRUPTED = 130


def print_json(fields: Mapping[str, Any]) -> None:
    r"""Print one object on one line of stdout, at once. Bytes that are no UTF-8 come as ``\xff``, as in sentences."""
    import json

    click.echo(json.dumps(_readable(fields), ensure_ascii=True, separators=(", ", ": ")))


def _readable(value: Any) -> Any:
    """``value`` without lone surrogates, which strict readers of JSON refuse together with the rest of the object."""
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: show_name(found[0]), value)
    if isinstance(value, Mapping):
        return {key: _readable(member) for key, member in value.items()}
    return [_readable(member) for member in value] if isinstance(value, list | tuple) else value


def print_receipt(receipt: Any) -> None:
    """Print a receipt with exactly the fields of the contract."""
    print_json({field: getattr(receipt, field) for field in RECEIPT_FIELDS})


def print_failure(filename: str, error: BaseException) -> None:
    """Print the object of a file that failed: the fields of the contract, and the error."""
    print_failed(no_receipt(filename), error)


def no_receipt(filename: str) -> dict[str, Any]:
    """The fields of the contract for a file of which nothing is known."""
    return dict.fromkeys(RECEIPT_FIELDS) | {"filename": filename}


def print_failed(fields: Mapping[str, Any], error: BaseException) -> None:
    """Print the object of something that failed: ``fields``, and the error."""
    code = error.code.name if isinstance(error, BlockprotoError) else None
    print_json({**fields, "outcome": "failed", "error": explain(error), "code": code})


@contextmanager
def printing_failed(left: Callable[[], Iterable[Mapping[str, Any]]], as_json: bool) -> Iterator[None]:
    """Print an object for each of what is ``left`` when an error ends the command; the error goes on."""
    try:
        yield
    except (BlockprotoError, OSError, BaseExceptionGroup) as error:
        cause = leaves_of(error)[0]
        if as_json and isinstance(cause, BlockprotoError | OSError):
            for fields in left():
                print_failed(fields, cause)
        raise


def ends_run(error: BaseException) -> bool:
    """Whether every other request of the run would be refused for the same reason, so that the run ends."""
    if not isinstance(error, BlockprotoError):
        return False
    too_few = isinstance(error, TooFewFiles)  # raised only for a file that had all descriptors to itself
    return too_few or is_for_all(error.code) or (error.code is Code.QUOTA and error.current == 0)


def ends_all(error: BlockprotoError) -> bool:
    """Whether nothing more can be asked of this server: it is lost, or would refuse everything."""
    return isinstance(error, ConnectionLost | GoingAway) or ends_run(error)


def is_for_all(code: int | None) -> bool:
    """Whether an error of that code is not about one file."""
    return code in _FOR_ALL


def say(text: str) -> None:
    """Print a line for people on stderr."""
    print(
        text, file=sys.stderr, flush=True
    )  # not click.echo, which would write through a bar that is shown there


def warn(text: str) -> None:
    """Print a warning for people on stderr, in red on a terminal."""
    say(click.style(text, fg="red") if sys.stderr.isatty() else text)


def fail(error: BaseException, what: str = "", advice: str = "") -> Status:
    """Report an error in one sentence; returns its exit code.

    Args:
        error: a BlockprotoError or an OSError of this machine.
        what: the input it concerns, as it was typed.
        advice: what to do, if that is more than the error table says.
    """
    warn("blockproto: " + explain(error, what, advice))
    return status_of(error)


def explain(error: BaseException, what: str = "", advice: str = "") -> str:
    """The sentence for an error: which input, what was wrong, what to do."""
    if isinstance(error, OSError):
        why = error.strerror or str(error) or type(error).__name__
        what = what or (os.fsdecode(error.filename) if error.filename else "")
        advice = advice or _LOCAL_ADVICE.get(error.errno or 0, "")
    else:
        why = str(error)
        advice = advice or _advice_for(error)
    if what:
        for name in (what, show_name(what)):
            rest = why.removeprefix(f"{name}: ").removeprefix(f"{name} ")
            if why.startswith(f"{name}: ") or rest.startswith(_SAID_OF_IT):
                why = rest  # not merely a word that equals the name: "a folder" says nothing of a file 'a'
                break
        why = f"{what}: {why}"
    return show_name(f"{why}; {advice}" if advice and advice not in why else why)


def _advice_for(error: BaseException) -> str:
    if isinstance(error, NotListening):
        return "see that `blockproto serve` runs there and that the port is right, then run the same command again"
    if status_of(error) == Status.UNREACHABLE:
        return _RESUME
    if isinstance(error, TooFewFiles):
        return "allow this program more open files with ulimit -n"
    if isinstance(error, RangeOutside):
        return "give a range that begins within the file"
    if isinstance(error, InTheWay):
        return "move it away, or give another DEST ('-' is stdout)"
    if isinstance(error, DigestMismatch) and error.code is Code.DIGEST_MISMATCH and not error.retryable:
        return (
            "tell whoever runs the server (`blockproto check --read` there finds such files), or, if you have the file, "
            "remove it there with `blockproto rm` and send it again"
        )
    if isinstance(error, NewerLedger):
        return "use the version that wrote it"
    if isinstance(error, StoreFailed) and not error.remote:
        return "look at the disk of this machine"
    if not isinstance(error, BlockprotoError) or isinstance(error, Untrusted | ConnectionLost | SpeaksTls):
        return ""  # the table's advice for its code is about something else
    withheld: str | None = None
    if (ctx := click.get_current_context(silent=True)) is not None:
        withheld = ctx.meta.get(WITHHELD)
    if error.code is Code.UNAUTHENTICATED and withheld is not None:
        return withheld
    return _COMMANDS_FOR.get(error.code, ERRORS[error.code].advice)


def status_of(error: BaseException) -> Status:
    """The exit code for an error: 3 where the server could not be reached or was lost, else 1."""
    if not isinstance(error, (BadCheck, ConnectionLost, GoingAway)):
        return Status.FAILED
    return Status.FAILED if error.code in _NOT_LET_IN and not error.retryable else Status.UNREACHABLE


def show_size(count: int) -> str:
    """A number of bytes for people: ``3.2 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def show_round(count: int) -> str:
    """A number of bytes as it was typed: ``1 MB`` where it is a whole number of such, else as ``show_size``."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count and count % 1000**power == 0:
            return f"{count // 1000**power} {unit}"
    return show_size(count)


def show_count(count: int, thing: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def show_time(mtime_ns: int) -> str:
    """A time for people, in this machine's zone, to the second; a peer can send times beyond the calendar."""
    from datetime import UTC, datetime, timedelta

    try:
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=mtime_ns // 10**9)
        return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "after the year 9999" if mtime_ns > 0 else "before the year 1"


@contextmanager
def about(what: str, advise: Callable[[BaseException], tuple[str, str]] | None = None) -> Iterator[None]:
    """Report the errors that end a whole command, with the input they concern; the command ends with their exit code.

    Bugs and Ctrl-C are raised as they are.

    Args:
        what: the input, as it was typed.
        advise: gives (the input, what to do) for an error, where these differ.
    """
    try:
        yield
    except (BlockprotoError, OSError, BaseExceptionGroup) as error:
        leaves = leaves_of(error)
        if not all(isinstance(leaf, (BlockprotoError, OSError)) for leaf in leaves):
            raise
        unlike = {str(leaf): leaf for leaf in leaves}.values()
        told = [fail(leaf, *(advise(leaf) if advise else (what, ask_again(leaf)))) for leaf in unlike]
        raise click.exceptions.Exit(max(told)) from error


def ask_again(error: BaseException) -> str:
    """What to do where a question got no answer; "" where one came, or the error says more."""
    if isinstance(error, NotListening):
        return ""
    return _ASK_AGAIN if status_of(error) == Status.UNREACHABLE else ""


def leaves_of(error: BaseException) -> list[BaseException]:
    """The errors in a group of groups, or the error itself: nurseries wrap what comes out of them."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for member in error.exceptions for leaf in leaves_of(member)]
    return [error]
