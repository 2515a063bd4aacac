"""What an ``OSError`` means: the border where the system's errors become ours, on every platform.

    refusal            of what writes: the medium's own errors mean that nothing may be acknowledged any more
    refusal_here       of what a client writes on its own machine
    refusal_of_one     of what looks at, opens or reads one served file: whatever it is, it concerns that file only

What nobody has thought of is refused with the system's words: one request, one file, never the store.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from ..errors import (
    BlockprotoError,
    Code,
    FileExists,
    NotEmpty,
    NotPermitted,
    Refused,
    StoreFailed,
    StoreFull,
    TooFewFiles,
    UnknownFile,
)

P = ParamSpec("P")
T = TypeVar("T")

_NOT_PERMITTED_TEXTS = {
    "EACCES": "the folder's rights do not allow it",
    "EPERM": "the folder's rights do not allow it",
    "EROFS": "the file system is read-only",
    "ENOTDIR": "something that is no folder stands in the path",
    "ELOOP": "a symlink stands in the path",
    "EISDIR": "a folder stands there",
    "ENAMETOOLONG": "the name is too long for the file system",
    "EINVAL": "the file system does not take this",
    "EILSEQ": "the file system does not take this name",
    "EXDEV": "another file system is mounted there",
    "EFBIG": "the file is too big for the file system",
    "EMLINK": "the folder has too many entries for the file system",
    "ETXTBSY": "the file is being executed",
    "EBUSY": "the file is in use",
    "EOPNOTSUPP": "the file system cannot do this",
}


def _numbers(*names: str) -> set[int]:
    return {getattr(errno, name) for name in names if hasattr(errno, name)}


_NOT_PERMITTED = {
    getattr(errno, name): text for name, text in _NOT_PERMITTED_TEXTS.items() if hasattr(errno, name)
}
NO_ROOM = _numbers("ENOSPC", "EDQUOT")
"""What says that a file system, or a quota on it, is full."""
_MEDIUM = _numbers(
    "EIO", "EUCLEAN", "EBADMSG", "ENODEV", "ENXIO", "ESHUTDOWN", "EREMOTEIO", "ENOMEDIUM", "EBADF"
)
"""What says that bytes which were written may not be there, or that we write where we do not mean to."""
_BUSY = _numbers("ENFILE", "ENOMEM", "EAGAIN")
BUSY_TEXT = "there are too few files or too little memory"


def refusal_of_sync(error: OSError) -> BlockprotoError:
    """What an error means for what was to be made durable: the medium's own, unless nothing could be opened to ask it."""
    if error.errno == errno.EMFILE:
        return refusal(error)
    return StoreFailed(f"the medium reported: {_words(error)}")


def refusal_of_one(error: OSError) -> BlockprotoError:
    """What an error means for the one file that was looked at or read; never StoreFailed."""
    found = refusal(error)
    return NotPermitted(f"it cannot be read: {_words(error)}") if isinstance(found, StoreFailed) else found


def refusal(error: OSError) -> BlockprotoError:
    """What an error means for the file it concerns; StoreFailed if the medium can no longer be trusted."""
    number = error.errno
    if number in _MEDIUM:
        return StoreFailed(f"the medium reported: {_words(error)}")
    if number in NO_ROOM:
        return StoreFull()
    if number in _NOT_PERMITTED:
        return NotPermitted(_NOT_PERMITTED[number])
    if number == errno.ENOENT:
        return UnknownFile()
    if number == errno.EEXIST:
        return FileExists()
    if number == errno.ENOTEMPTY:
        return NotEmpty()
    if number == errno.EMFILE:
        return TooFewFiles(BUSY_TEXT, retry_after_ms=1000)
    if number in _BUSY:
        return Refused(BUSY_TEXT, code=Code.BUSY, retry_after_ms=1000)
    return NotPermitted(f"the system does not do this: {_words(error)}")


def refusal_here(error: OSError) -> BlockprotoError:
    """The same of what a client writes on its machine: UnknownFile and a bare StoreFull would be said of the server's."""
    if error.errno == errno.ENOENT:
        return NotPermitted(f"it cannot be made there: {_words(error)}")
    if error.errno in NO_ROOM:
        return StoreFull(f"there is no room on this machine: {_words(error)}")
    return refusal(error)


def of_one_file(work: Callable[P, T]) -> Callable[P, T]:
    """Let ``work``, which looks at or reads one file and writes none, raise ``refusal_of_one`` for an OSError."""

    @wraps(work)
    def translated(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except OSError as exc:
            raise refusal_of_one(exc) from exc

    return translated


def _words(error: OSError) -> str:
    return error.strerror or (os.strerror(error.errno) if error.errno else "no reason was given")
