"""MLflow's system metrics of a stage's run: use of processor, memory, disk, network and GPUs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_INTERVAL_SECONDS = 10.0
"""MLflow's own default; `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` sets another."""


@contextmanager
def system_metrics(run_id: str) -> Iterator[None]:
    """Log system metrics to a run while the context is open, once per interval, first after two intervals.

    A stage shorter than an interval would have one sample at most, so none is taken: importing and querying NVML takes longer than
    some stages.

    Args:
        run_id: The run.
    """
    monitor = _Monitor(run_id)
    timer = threading.Timer(MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or _INTERVAL_SECONDS, monitor.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        monitor.finish()


class _Monitor:
    """MLflow's monitor, created only when it is started."""

    def __init__(self, run_id: str):
        self._run_id = run_id
        self._lock = threading.Lock()
        self._finished = False
        self._monitor: SystemMetricsMonitor | None = None

    def start(self) -> None:
        with self._lock:
            if self._finished:
                return
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            # It logs its start, its end and missing GPUs, which do not belong in the log of a stage.
            logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
            self._monitor = SystemMetricsMonitor(self._run_id, resume_logging=True)
            self._monitor.start()

    def finish(self) -> None:
        with self._lock:
            self._finished = True
            monitor = self._monitor
        if monitor is not None:
            monitor.finish()
