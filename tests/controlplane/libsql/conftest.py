"""Engines under test: a file, memory and, where a ``sqld`` binary is on PATH, a libSQL server."""

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, MetaData, create_engine, event

from controlplane.libsql import apply_pragmas, dbapi
from tests.harness.waiting import block_until

SQLD = shutil.which("sqld")
Open = Callable[[], dbapi.Connection]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def engine_for(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    event.listen(engine, "connect", apply_pragmas)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a fresh libSQL server."""
    assert SQLD is not None
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [SQLD, "-d", str(tmp_path_factory.mktemp("sqld") / "data.sqld")]
    command += ["--http-listen-addr", f"127.0.0.1:{port}", "--no-welcome", "--disable-metrics"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        block_until(lambda: answers(port))
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["file", "memory", *(["server"] if SQLD else [])])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An empty database of each kind."""
    if request.param == "server":
        url = f"sqlite+libsql://{request.getfixturevalue('server')}"
    else:
        url = "sqlite+libsql://" if request.param == "memory" else f"sqlite+libsql:///{tmp_path}/test.db"
    with engine_for(url) as engine:
        if request.param == "server":
            tables = MetaData()
            tables.reflect(engine)
            tables.drop_all(engine)
        yield engine


@pytest.fixture
def file_engine(tmp_path: Path) -> Iterator[Engine]:
    """An empty database in a file."""
    with engine_for(f"sqlite+libsql:///{tmp_path}/test.db") as engine:
        yield engine


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The path of a database in WAL mode with one table ``t(i INTEGER, x)``."""
    path = str(tmp_path / "test.db")
    with closing(dbapi.connect(path)) as connection:
        connection.cursor().execute("PRAGMA journal_mode=wal")
        connection.cursor().execute("CREATE TABLE t(i INTEGER PRIMARY KEY, x)")
    return path


@pytest.fixture
def memory() -> Iterator[dbapi.Connection]:
    """A connection to an empty database in memory with one table ``t(i INTEGER, x)``."""
    with closing(dbapi.connect(":memory:")) as connection:
        connection.cursor().execute("CREATE TABLE t(i INTEGER PRIMARY KEY, x)")
        yield connection
