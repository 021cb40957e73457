"""What a lab must leave as it was: this machine's own links, rules and namespaces (shell).

>>> before = machine_state()
>>> with Lab("demo") as lab: ...
>>> assert difference(before, machine_state()) == ""
"""

import json
from collections import Counter

from lab.commands import run

COMMANDS = {
    "nft list ruleset": ["nft", "--stateless", "list", "ruleset"],
    "ip link": ["ip", "-br", "link"],
    "ip address": ["ip", "-br", "address"],
    "ip rule": ["ip", "rule"],
    "ip -6 rule": ["ip", "-6", "rule"],
    "ip route": ["ip", "route", "show", "table", "all"],
}


def machine_state() -> dict[str, str]:
    """What each command says, by a short name; packet counters left out."""
    state = {name: run(argv).stdout for name, argv in COMMANDS.items()}
    # Not the plain list: it also numbers the namespaces that netlink has met, which is no change.
    listed = json.loads(run(["ip", "-json", "netns", "list"]).stdout or "[]")
    return state | {"ip netns": "".join(f"{one['name']}\n" for one in listed)}


def difference(before: dict[str, str], after: dict[str, str]) -> str:
    """The lines that went (`-`) and came (`+`), each after the command that shows it; '' for none."""
    changed = []
    for name in before | after:
        old, new = (Counter(state.get(name, "").splitlines()) for state in (before, after))
        changed += [f"{name}: -{line}" for line in (old - new).elements()]
        changed += [f"{name}: +{line}" for line in (new - old).elements()]
    return "\n".join(changed)
