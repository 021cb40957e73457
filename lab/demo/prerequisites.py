"""What this machine lacks for the demo, and what to do about it (shell)."""

from __future__ import annotations

from lab.requirements import missing
from lab.wireguard import backend

PACKAGES = {
    "ip": "iproute2",
    "iperf3": "iperf3",
    "mount": "mount",
    "nft": "nftables",
    "nsenter": "util-linux",
    "ping": "iputils-ping",
    "ss": "iproute2",
    "sysctl": "procps",
    "tc": "iproute2",
    "unshare": "util-linux",
    "wg": "wireguard-tools",
    "wg-quick": "wireguard-tools",
    "wireguard-go": "wireguard-go",
}
"""The Debian package that has a command."""

FIXES = {
    "root": "run it as root: `sudo ./just demo`",
    "/dev/net/tun": "`modprobe tun`; in a container: `--device /dev/net/tun`",
    "the right to make namespaces (CAP_SYS_ADMIN)": "in a container: `--privileged`",
}


def lacking(kind: str) -> list[tuple[str, str]]:
    """What is missing for a backend (auto, kernel, userspace), each with its fix."""
    commands = ["iperf3", "sysctl", "wg-quick", *(["wireguard-go"] if kind == "userspace" else [])]
    problems = [(what, _fix(what)) for what in missing(*commands)]
    if not problems and kind == "kernel" and backend() != "kernel":
        fix = "`modprobe wireguard` (Linux 5.6 or newer), or choose `--backend userspace`"
        problems.append(("WireGuard in the kernel", fix))
    return problems


def _fix(what: str) -> str:
    command = what.removeprefix("command '").removesuffix("'")
    if package := PACKAGES.get(command):
        return f"`apt-get install {package}`, or `./just demo` as root, which does it"
    return FIXES.get(what, "`modprobe wireguard`, or `apt-get install wireguard-go`")
