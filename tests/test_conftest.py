"""The promise of `HORIZON_REQUIRE_NETNS`: what a lab lacks fails, what does not apply is skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STORY = """
import pytest

@pytest.fixture
def lab():
    pytest.skip("needs root, command 'wg'")

@pytest.mark.netns
def test_lacks_in_a_fixture(lab): pass

@pytest.mark.netns
def test_lacks_in_the_test(): pytest.skip("needs command 'nft'")

@pytest.mark.netns
def test_does_not_apply(): pytest.skip("the kernel has no daemon")

def test_of_another_ring(): pytest.skip("needs openssl")
"""


OPTIONS = ("-rN", "-p", "no:randomly", "-p", "no:cacheprovider", "-o", "markers=netns: lab")


@pytest.mark.parametrize(("required", "failed", "skipped"), [("1", 2, 2), ("0", 0, 4)])
def test_a_netns_test_that_lacks_something_fails_where_it_was_promised(
    tmp_path: Path, required: str, failed: int, skipped: int
) -> None:
    (tmp_path / "test_story.py").write_text(STORY)
    environment = {**os.environ, "HORIZON_REQUIRE_NETNS": required}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", *OPTIONS, "--rootdir", tmp_path, tmp_path],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    summary = done.stdout.splitlines()[-1]
    assert f"{skipped} skipped" in summary
    assert done.stdout.count("HORIZON_REQUIRE_NETNS=1, but this test needs ") == failed
    assert done.returncode == (1 if failed else 0)
