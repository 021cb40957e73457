"""`horizon client join | run | servers | connect | status | disconnect | down`."""

from __future__ import annotations

import argparse

from controlplane.client.agent import ask
from controlplane.client.console import print_json, print_table
from dataplane.cli.common import (
    add_command,
    add_join_arguments,
    check_host,
    print_status,
    read_invite,
    run_agent,
    take_down,
)

DEFAULT_INTERFACE = "hzc0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    join_parser = add_command(commands, "join", join, "let this device in, by an invite")
    add_join_arguments(join_parser, DEFAULT_INTERFACE)
    add_command(
        commands,
        "run",
        run,
        "run the client agent",
        "Run the client agent until stopped. Stopping it leaves the tunnels up; `down` removes them.",
    )
    add_command(commands, "servers", servers, "list the servers there are")
    connect_parser = add_command(commands, "connect", connect, "connect to a server")
    connect_parser.add_argument("server", metavar="SERVER", help="its name or id")
    add_command(commands, "status", print_status, "show what the agent observes")
    disconnect_parser = add_command(commands, "disconnect", disconnect, "end a connection")
    disconnect_parser.add_argument(
        "server", metavar="SERVER", nargs="?", help="its name or id (default: all)"
    )
    add_command(commands, "down", take_down, "remove the interface, and stop the agent")


def join(options: argparse.Namespace) -> int:
    import asyncio

    from controlplane.protocol.enrolment import Invite, InviteKind
    from dataplane.join import begin, default_name, join_client
    from dataplane.store import Store

    invite = Invite.parse(read_invite(options), InviteKind.device)
    check_host(options.interface, options.backend)
    store = Store(options.state_dir, "client")
    state = begin(store, invite, options.interface, options.backend, listen_port=0)
    name = options.name or default_name()
    response = asyncio.run(join_client(store, state, invite, name))
    if options.json:
        print_json(response)
    else:
        print(f"joined as {response.user_name}'s device {name!r} ({response.device_id})")
        print("run it with `horizon client run`, then `horizon client connect SERVER`")
    return 0


def run(options: argparse.Namespace) -> int:
    from dataplane.agent import Agent
    from dataplane.client import ClientAgent
    from dataplane.start import agent_parts
    from dataplane.store import Store

    def make(store: Store) -> Agent:
        return ClientAgent(*agent_parts(store))

    return run_agent(options, make)


def servers(options: argparse.Namespace) -> int:
    found = ask(options.socket, "servers")
    if options.json:
        print_json(found)
        return 0
    rows = [{**server, "place": _place(server["location"])} for server in found]
    columns = {
        "name": "NAME",
        "online": "ONLINE",
        "place": "PLACE",
        "endpoint": "ENDPOINT",
        "active_connections": "CONNECTIONS",
        "server_id": "ID",
    }
    print_table(columns, rows, "no servers yet: an administrator adds one with a registration key")
    return 0


def connect(options: argparse.Namespace) -> int:
    answer = ask(options.socket, "connect", server=options.server)
    if options.json:
        print_json(answer)
    else:
        addresses = ", ".join(answer["addresses"])
        print(f"connected to {answer['server']} in {answer['seconds'] * 1000:.0f} ms: {addresses}")
    return 0


def disconnect(options: argparse.Namespace) -> int:
    ended = ask(options.socket, "disconnect", server=options.server)
    if options.json:
        print_json(ended)
    elif not ended:
        print("no connection to end")
    for one in () if options.json else ended:
        later = "" if one["broker_told"] else " (the broker is away and will be told later)"
        print(f"disconnected from {one['server']}{later}")
    return 0


def _place(location: dict[str, str | None]) -> str | None:
    return ", ".join(part for part in (location["city"], location["country"]) if part) or None
