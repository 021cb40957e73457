"""What a heartbeat says of the machine."""

from __future__ import annotations

import math

from controlplane.protocol.messages import Heartbeat
from dataplane.metrics import read_metrics


def test_figures_are_numbers_that_a_heartbeat_takes() -> None:
    metrics = read_metrics("lo")
    assert set(metrics) == {
        *("cpu_percent", "memory_percent", "load_1m"),
        *("interface_received_bytes", "interface_sent_bytes"),
    }
    assert all(type(value) is float and math.isfinite(value) and value >= 0 for value in metrics.values())
    assert 0 < metrics["memory_percent"] <= 100
    beat = Heartbeat(revision=None, version="1.0", active_connections=0, metrics=metrics)
    assert Heartbeat.model_validate_json(beat.model_dump_json()) == beat


def test_an_interface_that_is_not_there_is_left_out() -> None:
    assert set(read_metrics("hz-none")) == {"cpu_percent", "memory_percent", "load_1m"}
