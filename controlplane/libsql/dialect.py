"""The SQLAlchemy dialect ``sqlite+libsql``: pysqlite's SQL over our driver. *Shell.*

URLs: ``sqlite+libsql:///file.db``, ``sqlite+libsql://`` (in memory: one connection shared by all
threads, for tests), ``sqlite+libsql://:TOKEN@host:port`` (a libSQL server). Query: ``timeout`` in
seconds, ``secure=true`` for https.

Isolation levels, for an engine, a connection or ``engine.execution_options(isolation_level=...)``:
- SERIALIZABLE (default): the first write begins a write transaction; reads before it do not.
- IMMEDIATE: a write transaction from the start, for read-modify-write.
- SNAPSHOT: all reads see one state; writes are refused.
- AUTOCOMMIT: each statement by itself.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import URL, exc, pool
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIModule

_BEGIN = {"IMMEDIATE": "BEGIN IMMEDIATE", "SNAPSHOT": "BEGIN DEFERRED"}
_LEVELS = ("SERIALIZABLE", "IMMEDIATE", "SNAPSHOT", "AUTOCOMMIT")

# What a server's client says when its stream is gone: unreachable, restarted, or timed out.
_DISCONNECTED = (
    "Cannot operate on a closed database.",
    "Hrana: `http error",
    "error trying to connect",
    "STREAM_EXPIRED",
    "stream not found",
    "invalid baton",
)


class LibsqlDialect(SQLiteDialect_pysqlite):
    """SQLite's dialect on the libSQL driver."""

    driver = "libsql"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> "DBAPIModule":
        """The driver; DriverUnavailable where the wheel has no build."""
        from controlplane.libsql import dbapi

        return cast("DBAPIModule", dbapi)

    @classmethod
    def get_pool_class(cls, url: URL) -> type[pool.Pool]:
        """A pool of connections; one shared connection where a second would see another database."""
        if url.host or cls._is_url_file_db(url):
            return pool.QueuePool
        return pool.StaticPool

    def create_connect_args(self, url: URL) -> tuple[list[str], dict[str, Any]]:
        """The arguments of `dbapi.connect`; ArgumentError for what it does not take."""
        query = {key: str(value) for key, value in url.query.items()}
        options: dict[str, Any] = {}
        if "timeout" in query:
            options["timeout"] = _seconds(query.pop("timeout"))
        if url.host:
            database = _server(url, secure=query.pop("secure", "false"))
            options["auth_token"] = url.password or ""
        else:
            database = url.database or ":memory:"
            if database != ":memory:":
                database = os.path.abspath(database)
        if query or url.username:
            unknown = ", ".join(map(repr, [*query, *([url.username] if url.username else [])]))
            raise exc.ArgumentError(
                f"{unknown} in the database URL is not understood: "
                "use sqlite+libsql:///file.db or sqlite+libsql://:token@host:port, "
                "with timeout=SECONDS and secure=true (servers) as options"
            )
        return [database], options

    def on_connect(self) -> Callable[[Any], None]:
        """Nothing to do on a new connection: libSQL brings REGEXP and floor() itself."""
        return lambda dbapi_connection: None

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin up front where the isolation level says so."""
        begin = _BEGIN.get(dbapi_connection.isolation_level)
        if begin:
            dbapi_connection.cursor().execute(begin)

    def get_isolation_level_values(self, dbapi_connection: Any) -> list[str]:  # type: ignore[override]
        """The levels of this module's docstring."""
        return list(_LEVELS)

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        """Takes effect at the next begin."""
        dbapi_connection.isolation_level = level

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        """The level set on the connection."""
        return dbapi_connection.isolation_level

    def detect_autocommit_setting(self, dbapi_conn: Any) -> bool:
        """Whether statements commit by themselves."""
        return bool(dbapi_conn.isolation_level == "AUTOCOMMIT")

    def is_disconnect(self, e: Any, connection: object, cursor: object) -> bool:
        """Whether the connection is of no more use and the pool should open another."""
        return any(words in str(e) for words in _DISCONNECTED)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise exc.ArgumentError(f"timeout {text!r} is not a number of seconds") from None


def _server(url: URL, *, secure: str) -> str:
    if secure not in ("true", "false"):
        raise exc.ArgumentError(f"secure {secure!r} is neither 'true' nor 'false'")
    if url.database:
        raise exc.ArgumentError(
            f"database {url.database!r} on a server is not understood: end the URL after the port"
        )
    host = f"[{url.host}]" if url.host and ":" in url.host else url.host
    port = f":{url.port}" if url.port else ""
    return f"{'https' if secure == 'true' else 'http'}://{host}{port}"
