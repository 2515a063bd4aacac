"""Memory: the most that server and client have resident while one big file goes up, and down."""

from __future__ import annotations

from collections.abc import Iterator

from .arena import Arena
from .contest import Options
from .figures import Row, Section, show_size
from .ours import timing_of
from .pairs import summarise
from .places import remove
from .processes import CommandFailed, peak_bytes, timed_with_peak
from .sources import sparse_file
from .targets import MEMORY_MIB, MIB

CONNECTIONS = 4


def memory(arena: Arena, options: Options) -> Iterator[Section]:
    """One file over ``CONNECTIONS`` connections up, then down again, each with a fresh server."""
    size = options.memory_size
    title = f"memory, {show_size(size)}, {arena.place.name}"
    options.tell(title)
    if size > arena.place.room():
        yield Section(title, [Row("peak memory", "MiB", None, MEMORY_MIB, note="the file does not fit here")])
        return
    source = sparse_file(arena.place.folder / "sparse.bin", size)
    stored = arena.ours.served / source.name
    put = arena.ours.put(source, "--json", "--connections", str(CONNECTIONS))
    rows = _rows(arena, f"upload over {CONNECTIONS} connections", put, size)
    remove(stored)
    source.rename(stored)
    dest = arena.place.folder / "fetched"
    arena.ours.server.stop()
    arena.ours.restart()
    rows += _rows(arena, "download", arena.ours.get(stored.name, dest, "--json"))
    remove(stored)
    remove(dest)
    yield Section(title, rows)


def _rows(arena: Arena, what: str, command: list[str], payload_bytes: int | None = None) -> list[Row]:
    """The rows of one transfer, which must put ``payload_bytes`` on the wire if given."""
    before = peak_bytes(arena.ours.server.pid) or 0
    try:
        ran, client = timed_with_peak(command, arena.ours.env)
        timing_of(ran, payload_bytes)
    except CommandFailed as error:
        return [Row(f"peak of both, {what}", "MiB", None, MEMORY_MIB, note=arena.ours.explain(error))]
    server = peak_bytes(arena.ours.server.pid) or 0
    return [
        Row(
            f"peak of the server, {what}",
            "MiB",
            summarise([server / MIB]),
            MEMORY_MIB,
            note=f"{before / MIB:.1f} MiB before",
        ),
        Row(
            f"peak of the client, {what}",
            "MiB",
            summarise([client / MIB]),
            MEMORY_MIB,
            note=f"{ran.wall_s:.2f} s",
        ),
    ]
