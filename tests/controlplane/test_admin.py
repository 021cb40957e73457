"""Administration: what lists say, and that a revocation is everywhere before it is answered."""

from __future__ import annotations

import pytest

from controlplane.client.broker import AdminClient
from controlplane.protocol.enrolment import Invite
from controlplane.protocol.keys import IdentityKey, PrivateKey
from controlplane.protocol.messages import (
    ConnectionStatus,
    ExportRequest,
    LoginRequest,
    PersonalKeyRequest,
    RegistrationKeyRequest,
)
from tests.harness import raw
from tests.harness.broker import Harness

# --- keys ---------------------------------------------------------------------------------------


async def test_a_registration_keys_state_is_listed(horizon: Harness) -> None:
    admin = await horizon.admin()
    for notes, uses in (("used", 1), ("half", 2), ("revoked", 1)):
        created = await admin.create_registration_key(RegistrationKeyRequest(max_uses=uses, notes=notes))
        key_id = created.key_id
        horizon.advance(seconds=1)
        if notes == "revoked":
            await admin.revoke_registration_key(key_id)
            continue
        await horizon.server(notes, key=Invite.parse(created.invite).key)
    await admin.create_registration_key(RegistrationKeyRequest(expires_in=60, notes="expired"))
    horizon.advance(seconds=60)
    keys = (await admin.registration_keys()).registration_keys
    assert [(key.notes, key.status, key.uses, key.max_uses) for key in keys] == [
        ("expired", "expired", 0, 1),
        ("revoked", "revoked", 0, 1),
        ("half", "active", 1, 2),
        ("used", "used", 1, 1),
    ]


async def test_admin_keys_are_not_listed_among_servers_keys(horizon: Harness) -> None:
    admin = await horizon.admin()
    horizon.admin_key()
    assert (await admin.registration_keys()).registration_keys == ()


async def test_a_personal_keys_state_is_listed_by_user(horizon: Harness) -> None:
    admin = await horizon.admin()
    for user, expires_in in (("carol", None), ("alice", 60), ("bob", None)):
        request = PersonalKeyRequest(user_name=user, user_email=f"{user}@example.org", expires_in=expires_in)
        created = await admin.create_personal_key(request)
        device = await horizon.device(user, key=Invite.parse(created.invite).key)
        if user == "bob":
            await admin.revoke_personal_key(created.key_id)
        if user == "carol":
            await horizon.device(user, "phone", key=Invite.parse(created.invite).key)
            await admin.revoke_device(device.id)
    horizon.advance(seconds=60)
    keys = (await admin.personal_keys()).personal_keys
    assert [(key.user_name, key.user_email, key.status, key.devices) for key in keys] == [
        ("alice", "alice@example.org", "expired", 1),
        ("bob", "bob@example.org", "revoked", 0),
        ("carol", "carol@example.org", "active", 1),
    ]


@pytest.mark.parametrize(
    ("method", "path", "content", "place"),
    [
        ("POST", "/admin/registration-keys", {"max_uses": 0}, "max_uses"),
        ("POST", "/admin/registration-keys", {"max_uses": 1001}, "max_uses"),
        ("POST", "/admin/registration-keys", {"expires_in": 59}, "expires_in"),
        ("POST", "/admin/registration-keys", {"notes": "x" * 256}, "notes"),
        ("POST", "/admin/personal-keys", {}, "user_name"),
        ("POST", "/admin/personal-keys", {"user_name": "al ice"}, "user_name"),
        ("POST", "/admin/personal-keys", {"user_name": "alice", "expires_in": 10**12}, "expires_in"),
        ("PATCH", "/admin/servers/fra1", {"endpoint_host": "fra 1"}, "endpoint_host"),
        ("PATCH", "/admin/servers/fra1", {"endpoint_host": "a:b"}, "endpoint_host: Value error, 'a:b' is"),
        ("PATCH", "/admin/servers/fra1", {"endpoint_host": "a..b"}, "endpoint_host: Value error, 'a..b' is"),
        ("PATCH", "/admin/servers/fra1", {"listen_port": 1}, "listen_port"),
        (
            "POST",
            "/exports",
            {"user_name": "alice", "server": "fra1", "device_name": "/etc", "public_key": "x"},
            "device_name",
        ),
    ],
)
async def test_what_cannot_be_meant_is_refused(
    horizon: Harness, method: str, path: str, content: object, place: str
) -> None:
    signer = await horizon.admin_signer()
    problem = await raw.refused(horizon, raw.signed(horizon, signer, method, path, content))
    assert (problem.status, problem.code) == (422, "invalid-request")
    assert problem.detail.startswith(place)


async def test_what_is_not_there_cannot_be_revoked(horizon: Harness) -> None:
    admin = await horizon.admin()
    for call, detail in [
        (
            admin.revoke_registration_key("abc"),
            "no registration key 'abc': `horizon admin registration-key list` shows them",
        ),
        (
            admin.revoke_personal_key("abc"),
            "no personal key 'abc': `horizon admin personal-key list` shows them",
        ),
        (admin.revoke_device("abc"), "no device 'abc': `horizon admin device list` shows them"),
        (admin.revoke_server("abc"), "no server 'abc': none is registered yet"),
        (admin.disconnect("abc"), "no connection 'abc' of this device"),
    ]:
        problem = await horizon.refuses(call)
        assert (problem.status, problem.code, problem.detail) == (404, "not-found", detail)


# --- devices ------------------------------------------------------------------------------------


async def test_devices_are_listed_by_user_and_name(horizon: Harness) -> None:
    admin = await horizon.admin()
    key = horizon.personal_key("bob")
    for name in ("phone", "laptop"):
        await horizon.device("bob", name, key=key)
    alice = await horizon.device("alice", "desk")
    listed = (await admin.devices()).devices
    assert [(one.user_name, one.name, one.agent) for one in listed] == [
        ("alice", "desk", True),
        ("bob", "laptop", True),
        ("bob", "phone", True),
    ]
    assert listed[0].public_key == alice.wireguard.public_key
    await admin.revoke_device(alice.id)
    assert [one.user_name for one in (await admin.devices()).devices] == ["bob", "bob"]
    assert [one.status for one in (await admin.devices(include_revoked=True)).devices] == [
        "revoked",
        "active",
        "active",
    ]


async def test_a_revoked_device_is_out_within_the_request(horizon: Harness) -> None:
    admin, alice, bob = await horizon.admin(), await horizon.device("alice"), await horizon.device("bob")
    servers = [await horizon.server(name) for name in ("fra1", "ams1")]
    for server in servers:
        await alice.connect(server.name)
        await bob.connect(server.name)
        await server.sync()
    fra1, ams1 = servers
    held = (await alice.sync()).revision
    async with (
        horizon.watching(fra1, fra1.revision) as fra1_watch,
        horizon.watching(ams1, ams1.revision) as ams1_watch,
        horizon.watching(alice, held) as alices,
    ):
        await admin.revoke_device(alice.id)
    for watch in (fra1_watch, ams1_watch):
        told = watch.result()
        assert told is not None
        assert (told.peers, told.removed) == ((), (alice.id,))
    told = alices.result()
    assert told is not None
    assert set(told.removed) == {fra1.id, ams1.id}
    ended = {one.user_name: one.status for one in await admin.connections(include_ended=True)}
    assert ended == {"alice": ConnectionStatus.ended, "bob": ConnectionStatus.intent}
    assert (await horizon.refuses(alice.connect("fra1"))).code == "revoked"
    assert list((await fra1.sync()).peers) == [bob.id]


async def test_revoking_twice_changes_nothing_the_second_time(horizon: Harness) -> None:
    admin, alice = await horizon.admin(), await horizon.device()
    fra1 = await horizon.server("fra1")
    await alice.connect("fra1")
    await admin.revoke_device(alice.id)
    held = (await fra1.sync()).revision
    await admin.revoke_device(alice.id)
    assert await fra1.update(held) is None


async def test_a_revoked_personal_key_takes_all_its_devices(horizon: Harness) -> None:
    admin, fra1, key = await horizon.admin(), await horizon.server("fra1"), horizon.personal_key("alice")
    laptop, phone = [await horizon.device("alice", name, key=key) for name in ("laptop", "phone")]
    bob = await horizon.device("bob")
    for device in (laptop, phone, bob):
        await device.connect("fra1")
    plain = await admin.export(
        ExportRequest(
            user_name="alice",
            server="fra1",
            device_name="router",
            public_key=PrivateKey.generate().public_key,
        )
    )
    async with horizon.watching(fra1, (await fra1.sync()).revision) as watch:
        await admin.revoke_personal_key(key.key_id)
    told = watch.result()
    assert told is not None
    assert set(told.removed) == {laptop.id, phone.id, plain.device_id}
    assert [one.user_name for one in await admin.connections()] == ["bob"]
    for device in (laptop, phone):
        assert (await horizon.refuses(device.client.netmap())).code == "revoked"
    assert [one.user_name for one in (await admin.devices()).devices] == ["bob"]


# --- servers ------------------------------------------------------------------------------------


async def test_a_revoked_server_is_out_within_the_request(horizon: Harness) -> None:
    admin, fra1 = await horizon.admin(), await horizon.server("fra1")
    await horizon.server("ams1")
    alice, bob = await horizon.device("alice"), await horizon.device("bob")
    for device in (alice, bob):
        await device.connect("fra1")
        await device.connect("ams1")
    held = [(await machine.sync()).revision for machine in (fra1, alice, bob)]
    async with (
        horizon.watching(fra1, held[0]) as servers,
        horizon.watching(alice, held[1]) as alices,
        horizon.watching(bob, held[2]) as bobs,
    ):
        await admin.revoke_server("fra1")
    told = servers.result()
    assert told is not None
    assert set(told.removed) == {alice.id, bob.id}
    for watch in (alices, bobs):
        told = watch.result()
        assert told is not None
        assert told.removed == (fra1.id,)
    assert {one.server_name for one in await admin.connections()} == {"ams1"}
    assert (await horizon.refuses(fra1.beat())).code == "revoked"
    assert [one.name for one in await alice.client.servers()] == ["ams1"]


async def test_a_revoked_servers_name_is_free_for_its_successor(horizon: Harness) -> None:
    admin = await horizon.admin()
    former = await horizon.server("fra1")
    await admin.revoke_server("fra1")
    successor = await horizon.server("fra1")
    named = {server.server_id: server.name for server in (await admin.all_servers(True)).servers}
    assert named == {former.id: f"fra1.{former.id}", successor.id: "fra1"}


# --- administrators' machines -------------------------------------------------------------------


async def test_an_administrators_machine_is_listed_and_revoked(horizon: Harness) -> None:
    desk, lost = await horizon.admin_signer(), await horizon.admin_signer()
    admin, stolen = horizon.client(AdminClient, desk), horizon.client(AdminClient, lost)
    listed = (await admin.machines()).machines
    assert [(one.machine_id, one.name, one.username, one.status) for one in listed] == [
        (desk.key_id, "desk", "owner", "active"),
        (lost.key_id, "desk", "owner", "active"),
    ]
    await admin.revoke_machine(lost.key_id)
    problem = await horizon.refuses(stolen.machines())
    assert (problem.status, problem.code) == (403, "revoked")
    assert [one.status for one in (await admin.machines()).machines] == ["active", "revoked"]
    problem = await horizon.refuses(admin.revoke_machine("adm_0"))
    assert problem.detail == "no machine 'adm_0': `horizon admin machine list` shows them"


async def test_a_revoked_machine_is_not_let_in_by_its_former_invite(horizon: Harness) -> None:
    admin, key, identity = await horizon.admin(), horizon.admin_key(), IdentityKey.generate()
    request = LoginRequest(admin_key=key, identity=identity.public_key, machine="phone")
    answer = await horizon.enrolling(identity).login(request)
    assert (await horizon.enrolling(identity).login(request)).admin_id == answer.admin_id
    await admin.revoke_machine(answer.admin_id)
    problem = await horizon.refuses(horizon.enrolling(identity).login(request))
    assert problem.code == "revoked"
    assert problem.detail == "machine 'phone' was revoked: log in again with a new invite"


async def test_an_admin_key_can_be_revoked_before_its_use(horizon: Harness) -> None:
    admin, key, identity = await horizon.admin(), horizon.admin_key(), IdentityKey.generate()
    await admin.revoke_registration_key(key.key_id)
    request = LoginRequest(admin_key=key, identity=identity.public_key, machine="phone")
    assert (await horizon.refuses(horizon.enrolling(identity).login(request))).code == "revoked-key"
