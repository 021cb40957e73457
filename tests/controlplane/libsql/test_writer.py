"""One writer at a time, readers beside it, nobody frozen."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import libsql
import pytest

import controlplane.libsql
from controlplane.libsql import dbapi
from controlplane.libsql.writer import WriterLock, tries, writer_lock

ROOT = Path(controlplane.libsql.__file__).parents[2]

WRITER = """
import sys
from controlplane.libsql import dbapi
connection = dbapi.connect(sys.argv[1], timeout=20.0)
connection.cursor().execute("BEGIN IMMEDIATE" if sys.argv[3] == "hold" else "SELECT 1")
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    connection.cursor().execute("INSERT INTO t(x) VALUES ('child')")
    connection.commit()
"""


def child(database: str, writes: int, mode: str = "free") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, database, str(writes), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def reap(process: subprocess.Popen[str]) -> int:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    return process.wait(20)


def count(database: str) -> int:
    with closing(dbapi.connect(database)) as connection:
        row = connection.cursor().execute("SELECT count(*) FROM t").fetchone()
        assert row is not None
        return int(row[0])


def write(database: str, times: int, timeout: float = 20.0) -> None:
    with closing(dbapi.connect(database, timeout=timeout)) as connection:
        for _ in range(times):
            connection.cursor().execute("INSERT INTO t(x) VALUES ('thread')")
            connection.commit()


@pytest.mark.parametrize("threads", [4, 8])
def test_threads_write_without_an_error(database: str, threads: int) -> None:
    together = threading.Barrier(threads)

    def work() -> None:
        together.wait()
        write(database, 25)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()
    assert count(database) == threads * 25


def test_two_processes_write_without_an_error(database: str) -> None:
    process = child(database, 100)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    write(database, 100)
    assert reap(process) == 0
    assert count(database) == 200


def test_a_killed_writer_of_another_process_lets_the_next_in(database: str) -> None:
    process = child(database, 0, "hold")
    with pytest.raises(dbapi.BusyError, match="locked"):
        write(database, 1, timeout=0.05)
    process.kill()
    assert reap(process) == -9
    write(database, 1)
    assert count(database) == 1


def test_waiting_for_another_writer_does_not_stop_the_thread_that_commits(database: str) -> None:
    """The wheel's own wait would hold the GIL until its timeout, and this thread with it."""
    foreign = libsql.connect(database, timeout=0.0, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    lock = writer_lock(database, remote=False)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(write, database, 1)
        while not lock.held:
            assert time.monotonic() - began < 2
            threading.Event().wait(0.001)
        foreign.execute("COMMIT")
        waiting.result(10)
        assert time.monotonic() - began < 2
    foreign.close()
    assert count(database) == 1


def test_a_reader_is_not_blocked_by_an_open_write(database: str) -> None:
    with closing(dbapi.connect(database)) as writer, closing(dbapi.connect(database, timeout=0.0)) as reader:
        writer.cursor().execute("INSERT INTO t VALUES (1, 'open')")
        assert reader.cursor().execute("SELECT * FROM t").fetchall() == []
        assert reader.cursor().execute("WITH a AS (SELECT * FROM t) SELECT * FROM a").fetchall() == []
        writer.commit()
        assert reader.cursor().execute("SELECT * FROM t").fetchall() == [(1, "open")]


def or_rollback(connection: dbapi.Connection) -> None:
    with pytest.raises(dbapi.IntegrityError):
        connection.cursor().execute("INSERT OR ROLLBACK INTO t VALUES (1, 'again')")


@pytest.mark.parametrize(
    "end",
    [
        lambda c: c.commit(),
        lambda c: c.rollback(),
        lambda c: c.close(),
        lambda c: c.cursor().execute("COMMIT"),
        lambda c: c.cursor().execute("rollback"),
        or_rollback,
    ],
    ids=["commit", "rollback", "close", "commit-sql", "rollback-sql", "or-rollback"],
)
def test_each_end_of_a_transaction_lets_the_next_writer_in(
    database: str, end: Callable[[dbapi.Connection], object]
) -> None:
    with closing(dbapi.connect(database)) as first:
        first.cursor().execute("INSERT INTO t VALUES (1, 'first')")
        with pytest.raises(dbapi.BusyError, match="this process"):
            write(database, 1, timeout=0.0)
        end(first)
        write(database, 1, timeout=0.0)


def test_a_failed_begin_lets_the_next_writer_in(database: str) -> None:
    process = child(database, 0, "hold")
    with pytest.raises(dbapi.BusyError):
        write(database, 1, timeout=0.0)
    reap(process)
    write(database, 1, timeout=0.0)


def test_a_savepoint_is_a_write_from_its_start(database: str) -> None:
    with closing(dbapi.connect(database)) as first:
        first.cursor().execute("SAVEPOINT a")
        foreign = libsql.connect(database, timeout=0.0, isolation_level=None)
        with pytest.raises(ValueError, match="locked"):
            foreign.execute("BEGIN IMMEDIATE")
        foreign.close()
        with pytest.raises(dbapi.BusyError):
            write(database, 1, timeout=0.0)
        first.cursor().execute("RELEASE a")
        assert first.in_transaction
        first.commit()
    write(database, 1, timeout=0.0)


def test_a_plain_begin_takes_the_write_lock_at_once(database: str) -> None:
    with closing(dbapi.connect(database)) as first:
        first.cursor().execute("BEGIN")
        foreign = libsql.connect(database, timeout=0.0, isolation_level=None)
        with pytest.raises(ValueError, match="locked"):
            foreign.execute("BEGIN IMMEDIATE")
        foreign.close()


def test_a_snapshot_reads_one_state_and_refuses_writes(database: str) -> None:
    with closing(dbapi.connect(database)) as reader:
        cursor = reader.cursor()
        cursor.execute("BEGIN DEFERRED")
        assert cursor.execute("SELECT count(*) FROM t").fetchone() == (0,)
        write(database, 1, timeout=0.0)
        assert cursor.execute("SELECT count(*) FROM t").fetchone() == (0,)
        with pytest.raises(dbapi.ProgrammingError, match="BEGIN IMMEDIATE"):
            cursor.execute("DELETE FROM t")
        reader.commit()
        assert cursor.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_databases_have_a_lock_each_however_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    a = writer_lock(str(tmp_path / "a.db"), remote=False)
    assert writer_lock(str(tmp_path / "x" / ".." / "link.db"), remote=False) is a
    assert writer_lock(str(tmp_path / "b.db"), remote=False) is not a
    assert writer_lock(":memory:", remote=False) is not writer_lock(":memory:", remote=False)
    server = writer_lock("http://127.0.0.1:8080", remote=True)
    assert writer_lock("http://127.0.0.1:8080", remote=True) is server


def test_writers_of_different_databases_do_not_wait_for_each_other(database: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.db")
    with closing(dbapi.connect(database)) as first, closing(dbapi.connect(other, timeout=0.0)) as second:
        first.cursor().execute("INSERT INTO t VALUES (1, 'open')")
        second.cursor().execute("CREATE TABLE t(i INTEGER PRIMARY KEY, x)")
        write(other, 1, timeout=0.0)


def test_the_lock_gives_up_at_the_deadline() -> None:
    lock = WriterLock()
    lock.acquire(time.monotonic())
    began = time.monotonic()
    with pytest.raises(dbapi.BusyError):
        lock.acquire(began + 0.05)
    assert 0.04 < time.monotonic() - began < 5


def test_tries_go_on_until_the_deadline_and_at_least_once() -> None:
    assert len(list(tries(time.monotonic() - 1))) == 1
    began = time.monotonic()
    times = len(list(tries(began + 0.1)))
    assert time.monotonic() - began >= 0.1
    assert 3 <= times < 100
