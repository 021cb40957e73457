"""The contract between broker, agents, bridge and UI: keys, messages, signatures, netmaps.

A leaf: it imports the standard library, pydantic, PyNaCl and the RFC 9421 library, and does no I/O.
Import the modules by name (`from controlplane.protocol.keys import PublicKey`).
"""
