"""WireGuard in the Linux kernel, by generic netlink. *Shell.*

pyroute2 opens the socket, finds the family and reads acknowledgements; `netlink` packs the peers. A
`KernelBackend` belongs to the thread that made it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, Final

from pyroute2.netlink import NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, nla_base_string
from pyroute2.netlink.generic import GenericNetlinkSocket
from pyroute2.netlink.generic.wireguard import (
    WG_CMD_GET_DEVICE,
    WG_CMD_SET_DEVICE,
    WG_GENL_NAME,
    WG_GENL_VERSION,
    wgmsg,
)

from controlplane.protocol.keys import PrivateKey, PublicKey
from dataplane.actions import PeerChange
from dataplane.errors import BackendError, NoBackend
from dataplane.links import Links, netlink_errors
from dataplane.netlink import pack_peers, unpack_peers
from dataplane.state import BackendKind, DeviceState


class _Message(wgmsg):  # type: ignore[misc]  # pyroute2 has no types
    """pyroute2's message, with the list of peers left as bytes."""

    # pyroute2 compiles the map once a class and notes so here, which a subclass would inherit together
    # with the compiled map of its parent.
    _nlmsg_base__compiled_nla = False
    nla_map = tuple(
        (name, "packed_peers" if name == "WGDEVICE_A_PEERS" else kind) for name, kind in wgmsg.nla_map
    )

    class packed_peers(nla_base_string):  # type: ignore[misc]  # noqa: N801 (named as in nla_map)
        nla_flags = NLA_F_NESTED


class KernelBackend:
    """WireGuard's netlink family."""

    kind: Final[BackendKind] = "kernel"

    def __init__(self, links: Links) -> None:
        self._links = links
        self._socket: Any = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def create(self, name: str) -> None:
        try:
            self._links.create(name, "wireguard")
        except BackendError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise NoBackend(
                    "the kernel has no WireGuard: load the module 'wireguard' (Linux 5.6 or newer)"
                ) from None
            raise

    def remove(self, name: str) -> None:
        self._links.delete(name)

    def configure(
        self,
        name: str,
        private_key: PrivateKey | None,
        listen_port: int | None,
        fwmark: int | None,
    ) -> None:
        attributes: list[tuple[str, object]] = []
        if private_key is not None:
            attributes.append(("WGDEVICE_A_PRIVATE_KEY", private_key.reveal()))
        if listen_port is not None:
            attributes.append(("WGDEVICE_A_LISTEN_PORT", listen_port))
        if fwmark is not None:
            attributes.append(("WGDEVICE_A_FWMARK", fwmark))
        self._change(name, attributes)

    def set_peers(self, name: str, changes: Sequence[PeerChange]) -> None:
        for part in pack_peers(changes):
            self._change(name, [("WGDEVICE_A_PEERS", part)])

    def observe(self, name: str) -> DeviceState | None:
        device = DeviceState()
        try:
            with netlink_errors(f"read the peers of {name!r}"):
                answers = self._request(WG_CMD_GET_DEVICE, name, [], NLM_F_REQUEST | NLM_F_DUMP)
        except BackendError as error:
            if error.errno in {errno.ENODEV, errno.EOPNOTSUPP}:
                return None
            raise
        for answer in answers:
            for attribute, value in answer["attrs"]:
                match attribute:
                    case "WGDEVICE_A_PUBLIC_KEY":
                        device.public_key = PublicKey.parse(value.decode())
                    case "WGDEVICE_A_LISTEN_PORT":
                        device.listen_port = value
                    case "WGDEVICE_A_FWMARK":
                        device.fwmark = value
                    case "WGDEVICE_A_PEERS":
                        unpack_peers(value, device.peers)
        return device

    def _change(self, name: str, attributes: list[tuple[str, object]]) -> None:
        with netlink_errors(f"change WireGuard interface {name!r}"):
            self._request(WG_CMD_SET_DEVICE, name, attributes, NLM_F_REQUEST | NLM_F_ACK)

    def _request(
        self, command: int, name: str, attributes: list[tuple[str, object]], flags: int
    ) -> list[Any]:
        if self._socket is None:
            opened = GenericNetlinkSocket()
            opened.bind(WG_GENL_NAME, _Message)
            self._socket = opened
        message = _Message()
        message["cmd"] = command
        message["version"] = WG_GENL_VERSION
        message["attrs"] = [["WGDEVICE_A_IFNAME", name], *map(list, attributes)]
        return list(self._socket.nlm_request(message, msg_type=self._socket.prid, msg_flags=flags))
