"""An episode that runs in a worker process."""

from __future__ import annotations

import logging
from typing import Protocol

from megatron_empg.environments.base import EpisodeLimits, Opening, StepResult, Task
from megatron_empg.environments.workers.errors import EnvironmentWorkerError, PoolClosed
from megatron_empg.environments.workers.messages import (
    CloseRequest,
    DoneAnswer,
    OpenedAnswer,
    ResetRequest,
    SteppedAnswer,
    StepRequest,
    encode,
)
from megatron_empg.environments.workers.options import WorkerOptions
from megatron_empg.environments.workers.process import A, WorkerProcess

logger = logging.getLogger(__name__)


class Workers(Protocol):
    """Where an episode gets its worker from."""

    limits: EpisodeLimits
    options: WorkerOptions

    async def acquire(self) -> WorkerProcess: ...

    def give_back(self, worker: WorkerProcess) -> None: ...

    def give_up(self, worker: WorkerProcess, error: BaseException) -> None: ...


class WorkerEpisode:
    """An `Environment`. From `reset` to `close` it has a worker for itself, unless that one dies before."""

    def __init__(self, pool: Workers, task: Task) -> None:
        self._pool = pool
        self._task = task
        self._begun = False
        self._request = b""
        self._closed = False
        self._worker: WorkerProcess | None = None
        self._working: WorkerProcess | None = None  # the worker while it answers

    async def admitted(self) -> None:
        """Wait for a worker, its start included, which has a limit of its own.

        Raises EnvironmentWorkerError, and ValueError for a task that is no JSON.
        """
        if self._request or self._begun or self._closed:
            raise self._too_late("admitted")
        try:
            self._request = encode(ResetRequest(self._task))
        except (TypeError, ValueError) as error:
            raise ValueError(f"task {self._task.id!r} is not JSON, as a worker needs it: {error}") from error
        worker = await self._pool.acquire()
        if self._closed:
            self._pool.give_back(worker)
            raise PoolClosed(f"task {self._task.id!r} was closed while it waited for a worker")
        self._worker = worker

    async def reset(self) -> Opening:
        """Begin, after waiting for a worker where nobody has. The wait is not a part of the step's time; the reset
        is. Raises the same as `admitted`."""
        if self._begun or self._closed:
            raise self._too_late("reset")
        if not self._request:
            await self.admitted()
        self._begun = True
        answer = await self._ask(self._request, self._pool.limits.step_timeout, "reset", OpenedAnswer)
        return answer.opening

    async def step(self, action: str) -> StepResult:
        """Carry out a turn. Raises EnvironmentWorkerError, and RuntimeError before `reset` and after an error."""
        request = encode(StepRequest(action))
        answer = await self._ask(request, self._pool.limits.step_timeout, "step", SteppedAnswer)
        return answer.result

    async def close(self) -> None:
        """Let go of the worker. Never raises for what the environment does."""
        self._closed = True
        if self._working is not None:
            self._working.kill(PoolClosed(self._working.explained("was killed: the episode was closed meanwhile")))
        if self._worker is None:
            return
        try:
            await self._ask(encode(CloseRequest()), self._pool.options.close_timeout, "close", DoneAnswer)
        except EnvironmentWorkerError as error:
            logger.warning("task %r: %s", self._task.id, error)
            return
        worker, self._worker = self._worker, None
        self._pool.give_back(worker)

    def _too_late(self, doing: str) -> RuntimeError:
        return RuntimeError(f"task {self._task.id!r}: {doing} must be called once, before anything else")

    async def _ask(self, request: bytes, seconds: float | None, doing: str, kind: type[A]) -> A:
        if self._worker is None:
            raise RuntimeError(f"task {self._task.id!r}: {doing} comes before reset, after the end, or in a call")
        worker, self._worker = self._worker, None
        self._working = worker
        try:
            answer = await worker.call(request, seconds, doing, kind)
        except BaseException as error:
            self._pool.give_up(worker, error)
            raise
        finally:
            self._working = None
        self._worker = worker
        return answer
