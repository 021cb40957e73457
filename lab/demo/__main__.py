"""`python -m lab.demo`: options, prerequisites, and an end that leaves nothing (shell)."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab import lifecycle
from lab.demo import joining, outage
from lab.demo.prerequisites import lacking
from lab.demo.report import Report, complain, write_json
from lab.demo.rows import Row, Step, play
from lab.demo.stage import CLIENTS, PLAIN, SERVER, Stage
from lab.demo.tour import tour
from lab.errors import LabError, PrefixInUse
from lab.fleet import Fleet
from lab.network import Lab
from lab.snapshot import difference, machine_state
from lab.wireguard import backend

STEPS: tuple[Step[Stage], ...] = (
    Step("the broker starts", joining.start_broker, True, ("broker",)),
    Step("a server registers", joining.register_server, True, ("broker", SERVER)),
    Step("two clients join", joining.join_clients, True, ("broker", *CLIENTS)),
    Step("they connect", joining.connect, True, ("broker", SERVER, *CLIENTS)),
    Step("they ping", joining.ping_everybody, False, (SERVER, *CLIENTS)),
    Step("nobody connects back", joining.refuse_reverse, False, (SERVER, *CLIENTS)),
    Step("they send what they can", joining.measure_throughput, False, (SERVER, *CLIENTS)),
    Step("plain WireGuard gets in", joining.admit_plain_wireguard, False, ("broker", SERVER)),
    Step("the policy changes", joining.forbid_and_allow, False, ("broker", SERVER, *CLIENTS)),
    Step("the broker is killed", outage.kill_broker, False, ("broker", SERVER, *CLIENTS)),
    Step("agents are killed and restarted", outage.restart_agents, False, (SERVER, *CLIENTS)),
    Step("everything boots without the broker", outage.boot_without_broker, False, (SERVER, *CLIENTS)),
    Step("the broker returns", outage.return_broker, True, ("broker", SERVER, *CLIENTS)),
    Step("a client disconnects", outage.disconnect, False, ("broker", SERVER, "alice")),
    Step("a device is revoked", outage.revoke_device, False, ("broker", SERVER, "bob")),
)
NO_TRACE = "no trace left"

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asks for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    if problems := lacking(options.backend):
        for what, fix in problems:
            complain(f"missing: {what}; {fix}")
        return 2
    if options.json and not options.json.parent.is_dir():
        complain(f"'{options.json.parent}' is no directory: give --json another file, or make it")
        return 2
    for number in ENDING:
        signal.signal(number, _stop)
    report = Report()
    try:
        return demo(options, report)
    except PrefixInUse as error:
        complain(f"{error}, or choose another --prefix")
        return 2
    except Stopped as stopped:
        complain(f"stopped by {signal.Signals(stopped.number).name}; everything is removed")
        return 128 + stopped.number


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./just demo",
        description=f"Show Horizon at work, with real processes and real WireGuard in network namespaces of "
        f"its own: a broker, a server, two clients ({', '.join(CLIENTS)}) and a plain wg-quick client "
        f"({PLAIN}). It ends with a table of what was proven, then stays up to look around until Ctrl-C. "
        "Nothing is left behind, however it ends. Needs root.",
        epilog="Exit status with --check: 0 if every row held, 1 if not, 2 if something is missing. "
        "HORIZON_LAB_PATIENCE=SECONDS gives a slow machine more time for each wait.",
    )
    parser.add_argument("--check", action="store_true", help="run once, do not stay up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table to FILE")
    parser.add_argument(
        "--backend",
        choices=("auto", "kernel", "userspace"),
        default="auto",
        help="WireGuard in the kernel, or in user space (default: the kernel's if it has it)",
    )
    parser.add_argument(
        "--prefix",
        type=_prefix,
        default="hzdemo",
        help="of its namespaces; another one for a second demo beside the first (default: %(default)s)",
    )
    return parser.parse_args(words)


def demo(options: argparse.Namespace, report: Report) -> int:
    """Play it; the exit status."""
    Lab.cleanup(options.prefix)
    before = own_state(options.prefix)
    started = time.monotonic()
    kind = backend() if options.backend == "auto" else options.backend
    report.say(f"Horizon on WireGuard in {'the kernel' if kind == 'kernel' else 'user space'}\n")
    with Lab(options.prefix) as lab, undisturbed_end():
        stage = Stage(lab, Fleet(lab, options.backend))
        try:
            rows = play(STEPS, stage, report, stage.logs, time.monotonic)
        finally:
            report.stop()
        seconds = time.monotonic() - started
        if not options.check:
            report.table(rows, seconds)
            stay(stage, report)
    rows.append(no_trace(before, own_state(options.prefix)))
    if options.check:
        report.table(rows, time.monotonic() - started)
    else:
        report.say(f"{NO_TRACE}: {'yes' if rows[-1].ok else rows[-1].cause}")
    if options.json:
        write_json(options.json, rows, kind, seconds)
    return 0 if all(row.ok for row in rows) else 1


def stay(stage: Stage, report: Report) -> None:
    """Wait for Ctrl-C or another signal."""
    try:
        if {"alice", SERVER} <= stage.nodes.keys() & stage.inside.keys():
            report.say(tour(stage))
        report.say("Ctrl-C ends it and removes everything.")
        signal.pause()
    except Stopped:
        report.say("removing everything ...")


def own_state(prefix: str) -> dict[str, str]:
    """This machine's state, without the namespaces of other labs that run beside ours."""
    state = machine_state()
    others = {path.stem for path in lifecycle.RUN.glob("*.lock")} - {prefix}
    mine = [name for name in state["ip netns"].splitlines() if name.partition(".")[0] not in others]
    return state | {"ip netns": "\n".join(mine)}


def no_trace(before: dict[str, str], after: dict[str, str]) -> Row:
    changed = difference(before, after)
    how = "`nft list ruleset`, `ip rule`, `ip link`, `ip netns` and more, as before"
    return Row(NO_TRACE, how, len(changed.splitlines()), "changes", not changed, changed)


@contextmanager
def undisturbed_end() -> Iterator[None]:
    """From the end of this context on, signals are ignored: what follows is the removal."""
    try:
        yield
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


def _prefix(text: str) -> str:
    try:
        return lifecycle.checked(text)
    except LabError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
