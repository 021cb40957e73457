"""What the pure part costs to import."""

from __future__ import annotations

import subprocess
import sys


def test_planning_needs_neither_netlink_nor_an_event_loop() -> None:
    code = (
        "import sys, dataplane.plan, dataplane.actions, dataplane.state, dataplane.firewall\n"
        "print(*{'pyroute2', 'asyncio', 'subprocess'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
