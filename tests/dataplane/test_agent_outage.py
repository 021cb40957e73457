"""A broker that is away, or says what does not hold: nothing changes, and it is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controlplane.protocol.envelope import Signed, seal
from controlplane.protocol.keys import IdentityKey
from controlplane.protocol.netmap import NETMAP_CONTEXT, NetMapUpdate
from dataplane import agent as agent_module
from tests.dataplane.agents import (
    Stage,
    connected_device,
    connected_device_when_up,
)
from tests.harness.broker import Harness
from tests.harness.waiting import wait_for

# --- a broker that is away ----------------------------------------------------------------------


async def test_an_outage_changes_nothing_and_ends_by_itself(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running() as agent:
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
        before = len(rig.host.applied)
        rig.line.cut()
        await rig.until_broker(False)
        await wait_for(lambda: rig.line.refused >= 3)
        status = await rig.ask("status")
        assert status["broker"]["reachable"] is False
        assert status["broker"]["since"] == horizon.clock()
        assert "no answer from the broker at https://broker.example:8443" in status["broker"]["error"]
        assert [peer["id"] for peer in status["peers"]] == [alice.id]
        assert rig.host.applied[before:] == []
        bob = await connected_device(horizon, "bob")
        rig.line.mend()
        await rig.until_peer(bob.wireguard.public_key)
        assert agent.broker.reachable
        assert (await rig.ask("status"))["broker"]["error"] is None


async def test_an_agent_waits_longer_each_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And begins anew once the broker has answered."""
    waits: list[int] = []

    class Counting:
        tries = 0

        def next(self) -> float:
            self.tries += 1
            waits.append(self.tries)
            return 0.001

        def reset(self) -> None:
            self.tries = 0

    monkeypatch.setattr(agent_module, "Backoff", Counting)
    rig = await stage.server()
    rig.line.cut()
    async with rig.running():
        await wait_for(lambda: len(waits) >= 4)
        assert waits[:4] == [1, 2, 3, 4]
        rig.line.mend()
        await wait_for(lambda: bool(rig.line.acknowledged()))
        waits.clear()
        rig.line.cut()
        await wait_for(lambda: len(waits) >= 2)
        assert waits[:2] == [1, 2]


async def test_a_cold_start_without_the_broker(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running():
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
    rig.host.links.clear()
    rig.host.tables.clear()
    rig.line.cut()
    async with rig.running():
        assert rig.host.peer("hz0", alice.wireguard.public_key), "in place before the socket is served"
        assert rig.host.tables.keys() == {"hz0"}
        await rig.until_broker(False)


async def test_a_cold_start_leaves_out_whose_authorisation_is_over(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running():
        alice = await connected_device_when_up(rig)
        bob = await connected_device(horizon, "bob")
        await rig.until_peer(bob.wireguard.public_key)
        await rig.until_peer(alice.wireguard.public_key)
    rig.line.cut()
    horizon.advance(days=8)
    rig.host.handshake("hz0", bob.wireguard.public_key, horizon.clock() - 100)
    async with rig.running():
        assert set(rig.link.peers) == {bob.wireguard.public_key}
    horizon.advance(seconds=100)
    async with rig.running():
        assert rig.link.peers == {}


async def test_a_restart_takes_over_what_is_there(stage: Stage) -> None:
    rig = await stage.server()
    async with rig.running():
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
    assert rig.link.up, "the end of the process leaves everything up"
    rig.host.handshake("hz0", alice.wireguard.public_key, rig.horizon.clock())
    before = len(rig.host.applied)
    rig.line.cut()
    async with rig.running():
        await rig.until_broker(False)
    assert rig.host.applied[before:] == []
    kept = rig.host.peer("hz0", alice.wireguard.public_key)
    assert kept is not None
    assert kept.received == 1000


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated in the middle": lambda data: b"{}\n" + data[len(data) // 2 :],
    "not text": lambda data: b"\xff\n" + data,
    "signed by another": lambda data: _by_another(data),
}


def _by_another(data: bytes) -> bytes:
    first, _, rest = data.partition(b"\n")
    forged = _forged(Signed.model_validate_json(first), IdentityKey.generate())
    return forged.model_dump_json().encode() + b"\n" + rest


def _forged(signed: Signed, key: IdentityKey) -> Signed:
    return seal(NetMapUpdate.model_validate_json(signed.payload), NETMAP_CONTEXT, key)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_journal_leaves_a_running_tunnel_alone_until_the_broker_is_back(
    stage: Stage, damage: Callable[[bytes], bytes]
) -> None:
    rig = await stage.server()
    async with rig.running():
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
    rig.store.netmap_path.write_bytes(damage(rig.store.netmap_path.read_bytes()))
    before = len(rig.host.applied)
    rig.line.cut()
    async with rig.running() as agent:
        await wait_for(lambda: rig.line.refused >= 3)
        assert agent.netmap is None
        assert rig.host.applied[before:] == []
        (peer,) = (await rig.ask("status"))["peers"]
        assert (peer["public_key"], peer["id"]) == (str(alice.wireguard.public_key), None)
        rig.line.mend()
        await wait_for(lambda: agent.netmap is not None and len(agent.netmap.peers) == 1)
        await wait_for(lambda: rig.store.netmap_path.exists())
        assert set(rig.link.peers) == {alice.wireguard.public_key}
    assert rig.host.applied[before:] == []
    assert [path.name for path in rig.store.directory.glob("*.damaged-*")] == ["netmap.jsonl.damaged-1"]


# --- a broker that says what does not hold ------------------------------------------------------


def bad_signature(signed: Signed) -> Signed:
    return signed.model_copy(update={"payload": signed.payload.replace("10.64", "10.65")})


def from_another_broker(signed: Signed) -> Signed:
    return _forged(signed, IdentityKey.generate())


@pytest.mark.parametrize(
    ("forge", "words"),
    [(bad_signature, "changed on the way"), (from_another_broker, "but this machine trusts the broker")],
)
async def test_an_update_that_does_not_hold_changes_nothing_and_is_told(
    stage: Stage, horizon: Harness, forge: Callable[[Signed], Signed], words: str
) -> None:
    rig = await stage.server()
    async with rig.running() as agent:
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
        assert agent.netmap is not None
        await wait_for(lambda: agent.netmap is not None and agent.netmap.revision in rig.line.acknowledged())
        revision, journal = agent.netmap.revision, rig.store.netmap_path.read_bytes()
        before = len(rig.host.applied)
        rig.line.forge = forge
        bob = await connected_device(horizon, "bob")
        await rig.until_broker(False)
        status = await rig.ask("status")
        assert words in status["broker"]["error"]
        assert status["revision"] == revision
        assert rig.host.applied[before:] == []
        assert rig.store.netmap_path.read_bytes() == journal
        assert set(rig.line.acknowledged()) <= set(range(revision + 1))
        rig.line.forge = None
        await rig.until_peer(bob.wireguard.public_key)
        await rig.until_broker(True)


async def test_an_update_for_another_subject_is_refused(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running() as agent:
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
        revision = agent.netmap.revision if agent.netmap else None

        def for_another(signed: Signed) -> Signed:
            update = NetMapUpdate.model_validate_json(signed.payload)
            other = update.model_copy(update={"subject": "srv_other"})
            return seal(other, NETMAP_CONTEXT, horizon.broker.signing_key)

        rig.line.forge = for_another
        await connected_device(horizon, "bob")
        await rig.until_broker(False)
        assert "the netmap is for 'srv_other'" in str(agent.broker.error)
        assert agent.netmap is not None
        assert agent.netmap.revision == revision


async def test_a_broker_that_went_back_changes_nothing(stage: Stage, horizon: Harness) -> None:
    """Restored from an old backup, it gives a snapshot of an earlier revision."""
    rig = await stage.server()
    async with rig.running() as agent:
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)

        def backward(signed: Signed) -> Signed:
            update = NetMapUpdate.model_validate_json(signed.payload)
            old = update.model_copy(update={"since": None, "revision": 0, "peers": ()})
            return seal(old, NETMAP_CONTEXT, horizon.broker.signing_key)

        rig.line.forge = backward
        await connected_device(horizon, "bob")
        await rig.until_broker(False)
        assert "goes back from revision" in str(agent.broker.error)
        assert set(rig.link.peers) >= {alice.wireguard.public_key}


async def test_an_older_change_that_comes_late_is_left(stage: Stage, horizon: Harness) -> None:
    rig = await stage.server()
    async with rig.running() as agent:
        alice = await connected_device_when_up(rig)
        await rig.until_peer(alice.wireguard.public_key)
        assert agent.netmap is not None
        held = agent.netmap.revision
        await wait_for(lambda: held in rig.line.acknowledged())
        journal = rig.store.netmap_path.read_bytes()
        late = NetMapUpdate(
            subject=rig.machine.id,
            since=0,
            revision=held,
            issued_at=horizon.broker.now(),
            removed=(alice.id,),
        )
        await agent.accept(seal(late, NETMAP_CONTEXT, horizon.broker.signing_key))
        assert set(rig.link.peers) == {alice.wireguard.public_key}
        assert rig.store.netmap_path.read_bytes() == journal
