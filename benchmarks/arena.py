"""The arena: our server and every peer's, running side by side in one place, as contestants for a piece of work.

Where an older checkout is given, its server and commands take part beside ours in the same way.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .ours import OLD, Ours
from .pairs import FLOOR, Contestant, Timing
from .peers import Method, Peer, Running, missing_packages, start_peer
from .places import Place, remove
from .processes import CommandFailed, timed
from .sources import check_same, copy_folders, link_tree


class Contestants(NamedTuple):
    """Everybody for one piece of work: ours, and the floor, the older checkout and the peers."""

    ours: Contestant
    theirs: list[Contestant]


@dataclass(slots=True)
class Arena:
    """Everybody at one place.

    Attributes:
        place: where.
        ours: our server.
        old: the servers of older checkouts, one at the most.
        running: the peers that came up.
        absent: peer → why it does not take part.
    """

    place: Place
    ours: Ours
    old: list[Ours] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def fetched(self) -> Path:
        """Where what is fetched goes."""
        return self.place.folder / "fetched"

    # ---- one file ---------------------------------------------------------------------------------------------

    def uploaders(self, source: Path) -> Contestants:
        """Everybody who can send the file ``source``."""

        def of(who: Ours) -> Contestant:
            return _bringing(who.name, partial(who.timed_put, source), source, who.served / source.name)

        theirs = [self._floor(source, self.place.folder / "floored", remove), *map(of, self.old)]
        for peer, method in self._methods():
            if method.put is not None:
                run = partial(_wall, method.put(source))
                theirs.append(_bringing(method.name, run, source, peer.served / source.name))
        return Contestants(of(self.ours), theirs)

    def downloaders(self, source: Path) -> Contestants:
        """Everybody who can fetch a file; each server gets a hard link to ``source`` first."""
        name = source.name

        def of(who: Ours) -> Contestant:
            return _bringing(who.name, partial(who.timed_get, name, self.fetched), source, self.fetched)

        for served in self._served():
            _link(source, served / name)
        theirs = [self._floor(source, self.place.folder / "floored", remove), *map(of, self.old)]
        for _, method in self._methods():
            if method.get is not None:
                run = partial(_wall, method.get(name, self.fetched))
                theirs.append(_bringing(method.name, run, source, self.fetched))
        return Contestants(of(self.ours), theirs)

    def discard(self, name: str) -> None:
        """Let ``name`` be gone from every served folder."""
        for served in self._served():
            self.place.discard(served / name)

    def unlink(self, name: str) -> None:
        """Remove the file ``name`` from every served folder, for its room."""
        for served in self._served():
            remove(served / name)

    # ---- a folder ---------------------------------------------------------------------------------------------

    def folder_uploaders(self, source: Path) -> Contestants:
        """Everybody who can send the folder ``source``."""
        discard = self.place.discard

        def of(who: Ours) -> Contestant:
            stored = who.served / source.name
            # The command is made when it runs: a server that was begun afresh has another port.
            return _bringing(
                who.name, lambda: _wall(who.put(source), who.env), source, stored, partial(discard, stored)
            )

        floored = self.place.folder / "floored"
        theirs = [self._floor(source, floored, discard), *map(of, self.old)]
        for peer, method in self._methods():
            if method.put_folder is not None:
                run = partial(_wall, method.put_folder(source))
                stored = peer.served / source.name
                theirs.append(_bringing(method.name, run, source, stored, partial(discard, stored)))
        return Contestants(of(self.ours), theirs)

    def folder_downloaders(self, source: Path, *, existing: bool = False) -> Contestants:
        """Everybody who can fetch a folder; each server gets hard links to the files of ``source`` first.

        Args:
            source: the folder.
            existing: whether it and all its folders are there already, empty, where it is fetched to.
        """
        dest = self.fetched

        def prepare() -> None:
            dest.mkdir()
            if existing:
                copy_folders(source, dest / source.name)

        def fetching(name: str, run: Callable[[], Timing]) -> Contestant:
            clean = partial(self.place.discard, dest)
            return Contestant(name, run, clean, partial(check_same, source, dest / source.name), prepare)

        def of(who: Ours) -> Contestant:
            return fetching(who.name, lambda: _wall(who.get(source.name, dest), who.env))

        for served in self._served():
            link_tree(source, served / source.name)
        floor = self._floor(source, dest / source.name, self.place.discard)
        theirs = [fetching(FLOOR, floor.run), *map(of, self.old)]
        for _, method in self._methods():
            if method.get_folder is not None:
                theirs.append(fetching(method.name, partial(_wall, method.get_folder(source.name, dest))))
        return Contestants(of(self.ours), theirs)

    def folder_again(self, source: Path) -> Contestants:
        """Everybody who sends nothing where all of the folder ``source`` is there already, as it is after the first run."""
        ours, theirs = self.folder_uploaders(source)
        skipping = {method.name for _, method in self._methods() if method.skips} | {OLD}

        def keeping(one: Contestant) -> Contestant:
            return Contestant(one.name, one.run, lambda: None, one.check)

        return Contestants(keeping(ours), [keeping(one) for one in theirs if one.name in skipping])

    # ---- who ----------------------------------------------------------------------------------------------------

    def _methods(self) -> list[tuple[Running, Method]]:
        return [(peer, method) for peer in self.running for method in peer.methods]

    def _served(self) -> list[Path]:
        return [*(who.served for who in (self.ours, *self.old)), *(peer.served for peer in self.running)]

    def _floor(self, source: Path, dest: Path, clean: Callable[[Path], None]) -> Contestant:
        command = [sys.executable, "-m", "benchmarks.floor", str(source), str(dest)]
        run = partial(_floor_timing, command)
        return _bringing(FLOOR, run, source, dest, partial(clean, dest), inside=True)


@contextmanager
def open_arena(
    place: Place,
    *,
    peers: Sequence[Peer] = (),
    old: str | None = None,
    tls: bool = False,
    tell: Callable[[str], None],
) -> Iterator[Arena]:
    """Start our server, with or without TLS, and those of ``peers`` that are installed; all are ended at the end.

    Args:
        place: where.
        peers: who is to take part.
        old: the installed command of an older checkout that takes part, too.
        tls: whether ours and the older one answer TLS.
        tell: hears what is being done.

    Raises:
        CommandFailed: our server, or the older one, does not come up.
    """
    with ExitStack() as ending:
        ours = Ours(place.folder, tls=tls)
        ending.callback(lambda: ours.server.stop())
        arena = Arena(place, ours)
        if old is not None:
            other = Ours(place.folder, tls=tls, name=OLD, command=old)
            ending.callback(lambda: other.server.stop())
            arena.old.append(other)
        for peer in peers:
            packages = missing_packages(peer)
            if packages:
                arena.absent[peer.name] = f"not installed; on Debian: apt install {' '.join(packages)}"
                continue
            tell(f"starting {peer.name}")
            try:
                running = start_peer(peer, place.folder)
            except CommandFailed as error:
                arena.absent[peer.name] = str(error)
                continue
            ending.callback(running.server.stop)
            arena.running.append(running)
        yield arena


def _bringing(
    name: str,
    run: Callable[[], Timing],
    source: Path,
    stored: Path,
    clean: Callable[[], None] | None = None,
    *,
    inside: bool = False,
) -> Contestant:
    """A contestant that leaves a copy of ``source`` at ``stored``, which ``clean`` takes away, or removes."""
    return Contestant(
        name, run, clean or partial(remove, stored), partial(check_same, source, stored), inside=inside
    )


def _wall(command: list[str], env: dict[str, str] | None = None) -> Timing:
    return Timing(timed(command, env).wall_s)


def _floor_timing(command: list[str]) -> Timing:
    ran = timed(command, {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    return Timing(ran.wall_s, json.loads(ran.out)["elapsed_s"])


def _link(source: Path, name: Path) -> None:
    name.unlink(missing_ok=True)
    name.hardlink_to(source)
