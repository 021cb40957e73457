import os

import pytest

from lab import require_netns
from lab.commands import run
from lab.snapshot import difference, machine_state


def test_difference_names_what_came_and_went() -> None:
    before = {"ip rule": "0: local\n1: main\n", "ip link": "lo\n"}
    after = {"ip rule": "0: local\n2: other\n", "ip link": "lo\n"}
    assert difference(before, before) == ""
    assert difference(before, after) == "ip rule: -1: main\nip rule: +2: other"
    assert difference(after, before | {"new": "x"}).endswith("new: +x")


def test_difference_ignores_order_and_shows_dashes() -> None:
    assert difference({"a": "1\n2\n"}, {"a": "2\n1\n"}) == ""
    assert difference({"a": ""}, {"a": "-- x\n++ y\n"}) == "a: +-- x\na: +++ y"


@pytest.mark.netns
def test_a_change_is_seen() -> None:
    require_netns()
    before, name = machine_state(), f"hzsnap-{os.getpid()}"
    run(["ip", "netns", "add", name])
    try:
        assert f"ip netns: +{name}" in difference(before, machine_state())
    finally:
        run(["ip", "netns", "delete", name])
    assert name not in difference(before, machine_state())
