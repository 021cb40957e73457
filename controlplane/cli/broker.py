"""`horizon broker run`: the API, unprivileged. `horizon broker invite`: a way back in for the owner."""

from __future__ import annotations

import argparse
import fcntl
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from sqlmodel import select

from controlplane.app import create_app
from controlplane.broker import Broker, open_broker, reopen_broker
from controlplane.client.console import STDIN_HINT, CommandError, add_json, print_json
from controlplane.client.files import ensure_private_directory
from controlplane.config import DEFAULT_IPV4_POOL, BrokerConfig
from controlplane.enrolment import create_admin_key, ensure_owner
from controlplane.errors import StartError
from controlplane.models import Admin
from controlplane.protocol.enrolment import DEFAULT_PORT
from controlplane.protocol.messages import InviteCreated
from controlplane.protocol.wireguard import Endpoint

DEFAULT_DATA_DIR = "/var/lib/horizon/broker"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run the broker",
        description="Run the broker until stopped. The first run makes its keys, its certificate and its "
        "database, and prints one admin invite.",
    )
    _common(run)
    run.add_argument(
        "--listen", default=f"[::]:{DEFAULT_PORT}", metavar="ADDRESS:PORT", help="(default: %(default)s)"
    )
    run.add_argument("--tls-certificate", type=Path, help="PEM file (default: one made by the broker itself)")
    run.add_argument("--tls-key", type=Path, help="its key, PEM file")
    run.add_argument(
        "--ipv4-pool",
        type=ipaddress.IPv4Network,
        default=DEFAULT_IPV4_POOL,
        metavar="CIDR",
        help="addresses of all servers and devices, fixed at the first run (default: %(default)s)",
    )
    run.add_argument(
        "--ipv4-prefix",
        type=int,
        default=20,
        metavar="LENGTH",
        help="length of each server's subnet, fixed at the first run (default: %(default)s)",
    )
    add_json(run)
    run.add_argument("--verbose", action="store_true", help="log every request")
    run.set_defaults(handler=run_broker)
    invite = commands.add_parser(
        "invite",
        help="print a new admin invite",
        description="Print a new invite for the owner, on the broker's own machine: for a lost login.",
    )
    _common(invite)
    add_json(invite)
    invite.set_defaults(handler=print_invite)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("HORIZON_DATA_DIR", DEFAULT_DATA_DIR)),
        help="database and keys (HORIZON_DATA_DIR; default: %(default)s)",
    )
    parser.add_argument(
        "--advertise",
        metavar="HOST[:PORT]",
        default=os.environ.get("HORIZON_ADVERTISE"),
        help="where invites say the broker is (HORIZON_ADVERTISE; default: found out)",
    )
    parser.add_argument(
        "--database-url",
        default=os.environ.get("DATABASE_URL"),
        help="(DATABASE_URL; default: an embedded libSQL file in the data directory)",
    )


def run_broker(options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    listen = Endpoint.parse(options.listen, DEFAULT_PORT)
    config = BrokerConfig(
        data_dir=options.data_dir,
        listen_host=listen.host,
        listen_port=listen.port,
        advertise=_advertise(options, listen.port),
        database_url=options.database_url,
        tls_certificate=options.tls_certificate,
        tls_key=options.tls_key,
        ipv4_pool=options.ipv4_pool,
        ipv4_prefix=options.ipv4_prefix,
    )
    # The port and the directory first: nothing is made, and no invite shown, for a broker that cannot run.
    with listening_socket(listen.host, listen.port) as listening, only_broker(config.data_dir):
        broker = open_broker(config)
        with broker.database.write() as session:
            owner = ensure_owner(broker, session)
        if owner is not None:
            _show_invite(options, owner, "First run. Log in as the owner, within a day:")
        log.info("listening on %s; invites say %s", listen, broker.advertise)
        serve(broker, listening, verbose=options.verbose)
    return 0


class _Server(uvicorn.Server):
    """Uvicorn, which at the end lets go of those who wait for news instead of waiting for them."""

    def __init__(self, config: uvicorn.Config, broker: Broker) -> None:
        super().__init__(config)
        self._broker = broker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._broker.notifier.close()
        self._broker.applied.close()
        super().handle_exit(sig, frame)


def serve(broker: Broker, listening: socket.socket, verbose: bool = False) -> None:
    """Serve the API on a listening socket until a signal."""
    config = uvicorn.Config(
        create_app(broker),
        ssl_certfile=broker.certificate,
        ssl_keyfile=broker.certificate_key,
        log_level="info" if verbose else "warning",
        access_log=verbose,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    _Server(config, broker).run(sockets=[listening])


@contextmanager
def only_broker(data_dir: Path) -> Iterator[None]:
    """Keep a data directory for this process. Raises `StartError` if another broker has it."""
    try:
        ensure_private_directory(data_dir)
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"data directory {str(data_dir)!r}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StartError(
            f"a broker runs already with {str(data_dir)!r}: stop it, or give --data-dir"
        ) from None
    finally:
        os.close(descriptor)


def listening_socket(host: str, port: int) -> socket.socket:
    """A listening TCP socket; `::` takes IPv4 too, and is `0.0.0.0` where there is no IPv6."""
    dual_stack = host == "::" and socket.has_dualstack_ipv6()
    if host == "::" and not dual_stack:
        host = "0.0.0.0"  # noqa: S104  (asked for: all addresses)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, dualstack_ipv6=dual_stack, backlog=2048)
    except OSError as error:
        raise StartError(
            f"cannot listen on {Endpoint(host, port)}: {os.strerror(error.errno or 0)}; choose another "
            "with --listen"
        ) from None
    # asyncio sees a socket made here as protocol 0 and sets no TCP_NODELAY on what it accepts: an answer
    # of two segments would then wait 40 ms for a delayed acknowledgement. Linux hands this one down.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def print_invite(options: argparse.Namespace) -> int:
    broker = reopen_broker(
        BrokerConfig(
            data_dir=options.data_dir,
            advertise=_advertise(options, DEFAULT_PORT),
            database_url=options.database_url,
        )
    )
    with broker.database.write() as session:
        owner = session.exec(select(Admin).where(Admin.role == "owner")).first()
        created = (
            create_admin_key(broker, session, owner.admin_id) if owner else ensure_owner(broker, session)
        )
    broker.close()
    if created is None:
        raise CommandError("the broker has no owner and made none: is its database writable?")
    _show_invite(options, created, "Log in within a day:")
    return 0


def _show_invite(options: argparse.Namespace, created: InviteCreated, text: str) -> None:
    if options.json:
        print_json(created)
    else:
        print(f"{text}\n\n  horizon admin login '{created.invite}'\n\n{STDIN_HINT}")
    sys.stdout.flush()  # the broker runs on, and who reads a pipe waits for this


def _advertise(options: argparse.Namespace, port: int) -> Endpoint | None:
    return Endpoint.parse(options.advertise, port) if options.advertise else None
