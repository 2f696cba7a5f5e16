"""Episodes of one turn for tests: tasks whose kind says how they end, and an engine that answers by the seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from megatron_empg.environments.base import Opening, StepResult, Task
from megatron_empg.rollout.chat_tokens import ChatTokens

QUESTION = "the capital of Peru"


class OneTurn:
    """An answer is rewarded by the task's kind: "win", "lose", or else whether it says Lima.

    "breaks" ends in an error, "late" waits for the task's gate, and a turn of "unread" is malformed.
    """

    def __init__(self, task: Task, gates: dict[str, asyncio.Event] | None = None) -> None:
        self.task = task
        self.gates = {} if gates is None else gates

    async def reset(self) -> Opening:
        return Opening()

    async def step(self, action: str) -> StepResult:
        kind = self.task.kind
        if kind == "breaks":
            raise OSError("the tool is gone")
        if kind == "unread":
            return StepResult("malformed call", False, malformed=True)
        if kind == "late":
            await self.gates.setdefault(self.task.id, asyncio.Event()).wait()
        reward = {"win": 1.0, "lose": 0.0}.get(kind, float("Lima" in action))
        return StepResult(None, True, reward, malformed=False)

    async def close(self) -> None:
        pass


def questions_of(kinds: Iterable[str], prefix: str = "q", **others: Any) -> list[Task]:
    """A task of each kind, in this order."""
    prompt: Any = [{"role": "user", "content": QUESTION}]
    return [Task(f"{prefix}{number}", prompt, {}, kind=kind, **others) for number, kind in enumerate(kinds)]


def by_seed(chat: ChatTokens) -> Callable[[dict[str, Any]], list[int]]:
    """What a `StubEngine` answers: one of two answers, of which one is right."""
    said = [chat._tokenizer(f"answer {word}", add_special_tokens=False)["input_ids"] for word in ("Lima", "Peru")]
    return lambda body: [*said[body["sampling_params"]["seed"] % 2], chat.end_of_turn]
