"""The arena: our server and every peer's, running side by side in one place, as contestants for a piece of work."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .ours import NAME, Ours
from .pairs import FLOOR, Contestant, Timing
from .peers import Peer, Running, missing_packages, start_peer
from .places import Place, remove
from .processes import CommandFailed, timed
from .sources import check_same


@dataclass(slots=True)
class Arena:
    """Everybody at one place.

    Attributes:
        place: where.
        ours: our server.
        running: the peers that came up.
        absent: peer → why it does not take part.
    """

    place: Place
    ours: Ours
    running: list[Running] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    # ---- one file up ------------------------------------------------------------------------------------------

    def uploaders(self, source: Path) -> tuple[Contestant, list[Contestant]]:
        """Ours, and the floor and every peer that can send the file ``source``."""
        ours = _putting(NAME, partial(self.ours.timed_put, source), source, self.ours.served / source.name)
        theirs = [self._floor(source)]
        for peer in self.running:
            for method in peer.methods:
                if method.put is not None:
                    run = partial(_wall, method.put(source))
                    theirs.append(_putting(method.name, run, source, peer.served / source.name))
        return ours, theirs

    # ---- one file down ----------------------------------------------------------------------------------------

    def downloaders(self, source: Path) -> tuple[Contestant, list[Contestant]]:
        """Ours, and the floor and every peer that can fetch; each server gets a hard link to ``source`` first."""
        dest = self.place.folder / "fetched"
        name = source.name
        _link(source, self.ours.served / name)
        ours = _putting(NAME, partial(self.ours.timed_get, name, dest), source, dest)
        theirs = [self._floor(source)]
        for peer in self.running:
            _link(source, peer.served / name)
            for method in peer.methods:
                if method.get is not None:
                    theirs.append(_putting(method.name, partial(_wall, method.get(name, dest)), source, dest))
        return ours, theirs

    def unlink(self, name: str) -> None:
        """Remove ``name`` from every served folder."""
        for served in (self.ours.served, *(peer.served for peer in self.running)):
            remove(served / name)

    # ---- a folder up ------------------------------------------------------------------------------------------

    def folder_uploaders(self, source: Path) -> tuple[Contestant, list[Contestant]]:
        """Ours, and the floor and every peer that can send the folder ``source``."""
        command = partial(self.ours.put, source)
        ours = _putting(NAME, lambda: _wall(command(), self.ours.env), source, self.ours.served / source.name)
        theirs = [self._floor(source)]
        for peer in self.running:
            for method in peer.methods:
                if method.put_folder is not None:
                    run = partial(_wall, method.put_folder(source))
                    theirs.append(_putting(method.name, run, source, peer.served / source.name))
        return ours, theirs

    def _floor(self, source: Path) -> Contestant:
        dest = self.place.folder / "floored"
        command = [sys.executable, "-m", "benchmarks.floor", str(source), str(dest)]
        return _putting(FLOOR, partial(_floor_timing, command), source, dest)


@contextmanager
def open_arena(
    place: Place, *, peers: Sequence[Peer], tls: bool = False, tell: Callable[[str], None]
) -> Iterator[Arena]:
    """Start our server, with or without TLS, and those of ``peers`` that are installed; all are ended at the end.

    Raises:
        CommandFailed: our server does not come up.
    """
    with ExitStack() as ending:
        ours = Ours(place.folder, tls=tls)
        ending.callback(lambda: ours.server.stop())
        arena = Arena(place, ours)
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


def _putting(name: str, run: Callable[[], Timing], source: Path, stored: Path) -> Contestant:
    """A contestant that leaves a copy of ``source`` at ``stored``."""
    return Contestant(name, run, partial(remove, stored), partial(check_same, source, stored))


def _wall(command: list[str], env: dict[str, str] | None = None) -> Timing:
    return Timing(timed(command, env).wall_s)


def _floor_timing(command: list[str]) -> Timing:
    ran = timed(command, {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    return Timing(ran.wall_s, json.loads(ran.out)["elapsed_s"])


def _link(source: Path, name: Path) -> None:
    name.unlink(missing_ok=True)
    name.hardlink_to(source)
