"""A batch survives its way from driver to trainer."""

import random

import pytest
import torch
from safetensors.torch import save

from megatron_empg.actor.packing import Sequence
from megatron_empg.trainer.batch import Batch, engine_table, without_texts
from megatron_empg.trainer.evaluation import Evaluation


def some_batch() -> Batch:
    sequences = [
        Sequence(torch.arange(9), torch.tensor([[2, 4], [6, 9]]), {"rollout_logprobs": torch.randn(5)}),
        Sequence(torch.tensor([151_000, 7, 8]), torch.tensor([[1, 2]]), {"rollout_logprobs": torch.randn(1)}),
        Sequence(torch.tensor([1, 2]), torch.empty(0, 2).long(), {"rollout_logprobs": torch.empty(0)}),
    ]
    return Batch(
        sequences,
        rewards=torch.tensor([1.0, 0.0, 0.25]),
        groups=torch.tensor([0, 0, 3]),
        policy_versions=torch.tensor([[4, 4], [4, 5], [5, 5]]),
        episodes=[{"question": 'Straße "x"\u2028 \U0001f40d', "turns": []}, {}, {"turns": [{"text": "\x00"}]}],
        metrics={"train/reward": 0.1 + 0.2, "train/groups_kept": 2},
        engines=torch.tensor([1, 0, -1]),
        engine_urls=["http://a:1", "http://b:2"],
        example='  turn 1 (stop): 東京\n"quoted"',
    )


def empty_batch() -> Batch:
    return Batch([], torch.empty(0), torch.empty(0).long(), torch.empty(0, 2).long(), [], {"train/groups_kept": 0})


@pytest.mark.parametrize("make", [some_batch, empty_batch])
def test_bytes_and_back(make) -> None:
    torch.manual_seed(0)
    batch = make()
    back = Batch.from_bytes(batch.to_bytes())
    for name in ("rewards", "groups", "policy_versions", "engines"):
        assert torch.equal(getattr(back, name), getattr(batch, name)), name
        assert getattr(back, name).dtype == getattr(batch, name).dtype, name
    assert (back.episodes, back.metrics) == (batch.episodes, batch.metrics)
    assert (back.engine_urls, back.example) == (batch.engine_urls, batch.example)
    assert len(back.sequences) == len(batch.sequences)
    for after, before in zip(back.sequences, batch.sequences, strict=True):
        assert torch.equal(after.tokens, before.tokens)
        assert torch.equal(after.steps, before.steps)
        assert torch.equal(after.values["rollout_logprobs"], before.values["rollout_logprobs"])


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
    ],
)
def test_anything_else_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="are not a batch"):
        Batch.from_bytes(broken)


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


def test_other_ranks_get_the_numbers_alone() -> None:
    data = some_batch().to_bytes()
    numbers = bytes(without_texts(data))
    assert "東京".encode() in data
    assert "東京".encode() not in numbers
    back = Batch.from_bytes(numbers)
    assert (back.episodes, back.example) == ([], "")
    assert back.metrics == some_batch().metrics
    assert torch.equal(back.sequences[1].tokens, torch.tensor([151_000, 7, 8]))


def test_texts_that_nobody_reads_do_not_travel() -> None:
    batch = some_batch()
    batch.episodes = [{"turns": [{"text": f"text of {i}"}]} for i in range(3)]
    of_one, of_all = (Batch.from_bytes(batch.to_bytes(texts)).episodes for texts in (1, 9))
    assert of_one == [batch.episodes[0], {}, {}]
    assert of_all == [batch.episodes[0], {}, batch.episodes[2]]  # the first of each group
    none = Batch.from_bytes(batch.to_bytes(0))
    assert none.episodes == [{}, {}, {}]
    assert none.example == batch.example


def test_a_thousand_long_episodes_are_one_batch() -> None:
    count, length, text = 1024, 100_000, 'x東\n"\\ '
    sequence = Sequence(torch.arange(3), torch.tensor([[1, 3]]), {"rollout_logprobs": torch.zeros(2)})
    batch = Batch(
        [sequence] * count,
        torch.zeros(count),
        torch.arange(count) // 8,
        torch.zeros(count, 2).long(),
        [{"turns": [{"text": text * (length // len(text) + 1)}]}] * count,
    )
    back = Batch.from_bytes(batch.to_bytes())
    assert all(len(episode["turns"][0]["text"]) >= length for episode in back.episodes)
    assert back.episodes[-1] == batch.episodes[0]
    assert len(batch.to_bytes(4)) < 10_000_000


def test_engines_are_named_by_their_place_in_a_table() -> None:
    places, urls = engine_table(["b", "", "a", "b", ""])
    assert (places.tolist(), urls) == ([1, -1, 0, 1, -1], ["a", "b"])
    batch = some_batch()
    assert [batch.engine_of(i) for i in (0, 1)] == ["http://b:2", "http://a:1"]
    assert "not noted" in batch.engine_of(2)


def test_metrics_of_an_evaluation() -> None:
    evaluation = Evaluation("test_id", True, 0.5, 98, 2, 3.1, {"two hops": 0.25})
    assert evaluation.metrics() == {
        "eval/test_id/greedy": 0.5, "eval/test_id/greedy_questions": 98, "eval/test_id/greedy_errors": 2,
        "eval/test_id/greedy/two hops": 0.25,
    }  # fmt: skip
    assert Evaluation(**evaluation.to_json()) == evaluation
