"""A broker behind real TLS on loopback, served by uvicorn in a thread: for what speaks to an address."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from controlplane.app import create_app
from controlplane.broker import open_broker
from controlplane.cli.broker import listening_socket
from controlplane.config import BrokerConfig
from controlplane.protocol.wireguard import Endpoint
from tests.harness.broker import Harness, cheap_hasher
from tests.harness.waiting import block_until


@contextmanager
def tls_broker(directory: Path) -> Iterator[Harness]:
    """A broker that listens; the system's clock, as its clients in other processes have it."""
    with listening_socket("127.0.0.1", 0) as listening:
        advertise = Endpoint("127.0.0.1", listening.getsockname()[1])
        broker = open_broker(BrokerConfig(data_dir=directory, advertise=advertise, connect_wait=0.0))
        broker.hasher = cheap_hasher()
        config = uvicorn.Config(
            create_app(broker),
            ssl_certfile=broker.certificate,
            ssl_keyfile=broker.certificate_key,
            log_config=None,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            block_until(lambda: server.started)
            yield Harness(broker, time.time)
        finally:
            server.should_exit = True
            thread.join(10)
