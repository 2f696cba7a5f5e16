"""A run of `empg train` whose processes are disturbed while they are at work, and what it learnt all the same."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from megatron_empg.common.http import bearer
from megatron_empg.common.jsonl import read_lines
from megatron_empg.rollout.access import TOKEN_VARIABLE
from megatron_empg.run.heartbeat import read_beats
from megatron_empg.run.metric_names import by_clock
from tests.end_to_end.killed_runs import kind_of

ROOT = Path(__file__).parents[2]
SECONDS = 1500
"""How long a run, or what a test waits for in it, may take on a busy machine."""
SILENCE = 20
SYNC = 60
"""Of one weight transfer, at most; a core that is silent for a minute longer counts as frozen."""
WHO_PLAYED = re.compile(r"rollout/(engine|environment_workers|episodes_moved)|policy/logprob_gap_engine")
"""Metrics of which engine did what: they must differ."""


@dataclass
class Run:
    """A run of the command, and what befell it."""

    folder: Path
    engines: int
    steps: int
    more: dict[str, Any] = field(default_factory=dict)
    """Overrides behind those of all runs."""
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
        words = [f"{key}={value}" for key, value in overrides.items()]
        with (self.folder.parent / f"{self.folder.name}.out").open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "megatron_empg.cli", "train", "recipes/quickstart.yaml", *words],
                cwd=ROOT, text=True, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
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

    def stop(self) -> "Run":
        """End it after the running step."""
        (self.folder / "STOP").touch()
        return self.end()

    def starts(self) -> list[str]:
        return (self.folder / "starts").read_text(encoding="utf-8").splitlines()

    def until(self, seen: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not seen():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s\n{self.output}"
            time.sleep(0.02)

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

    def disturb(
        self,
        name: str,
        of: str,
        number: signal.Signals,
        when: Callable[["Server"], bool],
        process: Callable[["Server"], psutil.Process] = lambda server: psutil.Process(server.pid),
    ) -> None:
        """Send a server's process a signal once it is at something, and wait until it is back."""
        server = Server.of(self.process.pid, of)
        self.until(lambda: when(server), f"{of} busy")
        before = {one.url: one.pid for one in Server.all_of(self.process.pid)}
        process(server).send_signal(number)
        began = time.monotonic()
        self.until(lambda: Server.is_back(self.process.pid, server), f"{name}: {of} back")
        self.recovered[name] = time.monotonic() - began
        after = {one.url: one.pid for one in Server.all_of(self.process.pid)}
        assert set(after) == set(before), "each at its address"
        changed = [url for url in before if after[url] != before[url]]
        assert changed == [server.url], f"{name}: only {server.url} was started again"

    def metrics(self) -> list[dict[str, Any]]:
        """What two runs that learn the same have in common."""
        lines = read_lines(self.folder / "metrics.jsonl")
        return [
            {key: value for key, value in line.items() if not by_clock(key) and not WHO_PLAYED.match(key)}
            for line in lines
        ]


@dataclass(frozen=True)
class Server:
    """An engine or the rollout service of a run."""

    kind: str
    pid: int
    url: str
    token: str

    @classmethod
    def all_of(cls, launcher: int) -> "list[Server]":
        found = []
        for child in psutil.Process(launcher).children():
            try:
                words, environment = child.cmdline(), child.environ()
            except psutil.Error:
                continue
            kinds = {"megatron_empg.rollout.server": "engine", "megatron_empg.launch.rollout_service": "driver"}
            for module, kind in kinds.items():
                if module in words and TOKEN_VARIABLE in environment:
                    url = f"http://127.0.0.1:{words[words.index('--port') + 1]}"
                    found.append(cls(kind, child.pid, url, environment[TOKEN_VARIABLE]))
        return sorted(found, key=lambda one: one.url)

    @classmethod
    def of(cls, launcher: int, kind: str) -> "Server":
        return [one for one in cls.all_of(launcher) if one.kind == kind][-1]

    @classmethod
    def is_back(cls, launcher: int, gone: "Server") -> bool:
        """Whether another process answers at its address, with weights whose version it was told."""
        for one in cls.all_of(launcher):
            if one.url == gone.url and one.pid != gone.pid:
                return one.serves()
        return False

    def serves(self) -> bool:
        if self.kind == "driver":
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
