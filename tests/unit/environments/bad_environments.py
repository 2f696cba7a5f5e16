"""Environments that do what a turn's text says, most of it bad. They run in worker processes."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from megatron_empg.environments.base import Opening, StepResult, Task, TaskSource
from megatron_empg.environments.settings import EnvironmentSettings

HEAVY = {"torch", "vllm", "transformers", "ray", "httpx", "uvicorn"}


class EchoSettings(EnvironmentSettings):
    greeting: str = "hello"
    numbers: tuple[int, ...] = ()
    day: date = date(2024, 2, 29)
    on_start: str = ""
    on_warm_up: str = ""


class Echo(TaskSource):
    """`payload["reset"]` is what reset does, the turn's text what a step does, `on_start` what building
    does, `on_warm_up` what warming up does."""

    Settings = EchoSettings
    isolation = "process"

    def __init__(self, settings: EchoSettings, limits: Any) -> None:
        super().__init__(settings, limits)
        if settings.on_start:
            act(settings.on_start)
        self.episodes = 0

    def warm_up(self) -> None:
        if self.settings.on_warm_up:
            act(self.settings.on_warm_up)

    def tasks(self, split: str) -> list[Task]:
        return [Task("t", [], {})]

    def make(self, task: Task) -> "EchoEpisode":
        self.episodes += 1
        return EchoEpisode(self, task)


class EchoEpisode:
    def __init__(self, source: Echo, task: Task) -> None:
        self.source = source
        self.task = task
        self.turns = 0

    async def reset(self) -> Opening:
        act(self.task.payload.get("reset", ""))
        settings = self.source.settings
        text = f"{settings.greeting} {settings.numbers} {settings.day} {self.source.limits.max_turns}"
        return Opening([{"role": "user", "content": text}], anchor=self.task.payload.get("anchor"))

    async def step(self, action: str) -> StepResult:
        self.turns += 1
        observation = act(action)
        if not isinstance(observation, str):
            return observation
        info = {"episode": self.source.episodes, "turn": self.turns, "pid": os.getpid()}
        return StepResult(observation, False, reward=0.5, malformed=False, anchor="state", info=info)

    async def close(self) -> None:
        act(self.task.payload.get("close", ""))


def act(text: str) -> Any:
    """Do what the first word says with the rest; echo text that begins otherwise."""
    word, _, rest = text.partition(" ")
    deed = DEEDS.get(word)
    return text if deed is None else deed(rest)


def _segfault(_: str) -> None:
    ctypes.string_at(0)


def _allocate(mebibytes: str) -> str:
    block = bytearray(int(mebibytes) << 20)
    block[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * len(block[:: os.sysconf("SC_PAGE_SIZE")])
    time.sleep(60)
    return "not reached"


def _child_allocates(mebibytes: str) -> str:
    program = f"import time; x = b'x' * ({mebibytes} << 20); time.sleep(60)"
    subprocess.run([sys.executable, "-c", program], check=True)
    return "not reached"


def _print(text: str) -> str:
    print(text)
    print("to stderr", file=sys.stderr)
    os.write(1, b"by descriptor\n")
    os.system("echo by a child")
    return "printed"


def _write_to_the_socket(what: str) -> str:
    """Answer in the worker's place, on every socket that it has."""
    answers = {"text": b"hello, this is no answer", "json": b"\0\0\0\x02{}", "other": b'\0\0\0\x0f{"kind":"Done"}'}
    answers["nested"] = b"\0\1\0\0" + b"[" * 65536
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.write(int(name), answers[what])
        except OSError:
            continue
    time.sleep(60)
    return "not reached"


def _spawn(groups: str) -> str:
    """Children that outlive their parent: one in the worker's group, and for "both" one that left it."""
    children = [subprocess.Popen(["sleep", "300"])]
    if groups == "both":
        children.append(subprocess.Popen(["sleep", "300"], start_new_session=True))
    return " ".join(str(child.pid) for child in children)


def _raise(text: str) -> None:
    raise ValueError(text)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _raise_unprintable(_: str) -> None:
    raise Unprintable


def _recurse(_: str) -> None:
    _recurse(_)


def _reward(text: str) -> StepResult:
    return StepResult("ok", False, reward=float(text))


def _numpy(_: str) -> StepResult:
    import numpy as np

    return StepResult(
        None, np.bool_(True), reward=np.float32(0.25), success=np.bool_(True), info={"n": np.int64(3)}
    )


def _sleep(seconds: str) -> str:
    time.sleep(float(seconds))
    return "slept"


DEEDS: dict[str, Any] = {
    "exit": lambda status: os._exit(int(status)),
    "leave": lambda status: sys.exit(int(status)),
    "segfault": _segfault,
    "signal": lambda name: os.kill(os.getpid(), getattr(signal, name)),
    "hang": lambda _: _sleep("600"),
    "sleep": _sleep,
    "cancelled": lambda _: (_ for _ in ()).throw(asyncio.CancelledError()),
    "large": lambda size: "x" * int(size),
    "allocate": _allocate,
    "child_allocates": _child_allocates,
    "print": _print,
    "noise": lambda size: print("x" * int(size)) or "noisy",
    "socket": _write_to_the_socket,
    "spawn": _spawn,
    "raise": _raise,
    "unprintable": _raise_unprintable,
    "recurse": _recurse,
    "reward": _reward,
    "numpy": _numpy,
    "dict": lambda _: {"observation": "ok"},
    "none": lambda _: None,
    "object": lambda _: StepResult(object(), False),
    "bytes": lambda _: StepResult(b"bytes", False),
    "number": lambda _: StepResult(5, False),
    "done": lambda _: StepResult(None, True, reward=1.0, success=True),
    "cwd": lambda _: os.getcwd(),
    "heavy": lambda _: " ".join(sorted(HEAVY & set(sys.modules))) or "none",
    "oom": lambda _: Path("/proc/self/oom_score_adj").read_text(encoding="ascii").strip(),
    "variable": lambda name: os.environ.get(name, "unset"),
    "stdin": lambda _: repr(sys.stdin.read()),
}
