"""A run of `empg train` whose processes are disturbed while they are at work, and what it learnt all the same."""

import os
import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from megatron_empg.common.http import bearer
from megatron_empg.common.jsonl import read_lines
from megatron_empg.environments.deep_search.service_client import TOKEN_VARIABLE as SEARCH_TOKEN
from megatron_empg.rollout.access import TOKEN_VARIABLE
from megatron_empg.run.heartbeat import read_beats
from megatron_empg.run.metric_names import by_clock
from tests.end_to_end.killed_runs import kind_of, processes

ROOT = Path(__file__).parents[2]
SECONDS = 1500
"""How long a run, or what a test waits for in it, may take on a busy machine."""
SILENCE = 20
SYNC = 60
"""Of one weight transfer, at most; a core that is silent for a minute longer counts as frozen."""
TOKENS = {"engine": TOKEN_VARIABLE, "driver": TOKEN_VARIABLE, "search": SEARCH_TOKEN}
"""The variable with the token that each server asks for."""
WHO_PLAYED = re.compile(r"rollout/(engine|environment_workers|episodes_moved)|policy/logprob_gap_engine")
"""Metrics of which engine did what: they must differ."""


class Disturbed(ABC):
    """A run whose processes are disturbed, on this machine or in a job."""

    folder: Path

    @property
    @abstractmethod
    def output(self) -> str:
        """What the command or the job has said."""

    @abstractmethod
    def until(self, seen: Callable[[], bool], what: str) -> None:
        """Wait for something; a run that ends meanwhile, or does not come to it, fails the test."""

    @abstractmethod
    def processes(self, kind: str) -> list[psutil.Process]:
        """Its living ones of a kind: engine, engine core, driver, search, torchrun, rank."""

    @abstractmethod
    def end(self) -> Any:
        """Wait for its end, which is a good one."""

    @abstractmethod
    def give_up(self) -> None:
        """End all of its processes at once."""

    def stop(self) -> Any:
        """End it after the running step."""
        (self.folder / "STOP").touch()
        return self.end()

    def starts(self) -> list[str]:
        path = self.folder / "starts"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def done(self) -> int:
        """Steps that are logged so far."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return 0
        return max((line["step"] for line in read_lines(path)), default=0)

    def phase(self) -> str:
        """Where the trainer's first rank is, by its heartbeat; "" where there is none."""
        for beat in read_beats(self.folder):
            if beat.rank == 0:
                return beat.phase
        return ""

    def after_a_step(self) -> None:
        before = self.done()
        self.until(lambda: self.done() > before, "a step")

    def servers(self, kind: str) -> "list[Server]":
        """By their addresses."""
        found = []
        for process in self.processes(kind):
            # It has just ended, or is about to become what its parent has forked it for.
            with suppress(psutil.Error, ValueError, KeyError):
                found.append(Server.of(process, kind))
        return sorted(found, key=lambda one: one.url)

    def server(self, kind: str) -> "Server":
        """The last of a kind."""
        return self.servers(kind)[-1]

    def is_back(self, gone: "Server") -> bool:
        """Whether another process answers at its address, with weights whose version it was told."""
        for one in self.servers(gone.kind):
            if one.url == gone.url and one.pid != gone.pid:
                return one.serves()
        return False

    def metrics(self) -> list[dict[str, Any]]:
        """What two runs that learn the same have in common."""
        lines = read_lines(self.folder / "metrics.jsonl")
        return [
            {key: value for key, value in line.items() if not by_clock(key) and not WHO_PLAYED.match(key)}
            for line in lines
        ]


@dataclass
class Run(Disturbed):
    """A run of the command on this machine, and what befell it."""

    folder: Path
    engines: int
    steps: int
    more: dict[str, Any] = field(default_factory=dict)
    """Overrides behind those of all runs; None takes one of those away."""
    search_token: str = ""
    """Of a search service that the test has started."""
    process: "subprocess.Popen[str]" = field(init=False)
    recovered: dict[str, float] = field(default_factory=dict)
    """Seconds from each fault until the process was back, and held the policy's weights if it is an engine."""

    def start(self) -> "Run":
        overrides = {
            "run.folder": self.folder, "run.steps": self.steps, "run.checkpoint_every": self.steps,
            "algorithm.max_generation_rounds": 1, "rollout.groups": 4, "rollout.group_size": 4,
            "engines.count": self.engines, "engines.kv_cache_gib": 0.125, "engines.silence_timeout": SILENCE,
            "evaluation.questions": 8, "evaluation.greedy": "false", "limits.min_groups": 1,
            "limits.rollout_timeout": 900, "limits.sync_timeout": SYNC,
        } | self.more  # fmt: skip
        words = [f"{key}={value}" for key, value in overrides.items() if value is not None]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        tokens = {SEARCH_TOKEN: self.search_token} if self.search_token else {}
        with (self.folder.parent / f"{self.folder.name}.out").open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "megatron_empg.cli", "train", "recipes/quickstart.yaml", *words],
                cwd=ROOT, text=True, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, **tokens},
            )  # fmt: skip
        return self

    @property
    def output(self) -> str:
        return (self.folder.parent / f"{self.folder.name}.out").read_text(encoding="utf-8")

    def end(self) -> "Run":
        try:
            self.process.wait(SECONDS)
        finally:
            self.process.kill()
        assert self.process.returncode == 0, self.output
        return self

    def give_up(self) -> None:
        self.process.kill()

    def processes(self, kind: str) -> list[psutil.Process]:
        return processes(self.process.pid, kind)

    def until(self, seen: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not seen():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s\n{self.output}"
            time.sleep(0.02)

    def disturb(
        self,
        name: str,
        of: str,
        number: signal.Signals,
        when: Callable[["Server"], bool],
        process: Callable[["Server"], psutil.Process] = lambda server: psutil.Process(server.pid),
    ) -> None:
        """Send a server's process a signal once it is at something, and wait until it is back."""
        server = self.server(of)
        self.until(lambda: when(server), f"{of} busy")
        before = self._addresses()
        process(server).send_signal(number)
        began = time.monotonic()
        self.until(lambda: self.is_back(server), f"{name}: {of} back")
        self.recovered[name] = time.monotonic() - began
        after = self._addresses()
        assert set(after) == set(before), "each at its address"
        changed = [url for url in before if after[url] != before[url]]
        assert changed == [server.url], f"{name}: only {server.url} was started again"

    def _addresses(self) -> dict[str, int]:
        """The process at each."""
        return {one.url: one.pid for kind in ("engine", "driver") for one in self.servers(kind)}


@dataclass(frozen=True)
class Server:
    """An engine, the rollout service or the search of a run."""

    kind: str
    pid: int
    url: str
    token: str

    @classmethod
    def of(cls, process: psutil.Process, kind: str) -> "Server":
        words = process.cmdline()
        host, port = (words[words.index(option) + 1] for option in ("--host", "--port"))
        return cls(kind, process.pid, f"http://{host}:{port}", process.environ()[TOKENS[kind]])

    def serves(self) -> bool:
        """Whether it answers, with weights whose version it was told if it is an engine."""
        if self.kind != "engine":
            return self.get("/health") is not None
        reply = self.get("/weight_info")
        return reply is not None and reply.json()["weight_version"] != "default"

    def get(self, path: str) -> httpx.Response | None:
        try:
            reply = httpx.get(self.url + path, headers=bearer(self.token), timeout=2.0, trust_env=False)
        except httpx.HTTPError:
            return None
        return reply if reply.status_code == 200 else None

    def generates(self) -> bool:
        """Whether requests are under way in it."""
        reply = self.get("/metrics")
        running = re.search(r"^vllm:num_requests_running\S* ([0-9.]+)", reply.text if reply else "", re.MULTILINE)
        return running is not None and float(running[1]) > 0

    def is_paused(self) -> bool:
        """Whether new weights come into it."""
        reply = self.get("/is_paused")
        return reply is not None and bool(reply.json()["is_paused"])

    def core(self) -> psutil.Process:
        """The process of an engine that computes."""
        (core,) = [child for child in psutil.Process(self.pid).children() if kind_of(child) == "engine core"]
        return core
