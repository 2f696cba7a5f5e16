"""Worker processes for environments that block or are not thread-safe."""

from megatron_empg.environments.workers.errors import EnvironmentWorkerError
from megatron_empg.environments.workers.options import WorkerOptions
from megatron_empg.environments.workers.pool import WorkerPool

__all__ = ["EnvironmentWorkerError", "WorkerOptions", "WorkerPool"]
