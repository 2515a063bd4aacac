"""Throughput: one file of each size up, and down, beside everybody who can do that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .arena import Arena
from .contest import Options, hold
from .figures import Section, show_size
from .places import remove
from .processes import CommandFailed
from .sources import random_file
from .targets import DOWNLOAD, UPLOAD

COPIES = 3
"""How often a file is on a place at the most: the source, ours, and one that is being made."""


def upload(arena: Arena, options: Options) -> Iterator[Section]:
    """``put FILE`` beside everybody who can send a file; a section for each size."""
    for size in options.sizes:
        source = _source(arena, size)
        title = f"upload {show_size(size)}, {arena.place.name}"
        try:
            contestants = arena.uploaders(source)
            targets = UPLOAD.get(size, {})
            yield hold(title, arena, contestants, source, targets, options, (size / 1e9, "GB/s"))
        finally:
            remove(source)


def download(arena: Arena, options: Options) -> Iterator[Section]:
    """``get FILE`` beside everybody who can fetch a file; a section for each size."""
    for size in options.sizes:
        source = _source(arena, size)
        title = f"download {show_size(size)}, {arena.place.name}"
        try:
            contestants = arena.downloaders(source)
            targets = DOWNLOAD.get(size, {})
            yield hold(title, arena, contestants, source, targets, options, (size / 1e9, "GB/s"))
        finally:
            arena.unlink(source.name)
            remove(source)


def _source(arena: Arena, size: int) -> Path:
    room = arena.place.room()
    if COPIES * size > room:
        raise CommandFailed(
            f"{show_size(size)} three times do not fit the {arena.place.name}: {room >> 20} MiB are free"
        )
    return random_file(arena.place.folder / "source.bin", size)
