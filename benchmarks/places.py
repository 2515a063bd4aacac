"""Places: where a scenario works: on a fresh ext4, in a tmpfs, or on the disk as it is.

ext4 makes files slowly for minutes after many were removed from the same file system, since it passes over inodes that were
freed a short while ago. Who removes the results of one run before the next measures that. So:

Rules:
    1. Folders of many files that are not needed any more are renamed into a trash folder of the same file system
       (``Place.discard``). It is removed when everything has been measured.
    2. With root every scenario has a file system of its own: a new ext4 on a loop device, past the page cache of the disk
       that it lies on.
    3. A tmpfs has no such memory: there they are removed at once, for its room.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from .processes import CommandFailed, find_program, timed
from .sources import warm

TMPFS = Path("/dev/shm")
"""Where Linux has a tmpfs."""

FRESH_SHARE = 0.8
"""How much of the free room of the disk a fresh file system may fill. It takes only what is written."""

BYTES_EACH_INODE = 4096
"""Of a fresh file system: as many files as it has blocks, since none is removed."""

_PROGRAMS = ("losetup", "mkfs.ext4", "mount", "umount")


class Place(NamedTuple):
    """A folder to work in.

    Attributes:
        name: ``ext4``, ``tmpfs`` or ``disk``.
        folder: ours alone.
        about: in words, such as ``a fresh ext4 on a loop device``.
    """

    name: str
    folder: Path
    about: str

    def room(self) -> int:
        """Free bytes."""
        return shutil.disk_usage(self.folder).free

    def room_for_files(self) -> int:
        """How many files can still be made; 1 << 62 where nothing bounds them."""
        return os.statvfs(self.folder).f_favail or 1 << 62

    @property
    def keeps(self) -> bool:
        """Whether what is discarded goes on taking room."""
        return self.name != "tmpfs"

    def discard(self, path: Path) -> None:
        """Let a file or folder be gone, if it is there; see the module's rules."""
        if not self.keeps:
            remove(path)
        elif os.path.lexists(path):
            trash = self.folder / "trash"
            trash.mkdir(exist_ok=True)
            path.rename(Path(tempfile.mkdtemp(dir=trash)) / path.name)


@contextmanager
def work_in(name: str, disk: Path, at_the_end: ExitStack) -> Iterator[Place]:
    """A place for one scenario.

    Args:
        name: ``ext4``, ``tmpfs`` or ``disk``.
        disk: the folder on the disk in which it is made.
        at_the_end: what was made on the disk as it is is removed when this is left.

    Raises:
        ValueError: there is no such place on this machine.
    """
    with ExitStack() as leaving:
        if name == "tmpfs":
            if not TMPFS.is_dir() or file_system_of(TMPFS) != "tmpfs":
                raise ValueError(f"there is no tmpfs at {TMPFS}")
            folder = _folder_in(TMPFS, leaving)
            about = "tmpfs"
        else:
            disk.mkdir(parents=True, exist_ok=True)
            at_the_end.callback(_remove_if_empty, disk)
            folder = _folder_in(disk, leaving if name == "ext4" else at_the_end)
            about = f"{file_system_of(folder)}, the disk as it is"
            if name == "ext4":
                leaving.enter_context(_fresh_ext4(folder))
                folder = folder / "mounted"
                about = f"a fresh ext4 on a loop device (on {file_system_of(disk)})"
        yield Place(name, folder, about)


def why_not_fresh() -> str | None:
    """Why no fresh file system can be made here; None if one can."""
    missing = [program for program in _PROGRAMS if find_program(program) is None]
    if os.geteuid() != 0:
        return "only root may mount one"
    if missing:
        return f"{', '.join(missing)} is not here"
    return None if Path("/dev/loop-control").exists() else "there are no loop devices"


@contextmanager
def _fresh_ext4(folder: Path) -> Iterator[None]:
    """A new ext4 at ``folder``/mounted, its image beside it, until the end of the context."""
    why = why_not_fresh()
    if why is not None:
        raise ValueError(f"no fresh ext4: {why}")
    image, mounted = folder / "image", folder / "mounted"
    mounted.mkdir()
    with open(image, "wb") as file:
        file.truncate(int(shutil.disk_usage(folder).free * FRESH_SHARE))
    with ExitStack() as undoing:
        try:
            _run("mkfs.ext4", "-q", "-F", "-i", str(BYTES_EACH_INODE), str(image))
            device = _run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
            undoing.callback(_run, "losetup", "--detach", device)
            # Nobody is to fill its tables with zeros in the background: the image's are zeros.
            _run("mount", "-o", "noinit_itable", device, str(mounted))
        except CommandFailed as error:
            raise ValueError(f"no fresh ext4: {error}") from error
        undoing.callback(_unmount, mounted)
        yield


def _unmount(mounted: Path) -> None:
    try:
        _run("umount", str(mounted))
    except CommandFailed:  # somebody is still in it: at least it is gone once they are
        _run("umount", "--lazy", str(mounted))


def _run(program: str, *arguments: str) -> str:
    return timed([find_program(program) or program, *arguments]).out


def _folder_in(parent: Path, leaving: ExitStack) -> Path:
    """A new folder, removed when ``leaving`` is left."""
    folder = Path(tempfile.mkdtemp(prefix="blockproto-bench-", dir=parent))
    leaving.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another run may be in it
        folder.rmdir()


def file_system_of(path: Path) -> str:
    """The type of the file system ``path`` lies on."""
    where = path.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if where.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def settler(source: Path) -> Callable[[], None]:
    """What is done before every run: everything written is on the medium, the source is in the page cache."""

    def settle() -> None:
        os.sync()
        warm(source)

    return settle


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
