"""The one command, `horizon`: a thin dispatcher to the roles. *Shell.*

Each role's module is imported only when it is asked for, so a server node needs nothing of the broker;
and here nothing is imported at the top, because a person waits for `horizon client connect`.
"""

import sys

ROLES = {
    "broker": ("controlplane.cli.broker", "the broker: hands out keys and netmaps"),
    "admin": ("controlplane.cli.admin", "administer a broker: keys, users, servers, exports"),
    "server": ("dataplane.cli.server", "the server agent: others reach this machine"),
    "client": ("dataplane.cli.client", "the client agent: this machine reaches servers"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run `horizon ROLE …` and give the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:2] == ["client", "connect"]:
        from controlplane.client.ahead import send_connect

        send_connect(words[2:])
    if words and words[0] in ROLES:
        return _run(words[0], words[1:])
    import argparse

    parser = argparse.ArgumentParser(
        prog="horizon",
        description="Self-hosted WireGuard orchestration: VPN and LAN between people, run by you.",
        epilog="`horizon ROLE --help` tells more of each.",
    )
    parser.add_argument("--version", action="version", version=_version())
    roles = parser.add_subparsers(metavar="ROLE", required=True)
    for role, (_, text) in ROLES.items():
        roles.add_parser(role, help=text)
    parser.parse_args(words)
    return 2


def _run(role: str, words: list[str]) -> int:
    import argparse
    import importlib

    module, text = ROLES[role]
    try:
        commands = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in {"controlplane", "dataplane"}:
            raise
        extra = {"broker": "broker", "admin": "admin"}.get(role, "agent")
        print(f"horizon {role}: {error.name} is not installed: install horizon[{extra}]", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(prog=f"horizon {role}", description=text[0].upper() + text[1:] + ".")
    commands.add_arguments(parser)
    options = parser.parse_args(words)
    from controlplane.client.console import run_command

    return run_command(options)


def _version() -> str:
    from controlplane.protocol.version import VERSION

    return f"horizon {VERSION}"


if __name__ == "__main__":
    sys.exit(main())
