"""What an ``OSError`` means: the border where the system's errors become ours, on every platform."""

from __future__ import annotations

import errno

from ..errors import (
    BlockprotoError,
    Code,
    FileExists,
    NotEmpty,
    NotPermitted,
    Refused,
    StoreFailed,
    StoreFull,
    UnknownFile,
)

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
_NO_ROOM = _numbers("ENOSPC", "EDQUOT")
_BUSY = _numbers("EMFILE", "ENFILE", "ENOMEM", "EAGAIN")


def refusal(error: OSError) -> BlockprotoError:
    """What an error means for the file it concerns; StoreFailed if the medium can no longer be trusted."""
    number = error.errno
    if number in _NO_ROOM:
        return StoreFull()
    if number in _NOT_PERMITTED:
        return NotPermitted(_NOT_PERMITTED[number])
    if number == errno.ENOENT:
        return UnknownFile()
    if number == errno.EEXIST:
        return FileExists()
    if number == errno.ENOTEMPTY:
        return NotEmpty()
    if number in _BUSY:
        return Refused("there are too few files or too little memory", code=Code.BUSY, retry_after_ms=1000)
    return StoreFailed(f"the medium reported: {error.strerror}")
