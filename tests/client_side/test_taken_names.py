"""Which names are taken, asked for in few questions, whatever the server has there."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import trio
from peers import run

from blockproto.client_side.taken_names import FEW, TakenNames
from blockproto.errors import ConnectionLost, NotPermitted, UnknownFile
from blockproto.wire import EntryKind, FileItem, List, ListKind, Result

quick = pytest.mark.trio(run=run)


def _item(name: str, kind: EntryKind = EntryKind.FILE) -> FileItem:
    return FileItem(kind, len(name), 0, 0o644, bytes(16), bytes(16), name, "text/plain")


class _Server:
    """Answers questions about names; ``asked`` is how many."""

    def __init__(self, names: Iterable[str], page: int = 10) -> None:
        files = set(names)
        folders = {name[:at] for name in files for at, sign in enumerate(name) if sign == "/"}
        self.entries = {name: _item(name) for name in files} | {
            name: _item(name, EntryKind.FOLDER) for name in folders
        }
        self.page = page
        self.asked: list[List] = []

    async def ask(self, message: List) -> Result:
        self.asked.append(message)
        await trio.lowlevel.checkpoint()
        assert message.kind == ListKind.FILES
        if message.exact:
            if message.name not in self.entries:
                raise UnknownFile
            return Result(ListKind.FILES, (self.entries[message.name],))
        if message.name and message.name not in self.entries:
            raise UnknownFile
        inside = sorted(
            (name for name in self.entries if name.rpartition("/")[0] == message.name), key=str.encode
        )
        rest = [name for name in inside if name.encode() > message.cursor.encode()]
        cursor = rest[self.page - 1] if len(rest) > self.page else ""
        return Result(ListKind.FILES, tuple(self.entries[name] for name in rest[: self.page]), cursor)


async def _look(taken: TakenNames, names: Iterable[str]) -> set[str]:
    found = await taken.look(names)
    assert all(item.filename == name for name, item in found.items())
    return set(found)


@quick
async def test_a_folder_that_is_not_there_answers_for_all_below_it() -> None:
    server = _Server(["other"])
    names = [f"new/{at % 50}/{at}" for at in range(500)] + ["new/a"]
    assert await _look(TakenNames(server.ask), names) == set()
    assert len(server.asked) == 1
    server.asked.clear()
    taken = TakenNames(server.ask)
    await _look(taken, names)
    await _look(taken, [f"new/later/{at}" for at in range(100)])
    assert len(server.asked) == 1, "not asked again in the same run"


@quick
async def test_many_names_of_one_folder_cost_its_listing_once() -> None:
    names = [f"a/{at:04}" for at in range(1000)]
    server = _Server(names[::2], page=100)
    taken = TakenNames(server.ask)
    found: set[str] = set()
    for first in range(0, 1000, 250):
        found |= await _look(taken, names[first : first + 250])
    assert found == set(names[::2])
    assert len(server.asked) <= 6
    assert not any(message.exact for message in server.asked)


@quick
async def test_few_names_in_a_full_folder_are_asked_for_one_by_one() -> None:
    server = _Server((f"full/{at:06}" for at in range(50_000)), page=1000)
    wanted = ["full/000001", "full/049999", "full/none"]
    assert len(wanted) <= FEW
    assert await _look(TakenNames(server.ask), wanted) == set(wanted[:2])
    assert len(server.asked) == 3


@quick
async def test_a_listing_with_much_that_nobody_asked_for_is_given_up() -> None:
    server = _Server((f"full/{at:06}" for at in range(50_000)), page=1000)
    wanted = [f"full/{at:06}" for at in range(0, 60_000, 5_000)]
    assert await _look(TakenNames(server.ask), wanted) == set(wanted[:10])
    assert len(server.asked) <= 16


@quick
@pytest.mark.parametrize("seed", range(12))
async def test_whatever_is_asked_in_whatever_order_the_answer_is_right(seed: int) -> None:
    draw = random.Random(seed)
    parts = ["a", "b", "b.", "b ", "ä", "z", "0", "folder"]
    pool = ["/".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(400)]
    pool = list(dict.fromkeys(pool))
    files = set(draw.sample(pool, len(pool) // 2))
    server = _Server(files, page=draw.choice([1, 3, 50]))
    taken = TakenNames(server.ask)
    for _ in range(8):
        names = draw.sample(pool, draw.randint(1, 60))
        assert await _look(taken, names) == {name for name in names if name in server.entries}


@quick
async def test_the_served_folder_itself() -> None:
    server = _Server(["a", "b/c"])
    names = ["a", "b", "c", "d", "e", "b/c", "b/d"]
    assert await _look(TakenNames(server.ask), names) == {"a", "b", "b/c"}


@quick
@pytest.mark.parametrize("error", [ConnectionLost, NotPermitted])
async def test_an_error_comes_out_as_itself(error: type[Exception]) -> None:
    async def ask(message: List) -> Result:
        await trio.lowlevel.checkpoint()
        raise error

    with pytest.raises(error):
        await TakenNames(ask).look([f"a/{at}" for at in range(10)] + ["b", "c"])


@quick
async def test_a_server_that_lists_for_ever_is_left_alone() -> None:
    asked = []

    async def ask(message: List) -> Result:
        asked.append(message)
        await trio.lowlevel.checkpoint()
        if message.exact:
            raise UnknownFile
        return Result(ListKind.FILES, (), "again")

    names = [f"a/{at}" for at in range(10)]
    assert await TakenNames(ask).look(names) == {}
    assert len(asked) < 1_200
