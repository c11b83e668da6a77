"""The metrics of a worker, for Prometheus. TorchServe adds requests by class of status, queue and total latency."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...] = ()


REQUESTS = Metric("stemwright_requests_total", "counter", "count", ("status",))
"""499 is a caller who has gone, as nginx counts it."""
AUDIO_S = Metric("stemwright_audio_seconds_total", "counter", "s")
WINDOWS = Metric("stemwright_windows_total", "counter", "count")
WORK_S = Metric("stemwright_work_seconds_total", "counter", "s", ("part",))
"""By part: `decode`, `separate`, `encode`. Seconds of `separate` divided by windows are the time of one window."""
REAL_TIME_FACTOR = Metric("stemwright_real_time_factor", "histogram", "ratio")
"""Seconds of work by seconds of audio, of whole songs."""
MODEL_INFO = Metric("stemwright_model_info", "gauge", "count", ("architecture", "weights_sha256", "device"))
"""Always 1; what is served is in the labels."""

METRICS = (REQUESTS, AUDIO_S, WINDOWS, WORK_S, REAL_TIME_FACTOR, MODEL_INFO)

# This list replaces TorchServe's own file, so its own metrics must be listed to be kept.
OF_TORCHSERVE = {
    "counter": [
        *(Metric(f"Requests{status}XX", "counter", "Count", ("Level", "Hostname")) for status in (2, 4, 5)),
        Metric("ts_inference_requests_total", "counter", "Count", ("model_name", "model_version", "hostname")),
        Metric("ts_inference_latency_microseconds", "counter", "Us", ("model_name", "model_version", "hostname")),
        Metric("ts_queue_latency_microseconds", "counter", "Us", ("model_name", "model_version", "hostname")),
    ],
    "gauge": [
        Metric("QueueTime", "gauge", "Milliseconds", ("Level", "Hostname")),
        Metric("WorkerThreadTime", "gauge", "Milliseconds", ("Level", "Hostname")),
        Metric("WorkerLoadTime", "gauge", "Milliseconds", ("WorkerName", "Level", "Hostname")),
    ],
}


def torchserve_config() -> dict[str, object]:
    """The `metrics_config` for TorchServe."""

    def entry(metric: Metric) -> dict[str, object]:
        return {"name": metric.name, "unit": metric.unit, "dimensions": list(metric.labels)}

    return {
        "dimensions": [],
        "ts_metrics": {kind: [entry(m) for m in metrics] for kind, metrics in OF_TORCHSERVE.items()},
        "model_metrics": {
            kind: [entry(m) for m in METRICS if m.kind == kind] for kind in ("counter", "gauge", "histogram")
        },
    }
