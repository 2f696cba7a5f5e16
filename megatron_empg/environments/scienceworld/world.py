"""One episode in ScienceWorld's engine."""

from __future__ import annotations

from megatron_empg.environments.deep_search.text import cut
from megatron_empg.environments.scienceworld.engine import CommandOutcome, Engine
from megatron_empg.environments.scienceworld.errors import EngineRaised
from megatron_empg.environments.scienceworld.settings import ScienceWorldSettings
from megatron_empg.environments.scienceworld.variations import Variation
from megatron_empg.environments.text_worlds.world import Scene

FIRST_COMMAND = "look around"
"""With which every published set-up begins: the package's own `reset` gives it."""
LONGEST_COMMAND = 500
"""Characters. The engine's parser takes the longer the more words there are, and no command has as many."""
NO_COMMAND = "No known action matches that input."
"""The engine's own words."""
_WHICH = "Ambiguous request"
FULL_SCORE = 100


class ScienceWorldWorld:
    """A `World`. Its calls block, and raise ScienceWorldFailed where the engine does."""

    def __init__(self, engine: Engine, variation: Variation, settings: ScienceWorldSettings) -> None:
        self._engine = engine
        self._variation = variation
        self._settings = settings
        self._simulation = 0
        self._score = 0
        self._paid = 0

    def begin(self) -> Scene:
        """Load the variation and look around. Where that scores, as some tasks' first room does, the first command
        is paid for it."""
        self._simulation = self._engine.load(self._variation, self._settings.simplifications)
        outcome = self._engine.step(self._simulation, FIRST_COMMAND)
        return self._scene(outcome, paid=False)

    def act(self, command: str) -> Scene:
        """Carry out a command. One that the engine stumbles over is one that it does not know."""
        # Half a surrogate pair is no text for the engine.
        command = command.encode("utf-8", "replace").decode("utf-8")
        if len(command) > LONGEST_COMMAND:
            return self._scene(CommandOutcome(NO_COMMAND, self._score, completed=False))
        try:
            return self._scene(self._engine.step(self._simulation, command))
        except EngineRaised:
            return self._scene(CommandOutcome(NO_COMMAND, self._score, completed=False), broken=True)

    def close(self) -> None:
        """The process stays for the next episode."""

    def _scene(self, outcome: CommandOutcome, *, broken: bool = False, paid: bool = True) -> Scene:
        """`broken`: whether it was an exception of the engine's own."""
        failed = outcome.score < 0
        self._score = outcome.score
        reward = 0.0
        if paid:
            reward = self._reward(outcome)
        info: dict[str, float | str | bool] = {"score": outcome.score}
        if broken or (failed and self._engine.broke_inside(self._simulation) is not None):
            info["engine_error"] = True
        observation = cut(outcome.observation, self._settings.observation_characters)
        if failed or outcome.completed:
            return Scene(observation, (), True, reward, outcome.completed and not failed, info=info)
        return Scene(observation, self._choices(), reward=reward, anchor=self._state(outcome), info=info)

    def _reward(self, outcome: CommandOutcome) -> float:
        """What this step earned. Scores below 0 count as 0, so that an episode's sum is its score's share."""
        if self._settings.reward == "score":
            counts = max(outcome.score, 0)
            gained, self._paid = counts - self._paid, counts
            return self._settings.success_reward * gained / FULL_SCORE
        solved = outcome.completed and outcome.score >= 0
        if not solved:
            return 0.0
        return self._settings.success_reward

    def _choices(self) -> tuple[str, ...]:
        if self._settings.choices == "templates":
            return tuple(self._engine.objects(self._simulation))
        if self._settings.choices == "valid":
            return tuple(self._engine.commands(self._simulation))
        return ()

    def _state(self, outcome: CommandOutcome) -> str:
        """The room and what is carried; and the question, where the engine has asked which thing is meant."""
        surroundings = self._engine.surroundings(self._simulation)
        asked = outcome.observation.startswith(_WHICH)
        if asked:
            return f"{surroundings}\n{outcome.observation}"
        return surroundings
