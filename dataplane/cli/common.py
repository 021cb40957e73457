"""What the two agents' command lines share. Imports little: `connect` shall start fast."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.client.agent import RUN_DIR, AgentNotRunning, ask
from controlplane.client.console import add_json, print_json

if TYPE_CHECKING:
    from dataplane.agent import Agent
    from dataplane.store import Store

STATE_DIR = Path("/var/lib/horizon")
Command = Callable[[argparse.Namespace], int]


def add_command(
    commands: Any, name: str, handler: Command, text: str, description: str | None = None
) -> argparse.ArgumentParser:
    """A subcommand with what every one has."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=description or f"{text[0].upper()}{text[1:]}."
    )
    role = commands._prog_prefix.split()[1]
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=Path(os.environ.get("HORIZON_STATE_DIR", STATE_DIR / role)),
        help="keys and netmap (HORIZON_STATE_DIR; default: %(default)s)",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        default=Path(os.environ.get("HORIZON_SOCKET", RUN_DIR / f"{role}.sock")),
        help="the agent's socket (HORIZON_SOCKET; default: %(default)s)",
    )
    add_json(parser)
    parser.set_defaults(handler=handler, role=role)
    return parser


def add_join_arguments(parser: argparse.ArgumentParser, interface: str) -> None:
    parser.add_argument(
        "invite", metavar="INVITE", help="horizon://…, as the administrator gave it; - reads it from stdin"
    )
    parser.add_argument("--name", help="this machine's name (default: its host name)")
    parser.add_argument("--interface", default=interface, help="WireGuard interface (default: %(default)s)")
    parser.add_argument(
        "--backend",
        choices=("auto", "kernel", "userspace"),
        default="auto",
        help="WireGuard in the kernel, or in user space (default: the kernel if it has it)",
    )


def read_invite(options: argparse.Namespace) -> str:
    """The invite from the command line, or from stdin, where no other user sees it in a process list."""
    text: str = options.invite
    return input() if text == "-" else text


def check_host(name: str, backend: str, listen_port: int = 0) -> None:
    """Raise before an invite is used up for an agent that could not run here.

    The interface is made and removed again, where there is none of that name yet.
    """
    import socket
    import time

    from controlplane.protocol.keys import PrivateKey
    from controlplane.protocol.wireguard import InterfaceSpec
    from dataplane.actions import CreateInterface, RemoveInterface
    from dataplane.errors import BackendError
    from dataplane.host import Host
    from dataplane.plan import plan
    from dataplane.state import Desired
    from dataplane.store import hold_interface

    with Host(backend) as host:  # type: ignore[arg-type]
        observed = host.observe(name)
        wanted = InterfaceSpec(name, PrivateKey.generate(), listen_port=listen_port)
        plan(Desired(wanted), observed, time.time())
        held = hold_interface(name)
        try:
            if observed.interface is not None:
                return
            host.apply(CreateInterface(name))
            host.apply(RemoveInterface(name))
        finally:
            os.close(held)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", listen_port))
        except OSError as error:
            raise BackendError(
                f"UDP port {listen_port} cannot be used: {error.strerror}; choose another with --listen-port"
            ) from None


def run_agent(options: argparse.Namespace, make: Callable[[Store], Agent]) -> int:
    """Run an agent until a signal. Its end leaves the tunnels up."""
    import asyncio
    import logging
    import signal

    from dataplane.local import LocalSocket
    from dataplane.store import Store

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)

    async def main() -> None:
        agent = make(Store(options.state_dir, options.role))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop)
        await agent.run(LocalSocket(options.socket))

    asyncio.run(main())
    return 0


def take_down(options: argparse.Namespace) -> int:
    """`down`: by the agent if it runs, else by ourselves."""
    try:
        answer = ask(options.socket, "down")
    except AgentNotRunning:
        answer = _down_without_agent(options)
    if options.json:
        print_json(answer)
    else:
        print(f"{answer['down']} is down")
    return 0


def _down_without_agent(options: argparse.Namespace) -> dict[str, str]:
    import time

    from dataplane.host import Host
    from dataplane.plan import plan
    from dataplane.state import Desired
    from dataplane.store import Store

    store = Store(options.state_dir, options.role)
    state = store.load()
    store.lock(state.interface)
    try:
        with Host(state.backend) as host:  # type: ignore[arg-type]
            for action in plan(Desired(), host.observe(state.interface), time.time()):
                host.apply(action)
    finally:
        store.unlock()
    return {"down": state.interface}


def print_status(options: argparse.Namespace) -> int:
    """`status`: what the agent observes now."""
    status = ask(options.socket, "status")
    if options.json:
        print_json(status)
        return 0
    broker = status["broker"]
    print(f"{status['role']} {status['name']!r} ({status['id']})")
    state = "up" if status["up"] else "down"
    print(f"  interface   {status['interface']}, {state}, {status['backend'] or 'not made yet'}")
    print(f"  addresses   {', '.join(status['addresses']) or '-'}")
    print(f"  broker      {broker['url']}, {_broker_words(broker)}")
    for key in ("revoked", "trouble"):
        if status[key]:
            print(f"  {key:<11} {status[key]}")
    if not status["peers"]:
        print("  peers       none")
    for peer in status["peers"]:
        state = "connected" if peer["connected"] else "no recent handshake"
        print(f"  peer        {peer['name'] or peer['public_key']}: {state}{_handshake_words(peer)}")
        print(f"              {', '.join(peer['addresses'])} at {peer['endpoint'] or 'an unknown endpoint'}")
        if not broker["reachable"] and peer["authorized_until"]:
            print(f"              authorised until {peer['authorized_until']}")
    return 0


def _broker_words(broker: dict[str, Any]) -> str:
    if broker["reachable"] is None:
        return "not heard of yet"
    since = datetime.fromtimestamp(broker["since"]).strftime("%Y-%m-%d %H:%M:%S")
    return f"answers since {since}" if broker["reachable"] else f"AWAY since {since}: {broker['error']}"


def _handshake_words(peer: dict[str, Any]) -> str:
    if peer["latest_handshake"] is None:
        return ", never yet"
    when = datetime.fromtimestamp(peer["latest_handshake"]).strftime("%H:%M:%S")
    return f", handshake {when}, {peer['received']} B received, {peer['sent']} B sent"
