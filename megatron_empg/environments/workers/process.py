"""One worker process, seen from its parent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TypeVar

from megatron_empg.environments.base import EpisodeLimits
from megatron_empg.environments.workers import wire
from megatron_empg.environments.workers.errors import (
    EnvironmentRaised,
    EnvironmentWorkerError,
    WorkerAnswerMalformed,
    WorkerAnswerTooLarge,
    WorkerDied,
    WorkerTimeout,
)
from megatron_empg.environments.workers.interpreter import Interpreter, interpreter_of
from megatron_empg.environments.workers.log_tail import LogTail
from megatron_empg.environments.workers.memory import descendants
from megatron_empg.environments.workers.messages import (
    Answer,
    BeginRequest,
    DoneAnswer,
    RaisedAnswer,
    encode,
    read_answer,
)
from megatron_empg.environments.workers.options import WorkerOptions

logger = logging.getLogger(__name__)

A = TypeVar("A", bound=Answer)

# Behind what makes its imports work.
_MAIN = """
from megatron_empg.common.processes import die_with_parent, end_process_group_with_this_process
parent, connection = map(int, sys.argv[1:3])
die_with_parent(parent)
end_process_group_with_this_process(connection)
from megatron_empg.environments.workers.worker import main
main(connection)
"""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# What lets in to the run's engines, to the hub and to the tracker is no environment's to have.
_SECRETS_OF_THE_RUN = frozenset({"EMPG_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"})
_SECONDS_TO_DIE = 30.0
_SECONDS_FOR_STATUS = 2.0


class WorkerProcess:
    """A worker, started by the thread of the event loop that uses it: it dies with that thread."""

    def __init__(self, environment: str, options: WorkerOptions, python: Path | None = None) -> None:
        """Start the process, in the Python at `python` or in this one.

        Raises OSError when the system has no room for it, and ValueError where that Python cannot run it.
        """
        interpreter = interpreter_of(environment, python)
        self.episodes = 0
        self._known_as = interpreter.environment
        self._environment = environment
        self._options = options
        self._verdict: EnvironmentWorkerError | None = None
        self._calling = False
        self._ended = False
        self._connection, theirs = socket.socketpair()
        self._connection.setblocking(False)
        log, written = os.pipe()
        try:
            self._process = _spawn(interpreter, theirs.fileno(), written)
        except BaseException:
            self._connection.close()
            os.close(log)
            raise
        finally:
            theirs.close()
            os.close(written)
        self._log = LogTail(log, options.log_bytes)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def begin(self, settings: str, limits: EpisodeLimits) -> None:
        """Have it build its task source and warm it up. Raises EnvironmentWorkerError."""
        request = BeginRequest(self._known_as, settings, limits)
        await self.call(encode(request), self._options.start_timeout, "start", DoneAnswer)

    async def call(self, request: bytes, seconds: float | None, doing: str, kind: type[A]) -> A:
        """The answer to a request, of the kind it must have. `doing` names the request in errors.

        Raises EnvironmentWorkerError; then the worker is of no use any more.

        The same holds for a worker whose call is cancelled.
        """
        self._calling = True
        try:
            answer = await self._call(request, seconds, doing, kind)
            if self._verdict is not None:
                raise self._verdict  # it was killed when it had answered already
            return answer
        finally:
            self._calling = False
            if self._ended:
                self._connection.close()

    def kill(self, verdict: EnvironmentWorkerError | None = None) -> None:
        """End the process and all that it started, at once. `verdict`: what the call under way raises, or the
        next one."""
        if self._verdict is None:
            self._verdict = verdict
        if self._process.returncode is not None:
            return  # its number may be another's by now
        below = descendants(self.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid in below:
            # One of them may have left the group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def alive(self) -> bool:
        return self._verdict is None and not self._has_exited()

    async def end(self, patience: float) -> None:
        """End the process: it may do so by itself within `patience` seconds. It is gone afterwards."""
        if patience:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            await self._exits_within(patience)
        self.kill()
        if await self._exits_within(_SECONDS_TO_DIE):
            self._process.wait()
        else:
            logger.error("worker %d of environment %r cannot be killed", self.pid, self._environment)
        self._log.close()
        self._ended = True
        if not self._calling:
            # Otherwise the call closes it: nothing would wake a call that waits for a closed socket.
            self._connection.close()

    def explained(self, what: str) -> str:
        """What happened, with the end of what the worker wrote."""
        message = f"worker {self.pid} of environment {self._environment!r} {what}"
        written = self._log.text()
        if written:
            return f"{message}; it wrote last:\n{written}"
        return message

    async def _call(self, request: bytes, seconds: float | None, doing: str, kind: type[A]) -> A:
        limit = self._options.answer_bytes
        try:
            async with asyncio.timeout(seconds):
                await wire.send(self._connection, request)
                body = await wire.receive(self._connection, limit)
        except TimeoutError:
            self.kill()
            raise WorkerTimeout(self.explained(f"was killed: {doing} took more than {seconds:g} s")) from None
        except wire.TooLong as error:
            self.kill()
            what = f"was killed: its answer to {doing} has {error.size} bytes; the limit is {limit}"
            raise WorkerAnswerTooLarge(self.explained(what)) from None
        except (EOFError, OSError):
            raise await self._cause_of_death(doing) from None
        return self._read(body, doing, kind)

    def _read(self, body: bytes, doing: str, kind: type[A]) -> A:
        try:
            answer = read_answer(body)
            if not isinstance(answer, kind | RaisedAnswer):
                raise ValueError(f"it is one of another kind, {type(answer).__name__}")
        except ValueError as error:
            self.kill()
            what = f"was killed: its answer to {doing} cannot be read: {error}"
            raise WorkerAnswerMalformed(self.explained(what)) from None
        if isinstance(answer, RaisedAnswer):
            raise EnvironmentRaised(self.explained(f"raised in {doing}: {answer.error}\n{answer.traceback}"))
        return answer

    async def _cause_of_death(self, doing: str) -> EnvironmentWorkerError:
        await self._exits_within(_SECONDS_FOR_STATUS)
        if self._verdict is not None:
            return self._verdict
        status = self._status()
        self.kill()
        return WorkerDied(self.explained(f"{status} in {doing}"))

    def _status(self) -> str:
        found = _exit_of(self.pid)
        if found is None:
            return "closed its connection"
        if found.si_code == os.CLD_EXITED:
            return f"ended with exit status {found.si_status}"
        return f"was killed by {signal.Signals(found.si_status).name}"

    def _has_exited(self) -> bool:
        if self._process.returncode is not None:
            return True
        try:
            return _exit_of(self.pid) is not None
        except ChildProcessError:
            return True

    async def _exits_within(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        pause = 0.002
        while not self._has_exited():
            if loop.time() > until:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)
        return True


def _exit_of(pid: int) -> os.waitid_result | None:
    """How a child ended; None while it lives. It stays a zombie, so that its number is not given to another."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def _spawn(interpreter: Interpreter, connection: int, log: int) -> subprocess.Popen[bytes]:
    program = [*interpreter.program, "-u", "-X", "faulthandler", "-c", interpreter.imports + _MAIN]
    arguments = [str(os.getpid()), str(connection), interpreter.places]
    # Hundreds of workers with a thread for each core of the node would be in each other's way.
    inherited = {name: value for name, value in os.environ.items() if name not in _SECRETS_OF_THE_RUN}
    variables = dict.fromkeys(_ONE_THREAD, "1") | interpreter.variables(inherited)
    return subprocess.Popen(
        program + arguments,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(connection,),
        env=variables,
        start_new_session=True,
    )
