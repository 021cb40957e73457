"""What a heartbeat says of the machine, by psutil. *Shell.*"""

from __future__ import annotations

import psutil


def read_metrics(interface: str) -> dict[str, float]:
    """CPU and memory in percent, load, and the interface's bytes; what cannot be read is left out."""
    metrics = {
        "cpu_percent": psutil.cpu_percent(interval=None),
        "memory_percent": psutil.virtual_memory().percent,
        "load_1m": psutil.getloadavg()[0],
    }
    counters = psutil.net_io_counters(pernic=True).get(interface)
    if counters is not None:
        metrics["interface_received_bytes"] = float(counters.bytes_recv)
        metrics["interface_sent_bytes"] = float(counters.bytes_sent)
    return metrics
