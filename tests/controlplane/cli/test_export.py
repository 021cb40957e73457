"""`horizon admin export`: what is written where, with which mode, and that the private key stays here."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import segno

from controlplane.protocol.keys import PrivateKey, PublicKey
from controlplane.wgconf import parse
from horizon import main
from tests.harness.broker import Harness

Run = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("fra1")
WANTED = ("export", "--user", "alice", "--server", "fra1")


def device_keys(admin: Run) -> set[str]:
    return {row["public_key"] for row in admin("device", "list", "--json")}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exports go to the current directory unless told otherwise."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_private_file_named_after_the_server(admin: Run, here: Path) -> None:
    out = admin(*WANTED)
    path = here / "fra1.conf"
    assert out.startswith("wrote fra1.conf: use it with `wg-quick up ./fra1.conf`\n")
    assert "server fra1 has not acknowledged the peer yet: is its agent running?" in out
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in here.iterdir()] == ["fra1.conf"]


def test_the_file_is_all_that_wg_quick_needs(admin: Run, broker: Harness, here: Path) -> None:
    admin(*WANTED, "--name", "router", "--output", str(here / "home.conf"))
    config = parse((here / "home.conf").read_text())
    (server,) = [row for row in admin("server", "list", "--json") if row["name"] == "fra1"]
    (peer,) = config.peers
    assert peer.public_key == PublicKey.parse(server["public_key"])
    assert str(peer.endpoint) == "fra1.example:51820"
    assert peer.persistent_keepalive == 25
    assert ip_network("10.64.0.0/20") in peer.allowed_ips
    assert {interface.network for interface in config.addresses} == peer.allowed_ips
    assert config.names == {peer.public_key: "fra1"}
    (device,) = [row for row in admin("device", "list", "--json") if row["name"] == "router"]
    assert str(config.private_key.public_key) == device["public_key"]
    assert config.inbound is not None
    assert set(config.inbound.accept_from) == peer.allowed_ips
    assert ip_address("10.64.0.1") in config.inbound.never_from
    assert config.private_key.reveal() not in str(broker.dump())


def test_the_plain_form_has_no_hooks(admin: Run, here: Path) -> None:
    admin(*WANTED, "--plain", "--output", "phone.conf")
    text = (here / "phone.conf").read_text()
    assert "PostUp" not in text
    assert "PreDown" not in text
    assert parse(text).inbound is None


def test_to_stdout_goes_the_configuration_and_nothing_else(admin: Run, here: Path) -> None:
    config = parse(admin(*WANTED, "--output", "-"))
    assert str(config.private_key.public_key) in device_keys(admin)
    assert list(here.iterdir()) == []


def test_json_tells_where_but_not_the_key(admin: Run, here: Path) -> None:
    answer = admin(*WANTED, "--output", "phone.conf", "--qr", "--json")
    assert set(answer) == {"device_id", "server", "addresses", "in_place", "file", "qr"}
    assert (answer["server"], answer["in_place"]) == ("fra1", False)
    assert (answer["file"], answer["qr"]) == ("phone.conf", "phone.png")
    config = parse((here / "phone.conf").read_text())
    assert [str(interface) for interface in config.addresses] == answer["addresses"]
    assert config.private_key.reveal() not in str(answer)


def test_what_exists_is_not_overwritten_and_no_peer_is_made(admin: Run, fails: Run, here: Path) -> None:
    (here / "fra1.conf").write_text("mine")
    before = device_keys(admin)
    assert fails(*WANTED) == "horizon: 'fra1.conf' exists: give another --output, or remove it\n"
    assert (here / "fra1.conf").read_text() == "mine"
    assert device_keys(admin) == before


def test_an_image_that_exists_is_not_overwritten_either(admin: Run, fails: Run, here: Path) -> None:
    (here / "phone.png").write_text("mine")
    before = device_keys(admin)
    assert "'phone.png' exists" in fails(*WANTED, "--output", "phone.conf", "--qr")
    assert (here / "phone.png").read_text() == "mine"
    assert not (here / "phone.conf").exists()
    assert "'x.png' is where --qr writes the image" in fails(*WANTED, "--output", "x.png", "--qr")
    assert device_keys(admin) == before


def test_what_cannot_be_written_is_refused_before_a_peer_is_made(admin: Run, fails: Run) -> None:
    before = device_keys(admin)
    assert "'nowhere' is not a directory that may be written" in fails(*WANTED, "--output", "nowhere/x.conf")
    assert "both want stdout: give a file" in fails(*WANTED, "--output", "-", "--json")["detail"]
    assert device_keys(admin) == before


def test_refusals_leave_no_file(fails: Run, here: Path) -> None:
    error = fails("export", "--user", "nobody", "--server", "fra1", "--json")
    assert error["error"] == "not-found"
    assert "no active user 'nobody'" in error["detail"]
    assert fails("export", "--user", "alice", "--server", "par1", "--json")["error"] == "not-found"
    assert list(here.iterdir()) == []


# --- QR codes -----------------------------------------------------------------------------------


def modules(png: bytes, scale: int, border: int) -> list[list[int]]:
    """The dark (1) and light (0) modules of a QR code, read from the pixels of a PNG (ISO 15948)
    of one sample of 1 bit."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    data, position, width, height = b"", 8, 0, 0
    while position < len(png):
        length, kind = struct.unpack(">I4s", png[position : position + 8])
        body = png[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
            assert (depth, colour) == (1, 0), "1 bit of grey"
        elif kind == b"IDAT":
            data += body
        position += 12 + length
    raw, stride = zlib.decompress(data), (width + 7) // 8 + 1
    rows = []
    for top in range(border * scale, height - border * scale, scale):
        line = raw[top * stride : (top + 1) * stride]
        assert line[0] == 0, "rows without a filter"
        bits = [1 - (line[1 + x // 8] >> (7 - x % 8) & 1) for x in range(width)]
        rows.append(bits[border * scale : width - border * scale : scale])
    return rows


def test_the_image_shows_the_plain_form(admin: Run, here: Path) -> None:
    out = admin(*WANTED, "--plain", "--qr", "--output", "phone.conf")
    image = here / "phone.png"
    assert "wrote phone.png: the same for a phone" in out
    assert image.stat().st_mode & 0o777 == 0o600
    expected = segno.make((here / "phone.conf").read_text(), error="l", micro=False)
    assert modules(image.read_bytes(), scale=6, border=4) == [list(row) for row in expected.matrix]
    assert out.count("█") + out.count("▀") + out.count("▄") > 500, "it is shown in the terminal too"


def test_the_image_of_a_file_with_hooks_has_none(admin: Run, here: Path) -> None:
    admin(*WANTED, "--qr", "--output", "laptop.conf")
    text = (here / "laptop.conf").read_text()
    plain = "\n".join(line for line in text.splitlines() if not line.startswith(("PostUp", "PreDown"))) + "\n"
    expected = segno.make(plain, error="l", micro=False)
    assert modules((here / "laptop.png").read_bytes(), 6, 4) == [list(row) for row in expected.matrix]


@pytest.mark.skipif(shutil.which("zbarimg") is None, reason="needs zbarimg; its modules are compared above")
def test_a_camera_reads_the_plain_form(admin: Run, here: Path) -> None:
    admin(*WANTED, "--plain", "--qr", "--output", "phone.conf")
    done = subprocess.run(
        ["zbarimg", "--quiet", "--raw", "-Sbinary", "phone.png"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (here / "phone.conf").read_text().strip()


def test_to_stdout_the_qr_code_goes_to_stderr(
    login_file: Path, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    capsys.readouterr()
    assert main(["admin", "--login-file", str(login_file), *WANTED, "--output", "-", "--qr"]) == 0
    captured = capsys.readouterr()
    private_key = parse(captured.out).private_key
    assert isinstance(private_key, PrivateKey)
    assert captured.err.count("█") > 100
    assert list(here.iterdir()) == []
