"""From rows to netmaps: what a server or a device is told. *Use cases*; the building itself is pure.

`server_update` and `device_update` read only the rows that changed after the revision asked for, found
by index, so a change costs O(change). A snapshot is given to who holds nothing, or less than what is
remembered of removals.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from sqlmodel import Session, col, select

from controlplane.broker import Broker
from controlplane.ipam import SERVER_HOST, Subnet
from controlplane.models import Device, Peer, PersonalKey, Server
from controlplane.protocol.envelope import Signed, seal
from controlplane.protocol.keys import PublicKey
from controlplane.protocol.netmap import NETMAP_CONTEXT, NetMapInterface, NetMapPeer, NetMapUpdate
from controlplane.protocol.wireguard import DEFAULT_MTU, PERSISTENT_KEEPALIVE, Endpoint


def server_update(broker: Broker, session: Session, server: Server, since: int | None) -> Signed | None:
    """What changed for a server after revision `since`, signed; None if nothing did."""
    since = _usable(since, server.revision, server.pruned_revision)
    if since == server.revision:
        return None
    rows = session.exec(
        select(Peer, Device)
        .join(Device, col(Device.device_id) == col(Peer.device_id))
        .where(
            Peer.server_id == server.server_id, col(Peer.server_revision) > (-1 if since is None else since)
        )
    ).all()
    update = NetMapUpdate(
        subject=server.server_id,
        since=since,
        revision=server.revision,
        issued_at=broker.now(),
        interface=server_interface(broker, server),
        peers=tuple(device_peer(peer, device) for peer, device in rows if peer.removed_at is None),
        removed=tuple(
            peer.device_id for peer, _ in rows if since is not None and peer.removed_at is not None
        ),
    )
    return seal(update, NETMAP_CONTEXT, broker.signing_key)


def device_update(broker: Broker, session: Session, device: Device, since: int | None) -> Signed | None:
    """What changed for a device after revision `since`, signed; None if nothing did."""
    since = _usable(since, device.revision, device.pruned_revision)
    if since == device.revision:
        return None
    rows = session.exec(
        select(Peer, Server)
        .join(Server, col(Server.server_id) == col(Peer.server_id))
        .where(Peer.device_id == device.device_id)
    ).all()
    live = [(peer, server) for peer, server in rows if peer.removed_at is None]
    update = NetMapUpdate(
        subject=device.device_id,
        since=since,
        revision=device.revision,
        issued_at=broker.now(),
        interface=NetMapInterface(
            addresses=tuple(
                interface
                for peer, server in live
                for interface in broker.pools.subnet(server.subnet).interfaces(peer.host)
            ),
            mtu=min((server.mtu for _, server in live), default=DEFAULT_MTU),
        ),
        peers=tuple(
            server_peer(broker, peer, server)
            for peer, server in live
            if since is None or peer.device_revision > since
        ),
        removed=tuple(
            peer.server_id
            for peer, _ in rows
            if since is not None and peer.removed_at is not None and peer.device_revision > since
        ),
    )
    return seal(update, NETMAP_CONTEXT, broker.signing_key)


def _usable(since: int | None, revision: int, pruned: int) -> int | None:
    """`since`, unless a change cannot be told from there on."""
    return since if since is not None and pruned <= since <= revision else None


def server_interface(broker: Broker, server: Server) -> NetMapInterface:
    return NetMapInterface(
        addresses=broker.pools.subnet(server.subnet).interfaces(SERVER_HOST),
        listen_port=server.listen_port,
        mtu=server.mtu,
        client_to_client=server.client_to_client,
    )


def device_peer(peer: Peer, device: Device) -> NetMapPeer:
    """A device as its server's peer: it may send from its own two addresses only."""
    addresses = ip_address(peer.ipv4), ip_address(peer.ipv6)
    return NetMapPeer(
        peer_id=device.device_id,
        name=device.device_name,
        public_key=PublicKey.parse(device.public_key),
        addresses=addresses,
        allowed_ips=tuple(ip_network(address) for address in addresses),
        authorized_until=peer.authorized_until,
        connection_id=peer.connection_id,
    )


def server_peer(broker: Broker, peer: Peer, server: Server) -> NetMapPeer:
    """A server as its device's peer: the server's subnets are behind it."""
    subnet = broker.pools.subnet(server.subnet)
    return NetMapPeer(
        peer_id=server.server_id,
        name=server.hostname,
        public_key=PublicKey.parse(server.public_key),
        addresses=subnet.addresses(SERVER_HOST),
        allowed_ips=_networks(subnet),
        endpoint=Endpoint(server.endpoint_host, server.listen_port),
        persistent_keepalive=PERSISTENT_KEEPALIVE,
        authorized_until=peer.authorized_until,
        accept_from=_networks(subnet) if server.client_to_client else (),
        connection_id=peer.connection_id,
    )


def _networks(subnet: Subnet) -> tuple[IPv4Network, IPv6Network]:
    return subnet.ipv4, subnet.ipv6


def authorized_until(broker: Broker, key: PersonalKey, lifetime: timedelta) -> datetime:
    """Until when a device of `key` may come back without the broker; never longer than the key holds."""
    lease = broker.now() + lifetime
    return lease if key.expiration_date is None else min(lease, key.expiration_date)


def renewal_due(broker: Broker, peer: Peer, key: PersonalKey) -> bool:
    """Whether half of an authorisation is gone and asking again would prolong it."""
    half = broker.config.authorization / 2
    prolonged = authorized_until(broker, key, broker.config.authorization)
    return peer.authorized_until - broker.now() < half and prolonged - peer.authorized_until > timedelta(
        minutes=1
    )
