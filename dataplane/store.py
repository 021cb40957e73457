"""What an agent keeps on disk: who it is, and the netmap it was given. *Shell.*

    STATE_DIR/agent.json      keys and enrolment; mode 0600, replaced atomically
    STATE_DIR/netmap.jsonl    the signed updates since the last snapshot, one a line
    STATE_DIR/ended.json      connections ended here that the broker has not heard of yet

The netmap is kept as it was signed and verified again when it is read, so a changed file is noticed; a
change is appended, so it costs O(change). What is damaged is put aside under another name and built
anew: the netmap from the broker; lost keys only by joining again, which is what the error says.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from controlplane.client.broker import BrokerAddress, Signer
from controlplane.client.files import ensure_private_directory, put_aside, write_private
from controlplane.protocol.envelope import Signed, unseal
from controlplane.protocol.errors import EnvelopeError, NetMapError, ProtocolError
from controlplane.protocol.keys import IdentityKey, IdentityPublicKey, PrivateKey
from controlplane.protocol.netmap import NETMAP_CONTEXT, NetMap, NetMapUpdate, apply_update
from dataplane.errors import AlreadyRunning, DataplaneError, NotPermitted, StoreError

log = logging.getLogger(__name__)
INTERFACE_LOCKS = Path("/run/horizon")
COMPACT_AFTER = 1000
"""Changes kept before a snapshot is asked for, to make the file short again."""


class NotJoined(DataplaneError):
    """There is no enrolment here, or it is damaged."""

    code = "not-joined"


class Damaged(NotJoined):
    """The enrolment cannot be understood; its file was put aside, so joining anew goes on."""


@dataclass(frozen=True, slots=True)
class AgentState:
    """An agent's identity and enrolment."""

    identity: IdentityKey
    private_key: PrivateKey
    broker: BrokerAddress
    interface: str
    backend: str
    """auto, kernel or userspace."""
    listen_port: int = 0
    agent_id: str = ""
    """The server's or device's id; empty until the broker has answered."""
    name: str = ""
    broker_key: IdentityPublicKey | None = None
    verification_secret: str = field(default="", repr=False)

    @property
    def joined(self) -> bool:
        return bool(self.agent_id) and self.broker_key is not None

    @property
    def signer(self) -> Signer:
        return Signer(self.identity, self.agent_id)


class Store:
    """The files of one agent; see the module."""

    def __init__(self, directory: Path, role: str) -> None:
        self.directory = directory
        self.role = role
        """server or client: names the command that errors point to."""
        self.state_path = directory / "agent.json"
        self.netmap_path = directory / "netmap.jsonl"
        self.ended_path = directory / "ended.json"
        self._lines = 0
        self._locks: list[int] = []
        self._whole = True
        """Whether the netmap's file ends where a change can be appended."""

    def lock(self, interface: str) -> None:
        """Keep the directory and the interface name for this process. Raises `AlreadyRunning`."""
        ensure_private_directory(self.directory)
        otherwise = (
            f"an agent runs already with {str(self.directory)!r}: stop it, or give this one a --state-dir "
            "of its own"
        )
        self._locks.append(hold(self.directory / "lock", otherwise))
        self._locks.append(hold_interface(interface))

    def unlock(self) -> None:
        """Let others have them."""
        while self._locks:
            os.close(self._locks.pop())

    def load(self) -> AgentState:
        """The enrolment. Raises `NotJoined`."""
        state = self.peek()
        if state is None or not state.joined:
            raise NotJoined(f"this machine has not joined a broker: `horizon {self.role} join INVITE`")
        return state

    def peek(self) -> AgentState | None:
        """The enrolment, also a begun one; None if there is none.

        Raises `Damaged` for a file that cannot be understood, after putting it aside.
        """
        try:
            return _decode(json.loads(self.state_path.read_text()))
        except FileNotFoundError:
            return None
        except PermissionError:
            raise NotJoined(f"{str(self.state_path)!r} may not be read: run as root") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            aside = put_aside(self.state_path)
            raise Damaged(
                f"{str(self.state_path)!r} is damaged ({type(error).__name__}; kept as {aside.name!r}) "
                f"and its keys are lost: join again with a new invite, `horizon {self.role} join INVITE`"
            ) from None

    def save(self, state: AgentState) -> None:
        ensure_private_directory(self.directory)
        write_private(self.state_path, json.dumps(_encode(state), indent=1) + "\n")

    def forget(self) -> None:
        """Drop the netmap: another broker's, or from before joining anew."""
        self.netmap_path.unlink(missing_ok=True)
        self.ended_path.unlink(missing_ok=True)

    # --- the netmap -------------------------------------------------------------------------

    def load_netmap(self, state: AgentState) -> NetMap | None:
        """The netmap as last saved, verified; None if there is none that holds.

        A half-written last line is dropped. Anything else wrong puts the file aside.
        """
        try:
            text = self.netmap_path.read_text()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            self._damaged(error)
            return None
        *lines, rest = text.split("\n")
        netmap: NetMap | None = None
        try:
            for line in lines:
                netmap = apply_update(netmap, open_update(Signed.model_validate_json(line), state))
        except (ProtocolError, ValidationError) as error:
            self._damaged(error)
            return None
        if rest:
            log.warning("%s ends in a half-written line: dropped", self.netmap_path)
            self._cut_to(lines)
        self._lines = len(lines)
        return netmap

    def _cut_to(self, lines: list[str]) -> None:
        """Write the whole lines alone; if that cannot be, a snapshot will make the file whole."""
        try:
            write_private(self.netmap_path, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            log.warning("%s cannot be written: %s", self.netmap_path, error.strerror)
            self._whole = False

    def save_update(self, signed: Signed, snapshot: bool) -> None:
        """Keep an update that was applied: a snapshot replaces the file, a change is appended.

        Behind half a line nothing is appended: the next snapshot makes the file whole. Raises
        `StoreError`.
        """
        line = signed.model_dump_json() + "\n"
        try:
            if snapshot:
                write_private(self.netmap_path, line)
                self._lines, self._whole = 1, True
            elif self._whole:
                self._whole = False
                with open(self.netmap_path, "a", opener=_private) as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                self._lines, self._whole = self._lines + 1, True
        except OSError as error:
            raise StoreError(f"{str(self.netmap_path)!r} cannot be written: {error.strerror}") from None

    @property
    def wants_snapshot(self) -> bool:
        """Whether the file should be made anew: it is long, or ends in half a line."""
        return self._lines > COMPACT_AFTER or not self._whole

    def load_ended(self) -> set[str]:
        """Ids of connections that the user ended while the broker was away."""
        try:
            return {str(connection_id) for connection_id in json.loads(self.ended_path.read_text())}
        except FileNotFoundError:
            return set()
        except (ValueError, TypeError) as error:
            log.error(
                "%s is damaged (%s): put aside as %s", self.ended_path, error, put_aside(self.ended_path)
            )
            return set()

    def save_ended(self, connection_ids: set[str]) -> None:
        try:
            write_private(self.ended_path, json.dumps(sorted(connection_ids)) + "\n")
        except OSError as error:
            raise StoreError(f"{str(self.ended_path)!r} cannot be written: {error.strerror}") from None

    def _damaged(self, error: Exception) -> None:
        aside = put_aside(self.netmap_path)
        reason = str(error).splitlines()[0]
        log.error("the saved netmap is damaged (%s): kept as %s, asking the broker anew", reason, aside)


def open_update(signed: Signed, state: AgentState) -> NetMapUpdate:
    """The update in an envelope, if our broker signed it for us."""
    if state.broker_key is None:
        raise EnvelopeError("this machine has not joined a broker whose netmap it could trust")
    update = unseal(signed, NETMAP_CONTEXT, NetMapUpdate, trusted=state.broker_key)
    if update.subject != state.agent_id:
        raise NetMapError(f"the netmap is for {update.subject!r}, and this is {state.agent_id!r}")
    return update


def hold_interface(name: str, directory: Path = INTERFACE_LOCKS) -> int:
    """Keep an interface name of this network namespace; see `hold`."""
    namespace = os.stat("/proc/self/ns/net").st_ino
    return hold(
        directory / f"{name}-{namespace}.lock",
        f"another agent runs interface {name!r}: choose another with --interface, or stop that agent",
    )


def hold(path: Path, otherwise: str) -> int:
    """Lock a file until its descriptor, which is given back, is closed or this process ends.

    Raises `AlreadyRunning` with `otherwise`, or `NotPermitted`.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError:
        raise NotPermitted(f"write {str(path)!r}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunning(otherwise) from None
    return descriptor


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _encode(state: AgentState) -> dict[str, Any]:
    return {
        "identity": state.identity.reveal(),
        "private_key": state.private_key.reveal(),
        "broker": asdict(state.broker),
        "broker_key": str(state.broker_key) if state.broker_key else None,
        "interface": state.interface,
        "backend": state.backend,
        "listen_port": state.listen_port,
        "agent_id": state.agent_id,
        "name": state.name,
        "verification_secret": state.verification_secret,
    }


def _decode(data: dict[str, Any]) -> AgentState:
    broker_key = data.pop("broker_key")
    state = AgentState(
        identity=IdentityKey.parse(data.pop("identity")),
        private_key=PrivateKey.parse(data.pop("private_key")),
        broker=BrokerAddress(**data.pop("broker")),
        **data,
    )
    return replace(state, broker_key=IdentityPublicKey.parse(broker_key) if broker_key else None)
