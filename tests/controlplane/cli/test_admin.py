"""`horizon admin` against a broker behind real TLS: each command as text and as JSON."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.admin import duration
from controlplane.client.broker import AdminClient
from controlplane.protocol.enrolment import EnrolmentKey, Invite, InviteKind
from controlplane.protocol.errors import BrokerUnreachable
from controlplane.protocol.messages import LoginRequest, LoginResponse
from horizon import main
from tests.harness.broker import Harness

Run = Callable[..., Any]
Meanwhile = Callable[[Coroutine[Any, Any, object]], None]

LISTS = {
    "registration-key": {"key_id", "status", "uses", "max_uses", "created_at", "expires_at", "notes"},
    "personal-key": {
        "key_id",
        "user_name",
        "user_email",
        "status",
        "created_at",
        "expires_at",
        "devices",
        "notes",
    },
    "machine": {"machine_id", "name", "username", "status", "created_at"},
    "device": {
        "device_id",
        "name",
        "platform",
        "user_name",
        "status",
        "public_key",
        "agent",
        "first_seen",
        "last_seen",
    },
    "server": {"server_id", "name", "status", "online", "endpoint", "addresses", "client_to_client"},
    "connection": {"connection_id", "server_name", "device_name", "user_name", "status", "addresses"},
}


# --- the login ----------------------------------------------------------------------------------


def test_a_login_is_kept_in_a_private_file(login_file: Path) -> None:
    assert login_file.stat().st_mode & 0o777 == 0o600
    assert login_file.parent.stat().st_mode & 0o777 == 0o700
    content = json.loads(login_file.read_text())
    assert set(content) == {"url", "pin", "identity", "admin_id", "username"}
    assert content["username"] == "owner"


def test_an_invite_may_come_from_stdin(
    broker: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that it is in no shell history or process list."""
    invite = broker.broker.invite(broker.admin_key())
    monkeypatch.setattr("sys.stdin", io.StringIO(invite.reveal() + "\n"))
    monkeypatch.setenv("HORIZON_ADMIN_LOGIN", str(tmp_path / "admin.json"))
    assert main(["admin", "login", "-"]) == 0
    assert capsys.readouterr().out == f"logged in to {invite.url} as owner\n"
    assert main(["admin", "server", "list", "--json"]) == 0


def test_a_used_invite_leaves_no_login(
    broker: Harness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invite = broker.broker.invite(broker.admin_key()).reveal()
    assert main(["admin", "--login-file", str(tmp_path / "first.json"), "login", invite]) == 0
    assert main(["admin", "--login-file", str(tmp_path / "second.json"), "login", invite, "--json"]) == 1
    error = json.loads(capsys.readouterr().err)
    assert error["error"] == "used-key"
    assert "ask for a new invite" in error["detail"]
    assert not (tmp_path / "second.json").exists()


def test_an_invite_for_somebody_else_is_refused_before_it_is_sent(
    broker: Harness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invite = broker.broker.invite(EnrolmentKey.generate(InviteKind.device))
    assert main(["admin", "--login-file", str(tmp_path / "x.json"), "login", invite.reveal(), "--json"]) == 1
    error = json.loads(capsys.readouterr().err)
    assert error["error"] == "malformed-invite"
    assert "`horizon client join` takes it" in error["detail"]
    assert invite.key.secret not in error["detail"]


def test_another_brokers_pin_is_not_trusted(
    broker: Harness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = broker.admin_key()
    wrong = Invite(broker.broker.advertise.host, broker.broker.advertise.port, "A" * 43, key)
    assert main(["admin", "--login-file", str(tmp_path / "x.json"), "login", wrong.reveal()]) == 1
    assert "nothing was sent" in capsys.readouterr().err
    right = broker.broker.invite(key).reveal()
    assert main(["admin", "--login-file", str(tmp_path / "x.json"), "login", right]) == 0


def test_an_invite_whose_answer_was_lost_is_good_still(
    broker: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, invite = tmp_path / "admin.json", broker.broker.invite(broker.admin_key()).reveal()
    words = ["admin", "--login-file", str(path), "login", invite]
    redeem = AdminClient.login

    async def lose(client: AdminClient, request: LoginRequest) -> LoginResponse:
        await redeem(client, request)
        raise BrokerUnreachable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(AdminClient, "login", lose)
        assert main(words) == 1
    assert not path.exists()
    (unfinished,) = tmp_path.iterdir()
    assert unfinished.stat().st_mode & 0o777 == 0o600
    assert main(words) == 0
    assert list(tmp_path.iterdir()) == [path]
    assert main(["admin", "--login-file", str(path), "server", "list", "--json"]) == 0
    assert main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["error"] == "used-key"
    assert list(tmp_path.iterdir()) == [path], "what was there is kept, and nothing beside it"
    assert main(["admin", "--login-file", str(path), "server", "list", "--json"]) == 0


def test_the_login_of_another_broker_is_not_lost(
    broker: Harness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "admin.json"
    other = {"url": "https://other.example:8443", "pin": "A" * 43, "admin_id": "adm_1", "username": "owner"}
    path.write_text(json.dumps(other))
    invite = broker.broker.invite(broker.admin_key()).reveal()
    words = ["admin", "--login-file", str(path), "login", invite]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "is the login of another broker, https://other.example:8443" in said
    assert "--force" in said
    assert json.loads(path.read_text()) == other
    assert main([*words, "--force"]) == 0
    again = broker.broker.invite(broker.admin_key()).reveal()
    assert main(["admin", "--login-file", str(path), "login", again]) == 0, "the same broker's is renewed"


def test_a_machine_is_listed_and_revoked(
    broker: Harness, admin: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, invite = tmp_path / "admin.json", broker.broker.invite(broker.admin_key()).reveal()
    assert main(["admin", "--login-file", str(path), "login", invite]) == 0
    machine = json.loads(path.read_text())["admin_id"]
    assert machine in admin("machine", "list")
    assert admin("machine", "revoke", machine) == f"machine {machine} revoked\n"
    (row,) = [row for row in admin("machine", "list", "--json") if row["machine_id"] == machine]
    assert row["status"] == "revoked"
    assert main(["admin", "--login-file", str(path), "machine", "list", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["error"] == "revoked"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not logged in: `horizon admin login INVITE`"),
        ("", "is damaged: log in again with a new invite"),
        ("{}", "is damaged: log in again with a new invite"),
        ("[]", "is damaged: log in again with a new invite"),
        ('{"url": "https://x", "pin": "p", "identity": "swordfish", "admin_id": "a"}', "is damaged"),
    ],
)
def test_without_a_login_the_way_in_is_told(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "admin.json"
    if content is not None:
        path.write_text(content)
    assert main(["admin", "--login-file", str(path), "server", "list", "--json"]) == 1
    error = json.loads(capsys.readouterr().err)
    assert message in error["detail"]
    assert "swordfish" not in error["detail"]


def test_a_broker_that_does_not_answer_is_named(
    login_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(login_file.read_text())
    content["url"] = "https://127.0.0.1:1"
    (tmp_path / "admin.json").write_text(json.dumps(content))
    assert main(["admin", "--login-file", str(tmp_path / "admin.json"), "server", "list"]) == 1
    assert "no answer from the broker at https://127.0.0.1:1" in capsys.readouterr().err


# --- every command ------------------------------------------------------------------------------


@pytest.mark.usefixtures("fra1")
@pytest.mark.parametrize("noun", sorted(LISTS))
def test_lists_are_json_and_tables(admin: Run, noun: str) -> None:
    admin("registration-key", "create", "--json")
    rows = admin(noun, "list", "--json")
    assert rows
    assert all(set(row) >= LISTS[noun] for row in rows)
    heading, *lines = admin(noun, "list").splitlines()
    assert len(lines) == len(rows)
    assert heading == heading.upper()


@pytest.mark.usefixtures("fra1")
def test_a_table_says_what_is_there(admin: Run) -> None:
    (line,) = [line for line in admin("server", "list").splitlines() if "fra1" in line]
    assert line.split()[:4] == ["fra1", "active", "yes", "fra1.example:51820"]
    (line,) = [line for line in admin("connection", "list").splitlines() if "laptop" in line]
    assert line.split()[:4] == ["alice", "laptop", "fra1", "intent"]


def test_a_registration_key_is_made_used_and_revoked(admin: Run, broker: Harness) -> None:
    created = admin(
        "registration-key", "create", "--uses", "3", "--expires", "7d", "--notes", "rack 4", "--json"
    )
    invite = Invite.parse(created["invite"], InviteKind.server)
    assert invite.pin == broker.broker.pin
    (row,) = [
        row for row in admin("registration-key", "list", "--json") if row["key_id"] == created["key_id"]
    ]
    assert (row["max_uses"], row["notes"], row["status"]) == (3, "rack 4", "active")
    answer = admin("registration-key", "revoke", created["key_id"], "--json")
    assert answer == {"done": f"registration key {created['key_id']} revoked"}
    (row,) = [
        row for row in admin("registration-key", "list", "--json") if row["key_id"] == created["key_id"]
    ]
    assert row["status"] == "revoked"


def test_an_invite_is_printed_with_the_command_that_takes_it(admin: Run) -> None:
    out = admin("registration-key", "create")
    assert "Invite, shown this once (until " in out
    assert out.splitlines()[-1].startswith("(With - in place of the invite it is read from stdin")
    assert "\n  horizon server join 'horizon://127.0.0.1:" in out
    out = admin("personal-key", "create", "dave")
    assert "Invite, shown this once:\n\n  horizon client join 'horizon://127.0.0.1:" in out


def test_a_user_is_made_and_revoked(admin: Run) -> None:
    created = admin(
        "personal-key", "create", "bob", "--email", "bob@example.org", "--expires", "30d", "--json"
    )
    Invite.parse(created["invite"], InviteKind.device)
    (row,) = [row for row in admin("personal-key", "list", "--json") if row["user_name"] == "bob"]
    assert (row["user_email"], row["status"]) == ("bob@example.org", "active")
    assert admin("personal-key", "revoke", created["key_id"]) == (
        f"personal key {created['key_id']} and its devices revoked\n"
    )


def test_a_server_is_changed_and_revoked(
    admin: Run, fails: Run, broker: Harness, meanwhile: Meanwhile
) -> None:
    meanwhile(broker.server("ams1"))
    changed = admin(
        "server", "set", "ams1", "--no-client-to-client", "--endpoint-host", "ams1.example", "--json"
    )
    assert (changed["client_to_client"], changed["endpoint"]) == (False, "ams1.example:51820")
    assert admin("server", "set", "ams1", "--client-to-client") == "server ams1 changed\n"
    assert "nothing to change: give --client-to-client" in fails("server", "set", "ams1")
    assert admin("server", "revoke", "ams1", "--json") == {"done": "server ams1 revoked"}
    assert "ams1" not in [row["name"] for row in admin("server", "list", "--json")]
    assert "ams1" in [row["name"] for row in admin("server", "list", "--all", "--json")]


def test_a_connection_is_ended_and_a_device_revoked(
    admin: Run, broker: Harness, fra1: str, meanwhile: Meanwhile
) -> None:
    async def connect() -> None:
        await (await broker.device("carol", "phone")).connect(fra1)

    meanwhile(connect())
    (row,) = [row for row in admin("connection", "list", "--json") if row["user_name"] == "carol"]
    admin("connection", "end", row["connection_id"], "--json")
    assert "carol" not in [row["user_name"] for row in admin("connection", "list", "--json")]
    assert "carol" in [row["user_name"] for row in admin("connection", "list", "--all", "--json")]
    assert admin("device", "revoke", row["device_id"]) == f"device {row['device_id']} revoked\n"
    assert row["device_id"] not in [one["device_id"] for one in admin("device", "list", "--json")]
    assert row["device_id"] in [one["device_id"] for one in admin("device", "list", "--all", "--json")]


@pytest.mark.parametrize(
    ("words", "quoted"),
    [
        (["registration-key", "revoke", "abc"], "'abc'"),
        (["personal-key", "revoke", "abc"], "'abc'"),
        (["device", "revoke", "abc"], "'abc'"),
        (["server", "revoke", "abc"], "'abc'"),
        (["server", "set", "abc", "--client-to-client"], "'abc'"),
        (["connection", "end", "abc"], "'abc'"),
    ],
)
def test_what_is_not_there_is_an_error_as_text_and_as_json(fails: Run, words: list[str], quoted: str) -> None:
    error = fails(*words, "--json")
    assert set(error) == {"error", "detail"}
    assert error["error"] == "not-found"
    assert quoted in error["detail"]
    assert fails(*words) == f"horizon: {error['detail']}\n"


@pytest.mark.parametrize(
    "words", [["device", "revoke", ".."], ["server", "revoke", "a/b"], ["connection", "end", "?x"]]
)
def test_an_id_cannot_lead_to_another_route(fails: Run, words: list[str]) -> None:
    assert fails(*words, "--json")["error"] in {"not-found", "no-such-route"}


@pytest.mark.parametrize(
    "words", [["personal-key", "create", "al ice"], ["registration-key", "create", "--uses", "0"]]
)
def test_a_value_that_cannot_be_is_an_error_and_no_traceback(fails: Run, words: list[str]) -> None:
    error = fails(*words, "--json")
    assert words[-1] in error["detail"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86400), (" 7d ", 604800), ("2w", 1209600)]
)
def test_durations(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "1y", "1d1h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a duration: write 30m, 24h or 7d"):
        duration(text)
