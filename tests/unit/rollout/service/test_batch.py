"""A batch survives its way from driver to trainer."""

import random
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load, save

from megatron_empg.algorithms.sample import Sample
from megatron_empg.rollout.service.batch import Batch, account_in, engine_table, without_texts
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.rollout.service.experience import experience_of
from megatron_empg.rollout.service.slots import StreamAccount
from megatron_empg.run.episode_text import EpisodeText, TurnText
from tests.support.batches import batch_of, empty_batch


def some_batch() -> Batch:
    """Three episodes: one of two samples, one of one, and one whose sample has no turn."""
    samples = [
        Sample(torch.arange(9), torch.tensor([[2, 4], [6, 9]])),
        Sample(torch.arange(20, 26), torch.tensor([[5, 6]])),
        Sample(torch.tensor([151_000, 7, 8]), torch.tensor([[1, 2]])),
        Sample(torch.tensor([1, 2]), torch.empty(0, 2).long()),
    ]
    experience = experience_of(
        samples,
        torch.tensor([0, 0, 1, 2]),
        rewards=torch.tensor([1.0, 0.0, 0.25]),
        groups=torch.tensor([0, 0, 3]),
        rollout_logprobs=torch.randn(7),
        truncated=torch.tensor([False, True, False]),
        turn_rewards=torch.tensor([0.25, 0.25, 0.5, 0.0]),
        anchors=torch.tensor([-(2**63), 7, 7, 2**63 - 1]),
        cut=torch.tensor([False, True, False, True]),
        gold=[torch.tensor([5, 151_000]), torch.tensor([], dtype=torch.long), torch.tensor([9])],
    )
    return Batch(
        experience,
        policy_versions=torch.tensor([[4, 4], [4, 5], [5, 5]]),
        texts=[
            EpisodeText("a", 'Straße "x"\u2028 \U0001f40d', "success", []),
            None,
            EpisodeText("c", "", "truncated", [TurnText("\x00", None), TurnText("x", "東")]),
        ],
        metrics={"train/reward": 0.1 + 0.2, "train/groups_kept": 2},
        engines=torch.tensor([1, 0, -1]),
        engine_urls=["http://a:1", "http://b:2"],
        token_versions=torch.tensor([4, 4, 4, 4, 4, 4, 5]),
        account=StreamAccount(3, started=9, trained=5, dropped={"equal": 1}, unfinished=[2, 7, 8], numbers=[6, 1]),
        example='  turn 1 (stop): 東京\n"quoted"',
        untrained=[EpisodeText("d", "?", "error", [], "<|im_start|>", 0.5, "OSError: 東")],
    )


def nothing() -> Batch:
    return empty_batch(metrics={"train/groups_kept": 0})


@pytest.mark.parametrize("make", [some_batch, nothing])
def test_bytes_and_back(make) -> None:
    torch.manual_seed(0)
    batch = make()
    back = Batch.from_bytes(batch.to_bytes())
    assert torch.equal(back.policy_versions, batch.policy_versions)
    assert torch.equal(back.token_versions, batch.token_versions)
    assert back.account == batch.account
    assert torch.equal(back.engines, batch.engines)
    assert (back.texts, back.metrics) == (batch.texts, batch.metrics)
    assert (back.engine_urls, back.example) == (batch.engine_urls, batch.example)
    assert back.untrained == batch.untrained
    for field in fields(batch.experience):
        before, after = getattr(batch.experience, field.name), getattr(back.experience, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(after, before), field.name
            assert after.dtype == before.dtype, field.name
    gold = zip(back.experience.gold, batch.experience.gold, strict=True)
    assert all(torch.equal(after, before) for after, before in gold)
    for after, before in zip(back.experience.samples, batch.experience.samples, strict=True):
        assert torch.equal(after.tokens, before.tokens)
        assert torch.equal(after.turns, before.turns)


def test_an_episode_may_hold_several_samples_and_its_turns_stay_in_theirs() -> None:
    experience = Batch.from_bytes(some_batch().to_bytes()).experience
    assert experience.episode_of_sample.tolist() == [0, 0, 1, 2]
    assert experience.episode_of_turn.tolist() == [0, 0, 0, 1]
    assert experience.turn_lengths.tolist() == [2, 3, 1, 1]
    assert experience.episode_lengths.tolist() == [6, 1, 0]


def other_tensors() -> bytes:
    numbers = save({"weight": torch.zeros(2)})
    return len(numbers).to_bytes(8, "little") + numbers


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"no batch at all",
        some_batch().to_bytes()[:-9],
        other_tensors(),
        bytes(without_texts(some_batch().to_bytes())) + b"[1, 2]",
        bytes(without_texts(some_batch().to_bytes())) + b'{"episodes": [{}, null, null]}',
        bytes(without_texts(some_batch().to_bytes())) + b'{"episodes": [null]}',
        bytes(without_texts(some_batch().to_bytes())) + b'{"example": 3}',
    ],
)
def test_anything_else_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="are not a batch"):
        Batch.from_bytes(broken)


@pytest.mark.parametrize("name", ["metrics", "engine_urls"])
@pytest.mark.parametrize("text", ["null", "3", '"a"', "[1]", '{"a": null}', '{"a": "b"}', "[", "[" * 100_000])
def test_a_header_of_other_types_is_refused(name: str, text: str) -> None:
    numbers = bytes(without_texts(some_batch().to_bytes()))[8:]
    changed = save(load(numbers), {"metrics": "{}", "engine_urls": "[]", name: text})
    with pytest.raises(ValueError, match="are not a batch"):
        Batch.from_bytes(len(changed).to_bytes(8, "little") + changed)


def with_tensor(name: str, value: torch.Tensor) -> bytes:
    """The batch's bytes with one of its tensors replaced, and no text."""
    numbers = bytes(without_texts(some_batch().to_bytes()))[8:]
    changed = save({**load(numbers), name: value}, {"metrics": "{}", "engine_urls": "[]"})
    return len(changed).to_bytes(8, "little") + changed


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("groups", torch.zeros(3), r"groups is torch.float32 .*must be torch.int64"),
        ("anchors", torch.zeros(3, dtype=torch.long), "anchors has 3 values, .* 4 turns"),
        ("turn_rewards", torch.zeros(5), "turn_rewards has 5 values"),
        ("truncated", torch.zeros(4, dtype=torch.bool), "truncated has 4 values, the experience has 3 episodes"),
        ("episode_of_sample", torch.tensor([0, 1, 0, 2]), "must ascend within 0 to 2"),
        ("episode_of_sample", torch.tensor([0, 0, 1, 3]), "must ascend within 0 to 2"),
        ("episode_of_sample", torch.tensor([-1, 0, 1, 2]), "must ascend within 0 to 2"),
        ("turn_counts", torch.tensor([2, 1, 2, -1]), "are not a batch"),
        ("rollout_logprobs", torch.zeros(6), "rollout_logprobs has 6 values"),
        ("policy_versions", torch.zeros(3, dtype=torch.long), "policy versions or engines are not of 3 episodes"),
        ("engines", torch.zeros(2, dtype=torch.long), "policy versions or engines are not of 3 episodes"),
        ("engines", torch.zeros(3), "policy versions or engines are not int64"),
        ("token_versions", torch.zeros(6, dtype=torch.int32), r"token_versions is torch.int32 of \(6,\)"),
        ("token_versions", torch.zeros(7), "token_versions is torch.float32"),
        ("gold_lengths", torch.tensor([2, 1]), "gold has 2 values"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_by_name(name: str, value: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Batch.from_bytes(with_tensor(name, value))


def test_a_flipped_byte_is_a_batch_or_refused() -> None:
    data, rng = some_batch().to_bytes(), random.Random(0)
    refused = 0
    for _ in range(500):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] = rng.randrange(256)
        try:
            Batch.from_bytes(bytes(flipped))
        except ValueError:
            refused += 1
    assert refused > 100


def test_where_the_stream_stands_can_be_read_without_the_numbers() -> None:
    assert account_in(some_batch().to_bytes()) == some_batch().account
    assert account_in(nothing().to_bytes()) is None
    with pytest.raises(ValueError, match="are not a batch"):
        account_in(some_batch().to_bytes()[:-9])


def test_tokens_without_versions_have_the_oldest_of_their_episode() -> None:
    versions = torch.tensor([[4, 5], [6, 6]])
    batch = batch_of([[(1, 3)], [(2, 3)]], [0.0, 0.0], [0, 0], policy_versions=versions)
    assert batch.token_versions.tolist() == [4, 4, 6]


def test_other_ranks_get_the_numbers_alone() -> None:
    data = some_batch().to_bytes()
    numbers = bytes(without_texts(data))
    assert "東京".encode() in data
    assert "東京".encode() not in numbers
    back = Batch.from_bytes(numbers)
    assert (back.texts, back.example, back.account) == ([], "", None)
    assert torch.equal(back.token_versions, some_batch().token_versions)
    assert back.metrics == some_batch().metrics
    assert torch.equal(back.experience.samples[2].tokens, torch.tensor([151_000, 7, 8]))


def text_of(words: str) -> EpisodeText:
    return EpisodeText("task", "question", "success", [TurnText(words)])


def test_texts_that_nobody_reads_do_not_travel() -> None:
    batch = some_batch()
    batch.texts = [text_of(f"text of {i}") for i in range(3)]
    of_one, of_two, of_nine = (Batch.from_bytes(batch.to_bytes(texts)).texts for texts in (1, 2, 9))
    assert of_one == [batch.texts[0], None, None]
    assert of_two == [batch.texts[0], None, batch.texts[2]], "the first of each group before a second one"
    assert of_nine == batch.texts
    none = Batch.from_bytes(batch.to_bytes(0))
    assert none.texts == [None, None, None]
    assert none.example == batch.example


def test_a_thousand_long_episodes_are_one_batch() -> None:
    count, length, text = 1024, 100_000, 'x東\n"\\ '
    long = text_of(text * (length // len(text) + 1))
    groups = [number // 8 for number in range(count)]
    batch = batch_of([[(1, 3)]] * count, [0.0] * count, groups, texts=[long] * count)
    back = Batch.from_bytes(batch.to_bytes())
    assert back.texts == batch.texts
    assert len(batch.to_bytes(4)) < 10_000_000


def test_engines_are_named_by_their_place_in_a_table() -> None:
    places, urls = engine_table(["b", "", "a", "b", ""])
    assert (places.tolist(), urls) == ([1, -1, 0, 1, -1], ["a", "b"])
    batch = some_batch()
    assert [batch.engine_of(i) for i in (0, 1)] == ["http://b:2", "http://a:1"]
    assert "not noted" in batch.engine_of(2)


def test_metrics_of_an_evaluation() -> None:
    evaluation = Evaluation("test_id", True, 0.5, 98, 2, 3.1, {"two hops": 0.25}, "01")
    assert evaluation.series == "test_id/greedy"
    assert evaluation.metrics() == {
        "eval/test_id/greedy": 0.5, "eval/test_id/greedy_questions": 98, "eval/test_id/greedy_errors": 2,
        "eval/test_id/greedy/two hops": 0.25,
    }  # fmt: skip
    assert Evaluation(**evaluation.to_json()) == evaluation
