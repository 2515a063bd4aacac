"""The same again is harmless: whoever sends it, however it is called, whenever; and each word does what it says.

The server is real in every test; most speak with it over memory streams. "Another home" is another installation: it has
another secret, and remembers nothing.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from peers import MIB, Served, bytes_of, content_of, frames_of, names_in, run, serving
from processes import Ran, Server

from blockproto.client import Client, connect_with
from blockproto.client_side import file_digests as digests_module
from blockproto.client_side import fingerprint
from blockproto.client_side.config import ClientConfig
from blockproto.client_side.context import Context
from blockproto.client_side.digest_cache import DigestCache
from blockproto.client_side.upload_one import ASKED_LENGTH_MIN
from blockproto.connection.connection import Connection
from blockproto.errors import BlockprotoError, FileExists, SourceChanged, UnexpectedMessage, Unsupported
from blockproto.results import IfExistsWord, Receipt, UploadJob
from blockproto.transfer.send_source import Progress
from blockproto.wire import FEATURE_IF_EXISTS, Block, Committed, Hello, List, Open

quick = pytest.mark.trio(run=run)
Run = Callable[..., Ran]
OLD_NS = 1_500_000_000 * 10**9
SIZES = [0, 5, 70_000, MIB, 3 * MIB + 17]


@asynccontextmanager
async def home(
    served: Served, at: Path, monkeypatch: pytest.MonkeyPatch, *, server: str = "memory"
) -> AsyncIterator[Client]:
    """A client of the installation in the folder ``at``, which remembers between runs."""
    monkeypatch.setenv("BLOCKPROTO_CONFIG", str(at))
    async with connect_with(
        served.dial,
        server,
        served.open_part_file,
        ClientConfig(open_memory=lambda secret: DigestCache(at / "digests", secret)),
    ) as client:
        yield client


def _file(folder: Path, name: str = "a.bin", size: int = 5, seed: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(bytes_of(size, seed))
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path


async def _put(
    client: Client, paths: Iterable[Path], word: IfExistsWord = "keep", *, checksum: bool = False
) -> dict[str, Receipt | BlockprotoError]:
    """As the command does it: outcomes by name."""
    jobs = [UploadJob(path, f"in/{path.name}", word) for path in paths]
    outcomes: dict[str, Receipt | BlockprotoError] = {}
    async with aclosing(client.upload_all(jobs, checksum=checksum)) as ended:
        async for job, outcome in ended:
            outcomes[job.name] = outcome
    return outcomes


async def _put_one(
    client: Client, path: Path, word: IfExistsWord = "keep", *, checksum: bool = False
) -> Receipt:
    (outcome,) = (await _put(client, [path], word, checksum=checksum)).values()
    if not isinstance(outcome, Receipt):
        raise outcome
    return outcome


def _older(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server's HELLO not say that it compares: what it does with skip and update nobody asks it then."""
    real = Context.features

    async def features(self: Context) -> int:
        return await real(self) & ~FEATURE_IF_EXISTS

    monkeypatch.setattr(Context, "features", features)


# ---- the same content again


@quick
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "how", ["touched", "copied", "another host", "another home", "moved", "renamed over"]
)
async def test_the_same_again_is_stored_once_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, size: int
) -> None:
    path = _file(tmp_path / "here", size=size)
    async with serving() as served:
        async with home(served, tmp_path / "home", monkeypatch) as client:
            assert (await _put_one(client, path)).outcome == "sent"
        before = served.payload_sent
        where, server = tmp_path / "home", "memory"
        if how == "touched":
            os.utime(path)
        elif how == "copied":
            path = Path(shutil.copy(path, tmp_path / "a.bin"))
        elif how == "another host":
            server = "memory.local"
        elif how == "another home":
            where = tmp_path / "other"
        elif how == "moved":
            path = (tmp_path / "here").rename(tmp_path / "there") / "a.bin"
        else:
            twin = _file(tmp_path / "twin", size=size)
            path = twin.rename(path)
        for _ in range(2):
            async with home(served, where, monkeypatch, server=server) as client:
                again = await _put_one(client, path)
                assert (again.outcome, again.stored_as, again.payload_bytes_sent) == ("there", "in/a.bin", 0)
                assert again.filesize == size
        assert names_in(served.store) == ["in", "in/a.bin"]
        assert served.payload_sent == before


@quick
@pytest.mark.parametrize("size", [*SIZES, ASKED_LENGTH_MIN])
async def test_a_single_upload_from_another_home_is_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The library's ``upload``: what is long is asked about first."""
    path = _file(tmp_path, size=size)
    async with serving() as served:
        async with home(served, tmp_path / "home", monkeypatch) as client:
            assert (await client.upload(path)).outcome == "sent"
        before = served.payload_sent
        async with home(served, tmp_path / "other", monkeypatch) as client:
            again = await client.upload(path)
        assert (again.outcome, again.stored_as) == ("there", "a.bin")
        assert names_in(served.store) == ["a.bin"]
        if size >= ASKED_LENGTH_MIN:
            assert served.payload_sent == before


@quick
@pytest.mark.parametrize("size", [70_000, 3 * MIB])
async def test_what_is_remembered_is_said_at_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Sent by this home, and now by another name of the same file: nothing but OPEN with ROOT."""
    path = _file(tmp_path, size=size)
    linked = tmp_path / "linked"
    linked.hardlink_to(path)
    monkeypatch.setattr(fingerprint, "SETTLED_S", -3600.0)
    async with serving() as served:
        async with home(served, tmp_path / "home", monkeypatch) as client:
            await client.upload(path)
        before = served.payload_sent
        async with home(served, tmp_path / "home", monkeypatch) as client:
            again = await client.upload(linked, name="a.bin")
        assert (again.outcome, again.stored_as, served.payload_sent) == ("there", "a.bin", before)


@quick
@pytest.mark.clause("BP1-RES-002")
async def test_an_upload_goes_on_under_another_spelling_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path, size=8 * MIB)
    async with serving() as served:
        with trio.CancelScope() as stopped:

            def stop(progress: Progress) -> None:
                if progress.position_bytes_done >= 3 * MIB:
                    stopped.cancel()

            async with home(served, tmp_path / "home", monkeypatch, server="127.0.0.1:1") as client:
                await client.upload(path, progress=stop)
        assert stopped.cancelled_caught
        async with home(served, tmp_path / "home", monkeypatch, server="localhost:2") as client:
            (begun,) = [one async for one in client.uploads()]
            assert begun.held_count >= 3
            receipt = await client.upload(path)
        assert receipt.resumed
        assert receipt.blocks_skipped >= begun.held_count
        assert receipt.payload_bytes_sent <= (8 - begun.held_count) * MIB


@quick
async def test_a_stream_twice_is_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes_of(2 * MIB + 5)
    async with serving() as served, home(served, tmp_path, monkeypatch) as client:
        first = await client.upload(io.BytesIO(content), name="stdin")
        again = await client.upload(io.BytesIO(content), name="stdin")
        assert (first.outcome, again.outcome, again.stored_as) == ("sent", "there", "stdin")
        assert names_in(served.store) == ["stdin"]


@quick
async def test_another_version_under_a_taken_name_does_not_double_every_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a new home each night, as a container's job: v2 is kept beside v1 once, and found there later."""
    old, new = _file(tmp_path / "v1"), _file(tmp_path / "v2", size=9, seed=2)
    async with serving() as served:
        async with home(served, tmp_path / "home", monkeypatch) as client:
            await _put_one(client, old)
        for night in range(4):
            async with home(served, tmp_path / f"night {night}", monkeypatch) as client:
                receipt = await _put_one(client, new)
                assert receipt.stored_as == "in/a (1).bin"
                assert receipt.outcome == ("there" if night else "sent")
                assert receipt.payload_bytes_sent == (0 if night else 9)
        assert names_in(served.store) == ["in", "in/a (1).bin", "in/a.bin"]


@quick
async def test_many_known_files_cost_questions_not_round_trips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [_file(tmp_path / "many", f"{at:03}", 200, at) for at in range(150)]
    async with serving() as served:
        async with home(served, tmp_path / "home", monkeypatch) as client:
            await _put(client, paths)
        async with home(served, tmp_path / "other", monkeypatch) as client:
            outcomes = await _put(client, paths)
        assert {receipt.outcome for receipt in outcomes.values() if isinstance(receipt, Receipt)} == {"there"}
        frames = [frame.message for frame in frames_of(served.lines[-1].sent)]
        assert [frame for frame in frames if isinstance(frame, Block | Open)] == []
        assert sum(isinstance(frame, List) for frame in frames) <= 3


# ---- what this machine remembers


@quick
@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("single", [True, False])
async def test_a_file_written_to_behind_its_time_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, single: bool
) -> None:
    """Same size, modification time and inode, other bytes: only the inode's own time tells."""
    monkeypatch.setattr(fingerprint, "SETTLED_S", -3600.0)
    path = _file(tmp_path, size=size)

    async def put(client: Client) -> Receipt:
        if single:
            return await client.upload(path, folder="in")
        return await _put_one(client, path)

    async with serving() as served:
        async with home(served, tmp_path / "home", monkeypatch) as client:
            await put(client)
        with path.open("r+b") as file:
            file.write(b"OTHER")
        os.utime(path, ns=(OLD_NS, OLD_NS))
        content = path.read_bytes()
        for outcome in ("sent", "there"):
            async with home(served, tmp_path / "home", monkeypatch) as client:
                receipt = await put(client)
                assert receipt.stored_as == "in/a (1).bin"
                if not single:
                    assert receipt.outcome == outcome
        assert content_of(served.store, "in/a (1).bin") == content
        assert names_in(served.store) == ["in", "in/a (1).bin", "in/a.bin"]


@quick
async def test_a_file_is_read_once_and_again_only_when_something_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SETTLED_S", -3600.0)
    read, reads = digests_module.reading, []

    def count(path: str) -> object:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(digests_module, "reading", count)
    path = _file(tmp_path)
    async with serving() as served:
        for expected in (0, 0):
            async with home(served, tmp_path / "home", monkeypatch) as client:
                await _put_one(client, path)
                assert len(reads) == expected, "what was sent is known"
        async with home(served, tmp_path / "home", monkeypatch) as client:
            assert (await _put_one(client, path, checksum=True)).outcome == "there"
        assert len(reads) == 1
        path.chmod(0o600)
        for expected in (2, 2):
            async with home(served, tmp_path / "home", monkeypatch) as client:
                assert (await _put_one(client, path)).outcome == "there"
                assert len(reads) == expected, "a mere chmod, read once"


@quick
async def test_whatever_becomes_of_the_memory_nothing_is_believed_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SETTLED_S", -3600.0)
    path = _file(tmp_path)
    async with serving() as served:
        async with home(served, tmp_path / "home", monkeypatch) as client:
            await _put_one(client, path)
        for content in (b"", b"rubbish" * 1000, None):
            memory = tmp_path / "home" / "digests"
            memory.unlink()
            if content is not None:
                memory.write_bytes(content)
            async with home(served, tmp_path / "home", monkeypatch) as client:
                assert (await _put_one(client, path)).outcome == "there"
        assert names_in(served.store) == ["in", "in/a.bin"]


@quick
async def test_a_small_file_written_to_behind_its_time_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inode's time tells: what is sent is one content, not half of two."""
    path = _file(tmp_path, size=100)
    read, done = os.read, []

    def meddle(fd: int, length: int) -> bytes:
        content = read(fd, length)
        if len(content) == 100 and not done:
            done.append(fd)
            path.write_bytes(bytes_of(100, 9))
            os.utime(path, ns=(OLD_NS, OLD_NS))
        return content

    async with serving(files=False) as served, home(served, tmp_path / "home", monkeypatch) as client:
        with monkeypatch.context() as patch:
            patch.setattr("blockproto.client_side.upload_many.os.read", meddle)
            receipt = await _put_one(client, path)
        assert done
        assert content_of(served.store, receipt.stored_as) == path.read_bytes()


# ---- the words


@quick
@pytest.mark.parametrize("size", [5, 70_000, 2 * MIB])
async def test_replace_replaces_after_keep_has_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    old, new = _file(tmp_path / "v1", size=size), _file(tmp_path / "v2", size=size, seed=2)
    async with serving() as served, home(served, tmp_path / "home", monkeypatch) as client:
        await _put_one(client, old)
        assert (await _put_one(client, new)).stored_as == "in/a (1).bin"
        replaced = await _put_one(client, new, "replace")
        assert (replaced.stored_as, replaced.outcome) == ("in/a.bin", "sent")
        assert content_of(served.store, "in/a.bin") == new.read_bytes()
        again = await _put_one(client, new, "replace")
        assert (again.stored_as, again.outcome, again.payload_bytes_sent) == ("in/a.bin", "there", 0)


@quick
@pytest.mark.parametrize("size", [5, 2 * MIB])
async def test_replace_by_the_same_content_sets_the_time_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = _file(tmp_path, size=size)
    async with serving() as served, home(served, tmp_path / "home", monkeypatch) as client:
        await _put_one(client, path)
        os.utime(path, ns=(OLD_NS + 5, OLD_NS + 5))
        path.chmod(0o640)
        receipt = await _put_one(client, path, "replace")
        assert (receipt.outcome, receipt.payload_bytes_sent) == ("there", 0)
        entry = await client.stat("in/a.bin")
        assert (entry.mtime_ns, entry.mode) == (OLD_NS + 5, 0o640)


@quick
@pytest.mark.parametrize("size", [5, 70_000, 2 * MIB])
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize(
    ("word", "newer", "outcome"),
    [
        ("keep", 1, "sent"),
        ("refuse", 1, FileExists),
        ("replace", -1, "sent"),
        ("skip", 1, "left"),
        ("update", 1, "sent"),
        ("update", 0, "left"),
        ("update", -1, "left"),
    ],
)
async def test_each_word_where_the_name_is_taken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    word: IfExistsWord,
    newer: int,
    outcome: str | type[BlockprotoError],
    single: bool,
    size: int,
) -> None:
    old, new = _file(tmp_path / "v1", size=size), _file(tmp_path / "v2", size=size, seed=2)
    os.utime(new, ns=(OLD_NS + newer * 10**9, OLD_NS + newer * 10**9))

    async def put(client: Client) -> Receipt:
        if single:
            return await client.upload(new, folder="in", if_exists=word)
        return await _put_one(client, new, word)

    async with serving() as served, home(served, tmp_path / "home", monkeypatch) as client:
        await _put_one(client, old)
        if not isinstance(outcome, str):
            with pytest.raises(outcome):
                await put(client)
        else:
            receipt = await put(client)
            assert receipt.outcome == outcome
            assert receipt.stored_as == ("in/a (1).bin" if word == "keep" else "in/a.bin")
        replaces = outcome == "sent" and word != "keep"
        assert content_of(served.store, "in/a.bin") == (new if replaces else old).read_bytes()
        assert len(names_in(served.store)) == (3 if word == "keep" else 2)


@quick
@pytest.mark.parametrize("word", ["keep", "refuse", "replace", "skip", "update"])
@pytest.mark.parametrize("size", [5, 2 * MIB])
async def test_a_free_name_is_taken_under_every_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: IfExistsWord, size: int
) -> None:
    path = _file(tmp_path, size=size)
    async with serving() as served, home(served, tmp_path / "home", monkeypatch) as client:
        assert (await _put_one(client, path, word)).outcome == "sent"
        again = await _put_one(client, path, word)
        assert again.outcome in ("there", "left")
        assert again.payload_bytes_sent == 0
        assert names_in(served.store) == ["in", "in/a.bin"]


@quick
async def test_a_stream_under_skip_and_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream has no time: update leaves what is there."""
    async with serving() as served, home(served, tmp_path / "home", monkeypatch) as client:
        for word in ("skip", "update"):
            first = await client.upload(io.BytesIO(b"first"), name=word, if_exists=word)
            left = await client.upload(io.BytesIO(b"second"), name=word, if_exists=word)
            assert (first.outcome, left.outcome, left.stored_as) == ("sent", "left", word)
            assert content_of(served.store, word) == b"first"


@quick
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("size", [5, 2 * MIB])
async def test_an_older_server_is_told_refuse_for_skip_and_cannot_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single: bool, size: int
) -> None:
    old, new = _file(tmp_path / "v1", size=size), _file(tmp_path / "v2", size=size + 1, seed=2)
    _older(monkeypatch)

    async def put(client: Client, path: Path, word: IfExistsWord) -> Receipt:
        if single:
            return await client.upload(path, folder="in", if_exists=word)
        return await _put_one(client, path, word)

    async with serving() as served, home(served, tmp_path / "home", monkeypatch) as client:
        await put(client, old, "keep")
        left = await put(client, new, "skip")
        assert (left.outcome, left.stored_as, left.root) == ("left", "in/a.bin", None)
        with pytest.raises(Unsupported, match="update"):
            await put(client, new, "update")
        said = [frame.message for frame in frames_of(served.lines[0].sent)]
        assert {one.if_exists for one in said if isinstance(one, Open | Block)} - {None, 0} == {1}
        assert (await put(client, new, "keep")).stored_as == "in/a (1).bin"
        replaced = await put(client, new, "replace")
        if not single:
            assert replaced.stored_as == "in/a.bin", "an older server's receipt of keep is none of replace"


@quick
async def test_jobs_of_one_name_are_done_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first makes of the name is what the second finds."""
    paths = [_file(tmp_path / f"v{at}", seed=at) for at in range(3)]
    async with serving() as served, home(served, tmp_path / "home", monkeypatch) as client:
        await _put(client, [paths[0]])
        jobs = [
            UploadJob(paths[1], "in/a.bin", "skip"),
            UploadJob(paths[1], "in/a.bin", "replace"),
            UploadJob(paths[2], "in/a.bin", "skip"),
        ]
        ended = []
        async with aclosing(client.upload_all(jobs)) as outcomes:
            async for job, outcome in outcomes:
                assert isinstance(outcome, Receipt)
                ended.append((job, outcome.outcome))
        assert ended == list(zip(jobs, ["left", "sent", "left"], strict=True))
        assert content_of(served.store, "in/a.bin") == paths[1].read_bytes()


# ---- servers that are not to be believed


@quick
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("lie", ["left", "another root", "another size"])
async def test_a_committed_that_cannot_be_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single: bool, lie: str
) -> None:
    path = _file(tmp_path)
    real = Connection.post

    def post(self: Connection, stream: int, message: object) -> None:
        if isinstance(message, Committed):
            changes = {
                "left": {"left": True}, "another root": {"root": bytes(32)}, "another size": {"filesize": 6},
            }[lie]  # fmt: skip
            message = replace(message, **changes)  # type: ignore[arg-type]
        real(self, stream, message)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "post", post)
    async with serving(files=False) as served, home(served, tmp_path / "home", monkeypatch) as client:
        with pytest.raises(UnexpectedMessage if lie == "left" else SourceChanged):
            await (client.upload(path) if single else _put_one(client, path))


@quick
async def test_who_may_not_list_sends_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not say what has the names: COMMIT decides then."""
    path = _file(tmp_path)
    real = Context.ask

    async def ask(self: Context, message: List) -> object:
        if message.kind == 1:
            raise Unsupported("no listing")
        return await real(self, message)

    monkeypatch.setattr(Context, "ask", ask)
    async with serving() as served:
        for at, outcome in enumerate(("sent", "there")):
            async with home(served, tmp_path / f"home {at}", monkeypatch) as client:
                assert (await _put_one(client, path)).outcome == outcome
        assert names_in(served.store) == ["in", "in/a.bin"]


def test_the_feature_is_what_hello_says() -> None:
    assert Hello().features & FEATURE_IF_EXISTS == 0


# ---- real processes


def test_the_command_says_what_it_sent_what_was_there_and_what_it_left(
    server: Server, tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "tree"
    for at in range(6):
        _file(folder, f"{at}", 1000, at)
    address = f"{server.address}/in/"
    first = run("put", "--json", folder, address)
    assert [one["outcome"] for one in first.objects] == ["sent"] * 6
    other = {"BLOCKPROTO_CONFIG": str(tmp_path / "other")}
    again = run("put", "--json", folder, address, env=other)
    assert (again.status, [one["outcome"] for one in again.objects]) == (0, ["there"] * 6)
    assert sum(one["payload_bytes_sent"] for one in again.objects) == 0
    assert again.err.startswith("6 files")
    assert "0 sent; 6 already there" in again.err
    for at in range(3):
        _file(folder, f"{at}", 1000, at + 100)
    _file(folder, "new", 10, 50)
    left = run("put", "--json", "--if-exists", "skip", folder, address, env=other)
    assert left.status == 0
    assert sorted(one["outcome"] for one in left.objects) == ["left"] * 6 + ["sent"]
    assert left.err.startswith("7 files")
    assert "1 sent; 6 left as they are there" in left.err
    kept = run("put", folder, address, env=other)
    assert "7 files" in kept.err
    assert "3 sent; 4 already there" in kept.err
    assert run("put", "--if-exists", "refuse", "--checksum", folder, address, env=other).status == 1
    names = sorted(path.name for path in (server.folder / "in" / "tree").iterdir())
    assert names == ["0", "0 (1)", "1", "1 (1)", "2", "2 (1)", "3", "4", "5", "new"]


def test_a_touch_another_spelling_and_stdin_twice(server: Server, tmp_path: Path, run: Run) -> None:
    path = _file(tmp_path, size=100_000)
    spelled = server.address.replace("127.0.0.1", "localhost")
    assert run("put", path, f"{server.address}/").status == 0
    os.utime(path)
    for address in (server.address, spelled, spelled):
        told = run("put", "--json", path, f"{address}/")
        assert [(one["outcome"], one["payload_bytes_sent"]) for one in told.objects] == [("there", 0)]
        assert "already there as 'a.bin'" in told.err
    for outcome in ("sent", "there"):
        (one,) = run("put", "--json", "-", f"{server.address}/", stdin=b"words").objects
        assert one["outcome"] == outcome
    assert sorted(path.name for path in server.folder.iterdir() if path.name != ".blockproto") == [
        "a.bin", "stdin",
    ]  # fmt: skip


def test_a_dialect_says_what_it_cannot(tmp_path: Path, run: Run) -> None:
    path = _file(tmp_path)
    for option in (("--if-exists", "skip"), ("--if-exists", "update"), ("--checksum",)):
        told = run("put", "--dialect", "sourceid", *option, path, "bp://127.0.0.1:1/")
        assert told.status == 2
        assert option[-1] in told.err


async def test_a_cancelled_comparison_ends_soon(tmp_path: Path) -> None:
    """Reading a long file for its root is given up between two steps."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with trio.move_on_after(0.5) as scope, trio.fail_after(30):
        await digests_module.FileDigests().root(path, path.stat())
    assert scope.cancelled_caught
