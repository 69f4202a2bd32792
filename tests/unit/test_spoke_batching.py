"""Send when nothing is in flight, else group."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from shared.errors import FencedError, UnavailableError
from spoke.work.batching import Batcher


class Other:
    """The other side: answers when it is let, and remembers the groups."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.errors: list[Exception] = []

    async def send(self, items: Sequence[int]) -> list[int]:
        self.groups.append(list(items))
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        return [item * 10 for item in items]


@contextlib.asynccontextmanager
async def working(batcher: Batcher[int, int]) -> AsyncIterator[None]:
    task = asyncio.create_task(batcher.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_first_goes_alone_and_what_comes_meanwhile_goes_together() -> None:
    other = Other()
    batcher = Batcher("test", other.send)
    async with working(batcher):
        first = batcher.submit(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest = [batcher.submit(n) for n in (2, 3, 4)]
        other.gate.set()
        assert await first == 10
        assert await asyncio.gather(*rest) == [20, 30, 40]
    assert other.groups == [[1], [2, 3, 4]]


async def test_the_same_group_is_sent_again_until_the_other_side_is_back() -> None:
    other = Other()
    other.gate.set()
    other.errors = [UnavailableError("away")]
    batcher = Batcher("test", other.send)
    async with working(batcher):
        assert await batcher.submit(1) == 10
    assert other.groups == [[1], [1]]


async def test_a_caller_that_went_away_does_not_disturb_its_neighbours() -> None:
    other = Other()
    batcher = Batcher("test", other.send)
    async with working(batcher):
        gone, stays = batcher.submit(1), batcher.submit(2)
        gone.cancel()
        other.gate.set()
        assert await stays == 20


async def test_any_other_error_ends_the_batcher() -> None:
    other = Other()
    other.gate.set()
    other.errors = [FencedError("replaced")]
    batcher = Batcher("test", other.send)
    batcher.submit(1)
    with pytest.raises(FencedError):
        await batcher.run()
