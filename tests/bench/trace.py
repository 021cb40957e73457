"""When things happen inside Horizon, seen from outside: log lines and socket requests. *Shell.*

    with Tail({"server": log}) as tail:
        ...
    tail.when("server", "[#] wg set")           # by time.monotonic()

A log line is noticed within a millisecond of being written. That costs some of a core, so what is
traced is not what is compared.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from lab import LabError
from lab.fleet import Node

LOOK_EVERY = 0.0005
"""Seconds between looks at the files."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log, and when it was seen."""

    log: str
    text: str
    seen: float


class Tail:
    """Follows log files by name while the context is open, from their ends on."""

    def __init__(self, logs: Mapping[str, Path]) -> None:
        self.lines: list[Line] = []
        self._files: dict[str, BinaryIO] = {name: path.open("rb") for name, path in logs.items()}
        self._rest = dict.fromkeys(logs, b"")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tail")

    def __enter__(self) -> Self:
        for file in self._files.values():
            file.seek(0, 2)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        for file in self._files.values():
            file.close()

    def when(self, log: str, *words: str) -> float:
        """When the first line of a log with all these words was seen; LabError if there is none."""
        for line in self.lines:
            if line.log == log and all(word in line.text for word in words):
                return line.seen
        said = "\n".join(line.text for line in self.lines if line.log == log)
        raise LabError(f"the log of the {log} has no line with '{' '.join(words)}', but:\n{said}")

    def _follow(self) -> None:
        while not self._done.wait(LOOK_EVERY):
            self._look()
        self._look()

    def _look(self) -> None:
        for log, file in self._files.items():
            if data := file.read():
                seen = time.monotonic()
                *lines, self._rest[log] = (self._rest[log] + data).split(b"\n")
                self.lines += [Line(log, line.decode(errors="replace"), seen) for line in lines]


def time_to_ask(node: Node, argv: list[str], result: Any) -> float:
    """Seconds from starting a command to its request on the agent's socket.

    A socket of our own stands in for the agent's and answers with `result`.
    """
    path = node.site.directory / "private" / "bench.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(10)
        asked = 0.0

        def answer() -> None:
            nonlocal asked
            connection, _ = listening.accept()
            with connection, connection.makefile("rwb") as stream:
                stream.readline()
                asked = time.monotonic()
                stream.write(json.dumps({"result": result}).encode() + b"\n")

        answering = threading.Thread(target=answer, name="stand-in")
        answering.start()
        started = time.monotonic()
        try:
            node.site.run([*argv, "--socket", str(path)], env=node.environment)
        finally:
            answering.join()
            path.unlink()
    return asked - started
