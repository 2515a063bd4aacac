"""Derive the names of a client's transfers, so that the same command resumes without a database.

A sourceid is derived with keyed BLAKE3 from an installation secret and what makes the upload the same one: target name,
path, size, modification time and inode. Another machine, or a changed file, gives another id. The server's address is not
part of it: one server has many spellings and ports, and sourceids of different servers never meet. The id is not a
credential; the secret only keeps ids from telling which installation has which file.

Spec: BP1-RES.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path

from blake3 import blake3

SECRET_LENGTH = 32
SECRET_VARIABLE = "BLOCKPROTO_CONFIG"
"""Environment variable that names another folder for the installation secret."""


def installation_secret(folder: Path | None = None) -> bytes:
    """This installation's 32 secret bytes, made on first use with mode 0600.

    Where no file can be made, a fresh secret is returned: everything works, but another process will not resume.

    Args:
        folder: where it is kept; None for the platform's configuration folder.
    """
    if folder is None:
        folder = _config_folder()
    path = folder / "secret"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"secret.{secrets.token_hex(8)}"
        if not path.exists():
            _write_private(draft, secrets.token_bytes(SECRET_LENGTH))
            with contextlib.suppress(FileExistsError):  # another process was first: its secret counts
                os.link(draft, path)
            draft.unlink()
        secret = path.read_bytes()
        if len(secret) == SECRET_LENGTH:
            return secret
    return secrets.token_bytes(SECRET_LENGTH)


def derive_sourceid(secret: bytes, name: str, path: str, facts: os.stat_result) -> bytes:
    """The sourceid (16 bytes) of the file at ``path`` with ``facts``, sent as ``name`` to whatever server.

    The inode's change time is not part of it, so that a chmod does not restart an unfinished upload.
    """
    parts = (name, path, str(facts.st_size), str(facts.st_mtime_ns), str(facts.st_ino))
    return _keyed(secret, *parts).digest(16)


def derive_earlier_sourceid(secret: bytes, server: str, name: str, path: str, facts: os.stat_result) -> bytes:
    """The sourceid (16 bytes) that the same file had while the server's address was part of it (``earlier_uploads``)."""
    facts_of_file = str(facts.st_size), str(facts.st_mtime_ns), str(facts.st_ino)
    return _keyed(secret, server, name, path, *facts_of_file).digest(16)


def may_have_earlier_uploads(folder: Path | None = None) -> bool:
    """Whether an earlier version of this installation may have left uploads unfinished on servers.

    The first call leaves a mark beside the secret: after ``EARLIER_KEPT_S`` the uploads have expired, and the answer is no.

    Args:
        folder: where the secret is kept; None for the platform's configuration folder.
    """
    folder = _config_folder() if folder is None else folder
    mark = folder / "sourceids-without-server"
    try:
        return time.time() - mark.stat().st_mtime < EARLIER_KEPT_S
    except FileNotFoundError:
        pass
    except OSError:
        return False
    if not (folder / "secret").exists():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            _write_private(mark, b"")
            os.utime(mark, (0, 0))
        return False
    with contextlib.suppress(OSError):
        _write_private(mark, b"")
    return True


def another_sourceid(secret: bytes, sourceid: bytes, content: bytes) -> bytes:
    """The sourceid of another ``content`` (its root) of the file that ``sourceid`` is of.

    For a file that was changed without a new size or time: under its own sourceid, other content is committed.
    """
    return blake3(sourceid + content, key=secret).digest(16)


def derive_label(secret: bytes, server: str, name: str, dest: str) -> str:
    """The label (16 hex digits) of an unfinished download of ``name`` from ``server`` to the path ``dest``."""
    return _keyed(secret, "download", server, name, dest).hexdigest(8)


def _keyed(secret: bytes, *parts: str) -> blake3:
    return blake3("\0".join(parts).encode("utf-8", "surrogateescape"), key=secret)


EARLIER_KEPT_S = 60 * 24 * 3600
"""Seconds for which uploads of an earlier version are looked for: twice as long as servers usually keep unfinished ones."""

ATTEMPT_MAX = (1 << 63) - 1
"""The greatest number a u64 of the wire may have."""


class Attempts:
    """Rising attempt numbers: the clock in milliseconds, or one more than the last."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """The next attempt; greater than every one before, also when the clock was set back."""
        self._last = max(time.time_ns() // 1_000_000, self._last + 1)
        return self._last

    def pass_by(self, current: int) -> None:
        """Let the next attempt be greater than ``current``, unless that is the greatest."""
        self._last = max(self._last, min(current, ATTEMPT_MAX - 1))


def _config_folder() -> Path:
    named = os.environ.get(SECRET_VARIABLE)
    if named:
        return Path(named)
    import platformdirs

    return platformdirs.user_config_path("blockproto")


def state_folder() -> Path:
    """The folder of this installation's caches: that of the secret, if ``SECRET_VARIABLE`` names one."""
    named = os.environ.get(SECRET_VARIABLE)
    if named:
        return Path(named)
    import platformdirs

    return platformdirs.user_state_path("blockproto", appauthor=False)


def _write_private(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
