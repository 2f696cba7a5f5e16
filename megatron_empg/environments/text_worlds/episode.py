"""One episode in a world of text commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from megatron_empg.environments.base import Message, Opening, StepResult
from megatron_empg.environments.blocking import in_thread
from megatron_empg.environments.text_worlds.prompt import TextWorldPrompt
from megatron_empg.environments.text_worlds.settings import TextWorldSettings
from megatron_empg.environments.text_worlds.turns import read_turn
from megatron_empg.environments.text_worlds.window import Window
from megatron_empg.environments.text_worlds.world import Scene, World

R = TypeVar("R")

NOT_READ = "This turn could not be read, so nothing happened."
UNREADABLE = "(a turn that could not be read)"
"""What a windowed prompt shows in the place of its command."""


class TextWorldEpisode:
    """An `Environment`. A turn that cannot be read leaves the world as it is, and costs the penalty."""

    def __init__(
        self, world: World, prompt: TextWorldPrompt, goal: str, settings: TextWorldSettings, *, in_threads: bool
    ) -> None:
        """`in_threads`: whether the world's calls would hold up other episodes."""
        self._world = world
        self._prompt = prompt
        self._goal = goal
        self._settings = settings
        self._in_threads = in_threads
        self._window = Window(settings.window)
        self._scene: Scene | None = None

    async def reset(self) -> Opening:
        """Begin. The opening is all that the first turn reads."""
        self._scene = await self._call(self._world.begin)
        return Opening(self._prompt.first(self._goal, self._scene), anchor=self._scene.state)

    async def step(self, action: str) -> StepResult:
        """Carry out the command of a turn. Raises RuntimeError before `reset` and once the episode is done."""
        scene = self._scene
        if scene is None or scene.done:
            raise RuntimeError("the episode is not begun or done; make a new environment for another")
        command = read_turn(action)
        if command is None:
            self._window.add(scene.observation, UNREADABLE)
            return self._unread(scene)
        self._window.add(scene.observation, command)
        self._scene = await self._call(lambda: self._world.act(command))
        return self._result(self._scene)

    async def close(self) -> None:
        """Let go of the world."""
        await self._call(self._world.close)

    def _unread(self, scene: Scene) -> StepResult:
        told = f"{NOT_READ} {self._prompt.how_to_write}\n{self._prompt.show(scene)}"
        return StepResult(
            told,
            done=False,
            reward=-self._settings.invalid_action_penalty,
            malformed=True,
            anchor=scene.state,
            context=self._context(scene),
        )

    def _result(self, scene: Scene) -> StepResult:
        if scene.done:
            success = bool(scene.success)
            return StepResult(None, True, scene.reward, success=success, malformed=False, info=scene.info)
        return StepResult(
            self._prompt.show(scene),
            done=False,
            reward=scene.reward,
            malformed=False,
            anchor=scene.state,
            info=scene.info,
            context=self._context(scene),
        )

    def _context(self, scene: Scene) -> list[Message] | None:
        """What the next turn reads; None where that is the whole conversation."""
        if not self._settings.windowed:
            return None
        return self._prompt.windowed(self._goal, self._window, scene)

    async def _call(self, method: Callable[[], R]) -> R:
        if self._in_threads:
            return await in_thread(method)
        return method()
