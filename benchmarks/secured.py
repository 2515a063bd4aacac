"""TLS: one file up and down beside scp and beside ourselves without it, peak memory, handshakes, and idle connections.

Everything is as in the scenarios without TLS; our command holds the server's certificate against a pin. scp takes part
twice: with the cipher it prefers by itself, and with AES, which TLS uses as well.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from blockproto.identity.certificates import client_context

from .arena import Arena, Contestants, open_arena
from .contest import Options, hold
from .crowded import REST_S, greet, resident_bytes
from .figures import Row, Section, Target, show_size
from .memory import memory
from .pairs import summarise
from .peers import OpenSsh, OpenSshAes
from .places import remove
from .processes import HOST, CommandFailed, Server
from .sources import random_file, random_tree
from .targets import (
    FOLDER_FILE_LENGTH,
    FOLDER_FILES,
    FOLDER_TLS,
    HANDSHAKES,
    IDLE_TLS_CONNECTIONS,
    IDLE_TLS_KIB,
    TLS_UPLOAD,
)

PLAIN = "blockproto without TLS"
DIALLERS = 2
DIALLING_S = 2.0


def tls(arena: Arena, options: Options) -> Iterator[Section]:
    """One file both ways, a folder, then memory, handshakes and idle connections; ``arena`` is without TLS."""
    folder = arena.place.folder / "tls"
    folder.mkdir()
    place = arena.place._replace(folder=folder)
    old = arena.old[0].command if arena.old else None
    peers = () if old else (OpenSsh(), OpenSshAes())
    with open_arena(place, peers=peers, old=old, tls=True, tell=options.tell) as secured:
        arenas = (secured, arena)
        targets = TLS_UPLOAD.get(options.sizes[0], {})
        yield _file("upload", Arena.uploaders, arenas, targets, options)
        yield _file("download", Arena.downloaders, arenas, {}, options)
        yield _folder(arenas, options)
        if old:
            return
        _begin_afresh(secured)
        for section in memory(secured, options):
            yield replace(section, title=f"TLS: {section.title}")
        _begin_afresh(secured)
        yield Section("TLS: connections", [*_handshakes(secured, options), *_idle(secured, options)])


def _begin_afresh(secured: Arena) -> None:
    """Another server: what the one before has kept in memory is gone."""
    secured.ours.server.stop()
    secured.ours.restart()


def _file(
    what: str,
    gather: Callable[[Arena, Path], Contestants],
    arenas: tuple[Arena, Arena],
    targets: Mapping[str, Target],
    options: Options,
) -> Section:
    """Ours over TLS, beside the floor, scp, and ours without TLS, who is in the other arena."""
    secured, plain = arenas
    size = options.sizes[0]
    source = random_file(secured.place.folder / "source.bin", size)
    try:
        contestants = _with_plain(gather(secured, source), gather(plain, source))
        title = f"TLS: {what} {show_size(size)}, {secured.place.name}"
        return hold(title, secured, contestants, source, targets, options, (size / 1e9, "GB/s"))
    finally:
        for arena in arenas:
            arena.unlink(source.name)
        remove(source)


def _folder(arenas: tuple[Arena, Arena], options: Options) -> Section:
    """The same for ``put DIR`` of many small files."""
    secured, plain = arenas
    files = options.files
    source = random_tree(secured.place.folder / "tree", files, FOLDER_FILE_LENGTH)
    try:
        contestants = _with_plain(secured.folder_uploaders(source), plain.folder_uploaders(source))
        title = f"TLS: put DIR, {files:,} × {show_size(FOLDER_FILE_LENGTH)}, {secured.place.name}"
        targets = {PLAIN: FOLDER_TLS} if files == FOLDER_FILES else {}
        amount = (files, "files/s")
        return hold(title, secured, contestants, source, targets, options, amount, creates=True)
    finally:
        secured.place.discard(source)


def _with_plain(secured: Contestants, plain: Contestants) -> Contestants:
    return Contestants(secured.ours, [*secured.theirs, replace(plain.ours, name=PLAIN)])


# ---- connections ----------------------------------------------------------------------------------------------


def _handshakes(secured: Arena, options: Options) -> list[Row]:
    """Beside a server that does nothing but the handshake, with Trio's own TLS stream and the same certificate."""
    ours = secured.ours
    what = "handshakes a second beside a bare trio.SSLStream"
    command = [sys.executable, "-m", "benchmarks.handshakes", "serve", str(ours.certificate), str(ours.key)]
    log = ours.work / "bare.log"
    try:
        bare = Server(command, log)
    except CommandFailed as error:
        return [Row(what, "×", None, HANDSHAKES, note=str(error))]
    try:
        rates: dict[int, list[float]] = {bare.port: [], ours.server.port: []}
        for _ in range(options.pairs):
            for port in options.rng.sample(list(rates), 2):
                rates[port].append(_dial(port))
    except CommandFailed as error:
        return [Row(what, "×", None, HANDSHAKES, note=ours.explain(error))]
    finally:
        bare.stop()
    theirs, own = rates[bare.port], rates[ours.server.port]
    ratios = summarise(one / other for one, other in zip(own, theirs, strict=True))
    note = f"ours {summarise(own).median:.0f}/s, theirs {summarise(theirs).median:.0f}/s"
    return [Row(what, "×", ratios, HANDSHAKES, note=note)]


def _dial(port: int) -> float:
    """Handshakes a second with ``DIALLERS`` processes that do them one after another."""
    command = [sys.executable, "-m", "benchmarks.handshakes", "dial", str(port), str(DIALLING_S)]
    diallers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(DIALLERS)]
    told = [dialler.communicate()[0] for dialler in diallers]
    if any(dialler.returncode for dialler in diallers):
        raise CommandFailed("a handshake failed")
    return sum(float(one) for one in told)


def _idle(secured: Arena, options: Options) -> list[Row]:
    """Resident memory that greeted and silent connections add, each."""
    options.tell("TLS: idle connections")
    server, context = secured.ours.server, client_context(pinned=True)

    def connection() -> socket.socket:
        sock = context.wrap_socket(socket.create_connection((HOST, server.port)), server_hostname=HOST)
        greet(sock)
        return sock

    idle: list[socket.socket] = []
    try:
        idle.append(connection())
        time.sleep(REST_S)
        before = resident_bytes(server.pid)
        idle += [connection() for _ in range(IDLE_TLS_CONNECTIONS)]
        time.sleep(REST_S)
        each_kib = (resident_bytes(server.pid) - before) / IDLE_TLS_CONNECTIONS / 1024
    except (CommandFailed, OSError) as error:
        return [
            Row("memory of an idle connection", "KiB", None, IDLE_TLS_KIB, note=secured.ours.explain(error))
        ]
    finally:
        for sock in idle:
            sock.close()
    what = f"memory of an idle connection, of {IDLE_TLS_CONNECTIONS:,}"
    return [Row(what, "KiB", summarise([each_kib]), IDLE_TLS_KIB)]
