"""Embedded libSQL for SQLAlchemy: ``sqlite+libsql://``. *Shell.*

The ``libsql`` wheel embeds libSQL but is not a PEP 249 module: every error is a ``ValueError``, a
closed connection panics, the GIL is held during every wait, wide integers become floats, result
sets restart, parameters may be missing unnoticed. This package puts a correct driver (`dbapi`) and
a SQLAlchemy dialect (`dialect`) in front of it; nothing else in Horizon knows of the wheel.

    import controlplane.libsql                                     # registers the dialect
    engine = sqlalchemy.create_engine("sqlite+libsql:///horizon.db")
    sqlalchemy.event.listen(engine, "connect", controlplane.libsql.apply_pragmas)

``sqlite+libsql://:TOKEN@host:port`` speaks Hrana over HTTP to a libSQL server (``?secure=true`` for
TLS). Importing this package needs no wheel; `DriverUnavailable` is raised by ``create_engine``
where the wheel has no build.
"""

from sqlalchemy.dialects import registry

from controlplane.libsql.errors import DriverUnavailable
from controlplane.libsql.pragmas import apply_pragmas, foreign_keys_off
from controlplane.libsql.transactions import begin_immediate, begin_snapshot

__all__ = [
    "DriverUnavailable",
    "apply_pragmas",
    "begin_immediate",
    "begin_snapshot",
    "foreign_keys_off",
]

registry.register("sqlite.libsql", "controlplane.libsql.dialect", "LibsqlDialect")
