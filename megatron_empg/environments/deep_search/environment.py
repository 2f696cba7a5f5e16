"""One Deep Search episode."""

from megatron_empg.environments.base import Opening, StepResult
from megatron_empg.environments.deep_search.actions import MalformedCall, parse_action
from megatron_empg.environments.deep_search.text import normalise_answer
from megatron_empg.environments.deep_search.tools import QueryRefused, Tools


class DeepSearchEnvironment:
    """`search` and `visit` show what the tools give, `answer` ends the episode: reward 1 for a normalised exact
    match, else 0. `reminder` ends what a malformed turn is told."""

    def __init__(self, tools: Tools, answer: str, reminder: str = ""):
        self._tools = tools
        self._reminder = reminder
        self._answer = normalise_answer(answer)
        self._done = False

    async def reset(self) -> Opening:
        """The task's prompt has said everything."""
        return Opening()

    async def step(self, action: str) -> StepResult:
        """Carry out one turn. Raises RuntimeError once an answer was given."""
        if self._done:
            raise RuntimeError("the episode is done; make a new environment for another")
        try:
            call = parse_action(action)
        except MalformedCall as error:
            return StepResult(f"{error}{self._reminder}", done=False, malformed=True)
        info: dict[str, float | str | bool] = {"tool": call.tool}
        if call.tool == "answer":
            self._done = True
            right = normalise_answer(call.argument) == self._answer
            return StepResult(None, done=True, reward=float(right), success=right, malformed=False, info=info)
        look_up = self._tools.search if call.tool == "search" else self._tools.visit
        try:
            observation = await look_up(call.argument)
        except QueryRefused as error:
            return StepResult(str(error), done=False, malformed=False, info=info | {"refused": True})
        return StepResult(observation, done=False, malformed=False, info=info)

    async def close(self) -> None:
        """The tools belong to all episodes."""
