"""Our nftables table on the host: put in place, look, remove. *Shell.*

The table's comment holds a digest of the text it was made from and, once it is sealed, one of how `nft`
lists it. A rule deleted or a set flushed by hand changes the second, so an altered table is seen as
such. Sealing waits until the table is looked at: nobody's connection waits for it.
"""

from __future__ import annotations

import re

from dataplane.errors import BackendError, NotPermitted
from dataplane.firewall import digest, render, table_name, text_digest
from dataplane.libnftables import run_commands
from dataplane.state import FirewallSpec

_COMMENT = re.compile(r'^\tcomment "horizon (\w+) ?(\w*)"\n', re.MULTILINE)


def replace(spec: FirewallSpec) -> None:
    """Put the table in place in one transaction; packets meet the old or the new one."""
    _nft(render(spec, f"horizon {digest(spec)}"))


def seal(spec: FirewallSpec) -> None:
    """Note in the table, as it is now, how `nft` words it; known only once it is there."""
    listed = _list(spec.interface)
    comment = _COMMENT.search(listed or "")
    if listed and comment and comment[1] == digest(spec):
        sealed = f"horizon {comment[1]} {_listing_digest(listed)}"
        _nft(render(spec, sealed))


def observe(interface: str) -> str | None:
    """The digest of the table's text: None without a table, `""` if it was altered."""
    listed = _list(interface)
    if listed is None:
        return None
    comment = _COMMENT.search(listed)
    if comment is None or comment[2] not in {"", _listing_digest(listed)}:
        return ""
    return comment[1]


def remove(interface: str) -> None:
    """Remove the table, if it is there."""
    table = f"table inet {table_name(interface)}"
    _nft(f"{table}\ndelete {table}\n")


def _list(interface: str) -> str | None:
    try:
        return _nft(f"list table inet {table_name(interface)}")
    except BackendError as error:
        if "No such file or directory" in error.message:
            return None
        raise


def _listing_digest(listed: str) -> str:
    return text_digest(_COMMENT.sub("", listed))


def _nft(commands: str) -> str:
    """What `nft` answers to these commands, which are one transaction."""
    try:
        status, output, error = run_commands(commands)
    except OSError:
        raise BackendError("there is no libnftables: install the package 'nftables'") from None
    if status == 0:
        return output
    said = error.strip().splitlines() or [f"status {status}"]
    if "Operation not permitted" in error:
        raise NotPermitted("change the firewall (nftables)")
    raise BackendError(f"nft refused: {said[0]}")
