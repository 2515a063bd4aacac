"""What the version with ledger format 1 left on disk (``data/README.md``), unpacked as good as in its old place.

Unpacking gives every file another inode, and inodes are how a receipt, a commit under way and an interrupted download know
their file: they are written anew, into the bytes of the old format, which are known here and nowhere else.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import pack, pack_into, unpack_from
from typing import Any
from zlib import crc32

import lmdb
from blake3 import blake3

from blockproto.common.blocks import BLOCK_LENGTH

ARCHIVE = Path(__file__).parent / "data/store-1.tar.xz"
DAY_MS = 24 * 3600 * 1000


def content_of(name: str, filesize: int) -> bytes:
    """The bytes of a recorded file, by the last component of its name."""
    blocks = range(-(-filesize // BLOCK_LENGTH))
    lines = (blake3(f"{name} {blockno}".encode()).digest() * (BLOCK_LENGTH // 32) for blockno in blocks)
    return b"".join(lines)[:filesize]


@dataclass(frozen=True, slots=True)
class OldStore:
    """An unpacked recording.

    Attributes:
        place: the folder it was unpacked into.
        facts: ``facts.json``.
    """

    place: Path
    facts: dict[str, Any]

    @property
    def served(self) -> Path:
        """The served folder."""
        return self.place / "served"

    @property
    def state(self) -> Path:
        """Its state."""
        return self.served / ".blockproto"

    @property
    def config(self) -> Path:
        """The client's configuration: its value for ``$BLOCKPROTO_CONFIG``; ``known_servers.json`` is in it too."""
        return self.place / "config"

    @property
    def here(self) -> Path:
        """The client's files."""
        return self.place / "here"

    @property
    def queue(self) -> Path:
        """The queue's journal."""
        return self.place / "queue.sqlite3"

    @property
    def token(self) -> str:
        """The owner's token; unfinished uploads are that principal's."""
        return (self.state / "owner.token").read_text().strip()

    @property
    def principal(self) -> bytes:
        """Of the token."""
        register = json.loads((self.state / "tokens.json").read_text())
        return bytes.fromhex(register["principals"]["owner"]["principal"])

    @contextmanager
    def ledger(self) -> Iterator[lmdb.Transaction]:
        """The old ledger's records as they are."""
        env = lmdb.open(str(self.state / "ledger"), map_size=1 << 30, lib_version=0)
        with closing(env), env.begin(write=True) as txn:
            yield txn

    def rename_upload(self, name: str, sourceid: bytes) -> None:
        """Let an unfinished upload be known by another sourceid: what the client derives from the unpacked file."""
        old = bytes.fromhex(self.facts["unfinished"][name]["sourceid"])
        with self.ledger() as txn:
            secret = txn.get(b"m")[12:]
            record = bytearray(txn.pop(b"u" + self.principal + old))
            record[16:32] = blake3(self.principal + sourceid, key=secret).digest(16)
            txn.put(b"u" + self.principal + sourceid, bytes(record))

    def rename_receipt(self, name: str, sourceid: bytes) -> None:
        """Let a finished file's receipt be known by another sourceid, likewise."""
        with self.ledger() as txn:
            secret = txn.get(b"m")[12:]
            at = b"n" + blake3(name.encode()).digest(16)
            record = bytearray(txn.pop(b"i" + txn.get(at)))
            record[16:32] = sourceid
            file_id = blake3(self.principal + sourceid, key=secret).digest(16)
            txn.put(b"i" + file_id, bytes(record))
            txn.put(at, file_id)

    def point_queue_at(self, address: str) -> None:
        """Let the queue's transfers be those of the unpacked files and of a server that runs now (``bp://HOST:PORT``)."""
        with closing(sqlite3.connect(self.queue)) as journal, journal:
            for id_, path in journal.execute("SELECT id, path FROM transfers").fetchall():
                here = os.fsencode(self.here / os.path.basename(os.fsdecode(path)))
                journal.execute(
                    "UPDATE transfers SET server = ?, path = ? WHERE id = ?", (address, here, id_)
                )


def unpack(place: Path) -> OldStore:
    """Unpack the recording into ``place``, which is made."""
    place.mkdir()
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    old = OldStore(place, json.loads((place / "facts.json").read_text()))
    old.state.chmod(0o700)
    with old.ledger() as txn:
        _freshen(txn)
        versions = _adopt(txn, old)
    for ledger in old.here.glob("*.blockproto-ledger"):
        _renew_download(ledger, versions["docs/film.bin"])
    return old


def _freshen(txn: lmdb.Transaction) -> None:
    """Move the dates on which uploads expire: what was recorded long ago is as young as it was then."""
    for key, record in list(txn.cursor()):
        if key[:1] == b"u":
            changed = bytearray(record)
            pack_into(">Q", changed, 40, time.time_ns() // 10**6 + 29 * DAY_MS)
            txn.put(key, bytes(changed))


def _adopt(txn: lmdb.Transaction, old: OldStore) -> dict[str, bytes]:
    """Write the inodes anew; returns the version of each finished file by name."""
    partials = {key[1:]: record[:16].hex() for key, record in txn.cursor() if key[:1] == b"f"}
    versions: dict[str, bytes] = {}
    for key, record in list(txn.cursor()):
        if key[:1] != b"i":
            continue
        (length,) = unpack_from(">H", record, 112)
        name = record[116 : 116 + length].decode()
        path = old.served / name
        if not path.exists():
            path = old.state / "partials" / partials[key[1:]]
        size, mtime_ns = unpack_from(">Qq", record, 88)
        os.utime(path, ns=(mtime_ns, mtime_ns))
        ino = path.stat().st_ino
        changed = bytearray(record)
        pack_into(">Q", changed, 80, ino)
        txn.put(key, bytes(changed))
        versions[name] = blake3(pack(">QQQq", 0, ino, size, mtime_ns)).digest(16)
        b3sum = txn.get(b"c" + blake3(name.encode()).digest(16))
        if b3sum is not None:
            txn.put(b"c" + blake3(name.encode()).digest(16), versions[name] + b3sum[16:])
    return versions


def _renew_download(ledger: Path, version: bytes) -> None:
    """A download is known by the version of its file, in the first record of its ledger."""
    content = bytearray(ledger.read_bytes())
    (length,) = unpack_from(">I", content, 9)
    content[8 + 5 + 16 : 8 + 5 + 32] = version
    pack_into(">I", content, 13 + length, crc32(content[8 : 13 + length]))
    ledger.write_bytes(content)
