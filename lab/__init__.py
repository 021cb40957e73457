"""A small internet on one machine: for the demo, the tests and the benchmarks; not shipped.

    server            alice              bob           namespaces: hztest-1.server, .alice, .bob
      |eth0             |eth0              |eth0
      |192.0.2.2        |198.51.100.2      |10.255.2.2, 2001:db8:3:1::2
      |2001:db8:1::2    |2001:db8:2::2   [lan] bob-nat: masquerade, nothing in unasked
      |                 |                  |203.0.113.2
    [net0]            [net1]             [net2]        bridges, .1 and ::1 on each
      +--------------- internet -----------+           namespace: hztest-1.internet

Each host is a network namespace with private `/run/wireguard` and `/run/horizon` (`lab.hosts`);
`lab.network` joins them, `lab.traffic` measures, `lab.wireguard` makes the tunnel to compare with,
`lab.lifecycle` removes it all, `lab.snapshot` proves that. Needs root: see `missing`.

>>> with Lab("hztest-1") as lab:
...     server, bob = lab.site("server"), lab.site("bob", nat=True)
...     assert ping(bob, server.ipv4).lost == 0
"""

from lab.errors import CommandFailed, CommandTimedOut, LabError, PrefixInUse
from lab.hosts import Host, Process
from lab.network import Lab, Network, Site
from lab.requirements import missing, require_netns
from lab.traffic import Pinger, PingReport, PingResult, first_reply, ping, reaches, throughput

__all__ = [
    "CommandFailed",
    "CommandTimedOut",
    "Host",
    "Lab",
    "LabError",
    "Network",
    "PingReport",
    "PingResult",
    "Pinger",
    "PrefixInUse",
    "Process",
    "Site",
    "first_reply",
    "missing",
    "ping",
    "reaches",
    "require_netns",
    "throughput",
]
