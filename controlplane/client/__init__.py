"""Clients of the broker's API (`broker`, `admin`) and of an agent's local socket (`agent`)."""
