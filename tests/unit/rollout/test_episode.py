"""Which tokens of an episode are the policy's own, turn by turn, with a policy that says what the test wants."""

import asyncio
from dataclasses import dataclass, field

import pytest

from megatron_empg.environments.base import StepResult, Task
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import Generation, Sampling, VersionSpan
from megatron_empg.rollout.episode import Episode, Limits, run_episode
from tests.tokenizers_for_tests import make_tokenizer

TASK = Task("t", [{"role": "user", "content": "the capital of Peru"}], {})


@dataclass
class ScriptedPolicy:
    """Answers as an engine does; every turn's log-probs are its own number."""

    turns: list[list[int]]
    end_of_turn: int
    seen: list[tuple[list[int], int, int]] = field(default_factory=list)

    async def generate(self, prompt: list[int], sampling: Sampling, *, max_tokens: int, seed: int) -> Generation:
        turn = len(self.seen)
        self.seen.append((list(prompt), max_tokens, seed))
        tokens = self.turns[turn][:max_tokens]
        finish = "stop" if tokens[-1] == self.end_of_turn else "length"
        return Generation(tokens, [-1.0 - turn] * len(tokens), finish, [VersionSpan(7, 0, len(tokens))])


class Echo:
    """Observes what was said; "answer" ends the episode with reward 1."""

    def step(self, action: str) -> StepResult:
        if action.startswith("answer"):
            return StepResult(None, True, 1.0)
        return StepResult(f"seen {action}", False)


@pytest.fixture(scope="module")
def chat() -> ChatTokens:
    return ChatTokens(make_tokenizer("chatml"))


def encode(chat: ChatTokens, text: str) -> list[int]:
    return chat._tokenizer(text, add_special_tokens=False)["input_ids"]


def play(chat: ChatTokens, turns: list[list[int]], limits: Limits) -> tuple[Episode, ScriptedPolicy]:
    policy = ScriptedPolicy(turns, chat.end_of_turn)
    episode = asyncio.run(
        run_episode(policy, chat, Echo, TASK, Sampling(1.0), limits, lambda turn: 100 + turn)  # type: ignore[arg-type]
    )
    return episode, policy


def test_a_cut_turn_gets_its_end_from_the_template(chat: ChatTokens) -> None:
    """The end token it did not sample is in the tokens, for the next turn to read, and not its own."""
    ended = [*encode(chat, "search Peru"), chat.end_of_turn]
    rambling = encode(chat, "search search search search")
    answer = [*encode(chat, "answer Lima"), chat.end_of_turn]
    limit = len(rambling) - 1
    assert limit >= len(ended), "only the second turn is to be cut"
    episode, policy = play(chat, [ended, rambling, answer], Limits(4, limit, 500))
    cut = rambling[:limit]
    assert [step.finish for step in episode.steps] == ["stop", "length", "stop"]
    own = [episode.tokens[step.start : step.end] for step in episode.steps]
    assert own == [ended, cut, answer]
    assert episode.tokens[episode.steps[1].end] == chat.end_of_turn, "the template's, right behind the cut turn"
    assert episode.logprobs == [-1.0] * len(ended) + [-2.0] * len(cut) + [-3.0] * len(answer)
    conversation = [*TASK.prompt]
    for turn in (ended, cut):
        said = chat.text(turn)
        conversation += [{"role": "assistant", "content": said}, {"role": "user", "content": f"seen {said}"}]
    assert policy.seen[2][0] == chat.prompt(conversation), "the policy reads what the template renders"
    assert (episode.outcome, episode.reward, episode.token_drift) == ("success", 1.0, 0)


def test_a_turn_cut_by_the_episodes_length_is_the_last(chat: ChatTokens) -> None:
    rambling = encode(chat, "search search search search")
    room = len(rambling) - 2
    limits = Limits(4, 50, len(chat.prompt(TASK.prompt)) + room)
    episode, policy = play(chat, [rambling], limits)
    assert episode.tokens[episode.steps[0].start : episode.steps[0].end] == rambling[:room]
    assert len(episode.tokens) == limits.episode_tokens
    assert policy.seen[0][1] == room
    assert (episode.outcome, episode.reward) == ("truncated", 0.0)


def test_the_last_turn_is_not_followed_by_anything(chat: ChatTokens) -> None:
    turn = [*encode(chat, "search Peru"), chat.end_of_turn]
    episode, policy = play(chat, [turn, turn, turn], Limits(2, 50, 500))
    assert len(episode.steps) == 2
    assert episode.steps[-1].end == len(episode.tokens)
    assert [seed for _, _, seed in policy.seen] == [100, 101]
    assert episode.outcome == "truncated"
    assert episode.policy_versions == (7, 7)
