"""Agents in this process, against the in-process broker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.dataplane.agents import Stage
    from tests.harness.broker import Harness


@pytest.fixture
def stage(horizon: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Rigs whose agents ask again, and look again, at once."""
    from dataplane import agent
    from dataplane.backoff import Backoff
    from tests.dataplane.agents import Stage

    monkeypatch.setattr(agent, "SETTLE", 0.01)
    monkeypatch.setattr(agent, "Backoff", lambda: Backoff(0.01, 0.02))
    return Stage(horizon, tmp_path)
