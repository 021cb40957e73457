"""Waking and acknowledging: told from threads, awaited on the loop."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.watch import Applied, Notifier
from tests.harness.waiting import wait_for


@pytest.fixture
async def notifier() -> Notifier:
    made = Notifier()
    made.bind(asyncio.get_running_loop())
    return made


@pytest.fixture
async def applied() -> Applied:
    made = Applied()
    made.bind(asyncio.get_running_loop())
    return made


async def test_a_change_told_by_a_thread_wakes_all_who_wait_for_it(notifier: Notifier) -> None:
    with (
        notifier.subscribe("fra1") as one,
        notifier.subscribe("fra1") as two,
        notifier.subscribe("ams1") as no,
    ):
        await asyncio.to_thread(notifier.notify, "fra1")
        async with asyncio.timeout(5):
            await one.wait()
            await two.wait()
        assert not no.is_set()


async def test_a_change_before_the_wait_is_not_lost(notifier: Notifier) -> None:
    with notifier.subscribe("fra1") as changed:
        notifier.notify("fra1")
        await asyncio.sleep(0)
        assert changed.is_set()


async def test_who_has_left_is_forgotten(notifier: Notifier) -> None:
    with notifier.subscribe("fra1") as changed:
        assert notifier.watchers == 1
    assert notifier.watchers == 0
    notifier.notify("fra1")
    await asyncio.sleep(0)
    assert not changed.is_set()
    assert notifier.watchers == 0


def test_before_and_after_the_loop_nobody_is_told() -> None:
    notifier = Notifier()
    notifier.notify("fra1")

    async def bind() -> None:
        notifier.bind(asyncio.get_running_loop())

    asyncio.run(bind())
    notifier.notify("fra1")


async def test_an_acknowledged_revision_is_in_place_at_once(applied: Applied) -> None:
    applied.acknowledge("fra1", 7)
    assert await applied.wait("fra1", 7, timeout=0)
    assert await applied.wait("fra1", 6, timeout=0)
    assert not await applied.wait("fra1", 8, timeout=0)
    assert not await applied.wait("ams1", 0, timeout=0)


async def test_a_wait_ends_with_the_acknowledgement_it_is_for(applied: Applied) -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = group.create_task(applied.wait("fra1", 7, timeout=60))
        await wait_for(lambda: applied._changed.watchers == 1)
        applied.acknowledge("fra1", 6)
        applied.acknowledge("ams1", 9)
        await asyncio.sleep(0)
        assert not task.done()
        await asyncio.to_thread(applied.acknowledge, "fra1", 7)
    assert task.result()


async def test_a_wait_is_bounded(applied: Applied) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert not await applied.wait("fra1", 1, timeout=0.05)
    assert 0.05 <= loop.time() - began < 5


async def test_a_broker_that_stops_lets_go_of_who_waits(applied: Applied) -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = group.create_task(applied.wait("fra1", 7, timeout=60))
        await wait_for(lambda: applied._changed.watchers == 1)
        applied.close()
    assert not task.result()
