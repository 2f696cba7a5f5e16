"""Environments: what the agent acts in. One protocol (`base`), one factory (`registry`)."""

from megatron_empg.environments.base import SPLITS, Environment, Message, Split, StepResult, Task, TaskSource
from megatron_empg.environments.registry import make_task_source

__all__ = [
    "SPLITS",
    "Environment",
    "Message",
    "Split",
    "StepResult",
    "Task",
    "TaskSource",
    "make_task_source",
]
