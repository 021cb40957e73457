import pytest

from lab import (
    CommandFailed,
    Lab,
    LabError,
    Pinger,
    Site,
    first_reply,
    ping,
    reaches,
    throughput,
)
from lab.commands import ip

pytestmark = pytest.mark.netns

LATER = "192.0.2.200"
"""An address nobody has until a test gives it to the server."""


@pytest.fixture
def later(server: Site, lab: Lab) -> str:
    ip([f"route replace {LATER} via {server.ipv4}"], lab.internet.namespace)
    return LATER


def test_no_answer_is_a_result_and_no_route_an_error(lab: Lab, alice: Site, later: str) -> None:
    result = ping(alice, later, count=2, timeout=0.2)
    assert (result.sent, result.received, result.rtt) == (2, 0, None)
    with pytest.raises(CommandFailed, match=r"ping .* 10\.1\.2\.3' .* Network is unreachable"):
        ping(lab.internet, "10.1.2.3")
    assert not reaches(lab.internet, "10.1.2.3")


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_pinger_on_a_good_link_loses_nothing(alice: Site, server: Site, family: str) -> None:
    with Pinger(alice, getattr(server, family), interval=0.01) as pinger:
        with pytest.raises(LabError, match="going on"):
            _ = pinger.report
        ping(alice, server.ipv4, count=20, interval=0.02)
    report = pinger.report
    assert report.lost == 0
    assert report.sent >= 20
    assert 0.01 <= report.longest_gap < 0.3
    assert report.rtt is not None
    assert report.rtt.max < 300
    assert pinger.stop() == report


def test_a_pinger_that_cannot_start_says_why(alice: Site) -> None:
    with pytest.raises(LabError, match=r"(?s)broke off: .*'nonsense' does not appear"):
        Pinger(alice, "nonsense").__enter__()


def test_first_reply_is_timed_from_the_event(alice: Site, server: Site, later: str) -> None:
    def appear() -> None:
        with pytest.raises(LabError):
            server.spawn(["sleep", "60"]).wait(0.2)
        ip([f"address add {later}/32 dev lo"], server.namespace)

    try:
        seconds = first_reply(alice, later, 10, after=appear)
    finally:
        ip([f"address delete {later}/32 dev lo"], server.namespace)
    assert 0.2 <= seconds < 1.0


def test_first_reply_refuses_what_answers_already(alice: Site, server: Site) -> None:
    with (
        Pinger(alice, server.ipv4),
        pytest.raises(LabError, match="before there was anything to wait for"),
    ):
        first_reply(alice, server.ipv4, 10, after=lambda: ping(alice, server.ipv4))


def test_first_reply_is_bounded(alice: Site, later: str) -> None:
    with pytest.raises(LabError, match="no 'first' within"):
        first_reply(alice, later, 0.2, after=lambda: None)


def test_throughput(alice: Site, server: Site) -> None:
    for address in (server.ipv4, server.ipv6):
        assert throughput(alice, server, address, seconds=1) > 10e6


def test_throughput_says_why_not(alice: Site, server: Site, later: str) -> None:
    with pytest.raises(CommandFailed, match="unable to connect"):
        throughput(alice, server, "203.0.113.250", seconds=1)
