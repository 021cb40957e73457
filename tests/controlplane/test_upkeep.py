"""Upkeep: what lapses ends though nobody asks, and old heartbeats are forgotten."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from sqlmodel import select

from controlplane import upkeep
from controlplane.broker import Broker
from controlplane.models import Heartbeat
from controlplane.protocol.keys import PrivateKey
from controlplane.protocol.messages import ConnectionStatus, ExportRequest
from tests.harness.broker import Harness, in_process
from tests.harness.machines import Device, Server
from tests.harness.waiting import wait_for


async def connected(horizon: Harness, expires_in: int | None) -> tuple[Server, Device]:
    fra1 = await horizon.server("fra1")
    alice = await horizon.device(key=horizon.personal_key(expires_in=expires_in))
    await alice.connect("fra1")
    await fra1.sync()
    await alice.sync()
    return fra1, alice


async def test_an_expired_personal_key_ends_its_connections_and_both_sides_are_told(
    horizon: Harness,
) -> None:
    fra1, alice = await connected(horizon, expires_in=3600)
    admin = await horizon.admin()
    horizon.advance(seconds=3599)
    upkeep.do_what_is_due(horizon.broker)
    assert await fra1.update(fra1.revision) is None
    async with (
        horizon.watching(fra1, fra1.revision) as servers,
        horizon.watching(alice, alice.revision) as devices,
    ):
        horizon.advance(seconds=1)
        upkeep.do_what_is_due(horizon.broker)
    for watch, gone in ((servers, alice), (devices, fra1)):
        told = watch.result()
        assert told is not None
        assert told.removed == (gone.id,)
    (ended,) = await admin.connections(include_ended=True)
    assert ended.status is ConnectionStatus.ended
    assert ended.ended_at is not None
    assert ended.ended_at.timestamp() == horizon.clock()


async def test_an_export_ends_with_its_users_key(horizon: Harness) -> None:
    admin, fra1 = await horizon.admin(), await horizon.server("fra1")
    horizon.personal_key("alice", expires_in=3600)
    horizon.personal_key("bob")
    made = {
        user: await admin.export(
            ExportRequest(
                user_name=user,
                server="fra1",
                device_name="phone",
                public_key=PrivateKey.generate().public_key,
            )
        )
        for user in ("alice", "bob")
    }
    peers = (await fra1.sync()).peers
    assert peers[made["alice"].device_id].authorized_until.timestamp() == horizon.clock() + 3600
    horizon.advance(seconds=3600)
    upkeep.do_what_is_due(horizon.broker)
    assert list((await fra1.sync()).peers) == [made["bob"].device_id]


async def test_a_device_that_asks_stays_and_one_that_does_not_may_come_again(horizon: Harness) -> None:
    fra1, alice = await connected(horizon, expires_in=None)
    bob = await horizon.device("bob")
    await bob.connect("fra1")
    for _ in range(2):
        horizon.advance(days=4)
        await alice.update(alice.revision)
        upkeep.do_what_is_due(horizon.broker)
    assert list((await fra1.sync()).peers) == [alice.id]
    await fra1.beat()
    await bob.connect("fra1")
    assert set((await fra1.sync()).peers) == {alice.id, bob.id}


async def test_what_ended_is_not_ended_again(horizon: Harness) -> None:
    await connected(horizon, expires_in=3600)
    horizon.advance(hours=1)
    upkeep.do_what_is_due(horizon.broker)
    before = horizon.dump()
    horizon.advance(hours=1)
    upkeep.do_what_is_due(horizon.broker)
    assert horizon.dump() == before


async def test_heartbeats_are_kept_for_a_week(horizon: Harness) -> None:
    fra1 = await horizon.server("fra1")
    horizon.advance(days=4)
    await fra1.beat()
    horizon.advance(days=3)
    upkeep.do_what_is_due(horizon.broker)
    with horizon.broker.database.read() as session:
        assert len(session.exec(select(Heartbeat)).all()) == 2
    horizon.advance(seconds=1)
    upkeep.do_what_is_due(horizon.broker)
    with horizon.broker.database.read() as session:
        (kept,) = session.exec(select(Heartbeat)).all()
    assert kept.received_time.timestamp() == horizon.clock() - 3 * 86_400 - 1


async def test_the_application_does_it_until_it_ends_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = 0
    do_what_is_due = upkeep.do_what_is_due

    def failing_once(broker: Broker) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise OSError("the disk is full")
        do_what_is_due(broker)

    monkeypatch.setattr(upkeep, "SETTLE", 0.0)
    monkeypatch.setattr(upkeep, "INTERVAL", 0.001)
    monkeypatch.setattr(upkeep, "do_what_is_due", failing_once)
    caplog.set_level(logging.INFO)
    async with in_process(tmp_path) as horizon:
        await connected(horizon, expires_in=3600)
        horizon.advance(hours=1)
        await wait_for(lambda: "ended 1 connections" in caplog.text)
    assert "the broker's upkeep failed" in caplog.text
    assert asyncio.all_tasks() == {asyncio.current_task()}, "it ended with the application"
