"""One Deep Search episode."""

from megatron_empg.environments.base import Opening, StepResult
from megatron_empg.environments.calls.base import CallSyntax, MalformedCall
from megatron_empg.environments.deep_search.actions import parse_action
from megatron_empg.environments.deep_search.scoring import AnswerScore
from megatron_empg.environments.deep_search.text import cut
from megatron_empg.environments.deep_search.tools import QueryRefused, Tools

LONGEST_OBSERVATION = 100_000
"""Characters of what a look-up shows, unless the episode is told otherwise; the rest is cut."""


class DeepSearchEnvironment:
    """`search` and `visit` show what the tools give, and `answer` ends the episode with what `score` gives for it.

    `syntax` reads the turns. What the tools give is cut to `longest_observation` characters.
    """

    def __init__(
        self,
        tools: Tools,
        score: AnswerScore,
        syntax: CallSyntax,
        *,
        longest_observation: int = LONGEST_OBSERVATION,
    ) -> None:
        self.syntax = syntax
        self._tools = tools
        self._score = score
        self._longest = longest_observation
        self._done = False

    async def reset(self) -> Opening:
        """The task's prompt has said everything."""
        return Opening()

    async def step(self, action: str) -> StepResult:
        """Carry out one turn. Raises RuntimeError once an answer was given."""
        if self._done:
            raise RuntimeError("the episode is done; make a new environment for another")
        try:
            call = parse_action(action, self.syntax)
        except MalformedCall as error:
            return StepResult(f"{error}{self.syntax.reminder}", done=False, malformed=True)
        info: dict[str, float | str | bool] = {"tool": call.tool}
        if call.tool == "answer":
            self._done = True
            return await self._answered(call.argument, info)
        try:
            if call.tool == "search":
                observation = await self._tools.search(call.argument)
            else:
                observation = await self._tools.visit(call.argument)
        except QueryRefused as error:
            return StepResult(str(error), done=False, malformed=False, info=info | {"refused": True})
        return StepResult(cut(observation, self._longest), done=False, malformed=False, info=info)

    async def close(self) -> None:
        """The tools belong to all episodes."""

    async def _answered(self, answer: str, info: dict[str, float | str | bool]) -> StepResult:
        found = await self._score.verdict(answer)
        info |= {"exact": found.score.exact, "f1": found.score.f1}
        return StepResult(None, done=True, reward=found.reward, success=found.success, malformed=False, info=info)
