"""Files that hold secrets or state: mode 0600, replaced whole or not at all. *Shell.*"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def ensure_private_directory(path: Path) -> Path:
    """`path` as a directory of mode 0700, made with its parents if it lacks."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_private(path: Path, content: str | bytes) -> None:
    """Write `path` with mode 0600 so that a reader, or a crash, sees the old file or the new one.

    Temporary file, fsync, rename, fsync of the directory; nothing is left behind on an error.
    """
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory last."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def put_aside(path: Path) -> Path:
    """Rename a damaged file so that it can be looked at, and give its new name."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.damaged-{number}")
        if not aside.exists():
            path.rename(aside)
            return aside
    raise FileExistsError(f"{path} has 1000 damaged copies beside it: remove them")
