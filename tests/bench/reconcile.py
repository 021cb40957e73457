"""Many peers from nothing against `wg setconf`; one peer more, at whatever number of peers. *Shell.*

From nothing, ours observes, plans and makes everything: interface, firewall, addresses, peers. The bound
is `wg setconf` alone, of the same peers, on an interface made beforehand. On the fake kernel the same
bound shows what of it is our own computing.

Then one peer is added to interfaces with few and with many peers. Its cost shall not depend on how many
there are; `wg syncconf` of the whole file, the usual way, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict

from lab import Lab, Site
from lab.wireguard import backend
from tests.bench.peers import Job, Kind
from tests.bench.rows import Goal, Result, Row, Samples

NEEDS = ()
SIZES = (10, 1_000, 10_000)
COMPUTING = Goal("<", 1.0)
"""Of observing and planning in memory, to the same peers set by `wg`."""
WHOLE = Goal("<", 1.5)
"""Of a whole server made from nothing, to its peers set alone."""
FLAT = Goal("<", 1.5)
"""Of one peer more among many, to one more among few."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=10_000, help="peers from nothing (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of them (default: %(default)s)")
    parser.add_argument("--adds", type=int, default=101, help="single peers added (default: %(default)s)")


def run(options: argparse.Namespace) -> Result:
    real: Kind = backend()
    sizes = (*(size for size in SIZES if size < options.peers), options.peers)
    with Lab(f"hzbench-{os.getpid()}") as lab:
        site = lab.site("server")
        found = {
            kind: _measure(site, Job(kind, options.peers, options.rounds, sizes, options.adds))
            for kind in ("fake", real)
        }
    return Result(tuple(_rows(found["fake"], found[real], real, options.peers, sizes)))


def _measure(site: Site, job: Job) -> dict[str, Samples]:
    argv = [sys.executable, "-m", "tests.bench.peers", json.dumps(asdict(job))]
    printed = site.run(argv, timeout=560).stdout
    return {name: Samples(tuple(values)) for name, values in json.loads(printed).items()}


def _rows(
    fake: dict[str, Samples], real: dict[str, Samples], kind: str, peers: int, sizes: tuple[int, ...]
) -> Iterator[Row]:
    nothing = f"{peers:,} peers from nothing"
    setconf, syncconf = real["setconf"].scaled(1000), real["syncconf"].scaled(1000)
    yield Row(
        f"{nothing}, fake", "ms", fake["nothing"].scaled(1000), f"`wg setconf`, {kind}", setconf, COMPUTING
    )
    ours = real["nothing"].scaled(1000)
    yield Row(f"{nothing}, {kind}", "ms", ours, "`wg setconf`", setconf, WHOLE)
    yield Row(f"{nothing}, {kind}", "ms", ours, "`wg syncconf`", syncconf)
    few, many = sizes[0], sizes[-1]
    for name, figures in (("fake", fake), (kind, real)):
        among = f"one peer more among {many:,}, {name}"
        yield Row(
            among,
            "µs",
            figures[f"add {many}"].scaled(1e6),
            f"one more among {few}",
            figures[f"add {few}"].scaled(1e6),
            FLAT,
        )
    for size in sizes:
        yield Row(
            f"one peer more among {size:,}, {kind}",
            "ms",
            real[f"add beside {size}"].scaled(1000),
            "`wg syncconf` of the file",
            real[f"syncconf {size}"].scaled(1000),
            Goal("<", 1.0) if size == many else None,
        )
