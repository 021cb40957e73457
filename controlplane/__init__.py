"""The control plane: who may reach what, decided once and handed out as signed netmaps.

    cli ─▶ app ─▶ routes ─▶ use cases ─▶ {netmap, db, watch} ─▶ {ipam, auth, wgconf} ─▶ models ─▶ errors
                                                   client ─▶ protocol (leaf)

`protocol` is the contract that every other package may import, and `client` speaks it; the rest is the
broker's own. Nothing here imports a consumer. This module stays empty of imports, so that a command
line pays only for what it uses.
"""
