"""The main of a worker process: it builds a task source, warms it up and runs one environment after another.

`process.WorkerProcess` starts it with the descriptor of its socket. What the engine prints goes elsewhere. It ends
when the socket does.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import sys
import traceback

from megatron_empg.environments.base import Environment, TaskSource, admission
from megatron_empg.environments.registry import plugin
from megatron_empg.environments.shapes import checked_opening, checked_result
from megatron_empg.environments.workers import wire
from megatron_empg.environments.workers.messages import (
    Answer,
    BeginRequest,
    DoneAnswer,
    OpenedAnswer,
    RaisedAnswer,
    Request,
    ResetRequest,
    SteppedAnswer,
    StepRequest,
    encode,
    read_request,
)

_ERROR_CHARACTERS = 1000
_TRACEBACK_CHARACTERS = 4000


def main(descriptor: int) -> None:
    """Serve the socket of this descriptor until it ends."""
    _be_first_when_memory_runs_out()
    for stream in (sys.stdout, sys.stderr):
        # An engine that prints what it was told must not fail of a lone surrogate in it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    connection.setblocking(False)
    asyncio.run(_serve(connection))


def _be_first_when_memory_runs_out() -> None:
    """Have the kernel end this process before others when memory runs out, where it may be asked to (proc(5))."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


async def _serve(connection: socket.socket) -> None:
    episodes = _Episodes()
    try:
        while True:
            request = read_request(await wire.receive(connection, wire.LARGEST))
            await wire.send(connection, await episodes.encoded_answer(request))
    except (EOFError, ConnectionError):
        return
    finally:
        await episodes.close()


class _Episodes:
    """The task source and the episode that runs."""

    def __init__(self) -> None:
        self._source: TaskSource | None = None
        self._environment: Environment | None = None

    async def encoded_answer(self, request: Request) -> bytes:
        try:
            return encode(await self._answer(request))
        except Exception as error:
            return encode(_raised(error))

    async def close(self) -> None:
        """Close the environment, if one is open."""
        environment, self._environment = self._environment, None
        if environment is not None:
            await environment.close()

    async def _answer(self, request: Request) -> Answer:
        if isinstance(request, BeginRequest):
            self._source = _build(request)
            self._source.warm_up()
            return DoneAnswer()
        if isinstance(request, ResetRequest):
            assert self._source is not None
            self._environment = self._source.make(request.task)
            await admission(self._environment)
            return OpenedAnswer(checked_opening(await self._environment.reset()))
        if isinstance(request, StepRequest):
            assert self._environment is not None
            return SteppedAnswer(checked_result(await self._environment.step(request.action)))
        await self.close()
        return DoneAnswer()


def _build(request: BeginRequest) -> TaskSource:
    kind = plugin(request.environment)
    settings = kind.Settings.model_validate_json(request.settings)
    return kind(settings, request.limits)


def _raised(error: Exception) -> RaisedAnswer:
    line = "".join(traceback.format_exception_only(error)).strip()
    whole = "".join(traceback.format_exception(error))
    return RaisedAnswer(line[:_ERROR_CHARACTERS], whole[-_TRACEBACK_CHARACTERS:])
