import json
import os
import signal
from pathlib import Path

import pytest

from lab import CommandFailed, Lab, LabError, Site
from lab.commands import wait_for
from lab.hosts import processes

pytestmark = pytest.mark.netns


def test_a_host_sees_its_own_network_and_our_files(server: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("seen")
    assert server.run(["cat", str(tmp_path / "file")]).stdout == "seen"
    assert server.run(["pwd"]).stdout.strip() == os.getcwd()
    shown = server.run(["ls", "/sys/class/net"]).stdout.split()
    links = json.loads(server.run(["ip", "-json", "link"]).stdout)
    assert sorted(shown) == sorted(link["ifname"] for link in links)
    assert {"eth0", "lo"} <= set(shown)
    assert server.run(["ping", "-c", "1", "-W", "1", "127.0.0.1"]).returncode == 0


def test_private_directories_are_private(server: Site, alice: Site) -> None:
    for directory in ("/run/horizon", "/run/wireguard", "/var/run/wireguard"):
        server.run(["touch", f"{directory}/mine"])
        assert "mine" in server.run(["ls", directory]).stdout
        assert "mine" not in alice.run(["ls", directory]).stdout
        assert not Path(directory, "mine").exists()
    assert (server.directory / "private" / "run-horizon" / "mine").exists()


def test_a_host_forwards_nothing_unless_told(server: Site) -> None:
    assert server.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "0\n"
    assert server.run(["cat", "/proc/sys/net/ipv6/conf/all/forwarding"]).stdout == "0\n"


def test_errors_quote_what_was_run(server: Site) -> None:
    with pytest.raises(CommandFailed, match=r"'ls /nowhere' ended with status 2: .*/nowhere"):
        server.run(["ls", "/nowhere"])


def test_a_process_lives_and_ends_as_told(server: Site) -> None:
    process = server.spawn(["sh", "-c", "echo $WORD; exec sleep 60"], env={"WORD": "up"})
    wait_for(lambda: process.log_text() == "up\n", 10, "the process")
    assert process.alive()
    assert process.pid in processes(server.namespace)
    assert process.log.parent == server.directory / "logs"
    process.kill()
    assert not process.alive()
    assert process.wait(1) == -signal.SIGKILL


def test_terminate_asks_first_and_kills_the_deaf(server: Site) -> None:
    polite = server.spawn(["sh", "-c", "trap 'exit 7' TERM; echo up; sleep 60 & wait"])
    deaf = server.spawn(["sh", "-c", "trap '' TERM; echo up; sleep 60"])
    for process in (polite, deaf):
        wait_for(process.log_text, 10, repr(process))
    assert polite.terminate(timeout=10) == 7
    with pytest.raises(LabError, match=r"sleep 60.* did not end within 0.05 s; it wrote:\nup"):
        deaf.wait(0.05)
    assert deaf.terminate(timeout=0.05) == -signal.SIGKILL


def test_names_are_taken_once(lab: Lab, server: Site) -> None:
    with pytest.raises(LabError, match="network 'server' already"):
        lab.site("server")
    with pytest.raises(LabError, match="host 'server' already"):
        lab.join("server", server.network)
    with pytest.raises(LabError, match=r"'no\.dots' is no name"):
        lab.site("no.dots")
