import io
import json
from pathlib import Path

from lab.demo.report import Report, measured, write_json
from lab.demo.rows import Row

GOOD = Row("connected: alice", "timed [bold]", 139, "ms", True)
BAD = Row("they ping", "-", None, "", False, "no route", "--- alice\nlast words")


def report() -> tuple[Report, io.StringIO]:
    file = io.StringIO()
    return Report(file), file


def test_steps_are_plain_lines_where_nobody_watches() -> None:
    shown, file = report()
    shown.begin("they connect")
    assert file.getvalue() == ""
    shown.end("they connect", [GOOD, GOOD], 1.25)
    shown.begin("they ping")
    shown.end("they ping", [GOOD, BAD], 0.5)
    first, second = file.getvalue().splitlines()
    assert first.split() == ["✓", "they", "connect", "1.2", "s", "139", "ms,", "139", "ms"]
    assert second.split() == ["✗", "they", "ping", "0.5", "s", "FAILED"]
    assert "\x1b" not in file.getvalue()


def test_the_table_ends_with_why_a_row_did_not_hold() -> None:
    shown, file = report()
    shown.table([GOOD, BAD], 61.4)
    text = file.getvalue()
    (line,) = [line for line in text.splitlines() if "connected: alice" in line]
    assert line.split() == ["connected:", "alice", "timed", "[bold]", "139", "ms", "yes"]
    assert "✗ they ping: no route\n--- alice\nlast words\n" in text
    assert text.endswith("1 of 2 held, in 61 s\n")


def test_a_row_that_measured_too_much_names_what_it_saw() -> None:
    shown, file = report()
    shown.table([Row("nothing lost", "38 of 40 answered", 2, "lost", False)], 1)
    assert "✗ nothing lost: 38 of 40 answered" in file.getvalue()


def test_measured() -> None:
    assert [measured(row) for row in (GOOD, BAD)] == ["139 ms", "-"]
    assert measured(Row("same address", "", "10.64.0.2", "", True)) == "10.64.0.2"


def test_json_has_the_table_and_what_it_rests_on(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_json(path, [GOOD, BAD], "userspace", 12.345)
    written = json.loads(path.read_text())
    assert written["ok"] is False
    assert (written["backend"], written["seconds"]) == ("userspace", 12.3)
    assert written["rows"][0] == {
        "name": "connected: alice",
        "how": "timed [bold]",
        "value": 139,
        "unit": "ms",
        "ok": True,
    }
    assert written["rows"][1]["cause"] == "no route"
    assert {"horizon", "python", "kernel", "wireguard-tools", "wireguard-go"} <= written["versions"].keys()
    write_json(path, [GOOD], "kernel", 1)
    assert json.loads(path.read_text())["ok"] is True
