"""The floor: the same bytes through one plain socket, nothing but the work itself.

Sender: read 1 MiB, BLAKE3, send. Receiver: receive, BLAKE3, compare, pwrite; one fdatasync at the end, then one byte back.
No protocol, no ledger, no resume: what is left is what this machine can do from Python on one connection.

For a folder: read a file, BLAKE3, send; receive, BLAKE3, compare, create, write, rename; one syncfs at the end.

The floor of creates is less than that: new files in new folders, with nothing sent, hashed or synced.

    python -m benchmarks.floor SOURCE DEST      prints {"elapsed_s": seconds}; SOURCE is a file or a folder
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from blake3 import blake3

from .processes import HOST
from .sources import files_of

BLOCK_LENGTH = 1 << 20
DONE = b"k"
CREATE_FOLDERS = 8
CREATE_FILES = 250
CREATE_LENGTH = 4096
_FILE_HEAD = struct.Struct(">HI32s")
"""Length of the name, length of the content, digest of the content."""


def receive_exactly(sock: socket.socket, view: memoryview) -> None:
    """Fill ``view`` from ``sock``. Raises EOFError at the end of the stream."""
    while len(view):
        received = sock.recv_into(view)
        if not received:
            raise EOFError("the sender is gone")
        view = view[received:]


def send_file(sock: socket.socket, source: Path) -> None:
    """Send a file in blocks, each behind its digest."""
    size = source.stat().st_size
    with open(source, "rb", buffering=0) as file:
        for position in range(0, size, BLOCK_LENGTH):
            block = bytearray(min(BLOCK_LENGTH, size - position))
            os.preadv(file.fileno(), [block], position)
            sock.sendall(blake3(block).digest())
            sock.sendall(block)


def receive_file(sock: socket.socket, dest: Path, size: int) -> None:
    """Receive a file of ``size`` bytes, verified; durable when this returns."""
    digest = memoryview(bytearray(32))
    with open(dest, "wb", buffering=0) as file:
        for position in range(0, size, BLOCK_LENGTH):
            block = memoryview(bytearray(min(BLOCK_LENGTH, size - position)))
            receive_exactly(sock, digest)
            receive_exactly(sock, block)
            _verify(block, digest)
            os.pwrite(file.fileno(), block, position)
        os.fdatasync(file.fileno())


def send_tree(sock: socket.socket, source: Path) -> None:
    """Send all files of a folder, each behind its name, length and digest."""
    for one in sorted(files_of(source)):
        content = one.read_bytes()
        name = str(one.relative_to(source)).encode()
        head = _FILE_HEAD.pack(len(name), len(content), blake3(content).digest())
        sock.sendall(b"".join([head, name, content]))
    sock.sendall(_FILE_HEAD.pack(0, 0, bytes(32)))


def receive_tree(sock: socket.socket, dest: Path, size: int) -> None:
    """Receive a folder, verified, each file under its name only when it is whole; durable when this returns."""
    dest.mkdir(exist_ok=True)
    head = memoryview(bytearray(_FILE_HEAD.size))
    while True:
        receive_exactly(sock, head)
        name_length, length, digest = _FILE_HEAD.unpack(head)
        if not name_length:
            break
        body = memoryview(bytearray(name_length + length))
        receive_exactly(sock, body)
        _verify(body[name_length:], digest)
        _write_file(dest / bytes(body[:name_length]).decode(), body[name_length:])
    _sync_all_of(dest)


def _write_file(path: Path, content: memoryview) -> None:
    draft = path.with_name(path.name + ".part")
    try:
        file = open(draft, "wb", buffering=0)  # noqa: SIM115
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        file = open(draft, "wb", buffering=0)  # noqa: SIM115
    with file:
        file.write(content)
    os.rename(draft, path)


def _verify(content: memoryview, digest: bytes | memoryview) -> None:
    if blake3(content).digest() != digest:
        raise ValueError("the digest is another")


def _sync_all_of(folder: Path) -> None:
    """syncfs of the file system ``folder`` lies on."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(fd)


def creates_us(folder: Path) -> float:
    """Make ``CREATE_FILES`` files of ``CREATE_LENGTH`` bytes in each of ``CREATE_FOLDERS`` folders of a new ``folder``.

    Returns:
        Microseconds a file: the median of the folders.
    """
    content = os.urandom(CREATE_LENGTH)
    taken_us = []
    folder.mkdir()
    for number in range(CREATE_FOLDERS):
        inner = folder / str(number)
        inner.mkdir()
        paths = [f"{inner}/{file}" for file in range(CREATE_FILES)]
        begun = time.perf_counter()
        for path in paths:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, content)
            os.close(fd)
        taken_us.append((time.perf_counter() - begun) / CREATE_FILES * 1e6)
    return median(taken_us)


def _receive(
    ports: Connection, dest: Path, size: int, work: Callable[[socket.socket, Path, int], None]
) -> None:
    with socket.create_server((HOST, 0)) as listener:
        ports.send(listener.getsockname()[1])
        sock, _ = listener.accept()
    with sock:
        work(sock, dest, size)
        sock.sendall(DONE)


def run(source: Path, dest: Path) -> float:
    """Bring ``source`` to ``dest``; returns the seconds from the connect to the receiver's answer."""
    folder = source.is_dir()
    ours, theirs = multiprocessing.Pipe()
    size = 0 if folder else source.stat().st_size
    receiver = multiprocessing.Process(
        target=_receive, args=(theirs, dest, size, receive_tree if folder else receive_file)
    )
    receiver.start()
    port: int = ours.recv()
    begun = time.perf_counter()
    with socket.create_connection((HOST, port)) as sock:
        (send_tree if folder else send_file)(sock, source)
        answer = sock.recv(1)
    elapsed_s = time.perf_counter() - begun
    receiver.join()
    if answer != DONE:
        raise SystemExit("the receiver failed")
    return elapsed_s


if __name__ == "__main__":
    print(json.dumps({"elapsed_s": run(Path(sys.argv[1]), Path(sys.argv[2]))}))
