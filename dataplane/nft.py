"""Our nftables table on the host: put in place, look, remove. *Shell.*

The table's comment holds two digests: of the text it was made from, and of how `nft` lists it. A rule
deleted or a set flushed by hand changes the second, so an altered table is seen as such.
"""

from __future__ import annotations

import re
import subprocess

from dataplane.errors import BackendError, NotPermitted
from dataplane.firewall import digest, render, table_name, text_digest
from dataplane.state import FirewallSpec

_COMMENT = re.compile(r'^\tcomment "horizon (\w+) ?(\w*)"\n', re.MULTILINE)


def replace(spec: FirewallSpec) -> None:
    """Put the table in place in one transaction; packets meet the old or the new one."""
    text = digest(spec)
    _nft("-f", "-", script=render(spec, f"horizon {text}"))
    listed = _list(spec.interface)
    # How nft words it is known only now; the same rules once more, with the complete comment.
    _nft("-f", "-", script=render(spec, f"horizon {text} {_listing_digest(listed or '')}"))


def observe(interface: str) -> str | None:
    """The digest of the table's text: None without a table, `""` if it was altered."""
    listed = _list(interface)
    if listed is None:
        return None
    comment = _COMMENT.search(listed)
    if comment is None or comment[2] != _listing_digest(listed):
        return ""
    return comment[1]


def remove(interface: str) -> None:
    """Remove the table, if it is there."""
    table = f"table inet {table_name(interface)}"
    _nft("-f", "-", script=f"{table}\ndelete {table}\n")


def _list(interface: str) -> str | None:
    # By one listing of names first: to list a table that lacks is an error like any other.
    name = table_name(interface)
    if f"table inet {name}" not in _nft("list", "tables", "inet").splitlines():
        return None
    return _nft("--stateless", "list", "table", "inet", name)


def _listing_digest(listed: str) -> str:
    return text_digest(_COMMENT.sub("", listed))


def _nft(*arguments: str, script: str | None = None) -> str:
    try:
        done = subprocess.run(
            ["nft", *arguments], input=script, capture_output=True, text=True, check=False, timeout=30
        )
    except FileNotFoundError:
        raise BackendError("there is no 'nft' command: install the package 'nftables'") from None
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    if "Operation not permitted" in done.stderr:
        raise NotPermitted("change the firewall (nftables)")
    raise BackendError(f"nft refused: {said[0]}")
