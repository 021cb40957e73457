"""One broker behind TLS for the command lines of a file, and a machine that is logged in to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from horizon import main
from tests.harness.broker import Harness
from tests.harness.tls import tls_broker

Run = Callable[..., Any]
Meanwhile = Callable[[Coroutine[Any, Any, object]], None]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with tls_broker(tmp_path_factory.mktemp("broker")) as harness:
        yield harness


@pytest.fixture(scope="module")
def login_file(broker: Harness, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("admin") / "config" / "admin.json"
    invite = broker.broker.invite(broker.admin_key()).reveal()
    assert main(["admin", "--login-file", str(path), "login", invite, "--json"]) == 0
    return path


@pytest.fixture(scope="module")
def meanwhile(broker: Harness) -> Meanwhile:
    """Let others do something at the broker, and close their connections."""

    def run(work: Coroutine[Any, Any, object]) -> None:
        async def closing() -> None:
            await work
            await broker.close()

        asyncio.run(closing())

    return run


@pytest.fixture(scope="module")
def fra1(broker: Harness, meanwhile: Meanwhile) -> str:
    """The name of a server that is online, with a device of alice's connected."""

    async def enrol() -> None:
        await broker.server("fra1", endpoint_host="fra1.example")
        await (await broker.device("alice", "laptop")).connect("fra1")

    meanwhile(enrol())
    return "fra1"


@pytest.fixture
def admin(login_file: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `horizon admin WORDS` and give what it printed; with --json, as parsed."""

    def run(*words: str) -> Any:
        capsys.readouterr()
        code = main(["admin", "--login-file", str(login_file), *words])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out) if "--json" in words else captured.out

    return run


@pytest.fixture
def fails(login_file: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `horizon admin WORDS`, which must fail, and give its error; with --json, as parsed."""

    def run(*words: str) -> Any:
        capsys.readouterr()
        assert main(["admin", "--login-file", str(login_file), *words]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        return json.loads(captured.err) if "--json" in words else captured.err

    return run
