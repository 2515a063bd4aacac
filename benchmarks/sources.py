"""Sources: the files to send, and looking at what arrived.

Content comes from BLAKE3 as a random generator: nothing compresses it, and it is made at memory speed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

STEP = 8 << 20
"""Bytes made or read at once."""

FILES_PER_FOLDER = 1000
"""How many files of a tree lie in one folder."""


def random_file(path: Path, size: int) -> Path:
    """Make a file of ``size`` random bytes, durable and in the page cache."""
    generator = blake3(secrets.token_bytes(32))
    with open(path, "wb", buffering=0) as file:
        for position in range(0, size, STEP):
            file.write(generator.digest(min(STEP, size - position), seek=position))
        os.fsync(file.fileno())
    return path


def sparse_file(path: Path, size: int) -> Path:
    """Make a file of ``size`` zero bytes that takes no room."""
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def random_tree(folder: Path, count: int, size: int) -> Path:
    """Make a folder with ``count`` files of ``size`` random bytes, ``FILES_PER_FOLDER`` in each folder of it."""
    generator = blake3(secrets.token_bytes(32))
    for number in range(count):
        inner = folder / f"{number // FILES_PER_FOLDER:03}"
        if number % FILES_PER_FOLDER == 0:
            inner.mkdir(parents=True)
        content = generator.digest(size, seek=number * size)
        (inner / f"file-{number:06}.bin").write_bytes(content)
    return folder


def library_tree(folder: Path) -> Path:
    """Copy Python's standard library, with its tests where they are installed: a real folder of files of all sizes.

    What is compiled and what was installed beside it is left out, so that it is the same for everybody with that Python.
    """
    skipped = shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages", "*.pyc")
    return shutil.copytree(
        sysconfig.get_path("stdlib"), folder, ignore=skipped, ignore_dangling_symlinks=True
    )


def link_tree(source: Path, copy: Path) -> None:
    """Make a folder of hard links to the files of another, on the same file system."""
    shutil.copytree(source, copy, copy_function=os.link)


def copy_folders(source: Path, copy: Path) -> None:
    """Make the folders of a folder, empty."""
    for where, _, _ in os.walk(source):
        (copy / Path(where).relative_to(source)).mkdir()


def weigh(folder: Path) -> tuple[int, int]:
    """How many files are in a folder, and how many bytes."""
    sizes = [one.stat().st_size for one in files_of(folder)]
    return len(sizes), sum(sizes)


def warm(path: Path) -> None:
    """Read a file, or all files of a folder, so that the page cache has them."""
    memory = bytearray(STEP)
    for one in files_of(path):
        with open(one, "rb", buffering=0) as file:
            while file.readinto(memory):
                pass


def files_of(path: Path) -> Iterator[Path]:
    """A file itself, or all files below a folder."""
    if path.is_dir():
        yield from (Path(where) / name for where, _, names in os.walk(path) for name in names)
    else:
        yield path


def digest_of(path: Path) -> bytes:
    """The BLAKE3 of a file."""
    hasher = blake3()
    hasher.update_mmap(path)
    return hasher.digest()


def check_same(source: Path, copy: Path) -> None:
    """Check that a file or a folder arrived whole.

    Raises:
        ValueError: it did not; says what differs.
    """
    wanted = {one.relative_to(source): one for one in files_of(source)}
    found = {one.relative_to(copy): one for one in files_of(copy)} if copy.exists() else {}
    if wanted.keys() != found.keys():
        raise ValueError(f"{len(found)} of {len(wanted)} files arrived")
    for name, one in wanted.items():
        if digest_of(one) != digest_of(found[name]):
            raise ValueError(f"{name if str(name) != '.' else source.name} arrived with other bytes")
