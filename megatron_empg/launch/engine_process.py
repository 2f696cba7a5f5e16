"""Engines as processes of this one, for tests and benchmarks; runs start theirs as parts, by `launch.commands`.

It stands here because both need it: bench/ may import the package, but not tests/.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.http import NotHealthyError, bearer, wait_until_healthy
from megatron_empg.common.log_ends import why
from megatron_empg.common.visible_gpus import VARIABLE, visible_gpus
from megatron_empg.launch.commands import EngineSettings, engine, url_of
from megatron_empg.rollout.access import TOKEN_VARIABLE


class EngineStartError(EmpgError, RuntimeError):
    """An engine that did not come up; the message ends with the tail of its log."""


@dataclass
class EngineProcess:
    """A running `megatron_empg.rollout.server`. It dies with the process that started it."""

    url: str
    log_path: Path
    process: subprocess.Popen[bytes]
    token: str
    log: IO[bytes]

    def wait_healthy(self, timeout: float, *, version: int = 0) -> float:
        """Wait until it generates and tell it the `version` of the weights it was started with.

        Returns the seconds waited. Raises EngineStartError when it ends or takes longer than `timeout`.
        """
        import httpx

        started = time.monotonic()
        try:
            wait_until_healthy([self.url], self.token, timeout=timeout, check=self._check_lives)
        except NotHealthyError:
            raise self._start_error(f"was not healthy after {timeout:.0f} s") from None
        with httpx.Client(headers=bearer(self.token), timeout=10.0, trust_env=False) as client:
            body = {"new_version": str(version)}
            client.post(f"{self.url}/update_weight_version", json=body).raise_for_status()
        return time.monotonic() - started

    def stop(self, timeout: float = 10.0) -> None:
        """End it, with force after `timeout` seconds."""
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def _check_lives(self) -> None:
        if self.process.poll() is not None:
            raise self._start_error(f"ended with status {self.process.returncode}")

    def _start_error(self, what: str) -> EngineStartError:
        return EngineStartError(f"engine {self.url} {what}; {why(self.log_path)}")


def start_engine(
    model_path: str | Path,
    *,
    port: int,
    token: str,
    log_path: str | Path,
    max_model_len: int,
    dtype: str = "float32",
    device_index: int | None = None,
    host: str = "127.0.0.1",
    kv_cache_bytes: int | None = None,
    max_num_seqs: int = 256,
    tensor_parallel: int = 1,
    threads: int = 1,
    backend: str | None = None,
    extra_arguments: tuple[str, ...] = (),
) -> EngineProcess:
    """Start an engine and return at once; `wait_healthy` waits. Call from the main thread.

    `device_index`: its first GPU among the caller's (CUDA_VISIBLE_DEVICES), with `tensor_parallel - 1` more after
    it; None leaves the choice to vLLM.
    `extra_arguments` go to vLLM unchanged. The token travels in the environment, never on the command line.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start engines from the main thread: they die with the thread that started them")
    settings = EngineSettings(
        str(model_path), max_model_len, dtype, max_num_seqs, tensor_parallel, threads, kv_cache_bytes, backend
    )
    command = engine(sys.executable, settings.arguments(), host, port, extra_arguments)
    environment = os.environ | {TOKEN_VARIABLE: token, "PYTHONUNBUFFERED": "1"}
    if device_index is not None:
        environment[VARIABLE] = visible_gpus(device_index, tensor_parallel, os.environ)
    path = Path(log_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("wb")
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for the run to handle; the engines end with it
    )
    return EngineProcess(url_of(host, port), path, process, token, log)
