"""`horizon admin`: administer a broker over its API, from any machine that logged in once."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from controlplane.cli.login import login, stored_login
from controlplane.client.broker import AdminClient
from controlplane.client.console import STDIN_HINT, CommandError, add_json, print_json, print_table
from controlplane.protocol.messages import PersonalKeyRequest, RegistrationKeyRequest, ServerChange

Work = Callable[[AdminClient, argparse.Namespace], Awaitable[int]]
_DURATION = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    parser.add_argument(
        "--login-file",
        type=Path,
        default=Path(os.environ.get("HORIZON_ADMIN_LOGIN", config / "horizon" / "admin.json")),
        help="where the login is kept (HORIZON_ADMIN_LOGIN; default: %(default)s)",
    )
    nouns = parser.add_subparsers(required=True, metavar="NOUN")
    login_parser = nouns.add_parser("login", help="log this machine in, by an admin invite")
    login_parser.add_argument(
        "invite", metavar="INVITE", help="as the broker printed it; - reads it from stdin"
    )
    login_parser.add_argument(
        "--force", action="store_true", help="also where the login of another broker is lost by it"
    )
    add_json(login_parser)
    login_parser.set_defaults(handler=login)

    registration = _noun(nouns, "registration-key", "keys that let servers in")
    create = _verb(registration, "create", create_registration_key, "make an invite for a server")
    create.add_argument(
        "--uses", type=int, default=1, help="how many servers may use it (default: %(default)s)"
    )
    create.add_argument(
        "--expires",
        type=duration,
        default="24h",
        metavar="TIME",
        help="e.g. 30m, 24h, 7d (default: %(default)s)",
    )
    create.add_argument("--notes", default="")
    _verb(registration, "list", list_registration_keys, "list them")
    _verb(registration, "revoke", revoke_registration_key, "let nobody in by it any more").add_argument(
        "key_id", metavar="KEY"
    )

    personal = _noun(nouns, "personal-key", "users' keys, which let their devices in")
    create = _verb(personal, "create", create_personal_key, "make an invite for a user's devices")
    create.add_argument("user", metavar="USER", help="user name")
    create.add_argument("--email")
    create.add_argument("--expires", type=duration, metavar="TIME", help="e.g. 30d (default: never)")
    create.add_argument("--notes", default="")
    _verb(personal, "list", list_personal_keys, "list them")
    _verb(personal, "revoke", revoke_personal_key, "revoke it and all its devices").add_argument(
        "key_id", metavar="KEY"
    )

    machine = _noun(nouns, "machine", "administrators' machines, which logged in")
    _verb(machine, "list", list_machines, "list them")
    _verb(machine, "revoke", revoke_machine, "accept nothing from it any more").add_argument(
        "machine_id", metavar="MACHINE"
    )

    device = _noun(nouns, "device", "users' devices")
    _verb(device, "list", list_devices, "list them").add_argument(
        "--all", action="store_true", help="also revoked ones"
    )
    _verb(device, "revoke", revoke_device, "cut it off at once").add_argument("device_id", metavar="DEVICE")

    server = _noun(nouns, "server", "servers")
    _verb(server, "list", list_servers, "list them").add_argument(
        "--all", action="store_true", help="also revoked ones"
    )
    change = _verb(server, "set", change_server, "change one")
    change.add_argument("server", metavar="SERVER", help="name or id")
    change.add_argument(
        "--client-to-client",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether its clients reach one another",
    )
    change.add_argument("--endpoint-host", metavar="HOST", help="where clients reach it")
    _verb(server, "revoke", revoke_server, "cut it off at once").add_argument("server", metavar="SERVER")

    connection = _noun(nouns, "connection", "who is connected where")
    _verb(connection, "list", list_connections, "list them").add_argument(
        "--all", action="store_true", help="also ended ones"
    )
    _verb(connection, "end", end_connection, "end one").add_argument("connection_id", metavar="CONNECTION")

    from controlplane.cli.export import add_export

    add_export(nouns, run_signed)


def _noun(nouns: Any, name: str, text: str) -> Any:
    parser = nouns.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    return parser.add_subparsers(required=True, metavar="VERB")


def _verb(verbs: Any, name: str, work: Work, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    add_json(parser)
    parser.set_defaults(handler=run_signed, work=work)
    return parser


def run_signed(options: argparse.Namespace) -> int:
    """Run a command's work with the client of the stored login."""
    address, signer = stored_login(options.login_file)

    async def work() -> int:
        async with AdminClient(address, signer) as client:
            return int(await options.work(client, options))

    return asyncio.run(work())


# --- the commands -------------------------------------------------------------------------------


async def create_registration_key(client: AdminClient, options: argparse.Namespace) -> int:
    created = await client.create_registration_key(
        RegistrationKeyRequest(max_uses=options.uses, expires_in=options.expires, notes=options.notes)
    )
    return _show_invite(options, created, "horizon server join")


async def create_personal_key(client: AdminClient, options: argparse.Namespace) -> int:
    created = await client.create_personal_key(
        PersonalKeyRequest(
            user_name=options.user, user_email=options.email, expires_in=options.expires, notes=options.notes
        )
    )
    return _show_invite(options, created, "horizon client join")


def _show_invite(options: argparse.Namespace, created: Any, command: str) -> int:
    if options.json:
        print_json(created)
    else:
        until = f" (until {created.expires_at:%Y-%m-%d %H:%M} UTC)" if created.expires_at else ""
        print(f"Invite, shown this once{until}:\n\n  {command} '{created.invite}'\n\n{STDIN_HINT}")
    return 0


async def list_registration_keys(client: AdminClient, options: argparse.Namespace) -> int:
    keys = (await client.registration_keys()).registration_keys
    columns = {
        "key_id": "KEY",
        "status": "STATUS",
        "uses": "USES",
        "max_uses": "OF",
        "expires_at": "EXPIRES",
        "notes": "NOTES",
    }
    return _show(options, keys, columns, "no registration keys: `horizon admin registration-key create`")


async def revoke_registration_key(client: AdminClient, options: argparse.Namespace) -> int:
    await client.revoke_registration_key(options.key_id)
    return _done(options, f"registration key {options.key_id} revoked")


async def list_personal_keys(client: AdminClient, options: argparse.Namespace) -> int:
    keys = (await client.personal_keys()).personal_keys
    columns = {
        "user_name": "USER",
        "key_id": "KEY",
        "status": "STATUS",
        "devices": "DEVICES",
        "expires_at": "EXPIRES",
        "notes": "NOTES",
    }
    return _show(options, keys, columns, "no users: `horizon admin personal-key create USER`")


async def revoke_personal_key(client: AdminClient, options: argparse.Namespace) -> int:
    await client.revoke_personal_key(options.key_id)
    return _done(options, f"personal key {options.key_id} and its devices revoked")


async def list_machines(client: AdminClient, options: argparse.Namespace) -> int:
    machines = (await client.machines()).machines
    columns = {
        "username": "ADMIN",
        "name": "MACHINE",
        "status": "STATUS",
        "created_at": "SINCE",
        "machine_id": "ID",
    }
    return _show(options, machines, columns, "no machines")


async def revoke_machine(client: AdminClient, options: argparse.Namespace) -> int:
    await client.revoke_machine(options.machine_id)
    return _done(options, f"machine {options.machine_id} revoked")


async def list_devices(client: AdminClient, options: argparse.Namespace) -> int:
    devices = (await client.devices(options.all)).devices
    columns = {
        "user_name": "USER",
        "name": "DEVICE",
        "status": "STATUS",
        "platform": "PLATFORM",
        "last_seen": "LAST SEEN",
        "device_id": "ID",
    }
    return _show(options, devices, columns, "no devices yet")


async def revoke_device(client: AdminClient, options: argparse.Namespace) -> int:
    await client.revoke_device(options.device_id)
    return _done(options, f"device {options.device_id} revoked")


async def list_servers(client: AdminClient, options: argparse.Namespace) -> int:
    servers = (await client.all_servers(options.all)).servers
    columns = {
        "name": "NAME",
        "status": "STATUS",
        "online": "ONLINE",
        "endpoint": "ENDPOINT",
        "addresses": "ADDRESSES",
        "active_connections": "CONNECTIONS",
        "last_heartbeat": "LAST HEARTBEAT",
        "server_id": "ID",
    }
    return _show(options, servers, columns, "no servers yet: `horizon admin registration-key create`")


async def change_server(client: AdminClient, options: argparse.Namespace) -> int:
    change = ServerChange(client_to_client=options.client_to_client, endpoint_host=options.endpoint_host)
    if change == ServerChange():
        raise CommandError(
            "nothing to change: give --client-to-client, --no-client-to-client or --endpoint-host"
        )
    server = await client.change_server(options.server, change)
    if options.json:
        print_json(server)
        return 0
    return _done(options, f"server {server.name} changed")


async def revoke_server(client: AdminClient, options: argparse.Namespace) -> int:
    await client.revoke_server(options.server)
    return _done(options, f"server {options.server} revoked")


async def list_connections(client: AdminClient, options: argparse.Namespace) -> int:
    connections = await client.connections(options.all)
    columns = {
        "user_name": "USER",
        "device_name": "DEVICE",
        "server_name": "SERVER",
        "status": "STATUS",
        "addresses": "ADDRESSES",
        "started_at": "SINCE",
        "connection_id": "ID",
    }
    return _show(options, connections, columns, "nobody is connected")


async def end_connection(client: AdminClient, options: argparse.Namespace) -> int:
    await client.disconnect(options.connection_id)
    return _done(options, f"connection {options.connection_id} ended")


def _show(options: argparse.Namespace, rows: Any, columns: Mapping[str, str], empty: str) -> int:
    if options.json:
        print_json(list(rows))
    else:
        print_table(columns, [dict(row) for row in rows], empty)
    return 0


def _done(options: argparse.Namespace, text: str) -> int:
    if options.json:
        print_json({"done": text})
    else:
        print(text)
    return 0


def duration(text: str) -> int:
    """Seconds of `30m`, `24h`, `7d`."""
    match = re.fullmatch(r"(\d+)([smhdw])", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 30m, 24h or 7d")
    return int(match[1]) * _DURATION[match[2]]
