"""Sets many peers and one more, as Horizon does and as `wg` does, and times it. *Shell.*

    python -m tests.bench.peers '{"kind": "userspace", "peers": 10000, "sizes": [10, 1000, 10000], …}'

Run by `reconcile` on a host of its own: the interfaces are made in the namespaces of this process. It
writes `{figure: [seconds, …]}` as JSON. `wg` is timed as a command, as it is used; Horizon in a process
that runs already, as an agent does.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from pathlib import Path
from typing import Literal

from controlplane.protocol.keys import PrivateKey, PublicKey
from controlplane.protocol.wireguard import InterfaceSpec, PeerSpec
from dataplane.host import Host
from dataplane.reconcile import HostLike, Reconciler
from dataplane.state import Desired, PeerState, ServerFirewall
from lab.commands import ip, run, wait_for
from tests.bench.rows import interleave
from tests.fake_kernel import FakeKernel

Kind = Literal["fake", "kernel", "userspace"]
BY_HAND = "wg0"
PRIVATE_KEY = PrivateKey(hashlib.sha256(b"the interface").digest())


@dataclass(frozen=True, slots=True)
class Job:
    """What to measure."""

    kind: Kind
    peers: int
    """Set from nothing, in `rounds` rounds."""
    rounds: int
    sizes: tuple[int, ...]
    """Peers there are when one more is added, `adds` times; by `wg syncconf`, `rounds` times."""
    adds: int


class FakeHost(FakeKernel):
    """The fake kernel as the reconcile loop takes it."""

    def peers(self, name: str) -> Mapping[PublicKey, PeerState]:
        interface = self.observe(name).interface
        return interface.peers if interface else {}

    def close(self) -> None:
        """There is nothing to close."""


def main() -> None:
    fields = json.loads(sys.argv[1])
    job = Job(**{**fields, "sizes": tuple(fields["sizes"])})
    with tempfile.TemporaryDirectory() as directory:
        json.dump(measure(job, Path(directory)), sys.stdout)


def measure(job: Job, directory: Path) -> dict[str, list[float]]:
    """Seconds, by figure: `nothing`, `setconf`, `syncconf`; for each size N `add N`, and in rounds of
    their own `add beside N` and `syncconf N`."""
    figures: dict[str, Callable[[], float]] = {"nothing": lambda: from_nothing(job)}
    if job.kind != "fake":
        config = write_config(directory / "all.conf", job.peers)
        for command in ("setconf", "syncconf"):
            figures[command] = lambda command=command: by_hand(job, command, config)  # type: ignore[misc]
    found = interleave(job.rounds, *figures.values())
    taken = {name: list(samples.values) for name, samples in zip(figures, found, strict=True)}

    adders = {size: Adder(job.kind, index, size) for index, size in enumerate(job.sizes)}
    try:
        found = interleave(job.adds, *(adder.add for adder in adders.values()))
        taken |= {f"add {size}": list(s.values) for size, s in zip(adders, found, strict=True)}
        if job.kind != "fake":
            pairs = [m for adder in adders.values() for m in (adder.add, adder.sync_with(directory))]
            found = interleave(job.rounds, *pairs)
            names = [name for size in adders for name in (f"add beside {size}", f"syncconf {size}")]
            taken |= {name: list(s.values) for name, s in zip(names, found, strict=True)}
    finally:
        for adder in adders.values():
            adder.close()
    return taken


def from_nothing(job: Job) -> float:
    """Observe, plan and apply a whole server of Horizon, its interface and firewall too."""
    reconciler = Reconciler(make_host(job.kind), "hzbench", time.time)
    desired = desire("hzbench", 0, job.peers)
    try:
        started = time.perf_counter()
        reconciler.reconcile(lambda peers, now: desired)
        taken = time.perf_counter() - started
        check(len(reconciler.observe_peers()), job.peers)
    finally:
        reconciler.reconcile(lambda peers, now: Desired())
        reconciler.close()
    return taken


def by_hand(job: Job, command: str, config: Path) -> float:
    """`wg setconf` or `wg syncconf` of a file, on an interface that is up and has no peer yet."""
    if job.kind == "kernel":
        ip([f"link add {BY_HAND} type wireguard"])
    else:
        run(["wireguard-go", BY_HAND])
    try:
        ip([f"address add 10.64.0.1/16 dev {BY_HAND}", f"link set {BY_HAND} mtu 1380 up"])
        taken = timed_wg(command, BY_HAND, config)
        check(len(run(["wg", "show", BY_HAND, "peers"]).stdout.split()), job.peers)
    finally:
        ip([f"link delete {BY_HAND}"])
        # The daemon ends after its interface is gone, and takes its socket with it.
        sock = Path(f"/var/run/wireguard/{BY_HAND}.sock")
        with suppress(FileNotFoundError):
            wait_for(lambda: not sock.exists(), 30, f"the end of the daemon of {BY_HAND}")
    return taken


class Adder:
    """An interface of Horizon's with `size` peers, to which one is added again and again."""

    def __init__(self, kind: Kind, index: int, size: int) -> None:
        self.name, self.index, self.size = f"hzbench{index}", index, size
        self._extra = peer(index, size)
        self._reconciler = Reconciler(make_host(kind), self.name, time.time)
        desired = desire(self.name, index, size)
        self._reconciler.reconcile(lambda peers, now: desired)
        # As an agent does after it made something anew.
        self._reconciler.observe()

    def add(self) -> float:
        """Add a peer, timed, and take it away again."""
        started = time.perf_counter()
        self._reconciler.reconcile_peers({self._extra.public_key: self._extra})
        taken = time.perf_counter() - started
        check(self._reconciler.reconcile_peers({self._extra.public_key: None}), 1)
        return taken

    def sync_with(self, directory: Path) -> Callable[[], float]:
        """The same change by `wg syncconf` of the whole file, timed, and back."""
        before = write_config(directory / f"{self.size}.conf", self.size, self.index)
        after = write_config(directory / f"{self.size}-more.conf", self.size + 1, self.index)

        def sync() -> float:
            taken = timed_wg("syncconf", self.name, after)
            check(len(self._reconciler.observe_peers()), self.size + 1)
            timed_wg("syncconf", self.name, before)
            return taken

        return sync

    def close(self) -> None:
        self._reconciler.reconcile(lambda peers, now: Desired())
        self._reconciler.close()


def make_host(kind: Kind) -> HostLike:
    return FakeHost() if kind == "fake" else Host(kind)


def desire(name: str, index: int, size: int) -> Desired:
    """A server with `size` devices, each with an IPv4 and an IPv6 address, as the broker gives them."""
    specs = [peer(index, number) for number in range(size)]
    interface = InterfaceSpec(
        name=name,
        private_key=PRIVATE_KEY,
        addresses=frozenset({IPv4Interface(f"10.{64 + index}.0.1/16"), IPv6Interface(f"fd00:{index}::1/64")}),
        listen_port=51820 + index,
        peers={spec.public_key: spec for spec in specs},
    )
    return Desired(interface, ServerFirewall(name))


def peer(index: int, number: int) -> PeerSpec:
    """The device with this number, always with the same key."""
    host = number + 2
    ipv4, ipv6 = f"10.{64 + index}.{host >> 8}.{host & 255}/32", f"fd00:{index}::{host:x}/128"
    key = PublicKey(hashlib.sha256(b"peer %d" % number).digest())
    return PeerSpec(key, frozenset({ip_network(ipv4), ip_network(ipv6)}))


def write_config(path: Path, size: int, index: int = 0) -> Path:
    """The same interface as a file for `wg setconf`."""
    lines = ["[Interface]", f"PrivateKey = {PRIVATE_KEY.reveal()}", f"ListenPort = {51820 + index}"]
    for spec in (peer(index, number) for number in range(size)):
        allowed_ips = ", ".join(map(str, spec.allowed_ips))
        lines += ["[Peer]", f"PublicKey = {spec.public_key}", f"AllowedIPs = {allowed_ips}"]
    path.touch(mode=0o600)
    path.write_text("\n".join(lines) + "\n")
    return path


def timed_wg(command: str, interface: str, config: Path) -> float:
    started = time.perf_counter()
    run(["wg", command, interface, str(config)], timeout=120)
    return time.perf_counter() - started


def check(found: int, expected: int) -> None:
    """A figure of work that was not done is worth nothing."""
    if found != expected:
        raise RuntimeError(f"{found} peers or actions where {expected} were expected")


if __name__ == "__main__":
    main()
