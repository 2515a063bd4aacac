"""Record what a version leaves on disk: a served folder, a client's configuration, a queue and an interrupted download.

Run with that version's code, not with this one; what came of it is ``store-1.tar.xz``, and no test needs this script:

    git archive fc1a7cb blockproto | tar x -C /tmp/old
    PYTHONPATH=/tmp/old python record_old.py store-1.tar.xz

Everything is made by the real program: a server on all interfaces (so it makes a certificate and a token), a client that
knows it, uploads and a download that are interrupted. What a crash leaves inside a commit is made with the store itself,
stopped between two of its steps. ``facts.json`` in the archive says what is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
from blake3 import blake3

import blockproto
from blockproto.client_side.resume_id import derive_sourceid
from blockproto.client_side.trust import Trust
from blockproto.common.blocks import BLOCK_LENGTH, digest_of, root_of
from blockproto.common.names import SafeName
from blockproto.identity.known_servers import KnownServers
from blockproto.queue import TransferQueue
from blockproto.store import BlockDone, Facts, Finish, IfExists, KeepPrefixes, Prefix, UploadKey
from blockproto.store.local.publishing import Publisher
from blockproto.store.local.store import LocalStore
from blockproto.transfer.send_source import OnProgress

MTIME_S = 1_600_000_000
"""Of every file that a client sent; whole seconds, which every archive keeps."""


class Stopped(BaseException):
    """The moment at which the process is gone."""


def content_of(name: str, filesize: int) -> bytes:
    """Bytes that differ from block to block and nearly vanish in an archive."""
    blocks = range(-(-filesize // BLOCK_LENGTH))
    lines = (blake3(f"{name} {blockno}".encode()).digest() * (BLOCK_LENGTH // 32) for blockno in blocks)
    return b"".join(lines)[:filesize]


def write_file(path: Path, filesize: int) -> Path:
    """A file of the client's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content_of(path.name, filesize))
    os.utime(path, (MTIME_S, MTIME_S))
    return path


def digests_of(content: bytes) -> list[bytes]:
    """Of each block."""
    return [digest_of(content[at : at + BLOCK_LENGTH]) for at in range(0, len(content), BLOCK_LENGTH)]


async def _yes(_server: str, _pin: bytes) -> bool:
    return True


class Recording:
    """One recording in ``place``."""

    def __init__(self, place: Path) -> None:
        self.served, self.config, self.here = place / "served", place / "config", place / "here"
        for folder in (self.served, self.config, self.here):
            folder.mkdir()
        self.queue = place / "queue.sqlite3"
        self.facts: dict[str, Any] = {"unfinished": {}, "finished": {}, "under_way": {}, "sourceids": []}
        os.environ.update(BLOCKPROTO_CONFIG=str(self.config))

    def run(self) -> dict[str, Any]:
        """Everything; what it made."""
        server = subprocess.Popen(
            [sys.executable, "-m", "blockproto", "serve", str(self.served), "--listen", "0.0.0.0:0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        port = int(server.stdout.readline().rpartition(":")[2])
        try:
            trio.run(self._talk, port)
        finally:
            server.kill()  # what it owes the ledger stays owed
            server.wait()
        self._unfinished()
        self._note_held()
        self._under_way()
        self._vectors()
        return self.facts

    def _principal(self) -> bytes:
        """Of the token that the server made."""
        register = json.loads((self.served / ".blockproto/tokens.json").read_text())
        return bytes.fromhex(register["principals"]["owner"]["principal"])

    # -- over the wire

    async def _talk(self, port: int) -> None:
        token = (self.served / ".blockproto/owner.token").read_text().strip()
        trust = Trust(known=KnownServers(self.config / "known_servers.json"), ask=_yes)
        url = f"bps://127.0.0.1:{port}"
        self.facts["server"] = f"127.0.0.1:{port}"
        async with blockproto.connect(url, token=token, trust=trust) as client:
            for name, filesize in (("film.bin", 20 * BLOCK_LENGTH + 7), ("small.txt", 500), ("empty", 0)):
                receipt = await client.upload(write_file(self.here / name, filesize), folder="docs")
                self.facts["finished"][receipt.filename] = filesize
            await client.stat("docs/film.bin", b3sum=True)
            await self._cut_download(client)
            await self._cut_upload(client)
        async with TransferQueue.open(self.queue) as queue:
            await queue.add_upload(write_file(self.here / "queued.bin", 2 * BLOCK_LENGTH), url)
            await queue.add_download(url, "docs/film.bin", self.here / "fetched.bin")

    async def _cut_download(self, client: blockproto.Client) -> None:
        """A download of which a block or more is recorded, and not all."""
        with trio.CancelScope() as scope:
            await client.download("docs/film.bin", self.here / "copy.bin", progress=self._cancel(scope))
        assert scope.cancelled_caught

    async def _cut_upload(self, client: blockproto.Client) -> None:
        """An upload of which a block or more is recorded, and not all; the server is killed soon after."""
        path, name = write_file(self.here / "cut.bin", 20 * BLOCK_LENGTH + 1), "cut.bin"
        with trio.CancelScope() as scope:
            await client.upload(path, progress=self._cancel(scope))
        assert scope.cancelled_caught
        sourceid = client.sourceid_of(path, name, path.stat())
        self.facts["unfinished"][name] = {"sourceid": sourceid.hex(), "filesize": path.stat().st_size}

    def _cancel(self, scope: trio.CancelScope) -> OnProgress:
        def observer(progress: blockproto.Progress) -> None:
            if progress.position_bytes_done >= BLOCK_LENGTH:
                scope.cancel()

        return observer

    # -- what a crash leaves

    def _begin(self, store: LocalStore, number: int, name: str, filesize: int | None) -> Any:
        key = UploadKey(self._principal(), bytes([number]) * 16)
        facts = Facts(SafeName.parse(name), "text/plain", filesize, MTIME_S * 10**9, 0o640, IfExists.KEEP)
        return store.open_upload(key, facts, 5)

    def _commit(self, store: LocalStore, upload: Any, content: bytes, blocknos: list[int]) -> list[BlockDone]:
        works = []
        for blockno in blocknos:
            block = content[blockno * BLOCK_LENGTH :][:BLOCK_LENGTH]
            upload.write(blockno * BLOCK_LENGTH, memoryview(block))
            works.append(BlockDone(upload, 5, blockno, len(block), digest_of(block)))
        return works

    def _unfinished(self) -> None:
        store = LocalStore.open(self.served)
        name, filesize = "later/half.bin", 4 * BLOCK_LENGTH + 100
        content = content_of(name, filesize)
        upload = self._begin(store, 1, name, filesize)
        store.commit(self._commit(store, upload, content, [0, 2]))
        beginning = content[BLOCK_LENGTH:][:1000]
        upload.write(BLOCK_LENGTH, memoryview(beginning))
        store.commit([KeepPrefixes(upload, 5, {1: Prefix(1000, digest_of(beginning))})])
        upload.close()
        self.facts["unfinished"][name] = {"sourceid": "01" * 16, "filesize": filesize}
        name, filesize = "stream of unknown size", BLOCK_LENGTH + 50
        upload = self._begin(store, 2, name, None)
        store.commit(self._commit(store, upload, content_of(name, filesize), [0, 1]))
        upload.close()
        self.facts["unfinished"][name] = {"sourceid": "02" * 16, "filesize": None}
        store._opened.close()

    def _note_held(self) -> None:
        store = LocalStore.open(self.served)
        with store.ledger.read() as view:
            for record in view.uploads():
                self.facts["unfinished"][record.facts.filename.text]["held"] = list(
                    view.held(record.storage_id)
                )
        store._opened.close()

    def _under_way(self) -> None:
        """Commits that ended before their name was given, and before the ledger knew that it was."""
        store = LocalStore.open(self.served)
        for number, name, stopped in ((3, "named.bin", False), (4, "nameless.bin", True)):
            content = content_of(name, BLOCK_LENGTH + 9)
            upload = self._begin(store, number, name, len(content))
            works = self._commit(store, upload, content, [0, 1])
            finish = Finish(upload, 5, root_of(digests_of(content), 2), len(content), upload.facts)
            self.facts["under_way"][name] = {
                "sourceid": (bytes([number]) * 16).hex(),
                "filesize": len(content),
            }
            if not stopped:
                store.commit([*works, finish])
                continue

            def stop(_: Publisher) -> None:
                raise Stopped

            Publisher.publish = stop  # type: ignore[method-assign]
            with suppress(Stopped):
                store.commit([*works, finish])
        store._opened.close()

    def _vectors(self) -> None:
        """What this installation calls uploads of these facts."""
        secret = (self.config / "secret").read_bytes()
        size, mtime_ns, ino = 12_345, 1_600_000_000_123_456_789, 987_654
        facts = os.stat_result((0o100644, ino, 0, 1, 0, 0, size, 0, 0, 0, 0.0, 0.0, 0.0, 0, mtime_ns, 0))
        for server, name, path in (("nas.lan:7878", "a/b.txt", "/home/me/b.txt"), ("[::1]:7878", "ä", "/ä")):
            sourceid = derive_sourceid(secret, server, name, path, facts).hex()
            row = {"server": server, "name": name, "path": path, "sourceid": sourceid}
            self.facts["sourceids"].append(row | {"size": size, "mtime_ns": mtime_ns, "ino": ino})


def main() -> None:
    """Record into the archive that the first argument names."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        facts = Recording(place).run()
        (place / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
        with tarfile.open(sys.argv[1], "w:xz", preset=9) as archive:
            archive.add(place, ".", filter=lambda entry: entry if entry.isreg() or entry.isdir() else None)


if __name__ == "__main__":
    main()
