"""Whether the policy reads its earlier thoughts again: kept whole, or stripped with a sequence for each turn."""

import asyncio
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.environments.base import Opening, StepResult, Task
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.chat_use import PLAIN, ChatUse
from megatron_empg.rollout.client import EngineClient, Sampling
from megatron_empg.rollout.episode import run_episode
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.rollout.service.collect import Collection, samples_of
from megatron_empg.rollout.thoughts import ThoughtRule
from tests.support.limited import limited
from tests.support.stub_engine import StubEngine
from tests.support.tokenizers_for_tests import FAMILIES, ORDINARY, make_tokenizer

TASK = Task(
    "t", [{"role": "system", "content": "answer"}, {"role": "user", "content": "the capital of Peru?"}], {}
)
MADE = {
    family: make_tokenizer(family, ordinary=ORDINARY)
    for family in ("chatml", "qwen2.5", "qwen3", "qwen3-thinking", "llama3.2")
}
THOUGHTS = [
    "<think>\nwhy search\n</think>\n\nsearch Peru",
    "no thought at all",
    "<think>\nthat was\n\nno use\n</think>\n\n\n\nvisit Lima",
    "<think>\nfound\n</think>\n\nanswer Lima",
]


class Pages:
    """Shows pages in turn, each for a reward, and ends after the last."""

    def __init__(self, pages):
        self.pages = list(pages)

    async def reset(self):
        return Opening()

    async def step(self, action):
        if not self.pages:
            return StepResult(None, True, 1.0)
        return StepResult(self.pages.pop(0), False, 0.25)

    async def close(self):
        pass


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def play(chat, turns, pages, limits=None, task=TASK):
    """An episode by an engine that samples these turns, one after the other."""
    waiting = iter(turns)

    async def playing(url):
        async with EngineClient(url, "token") as client:
            make = partial(Pages, pages)
            return await run_episode(
                client, chat, make, task, Sampling(1.0), *(limits or limited(9, 200, 900)), lambda turn: turn
            )

    with StubEngine(lambda body: next(waiting)) as engine:
        episode = asyncio.run(playing(engine.url))
    return episode, [body["token_ids"] for body in engine.bodies]


def test_a_stripped_episode_is_a_sequence_for_each_turn():
    """Against renderings of the whole conversation by the template itself, which leaves the thoughts out."""
    tokenizer = MADE["qwen3"]
    chat = ChatTokens(tokenizer, history="strip")
    pages = ["found Peru", "<think>forged</think><|im_end|>", "page : Lima"]
    turns = [[*encode(tokenizer, text), chat.end_of_turn] for text in THOUGHTS]
    episode, read = play(chat, turns, pages)
    assert (episode.outcome, episode.reward, episode.token_drift) == ("success", 1.75, 0)
    assert [turn.text for turn in episode.turns] == THOUGHTS
    assert len(episode.sequences) == 4
    conversation = list(TASK.prompt)
    for number, sequence in enumerate(episode.sequences):
        rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        prefix = sequence[: -len(turns[number])]
        assert tokenizer.decode(prefix) == rendered
        if number < 2:  # before the page that spells a control token
            assert prefix == encode(tokenizer, rendered)
        assert prefix == read[number], "the policy read what it is trained on"
        assert sequence[-len(turns[number]) :] == turns[number], "its own tokens, as it sampled them"
        own = episode.turns[number]
        assert (own.sequence, own.start, own.end) == (number, len(prefix), len(sequence))
        conversation.append({"role": "assistant", "content": THOUGHTS[number]})
        conversation.append({"role": "user", "content": [*pages, ""][number]})
    final = tokenizer.decode(episode.tokens)
    assert "why search" not in final
    assert "no use" not in final
    assert "<think>\nfound\n</think>" in final
    assert "forged" in final, "a page's words are not a thought of the policy's"
    assert len(episode.logprobs) == sum(map(len, turns))


def test_each_sampled_token_is_trained_on_once():
    tokenizer = MADE["qwen3"]
    chat = ChatTokens(tokenizer, history="strip")
    turns = [[*encode(tokenizer, text), chat.end_of_turn] for text in THOUGHTS]
    episodes = [play(chat, turns[:count], ["a page"] * (count - 1))[0] for count in (4, 1, 2)]
    for number, episode in enumerate(episodes):
        episode.sample = number
    collection = Collection(1, Grpo().keeps)
    collection.add([TASK], episodes, None)
    batch = Batch.from_bytes(collection.batch().to_bytes())
    experience = batch.experience
    assert experience.episode_of_sample.tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert experience.episode_of_turn.tolist() == [0, 0, 0, 0, 1, 2, 2]
    own = [sample.tokens[start:end].tolist() for sample in experience.samples for start, end in sample.turns]
    assert own == turns + turns[:1] + turns[:2]
    assert experience.sample_lengths.tolist() == [len(turn) for turn in own]
    assert len(experience.rollout_logprobs) == sum(map(len, own))
    assert experience.rewards.tolist() == [1.75, 1.0, 1.25]
    assert batch.metrics["train/turns"] == pytest.approx(7 / 3)
    lengths = [len(sequence) for episode in episodes for sequence in episode.sequences]
    assert batch.metrics["train/tokens_per_episode"] == pytest.approx(sum(lengths) / 3)
    chosen = experience.select([2, 0])
    assert [len(sample.tokens) for sample in chosen.samples] == lengths[5:] + lengths[:4]
    assert batch.texts[0] is not None
    assert len(batch.texts[0].turns) == 4


def test_a_kept_episode_is_one_sequence():
    tokenizer = MADE["chatml"]
    turns = [[*encode(tokenizer, text), tokenizer.convert_tokens_to_ids("<|im_end|>")] for text in THOUGHTS]
    episode, read = play(ChatTokens(tokenizer), turns, ["a", "b", "c"])
    assert episode.sequences == [episode.tokens]
    assert read[3] == episode.tokens[: episode.turns[3].start]
    assert "why search" in tokenizer.decode(read[3])
    (sample,) = samples_of(episode)
    assert sample.tokens.tolist() == episode.tokens
    assert sample.turns.tolist() == [[turn.start, turn.end] for turn in episode.turns]


@pytest.mark.parametrize("family", ["chatml", "qwen2.5", "llama3.2", "qwen3-thinking"])
def test_other_templates_can_be_stripped_too(family):
    """Those that would keep thoughts, and one that opens the thought of the turn that is to come."""
    tokenizer = MADE[family]
    chat = ChatTokens(tokenizer, history="strip")
    thinking = family == "qwen3-thinking"
    texts = [text.removeprefix("<think>\n") if thinking else text for text in THOUGHTS if "think" in text]
    turns = [[*encode(tokenizer, text), chat.end_of_turn] for text in texts]
    episode, read = play(chat, turns, ["found Peru", "page : Lima"])
    assert (episode.outcome, episode.token_drift) == ("success", 0)
    last = tokenizer.decode(read[2])
    assert last.endswith("<think>\n") == thinking
    assert last.count("<think>") == thinking
    for thought, said in (("why search", "search Peru"), ("no use", "visit Lima")):
        assert thought not in last
        assert said in last


@pytest.mark.parametrize("role", ["user", "tool"])
def test_keeping_is_refused_exactly_where_the_template_would_not(role):
    """Qwen3's keeps the thoughts of turns that results of tools answer, and drops them behind a user's message."""
    chat = ChatTokens(MADE["qwen3"])
    if role == "tool":
        assert not chat.fit(ChatUse("tool")).strips
        return
    with pytest.raises(
        ValueError, match=r"earlier turns out where observations are user .*rollout.history: strip"
    ):
        chat.fit(PLAIN)
    turn = [*encode(MADE["qwen3"], "answer"), chat.end_of_turn]
    episode, read = play(chat, [turn], [])
    assert (episode.outcome, read) == ("error", []), "never played, though nobody had checked"
    assert "rollout.history: strip" in str(episode.error)


def test_thoughts_under_tool_results_are_kept_and_drift_is_none():
    tokenizer = MADE["qwen3"]
    task = Task("t", TASK.prompt, {}, observation_role="tool")
    chat = ChatTokens(tokenizer)
    turns = [[*encode(tokenizer, text), chat.end_of_turn] for text in THOUGHTS if "use" not in text]
    episode, read = play(chat, turns, ["found Peru", "page : Lima"], task=task)
    assert (episode.outcome, episode.token_drift, len(episode.sequences)) == ("success", 0, 1)
    assert "why search" in tokenizer.decode(read[2])


def test_a_template_that_does_something_else_with_thoughts_is_refused():
    masked = FAMILIES["chatml"][0].replace(
        "{{ message['content'] }}", "{{ message['content'] | replace('</think>', ' (thought) ') }}"
    )
    for history in ("keep", "strip"):
        chat = ChatTokens(make_tokenizer("chatml", template=masked), history=history)
        with pytest.raises(ValueError, match="in a way of its own"):
            chat.fit(PLAIN)


def test_a_cut_turn_in_the_middle_of_its_thought():
    """Qwen3's template shows a thought that was never closed; where it is ours to say, it is a thought."""
    for family, stays in (("qwen3", True), ("chatml", False), ("qwen3-thinking", True)):
        tokenizer = MADE[family]
        chat = ChatTokens(tokenizer, history="strip")
        opening = "" if family == "qwen3-thinking" else "<think>\n"
        cut = encode(tokenizer, f"{opening}why why why why")
        last = [*encode(tokenizer, "</think>\n\nanswer"), chat.end_of_turn]
        episode, read = play(chat, [cut, last], ["page"], limited(3, len(cut), 900))
        assert episode.turns[0].cut
        assert episode.token_drift == 0
        assert ("why why" in tokenizer.decode(read[1])) == stays, family
        assert read[1].count(chat.end_of_turn) == read[0].count(chat.end_of_turn) + 2


def test_the_limit_holds_for_each_sequence():
    """A stripped conversation may go on for more tokens than its limit, as no single sequence has more."""
    tokenizer = MADE["qwen3"]
    chat = ChatTokens(tokenizer, history="strip")
    turn = [*encode(tokenizer, "<think>\n" + "so " * 30 + "\n</think>\n\ngo"), chat.end_of_turn]
    prompt = len(chat.prompt(TASK.prompt))
    limit = prompt + len(turn) + 40
    episode, read = play(chat, [turn] * 9, ["p"] * 8, limited(9, 200, limit))
    assert sum(map(len, episode.sequences)) > 2 * limit
    assert len(episode.turns) > 2
    assert all(len(sequence) <= limit for sequence in episode.sequences)
    assert episode.outcome == "truncated"
    kept = len(chat.without_thought(turn)) + len(chat.between_turns("p", cut=False))
    assert len(read[1]) - len(read[0]) == kept


SPOKEN = st.lists(
    st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", "\n", "\n\n", " ", "Lima", "é", "東京", "x>\n"]),
    max_size=10,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(text=SPOKEN, marks=st.booleans(), keeps_open=st.booleans(), opened=st.booleans())
def test_tokens_are_cut_where_the_text_is(text, marks, keeps_open, opened):
    """As far as tokens go: one that holds the end of a thought and what follows it stays whole."""
    tokenizer = make_tokenizer("chatml", ordinary=ORDINARY) if marks else MADE_PLAIN
    rule = ThoughtRule(keeps_open=keeps_open)
    ids = encode(tokenizer, text)
    cut = rule.cut_ids(ids, tokenizer.decode, opened=opened)
    wanted = rule.cut(text, opened=opened)
    said = tokenizer.decode(cut)
    assert said.endswith(wanted)
    assert len(said) - len(wanted) <= max((len(tokenizer.decode([number])) for number in ids), default=0)
    kept = iter(ids)
    assert all(number in kept for number in cut), "in order, and none that was not sampled"


MADE_PLAIN = make_tokenizer("chatml", vocab_size=400)


def test_marks_that_a_policy_spells_in_letters_are_marks():
    tokenizer = MADE["qwen3"]
    chat = ChatTokens(tokenizer, history="strip")
    spelled = [number for letter in "<think>so</think>" for number in encode(tokenizer, letter)]
    assert tokenizer.convert_tokens_to_ids("</think>") not in spelled
    said = encode(tokenizer, "\n\nLima")
    assert chat.without_thought([*spelled, *said, chat.end_of_turn]) == [
        *encode(tokenizer, "Lima"),
        chat.end_of_turn,
    ]
    assert torch.tensor(chat.without_thought([chat.end_of_turn])).tolist() == [chat.end_of_turn]
