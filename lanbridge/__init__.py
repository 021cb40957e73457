"""The LAN bridge: broadcast, multicast and discovery, which WireGuard cannot carry. Not built yet."""
