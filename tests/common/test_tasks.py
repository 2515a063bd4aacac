"""background_tasks: errors of the body come out as themselves, and nothing goes on after it."""

from __future__ import annotations

import pytest
import trio
from peers import run

from blockproto.common.tasks import background_tasks
from blockproto.errors import ConnectionLost

quick = pytest.mark.trio(run=run)


@quick
async def test_background_tasks_end_with_the_body() -> None:
    ended = trio.Event()

    async def background() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with background_tasks() as nursery:
        nursery.start_soon(background)
        await trio.testing.wait_all_tasks_blocked()
    assert ended.is_set()


@quick
async def test_an_error_of_the_body_is_not_wrapped() -> None:
    async def body() -> None:
        async with background_tasks() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ConnectionLost("gone")

    with pytest.raises(ConnectionLost, match="gone"):
        await body()


@quick
async def test_its_cause_stays() -> None:
    cause = OSError("cable")
    with pytest.raises(ConnectionLost) as caught:
        async with background_tasks():
            raise ConnectionLost("gone") from cause
    assert caught.value.__cause__ is cause


async def _fail() -> None:
    raise ValueError("a bug")


@quick
async def test_an_error_in_the_background_ends_the_body() -> None:
    async def body() -> None:
        async with background_tasks() as nursery:
            nursery.start_soon(_fail)
            await trio.sleep_forever()

    with pytest.raises(ValueError, match="a bug"):
        await body()


@quick
async def test_an_error_from_a_nested_nursery_is_not_wrapped() -> None:
    with pytest.raises(ValueError, match="a bug"):
        async with background_tasks(), trio.open_nursery() as nursery:
            nursery.start_soon(_fail)


@quick
async def test_several_errors_stay_a_group() -> None:
    async def body() -> None:
        async with background_tasks() as nursery:
            nursery.start_soon(_fail)
            nursery.start_soon(_fail)
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await body()
    assert len(caught.value.exceptions) == 2


@quick
async def test_cancellation_from_outside_passes_through() -> None:
    with trio.move_on_after(1) as scope:
        async with background_tasks() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught


@quick
async def test_the_body_may_return_a_value() -> None:
    async def body() -> int:
        async with background_tasks() as nursery:
            nursery.start_soon(trio.sleep_forever)
            return 7

    assert await body() == 7
