"""Revoked, or taken down: everything goes, and stays gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dataplane import agent as agent_module
from dataplane.actions import RemoveInterface
from tests.dataplane.agents import (
    Gate,
    Rig,
    Stage,
    connected_device,
    connected_device_when_up,
    fail_on,
)
from tests.harness.broker import Harness
from tests.harness.waiting import wait_for


async def test_a_revoked_server_takes_its_tunnel_down_and_says_so(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running():
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
        await (await horizon.admin()).revoke_server("fra1")
        await wait_for(lambda: not rig.host.links)
        await wait_for(lambda: not rig.host.tables)
        status = await rig.ask("status")
        assert status["revoked"] == "server 'fra1' was revoked"
        assert (status["up"], status["broker"]["reachable"]) == (False, True)
    rig.line.cut()
    async with rig.running():
        await rig.until_broker(False)
        assert not rig.host.links, "nor does a restart without the broker bring it back"


async def test_a_revoked_device_takes_its_tunnel_down_and_says_so(stage: Stage, horizon: Harness) -> None:
    await horizon.server("fra1", endpoint_host="192.0.2.1")
    rig = await stage.client()
    async with rig.running() as agent:
        await agent.connect("fra1")
        await (await horizon.admin()).revoke_device(rig.machine.id)
        await wait_for(lambda: not rig.host.links and not rig.host.tables)
        assert (await rig.ask("status"))["revoked"] == "device 'laptop' was revoked"


async def test_a_revoked_server_whose_host_refuses_keeps_trying(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running() as agent:
        await wait_for(lambda: "hz0" in rig.host.links)
        await rig.until_broker(True)
        mend = fail_on(RemoveInterface, rig.host, "device or resource busy")
        await (await horizon.admin()).revoke_server("fra1")
        await wait_for(lambda: agent.trouble == "device or resource busy")
        assert "hz0" in rig.host.links
        mend()
        await wait_for(lambda: not rig.host.links)
        await wait_for(lambda: agent.trouble is None)
        assert agent.revoked


async def test_down_removes_everything_and_ends_the_agent(stage: Stage) -> None:
    rig = await stage.server()
    async with rig.running():
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
        assert await rig.ask("down") == {"down": "hz0"}
        await wait_for(lambda: rig.host.closed == 1)
    assert not rig.host.links
    assert not rig.host.tables
    assert not rig.socket.exists()


def stop_at_removal(rig: Rig[Any]) -> Gate:
    gate = Gate()
    rig.host.before_apply = lambda action: gate() if isinstance(action, RemoveInterface) else None
    return gate


async def test_a_tick_or_an_update_during_down_does_not_undo_it(
    stage: Stage, horizon: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "TICK", 0.01)
    rig = await stage.server()
    async with rig.running():
        await rig.until_known()
        gate = stop_at_removal(rig)
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(rig.ask("down"))
            await asyncio.to_thread(gate.reached.wait, 10)
            answered = rig.line.answered
            await connected_device(horizon)
            await wait_for(lambda: rig.line.answered > answered)
            gate.open.set()
        assert answer.result() == {"down": "hz0"}
    assert not rig.host.links
    assert not rig.host.tables


async def test_a_command_during_down_does_not_undo_it(stage: Stage, horizon: Harness) -> None:
    await horizon.server("fra1", endpoint_host="192.0.2.1")
    rig = await stage.client()
    async with rig.running():
        await rig.ask("connect", server="fra1")
        gate = stop_at_removal(rig)
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(rig.ask("down"))
            await asyncio.to_thread(gate.reached.wait, 10)
            other = tasks.create_task(rig.agent.disconnect("fra1"))
            await wait_for(lambda: bool(rig.agent._ended))
            gate.open.set()
        assert answer.result() == {"down": "hzc0"}
        assert [one["server"] for one in other.result()] == ["fra1"]
    assert not rig.host.links
    assert not rig.host.tables
