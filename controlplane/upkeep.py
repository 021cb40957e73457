"""What the broker does by itself: ends connections that lapsed, forgets old heartbeats. *Shell.*

One task while the application lives. It begins some time after the start: devices renew by asking for
their netmaps, and after a long outage none could.
"""

from __future__ import annotations

import asyncio
import logging

from fastapi.concurrency import run_in_threadpool

from controlplane.broker import Broker
from controlplane.connections import end_lapsed
from controlplane.servers import prune_heartbeats

log = logging.getLogger(__name__)
SETTLE = 120.0
"""Seconds after the start, in which every agent that runs has asked again."""
INTERVAL = 10.0


async def keep(broker: Broker) -> None:
    """Do what is due each `INTERVAL` seconds, until cancelled; a failure is logged and tried again."""
    await asyncio.sleep(SETTLE)
    while True:
        try:
            await run_in_threadpool(do_what_is_due, broker)
        except Exception:
            log.exception("the broker's upkeep failed; it is tried again in %.0f s", INTERVAL)
        await asyncio.sleep(INTERVAL)


def do_what_is_due(broker: Broker) -> None:
    """By the broker's clock."""
    with broker.database.write() as session:
        ended = end_lapsed(broker, session)
        prune_heartbeats(broker, session)
    if ended:
        log.info("ended %d connections whose authorisation ran out", ended)
