"""The search service of a run that is disturbed, which the test starts, has fail, and kills."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from megatron_empg.common.http import bearer
from megatron_empg.environments.deep_search.service_client import TOKEN_VARIABLE
from megatron_empg.environments.deep_search.settings import DEFAULT_CORPUS
from megatron_empg.launch.ports import free_port
from tests.end_to_end.chaos import Chaos, Fault
from tests.end_to_end.disturbed_run import ROOT
from tests.support.unreliable_search import ORDER_VARIABLE, met

REQUESTS = 12
"""So many requests meet with a failure before it is over."""
SECONDS = 120


@dataclass
class UnreliableSearch:
    """A service at one address, whatever becomes of its process."""

    order: Path
    """Where the service reads how to fail."""
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        module = "tests.support.unreliable_search"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, DEFAULT_CORPUS, "--port", str(self.port)],
            cwd=ROOT, env={**os.environ, TOKEN_VARIABLE: self.token, ORDER_VARIABLE: str(self.order)},
        )  # fmt: skip
        deadline = time.monotonic() + SECONDS
        while not self._answers():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", headers=bearer(self.token), trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def killed(self, chaos: Chaos) -> Fault:
        """Killed, and started again as a supervisor does: the run makes a step with the new one."""

        def fault() -> Callable[[], bool]:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.start()
            return chaos.another_step()

        return fault

    def fails(self, how: str, chaos: Chaos) -> Fault:
        """Some requests meet with failures, and then it is well again."""

        def fault() -> Callable[[], bool]:
            over = chaos.another_step()
            met(self.order).unlink(missing_ok=True)
            self.order.write_text(how, encoding="ascii")
            chaos.run.until(self._enough, f"{REQUESTS} requests that met with {how}")
            self.order.unlink()
            return over

        return fault

    def _enough(self) -> bool:
        counted = met(self.order)
        return counted.exists() and counted.stat().st_size >= REQUESTS


@contextmanager
def unreliable_search(folder: Path) -> Iterator[UnreliableSearch]:
    search = UnreliableSearch(folder / "order")
    search.start()
    try:
        yield search
    finally:
        search.process.kill()
        search.process.wait()
