"""A feed holds its source back, hands on its failure, and ends when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from tests.store.following import following, until
from tstack.store.feed import Batch, Feed
from tstack.store.interface import Event, Kind, StoreError


def event(number: int) -> Event:
    return Event(Kind.PUT, "/a", b"", number)


async def test_a_slow_reader_holds_the_source_back() -> None:
    drawn = 0

    async def source(feed: Feed) -> AsyncGenerator[Batch, None]:
        nonlocal drawn
        while True:
            drawn += 1
            yield [event(2 * drawn), event(2 * drawn + 1)]

    feed = Feed(source, "test", lambda feed: None)
    for number in range(2, 42):
        assert await following(feed) == event(number)
        for _ in range(10):
            await asyncio.sleep(0)
        assert 2 * drawn <= number + 3, "at most one batch is waiting"
    await feed.aclose()


async def test_what_came_before_a_failure_is_read_before_it() -> None:
    ended = []

    async def source(feed: Feed) -> AsyncGenerator[Batch, None]:
        yield [event(1), event(2)]
        raise StoreError("no more")

    feed = Feed(source, "test", ended.append)
    assert [await following(feed), await following(feed)] == [event(1), event(2)]
    with pytest.raises(StoreError, match="no more"):
        await following(feed)
    with pytest.raises(StopAsyncIteration):
        await following(feed)
    assert feed.stale_since is not None
    assert feed.trouble is not None
    assert ended == [feed]


async def test_closing_ends_the_source() -> None:
    tidy = asyncio.Event()

    async def source(feed: Feed) -> AsyncGenerator[Batch, None]:
        try:
            feed.live()
            yield [event(1)]
        finally:
            tidy.set()

    feed = Feed(source, "test", lambda feed: None)
    await until(lambda: feed.stale_since is None, "the source does not run")
    await feed.aclose()
    assert tidy.is_set()
    assert [change async for change in feed] == [], "what nobody has read is gone"
