"""`horizon server join | run | status | down`."""

from __future__ import annotations

import argparse
import asyncio

from controlplane.client.console import print_json
from dataplane.cli.common import (
    add_command,
    add_join_arguments,
    check_host,
    print_status,
    read_invite,
    run_agent,
    take_down,
)

DEFAULT_INTERFACE = "hz0"
DEFAULT_LISTEN_PORT = 51820


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    join_parser = add_command(commands, "join", join, "register this machine as a server, by an invite")
    add_join_arguments(join_parser, DEFAULT_INTERFACE)
    join_parser.add_argument(
        "--endpoint",
        metavar="HOST[:PORT]",
        help="where clients reach this server (default: the address that the broker sees)",
    )
    join_parser.add_argument(
        "--listen-port",
        type=int,
        default=DEFAULT_LISTEN_PORT,
        help="UDP port of WireGuard (default: %(default)s)",
    )
    join_parser.add_argument("--country", help="where it stands, ISO 3166-1, e.g. DE")
    join_parser.add_argument("--city")
    add_command(
        commands,
        "run",
        run,
        "run the server agent",
        "Run the server agent until stopped. Stopping it leaves the tunnels up; `down` removes them.",
    )
    add_command(commands, "status", print_status, "show what the agent observes")
    add_command(commands, "down", take_down, "remove the interface, and stop the agent")


def join(options: argparse.Namespace) -> int:
    from controlplane.protocol.enrolment import Invite, InviteKind
    from controlplane.protocol.messages import Location
    from controlplane.protocol.wireguard import Endpoint
    from dataplane.join import begin, default_name, join_server
    from dataplane.store import Store

    invite = Invite.parse(read_invite(options), InviteKind.server)
    endpoint = Endpoint.parse(options.endpoint, options.listen_port) if options.endpoint else None
    location = Location(country=options.country, city=options.city)
    check_host(options.interface, options.backend, options.listen_port)
    store = Store(options.state_dir, "server")
    state = begin(store, invite, options.interface, options.backend, options.listen_port)
    name = options.name or default_name()
    response = asyncio.run(join_server(store, state, invite, name, endpoint, location))
    if options.json:
        print_json(response.model_dump(mode="json", exclude={"verification_secret"}))
    else:
        print(f"registered as server {response.name!r} ({response.server_id})")
        print(f"addresses {', '.join(map(str, response.addresses))}; run it with `horizon server run`")
    return 0


def run(options: argparse.Namespace) -> int:
    from dataplane.agent import Agent
    from dataplane.server import ServerAgent
    from dataplane.start import agent_parts
    from dataplane.store import Store

    def make(store: Store) -> Agent:
        return ServerAgent(*agent_parts(store))

    return run_agent(options, make)
