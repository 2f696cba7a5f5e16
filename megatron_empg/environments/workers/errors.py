"""What goes wrong with worker processes. Each costs one episode, but for `WorkerStartError`."""

from megatron_empg.common.errors import EmpgError


class EnvironmentWorkerError(EmpgError, RuntimeError):
    """A worker process failed an episode. The message ends with what the worker wrote last."""


class WorkerTimeout(EnvironmentWorkerError):
    """A call took longer than it may; the worker was killed."""


class WorkerMemory(EnvironmentWorkerError):
    """The worker and its children took more memory than they may; they were killed."""


class WorkerDied(EnvironmentWorkerError):
    """The worker ended by itself: a crash, an exit, or the kernel's choice when memory ran out."""


class WorkerAnswerTooLarge(EnvironmentWorkerError):
    """The worker's answer is larger than answers may be; the worker was killed."""


class WorkerAnswerMalformed(EnvironmentWorkerError):
    """The worker's answer cannot be read; the worker was killed."""


class EnvironmentRaised(EnvironmentWorkerError):
    """The environment raised an exception in the worker."""


class WorkerStartError(EnvironmentWorkerError):
    """Workers cannot start, so that no episode can run: the run should end."""


class PoolClosed(EnvironmentWorkerError):
    """The pool or the episode was closed while it was still being used."""
