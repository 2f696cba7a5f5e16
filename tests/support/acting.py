"""Environments for tests that are no coroutines: each call is awaited on an event loop of its own."""

import asyncio

from megatron_empg.environments.base import Environment, StepResult


def begun(environment: Environment) -> Environment:
    """The same, after its reset."""
    asyncio.run(environment.reset())
    return environment


def step(environment: Environment, action: str) -> StepResult:
    return asyncio.run(environment.step(action))


def steps(environment: Environment, actions: list[str]) -> list[StepResult]:
    """One after the other, on one event loop."""

    async def all_of_them() -> list[StepResult]:
        return [await environment.step(action) for action in actions]

    return asyncio.run(all_of_them())
