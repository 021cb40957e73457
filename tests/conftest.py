"""What every ring shares: the in-process broker, and that the `netns` ring is not skipped where it was
promised to run."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.broker import Harness

REQUIRE_NETNS = "HORIZON_REQUIRE_NETNS"
"""Set to 1, a `netns` test that lacks root or a command fails instead of being skipped."""
_LACKS = "Skipped: needs "
"""As `lab.require_netns` begins; other skips say that a test does not apply."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get(REQUIRE_NETNS) != "1" or item.get_closest_marker("netns") is None:
        return report
    if report.skipped and isinstance(report.longrepr, tuple) and report.longrepr[2].startswith(_LACKS):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_NETNS}=1, but this test {reason}"
    return report


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a broker that ran once: copied, it saves each test making one."""
    from controlplane.broker import open_broker  # rings without a broker need not import one
    from controlplane.config import BrokerConfig

    directory = tmp_path_factory.mktemp("first-run")
    open_broker(BrokerConfig(data_dir=directory)).close()
    return directory


@pytest.fixture
async def horizon(first_run: Path, tmp_path: Path) -> AsyncIterator[Harness]:
    """A broker in this process, with its clock in the test's hand."""
    from tests.harness.broker import in_process

    shutil.copytree(first_run, tmp_path / "broker")
    async with in_process(tmp_path / "broker") as harness:
        yield harness
