"""Load of the machine while a run lasts: processor, GPU and memory, named as MLflow's own monitor names them.

MLflow's monitor ends for good when one request fails; this one only asks the gauges.
"""

from contextlib import suppress

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor


class SystemMetrics:
    """The gauges of this machine."""

    def __init__(self) -> None:
        self._gauges: list[BaseMetricsMonitor] = [CPUMonitor()]
        with suppress(ImportError, RuntimeError):  # it raises these where there is no NVIDIA GPU
            self._gauges.append(GPUMonitor())

    def read(self) -> dict[str, float]:
        """Values by name, such as `system/cpu_utilization_percentage`."""
        values: dict[str, float] = {}
        for gauge in self._gauges:
            gauge.collect_metrics()
            values |= {f"system/{name}": value for name, value in gauge.aggregate_metrics().items()}
            gauge.clear_metrics()
        return values
