import struct

from lab.echo import Tally, checksum

MS = 1_000_000


def test_all_answered() -> None:
    tally = Tally()
    for now in (0, 20, 40):
        number = tally.send(now * MS)
        assert tally.receive(number, (now + 5) * MS)
    assert tally.report() == {
        "sent": 3,
        "received": 3,
        "longest_gap": 20 * MS,
        "round_trips": [5 * MS] * 3,
    }


def test_an_outage_is_the_gap_between_replies() -> None:
    tally = Tally()
    for now in range(0, 100, 20):
        number = tally.send(now * MS)
        if now not in (40, 60):
            tally.receive(number, (now + 1) * MS)
    report = tally.report()
    assert (report["sent"], report["received"]) == (5, 3)
    assert report["longest_gap"] == 60 * MS


def test_silence_at_either_end_counts() -> None:
    never = Tally()
    for now in (10, 20, 30):
        never.send(now * MS)
    assert never.report()["longest_gap"] == 20 * MS

    late = Tally()
    late.send(0)
    late.receive(late.send(50 * MS), 51 * MS)
    assert late.report()["longest_gap"] == 51 * MS

    broken = Tally()
    broken.receive(broken.send(0), 1 * MS)
    broken.send(20 * MS)
    broken.send(40 * MS)
    assert broken.report()["longest_gap"] == 39 * MS


def test_a_reply_counts_once_and_only_if_asked_for() -> None:
    tally = Tally()
    number = tally.send(0)
    assert tally.receive(number, MS)
    assert not tally.receive(number, 2 * MS)
    assert not tally.receive(number + 1, 2 * MS)
    assert tally.report()["received"] == 1


def test_nothing_sent() -> None:
    assert Tally().report() == {"sent": 0, "received": 0, "longest_gap": 0, "round_trips": []}


def test_checksum() -> None:
    # The worked example of RFC 1071, section 3: the sum is ddf2.
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum(data) == 0xDDF2 ^ 0xFFFF
    assert checksum(data + struct.pack("!H", checksum(data))) == 0
