"""Files: private, whole or not at all, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controlplane.client.files import ensure_private_directory, put_aside, write_private


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("content", ["text\n", b"\x00\xff", ""])
def test_what_is_written_is_private_and_whole(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "secret"
    write_private(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["secret"]


def test_a_loose_mode_is_tightened(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "secret", "x")
        ensure_private_directory(tmp_path / "data")
    finally:
        os.umask(before)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_who_has_the_old_file_open_still_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_private(path, "old")
    with path.open() as reading:
        write_private(path, "new")
        assert reading.read() == "old"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    write_private(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_private(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["state"]


def test_content_and_name_are_synced_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a crash could leave the new name with no content."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        steps.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def rename(source: str, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    write_private(tmp_path / "state", "x")
    assert steps == ["file", "rename", "directory"]


def test_a_directory_is_made_with_its_parents_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert ensure_private_directory(path) == path
    (path / "file").write_text("kept")
    ensure_private_directory(path)
    assert (path / "file").read_text() == "kept"
    with pytest.raises(FileExistsError):
        ensure_private_directory(path / "file")


def test_damaged_files_are_put_aside_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for number in (1, 2):
        path.write_text(f"damage {number}")
        aside = put_aside(path)
        assert aside.name == f"state.json.damaged-{number}"
        assert aside.read_text() == f"damage {number}"
        assert not path.exists()
