"""What a registration makes of a server, and the first run of an owner."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

from sqlmodel import select

from controlplane import enrolment
from controlplane.models import Admin
from controlplane.protocol.keys import IdentityKey
from controlplane.protocol.messages import Capability, Location, RegistrationKeyRequest
from tests.harness.broker import Harness, in_process

# --- servers ------------------------------------------------------------------------------------


async def test_a_server_is_as_it_registered(horizon: Harness) -> None:
    fra1 = await horizon.server(
        "fra1",
        online=False,
        endpoint_host="fra1.example",
        listen_port=4500,
        location=Location(country="DE", city="Frankfurt", latitude=50.1, longitude=8.7),
        capabilities=(Capability(type="vpn"), Capability(type="lan", details="vxlan", enabled=False)),
    )
    alice = await horizon.device()
    (info,) = await alice.client.servers()
    assert (info.server_id, info.name, info.status, info.online) == (fra1.id, "fra1", "pending", False)
    assert info.endpoint == "fra1.example:4500"
    assert info.public_key == fra1.wireguard.public_key
    assert (info.location.country, info.location.city) == ("DE", "Frankfurt")
    assert [(c.type, c.details, c.enabled) for c in info.capabilities] == [
        ("vpn", "", True),
        ("lan", "vxlan", False),
    ]


async def test_without_an_endpoint_a_server_is_where_the_broker_sees_it(horizon: Harness) -> None:
    await horizon.server("fra1")
    (info,) = await (await horizon.device()).client.servers()
    assert info.endpoint == "127.0.0.1:51820"


async def test_names_are_unique_and_the_key_is_not_used_up(horizon: Harness) -> None:
    await horizon.server("fra1")
    key = horizon.registration_key()
    problem = await horizon.refuses(horizon.server("fra1", key=key))
    assert (problem.status, problem.code) == (409, "name-taken")
    assert problem.detail == "a server named 'fra1' exists already: join with another --name"
    await horizon.server("fra2", key=key)


async def test_two_servers_cannot_have_one_wireguard_key(horizon: Harness) -> None:
    fra1, identity = await horizon.server("fra1"), IdentityKey.generate()
    taken = fra1.wireguard.public_key
    request = horizon.register_request(horizon.registration_key(), identity, "fra2", public_key=taken)
    problem = await horizon.refuses(horizon.enrolling(identity).register(request))
    assert problem.code == "key-in-use"
    assert problem.detail == f"WireGuard key {taken} belongs to another server: make a new one"


async def test_each_server_gets_a_subnet_of_its_own_until_none_is_left(tmp_path: Path) -> None:
    async with in_process(tmp_path, ipv4_pool=IPv4Network("10.9.0.0/24"), ipv4_prefix=25) as horizon:
        admin, alice = await horizon.admin(), await horizon.device()
        for name in ("fra1", "ams1"):
            await horizon.server(name)
        addresses = {info.name: info.addresses for info in await alice.client.servers()}
        assert [str(address) for address in (addresses["fra1"][0], addresses["ams1"][0])] == [
            "10.9.0.1/25",
            "10.9.0.129/25",
        ]
        assert not addresses["fra1"][1].network.overlaps(addresses["ams1"][1].network)
        key = horizon.registration_key()
        for revoked in (False, True):  # a revoked server's subnet is not given again
            if revoked:
                await admin.revoke_server("fra1")
            problem = await horizon.refuses(horizon.server("par1", key=key))
            assert (problem.status, problem.code) == (409, "addresses-exhausted")
            assert "all 2 subnets of 10.9.0.0/24 are given to servers" in problem.detail
            assert "larger pool or smaller subnets" in problem.detail


# --- owners -------------------------------------------------------------------------------------


async def test_the_first_run_makes_one_owner_and_one_invite(horizon: Harness) -> None:
    with horizon.broker.database.write() as session:
        first = enrolment.ensure_owner(horizon.broker, session)
    with horizon.broker.database.write() as session:
        assert enrolment.ensure_owner(horizon.broker, session) is None
    assert first is not None
    assert first.invite.startswith("horizon://broker.example:8443/admin/hzadm_")
    assert f"?pin={horizon.broker.pin}" in first.invite
    assert first.invite not in repr(first)
    with horizon.broker.database.read() as session:
        (owner,) = session.exec(select(Admin)).all()
    assert (owner.username, owner.role, owner.password_hash) == ("owner", "owner", "!")


async def test_an_invite_names_its_key_and_its_end(horizon: Harness) -> None:
    admin = await horizon.admin()
    created = await admin.create_registration_key(RegistrationKeyRequest(expires_in=3600, notes="for fra1"))
    assert created.key_id in created.invite
    assert created.expires_at is not None
    assert created.expires_at.timestamp() == horizon.clock() + 3600
    (info,) = (await admin.registration_keys()).registration_keys
    assert (info.key_id, info.notes, info.status, info.uses) == (created.key_id, "for fra1", "active", 0)
