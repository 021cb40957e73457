"""`horizon admin login`, and the login it keeps. *Shell.*

The identity is written before the invite is redeemed, beside the login file, and used again if no answer
came: the broker then gives the answer that was lost, and the invite's one use is not gone for nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
from pathlib import Path
from typing import Any

from controlplane.client.broker import AdminClient, BrokerAddress, Signer
from controlplane.client.console import CommandError, print_json
from controlplane.client.files import ensure_private_directory, write_private
from controlplane.protocol.enrolment import Invite, InviteKind
from controlplane.protocol.errors import ProblemError
from controlplane.protocol.keys import IdentityKey
from controlplane.protocol.messages import LoginRequest, LoginResponse


def login(options: argparse.Namespace) -> int:
    """Redeem an admin invite and keep the login."""
    invite = Invite.parse(input() if options.invite == "-" else options.invite, InviteKind.admin)
    path: Path = options.login_file
    if not options.force:
        _check_other(path, invite)
    ensure_private_directory(path.parent)
    unfinished = path.with_name(path.name + ".unfinished")
    identity = _identity(unfinished, invite.pin)
    again = identity is not None
    if identity is None:
        identity = IdentityKey.generate()
        content = {"pin": invite.pin, "identity": identity.reveal()}
        write_private(unfinished, json.dumps(content) + "\n")
    try:
        answer = asyncio.run(_redeem(invite, identity))
    except ProblemError as error:
        if not again or error.code == "revoked":  # else a former answer may still be asked for
            unfinished.unlink()
        raise
    content = {
        "url": invite.url,
        "pin": invite.pin,
        "identity": identity.reveal(),
        "admin_id": answer.admin_id,
        "username": answer.username,
    }
    write_private(path, json.dumps(content, indent=1) + "\n")
    unfinished.unlink()
    if options.json:
        print_json(answer)
    else:
        print(f"logged in to {invite.url} as {answer.username}")
    return 0


def stored_login(path: Path) -> tuple[BrokerAddress, Signer]:
    """Where the broker is and who signs. Raises `CommandError`, which tells the way in."""
    try:
        stored = json.loads(path.read_text())
        address = BrokerAddress(stored["url"], stored["pin"])
        return address, Signer(IdentityKey.parse(stored["identity"]), stored["admin_id"])
    except FileNotFoundError:
        raise CommandError(
            "not logged in: `horizon admin login INVITE`; on the broker's own machine "
            "`horizon broker invite` prints one"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"{str(path)!r} is damaged: log in again with a new invite") from None


def _check_other(path: Path, invite: Invite) -> None:
    """Refuse to lose the login of another broker; the pin tells brokers apart, as its address may change."""
    stored = _read(path)
    if "admin_id" in stored and stored.get("pin") != invite.pin:
        raise CommandError(
            f"{str(path)!r} is the login of another broker, {stored.get('url')}: keep both with another "
            "--login-file, or give --force to lose it"
        )


def _identity(unfinished: Path, pin: str) -> IdentityKey | None:
    """The identity of a login to the broker of `pin` whose answer was lost."""
    stored = _read(unfinished)
    try:
        return IdentityKey.parse(stored["identity"]) if stored.get("pin") == pin else None
    except (ValueError, KeyError, TypeError):
        return None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none that can be read as such."""
    try:
        stored = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


async def _redeem(invite: Invite, identity: IdentityKey) -> LoginResponse:
    machine = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:63].lstrip("._-") or "machine"
    async with AdminClient(BrokerAddress.of(invite), Signer.enrolling(identity)) as client:
        return await client.login(
            LoginRequest(admin_key=invite.key, identity=identity.public_key, machine=machine)
        )
