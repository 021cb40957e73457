"""`horizon admin export`: a configuration for plain WireGuard, with a key pair made here."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controlplane.client.broker import AdminClient
from controlplane.client.console import CommandError, add_json, print_json
from controlplane.client.files import write_private
from controlplane.protocol.keys import PrivateKey
from controlplane.protocol.messages import ExportRequest, ExportResponse
from controlplane.protocol.wireguard import Endpoint, PeerSpec
from controlplane.wgconf import Inbound, WgQuickConfig, interface_name, parse, render


def add_export(nouns: Any, handler: Callable[[argparse.Namespace], int]) -> None:
    parser = nouns.add_parser(
        "export",
        help="a configuration for plain wg-quick or a phone",
        description="Make a key pair and a peer, and write a WireGuard configuration. The private key is in "
        "that file only: the broker sees the public half.",
    )
    parser.add_argument("--user", required=True, help="whose device it is")
    parser.add_argument("--server", required=True, help="server, name or id")
    parser.add_argument("--name", default="wireguard", help="the device's name (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="file to write; - for stdout (default: SERVER.conf here)")
    parser.add_argument("--plain", action="store_true", help="no hooks, for phone and router apps")
    parser.add_argument(
        "--qr", action="store_true", help="also show a QR code (of the plain form), and write it as PNG"
    )
    add_json(parser)
    parser.set_defaults(handler=handler, work=export)


async def export(client: AdminClient, options: argparse.Namespace) -> int:
    private_key = PrivateKey.generate()
    request = ExportRequest(
        user_name=options.user,
        server=options.server,
        device_name=options.name,
        public_key=private_key.public_key,
    )
    output = _output(options)
    answer = await client.export(request)
    text = configuration(answer, private_key, plain=options.plain)
    if output is None:
        sys.stdout.write(text)
    else:
        write_private(output, text)
    image = _show_qr(options, answer, private_key, output) if options.qr else None
    _report(options, answer, output, image)
    return 0


def configuration(answer: ExportResponse, private_key: PrivateKey, *, plain: bool) -> str:
    """The wg-quick configuration; read back before it is handed out."""
    config = WgQuickConfig(
        private_key=private_key,
        addresses=answer.addresses,
        peers=(
            PeerSpec(
                public_key=answer.server_public_key,
                allowed_ips=frozenset(answer.allowed_ips),
                endpoint=Endpoint.parse(answer.endpoint),
                persistent_keepalive=answer.persistent_keepalive,
            ),
        ),
        names={answer.server_public_key: answer.server_name},
        mtu=answer.mtu,
        inbound=None if plain else Inbound(answer.accept_from, answer.server_addresses),
    )
    text = render(config)
    if parse(text) != config:
        raise CommandError("the configuration does not read back as it was meant: please report this")
    return text


def _output(options: argparse.Namespace) -> Path | None:
    """Where to write; None is stdout. Refuses before a peer is made that nobody could use."""
    if options.output == Path("-"):
        if options.json:
            raise CommandError("--output - and --json both want stdout: give a file")
        return None
    path: Path = options.output or Path(f"{interface_name(options.server)}.conf")
    image = path.with_suffix(".png")
    if options.qr and image == path:
        raise CommandError(f"{str(path)!r} is where --qr writes the image: give another --output")
    for file in (path, image) if options.qr else (path,):
        if file.exists():
            raise CommandError(f"{str(file)!r} exists: give another --output, or remove it")
    if not os.access(path.parent, os.W_OK):
        raise CommandError(
            f"{str(path.parent)!r} is not a directory that may be written: give another --output"
        )
    return path


def _show_qr(
    options: argparse.Namespace, answer: ExportResponse, private_key: PrivateKey, output: Path | None
) -> Path | None:
    """The plain form as a QR code: in the terminal and, beside the file, as PNG of mode 0600."""
    import io

    import segno

    code = segno.make(configuration(answer, private_key, plain=True), error="l", micro=False)
    if not options.json:
        code.terminal(out=sys.stderr if output is None else sys.stdout, compact=True)
    if output is None:
        return None
    png = io.BytesIO()
    code.save(png, kind="png", scale=6, border=4)
    image = output.with_suffix(".png")
    write_private(image, png.getvalue())
    return image


def _report(
    options: argparse.Namespace, answer: ExportResponse, output: Path | None, image: Path | None
) -> None:
    if options.json:
        print_json(
            {
                "device_id": answer.device_id,
                "server": answer.server_name,
                "addresses": [str(address) for address in answer.addresses],
                "in_place": answer.in_place,
                "file": str(output),
                "qr": str(image) if image else None,
            }
        )
        return
    say = sys.stderr if output is None else sys.stdout
    if output is not None:
        path = output if output.is_absolute() else f"./{output}"
        print(f"wrote {output}: use it with `wg-quick up {path}`")
    if image is not None:
        print(f"wrote {image}: the same for a phone")
    if not answer.in_place:
        print(
            f"server {answer.server_name} has not acknowledged the peer yet: is its agent running?", file=say
        )
